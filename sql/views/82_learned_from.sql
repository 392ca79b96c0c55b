CREATE OR REPLACE VIEW metrics.learned_from AS
SELECT NULL::text AS stream, NULL::text AS key, NULL::text AS version, NULL::bigint AS seq, NULL::bigint AS event_seq,
    NULL::text AS kind, NULL::double precision AS y, NULL::boolean AS served
WHERE false
-- each stream
UNION ALL
SELECT {stream}, e.key::text, v.version, l.seq, l.event_seq, l.kind::text, l.y,
    EXISTS (SELECT FROM headrace.serving_history AS h WHERE h.stream = {stream} AND h.version = v.version
        AND l.event_seq >= h.seq_first AND (h.seq_last IS NULL OR l.event_seq <= h.seq_last))
FROM {schema}.events AS e
JOIN {schema}.labels AS l ON l.event_seq = e.seq AND l.y IS NOT NULL
JOIN headrace.versions AS v ON v.stream = {stream}
    AND (v.heldout IS NOT NULL OR e.seq >= v.first_seq) -- a bootstrap trains on all that the log had
    AND l.seq <= (SELECT max(c.seq) FROM headrace.checkpoints AS c WHERE (c.stream, c.version) = (v.stream, v.version))
    AND (l.y <> 0 OR coalesce(headrace.negative_teaches(l.event_seq, (v.config -> 'negatives' ->> 'rate')::double precision), true))
    AND (l.kind <> 'correction' OR l.seq >= v.first_seq AND l.y IS DISTINCT FROM l.y_before
        AND (SELECT s.definition -> 'label' ->> 'on_late' FROM headrace.streams AS s WHERE s.stream = {stream}) <> 'ignore');
COMMENT ON VIEW metrics.learned_from IS 'Which versions learned from a given row, those that never served among them, as far back as the log is kept; negatives that a negative_rate left out taught nobody.';
COMMENT ON COLUMN metrics.learned_from.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.learned_from.key IS 'Key of the event, as text.';
COMMENT ON COLUMN metrics.learned_from.version IS 'Version that learned from it, offline in its bootstrap or online.';
COMMENT ON COLUMN metrics.learned_from.seq IS 'Entry of the label.';
COMMENT ON COLUMN metrics.learned_from.event_seq IS 'Entry of the event.';
COMMENT ON COLUMN metrics.learned_from.kind IS 'observed, timeout, or correction where the stream learns late labels.';
COMMENT ON COLUMN metrics.learned_from.y IS 'What was learned.';
COMMENT ON COLUMN metrics.learned_from.served IS 'Whether this version was champion when the event came.';
