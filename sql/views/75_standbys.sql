CREATE OR REPLACE VIEW metrics.standbys AS
SELECT s.stream, s.role, s.holder, s.seq, p.seq - s.seq AS entries_behind, s.reported_at
FROM headrace.standbys AS s JOIN headrace.intake_positions AS p USING (stream)
WHERE s.reported_at > now() - interval '10 seconds';
COMMENT ON VIEW metrics.standbys IS 'Processes that follow the log and take a role over when its holder dies, hangs or loses its connection.';
COMMENT ON COLUMN metrics.standbys.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.standbys.role IS 'intake, or the version that learns.';
COMMENT ON COLUMN metrics.standbys.holder IS 'The process, as host:pid.';
COMMENT ON COLUMN metrics.standbys.seq IS 'Last entry of the log that it knows.';
COMMENT ON COLUMN metrics.standbys.entries_behind IS 'Entries behind the log''s end.';
COMMENT ON COLUMN metrics.standbys.reported_at IS 'When it last said so.';
