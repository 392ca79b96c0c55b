CREATE OR REPLACE VIEW metrics.decisions AS
SELECT d.stream, d.decision_id, d.decided_at, d.verdict, d.champion, d.challenger, d.reason, d.seq, d.epoch_first, d.epoch_last,
    (d.evidence ->> 'log_e')::double precision AS log_e, (d.evidence ->> 'log_e_needed')::double precision AS log_e_needed,
    d.decided_by, d.approved_by, d.dag_run_id, d.run_type, d.comparison_id
FROM headrace.decisions AS d;
COMMENT ON VIEW metrics.decisions IS 'Every verdict with its reason: who decided, on which evidence, in which Airflow run.';
COMMENT ON COLUMN metrics.decisions.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.decisions.decision_id IS 'Number of the decision.';
COMMENT ON COLUMN metrics.decisions.decided_at IS 'When it was made.';
COMMENT ON COLUMN metrics.decisions.verdict IS 'first, promote, keep, retire or rollback.';
COMMENT ON COLUMN metrics.decisions.champion IS 'Version that served before it.';
COMMENT ON COLUMN metrics.decisions.challenger IS 'Version that it is about; after promote and rollback it serves.';
COMMENT ON COLUMN metrics.decisions.reason IS 'Why, in one sentence with its numbers.';
COMMENT ON COLUMN metrics.decisions.seq IS 'Last entry of the log when it was made: the new champion serves from the next one.';
COMMENT ON COLUMN metrics.decisions.epoch_first IS 'First epoch of the evidence.';
COMMENT ON COLUMN metrics.decisions.epoch_last IS 'Last epoch of the evidence.';
COMMENT ON COLUMN metrics.decisions.log_e IS 'Evidence: the natural logarithm of the e-process.';
COMMENT ON COLUMN metrics.decisions.log_e_needed IS 'What it had to reach.';
COMMENT ON COLUMN metrics.decisions.decided_by IS 'compare (the rule) or a person through the command line or a form.';
COMMENT ON COLUMN metrics.decisions.approved_by IS 'Who approved it, where the policy asks for approval.';
COMMENT ON COLUMN metrics.decisions.dag_run_id IS 'Airflow run that made it; NULL outside Airflow.';
COMMENT ON COLUMN metrics.decisions.run_type IS 'scheduled or manual; NULL outside Airflow.';
COMMENT ON COLUMN metrics.decisions.comparison_id IS 'Comparison that it belongs to.';
