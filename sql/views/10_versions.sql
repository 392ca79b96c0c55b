CREATE OR REPLACE VIEW metrics.versions AS
SELECT v.stream, v.version, v.recipe, v.status, v.first_seq, v.evidence_seq, (v.heldout ->> 'loss')::double precision AS heldout_loss,
    v.code_sha, v.engine ->> 'id' AS engine, v.definition_hash, v.rebuildable, v.dag_run_id, v.created_at,
    v.why_not_rebuildable, coalesce((v.config -> 'negatives' ->> 'rate')::double precision, 1) AS negative_rate
FROM headrace.versions AS v;
COMMENT ON VIEW metrics.versions IS 'Every version ever registered: what it is made of and whether it can be rebuilt from the retained log.';
COMMENT ON COLUMN metrics.versions.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.versions.version IS 'Name of the version: stream and number.';
COMMENT ON COLUMN metrics.versions.recipe IS 'Name of the recipe in the stream''s file.';
COMMENT ON COLUMN metrics.versions.status IS 'What it is now: candidate, catching_up, shadow, champion, probation, retired or rejected.';
COMMENT ON COLUMN metrics.versions.first_seq IS 'First entry of the log that it learns from online.';
COMMENT ON COLUMN metrics.versions.evidence_seq IS 'First entry whose epochs may count as evidence for it.';
COMMENT ON COLUMN metrics.versions.heldout_loss IS 'Mean loss, as verdicts have it, on the held-out end of its bootstrap window; NULL when it was not bootstrapped.';
COMMENT ON COLUMN metrics.versions.code_sha IS 'Hash of headrace''s own code when it was registered.';
COMMENT ON COLUMN metrics.versions.engine IS 'Short hash of code, library versions and CPU features: digests compare within one engine.';
COMMENT ON COLUMN metrics.versions.definition_hash IS 'Hash of the stream definition it was made for.';
COMMENT ON COLUMN metrics.versions.rebuildable IS 'Whether the log still holds every entry that it learned from, as it was.';
COMMENT ON COLUMN metrics.versions.dag_run_id IS 'The Airflow run that made it; NULL outside Airflow.';
COMMENT ON COLUMN metrics.versions.created_at IS 'When it was registered.';
COMMENT ON COLUMN metrics.versions.negative_rate IS 'Share of the negative labels that teach it, as it was registered; all are scored.';
COMMENT ON COLUMN metrics.versions.why_not_rebuildable IS 'What of the log retention dropped or an erasure blanked; NULL while it is rebuildable.';
