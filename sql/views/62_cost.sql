CREATE OR REPLACE VIEW metrics.cost AS
SELECT m.stream, m.version, v.recipe, m.epoch, m.mode, m.learned + m.left_out AS labels, m.cpu_seconds, m.peak_rss_bytes, m.written_at
FROM headrace.epoch_metrics AS m JOIN headrace.versions AS v USING (stream, version);
COMMENT ON VIEW metrics.cost IS 'What learning costs: CPU and memory of each version and epoch.';
COMMENT ON COLUMN metrics.cost.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.cost.version IS 'Name of the version.';
COMMENT ON COLUMN metrics.cost.recipe IS 'Name of its recipe.';
COMMENT ON COLUMN metrics.cost.epoch IS 'Number of the epoch.';
COMMENT ON COLUMN metrics.cost.mode IS 'live or replay: compare CPU only within one of them.';
COMMENT ON COLUMN metrics.cost.labels IS 'Labels that came: learned, or left out by the stream''s negative_rate.';
COMMENT ON COLUMN metrics.cost.cpu_seconds IS 'CPU time of the learner''s process over the epoch.';
COMMENT ON COLUMN metrics.cost.peak_rss_bytes IS 'Peak resident memory of the learner''s process so far.';
COMMENT ON COLUMN metrics.cost.written_at IS 'When the row became durable.';
