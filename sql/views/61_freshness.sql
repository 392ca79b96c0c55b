CREATE OR REPLACE VIEW metrics.freshness AS
SELECT h.stream, h.version, p.watermark, w.done AS learned_seq, p.seq AS log_seq, w.received_through AS learned_through,
    CASE WHEN w.done >= p.seq THEN interval '0' ELSE greatest(p.received_at - w.received_through, interval '0') END AS weights_age,
    (SELECT max(c.created_at) FROM headrace.checkpoints AS c WHERE (c.stream, c.version) = (h.stream, h.version)) AS checkpoint_at
FROM headrace.serving_history AS h
JOIN headrace.intake_positions AS p USING (stream)
LEFT JOIN headrace.worker_progress AS w ON w.stream = h.stream AND w.role = h.version
WHERE h.seq_last IS NULL;
COMMENT ON VIEW metrics.freshness IS 'How old the champion''s weights are.';
COMMENT ON COLUMN metrics.freshness.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.freshness.version IS 'The champion.';
COMMENT ON COLUMN metrics.freshness.watermark IS 'The stream''s clock.';
COMMENT ON COLUMN metrics.freshness.learned_seq IS 'Last entry that the champion learned.';
COMMENT ON COLUMN metrics.freshness.log_seq IS 'Last entry of the log.';
COMMENT ON COLUMN metrics.freshness.learned_through IS 'When the last entry that it learned was received.';
COMMENT ON COLUMN metrics.freshness.weights_age IS 'How much newer the newest entry of the log is than what the weights know.';
COMMENT ON COLUMN metrics.freshness.checkpoint_at IS 'When its last checkpoint was written.';
