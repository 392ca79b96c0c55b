CREATE OR REPLACE VIEW metrics.incidents AS
SELECT i.stream, i.incident_id, i.role, i.state, i.message, i.opened_at, i.closed_at FROM headrace.incidents AS i;
COMMENT ON VIEW metrics.incidents IS 'What went wrong, in a named state, with what repairs it.';
COMMENT ON COLUMN metrics.incidents.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.incidents.incident_id IS 'Number of the incident.';
COMMENT ON COLUMN metrics.incidents.role IS 'Worker that reported it.';
COMMENT ON COLUMN metrics.incidents.state IS 'Name of the state.';
COMMENT ON COLUMN metrics.incidents.message IS 'What was found and what repairs it.';
COMMENT ON COLUMN metrics.incidents.opened_at IS 'When it began.';
COMMENT ON COLUMN metrics.incidents.closed_at IS 'When it ended; NULL while it lasts.';
