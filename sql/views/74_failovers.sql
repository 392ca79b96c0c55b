CREATE OR REPLACE VIEW metrics.failovers AS
SELECT f.stream, f.role, f.from_holder, f.to_holder, f.why, f.taken_at,
    round(extract(epoch FROM f.ready_at - f.taken_at) * 1000, 1) AS ready_ms
FROM headrace.failovers AS f;
COMMENT ON VIEW metrics.failovers IS 'Roles that went from one process to another: it died, hung, or lost its connection.';
COMMENT ON COLUMN metrics.failovers.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.failovers.role IS 'intake, or the version that learns.';
COMMENT ON COLUMN metrics.failovers.from_holder IS 'Process that had the role, as host:pid.';
COMMENT ON COLUMN metrics.failovers.to_holder IS 'Process that took it over.';
COMMENT ON COLUMN metrics.failovers.why IS 'ended: its connection was gone; silent: it did not renew its lease in time, and its connection was ended.';
COMMENT ON COLUMN metrics.failovers.taken_at IS 'When the role was taken.';
COMMENT ON COLUMN metrics.failovers.ready_ms IS 'Milliseconds from then until the work went on; NULL when it has not yet.';
