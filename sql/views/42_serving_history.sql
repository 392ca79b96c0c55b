CREATE OR REPLACE VIEW metrics.serving_history AS
SELECT h.stream, h.version, v.recipe, h.seq_first, h.seq_last, h.during, h.why, h.decision_id
FROM headrace.serving_history AS h JOIN headrace.versions AS v USING (stream, version);
COMMENT ON VIEW metrics.serving_history IS 'Who served from which entry of the log to which, and why; no gap and no overlap.';
COMMENT ON COLUMN metrics.serving_history.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.serving_history.version IS 'Version that served.';
COMMENT ON COLUMN metrics.serving_history.recipe IS 'Name of its recipe.';
COMMENT ON COLUMN metrics.serving_history.seq_first IS 'First entry that it served.';
COMMENT ON COLUMN metrics.serving_history.seq_last IS 'Last entry that it served; NULL while it serves.';
COMMENT ON COLUMN metrics.serving_history.during IS 'From when to when.';
COMMENT ON COLUMN metrics.serving_history.why IS 'Reason of the decision that made it champion.';
COMMENT ON COLUMN metrics.serving_history.decision_id IS 'The decision.';
