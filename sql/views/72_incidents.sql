CREATE OR REPLACE VIEW metrics.incidents AS
SELECT i.stream, i.incident_id, i.role, i.state,
    i.message || CASE WHEN i.state = 'diverged' AND i.closed_at IS NULL AND NOT v.rebuildable
        THEN '; the base of ' || i.version || ' is gone (' || v.why_not_rebuildable
            || '), so no rebuild can tell: this state ends when the version is retired'
        ELSE '' END AS message,
    i.opened_at, i.closed_at
FROM headrace.incidents AS i LEFT JOIN headrace.versions AS v ON v.stream = i.stream AND v.version = i.version;
COMMENT ON VIEW metrics.incidents IS 'What went wrong, in a named state, with what repairs it.';
COMMENT ON COLUMN metrics.incidents.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.incidents.incident_id IS 'Number of the incident.';
COMMENT ON COLUMN metrics.incidents.role IS 'Worker that reported it.';
COMMENT ON COLUMN metrics.incidents.state IS 'Name of the state.';
COMMENT ON COLUMN metrics.incidents.message IS 'What was found and what repairs it, or that nothing can.';
COMMENT ON COLUMN metrics.incidents.opened_at IS 'When it began.';
COMMENT ON COLUMN metrics.incidents.closed_at IS 'When it ended; NULL while it lasts.';
