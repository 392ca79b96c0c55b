CREATE OR REPLACE VIEW metrics.lag AS
SELECT p.stream, 'intake' AS worker, p.seq AS position, p.seq AS log_seq, 0::bigint AS entries_behind,
    CASE WHEN coalesce(p.slot_wal_bytes, 0) > 0 AND p.updated_at < now() - interval '5 seconds'
        THEN now() - p.updated_at ELSE interval '0' END AS time_behind,
    p.slot_wal_bytes, p.safe_wal_bytes, p.lsn, p.watermark, p.updated_at AS reported_at
FROM headrace.intake_positions AS p
UNION ALL
SELECT w.stream, w.role, w.done, p.seq, p.seq - w.done,
    CASE WHEN p.seq > w.done THEN greatest(p.received_at - w.received_through, interval '0') ELSE interval '0' END,
    NULL, NULL, NULL, NULL, w.reported_at
FROM headrace.worker_progress AS w
JOIN headrace.intake_positions AS p USING (stream)
JOIN headrace.versions AS v ON v.stream = w.stream AND v.version = w.role AND v.status NOT IN ('retired', 'rejected');
COMMENT ON VIEW metrics.lag IS 'How far each worker is behind: the intake behind the source, learners behind the log.';
COMMENT ON COLUMN metrics.lag.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.lag.worker IS 'intake, or the version that learns.';
COMMENT ON COLUMN metrics.lag.position IS 'Last entry that the worker is through with.';
COMMENT ON COLUMN metrics.lag.log_seq IS 'Last entry of the log.';
COMMENT ON COLUMN metrics.lag.entries_behind IS 'Entries between them.';
COMMENT ON COLUMN metrics.lag.time_behind IS 'How much older the last entry learned is than the last one logged; for the intake, how long it has been silent while the slot keeps WAL.';
COMMENT ON COLUMN metrics.lag.slot_wal_bytes IS 'WAL that the slot keeps at the source, as the intake last saw it.';
COMMENT ON COLUMN metrics.lag.safe_wal_bytes IS 'WAL that can still be written before the slot is lost or given up: by the source''s max_slot_wal_keep_size, by policy.max_slot_bytes.';
COMMENT ON COLUMN metrics.lag.lsn IS 'Position at the source up to which everything is durable in the log.';
COMMENT ON COLUMN metrics.lag.watermark IS 'The stream''s clock.';
COMMENT ON COLUMN metrics.lag.reported_at IS 'When the worker last said so.';
