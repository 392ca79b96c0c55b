CREATE OR REPLACE VIEW metrics.label_delay AS
SELECT NULL::text AS stream, NULL::date AS day, NULL::bigint AS events, NULL::interval AS p50, NULL::interval AS p99,
    NULL::double precision AS timeout_share, NULL::double precision AS late_share, NULL::bigint AS open_events
WHERE false
-- each stream
UNION ALL
SELECT {stream}, (e.event_time AT TIME ZONE 'UTC')::date, count(*),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY l.label_time - e.event_time) FILTER (WHERE l.kind = 'observed'),
    percentile_cont(0.99) WITHIN GROUP (ORDER BY l.label_time - e.event_time) FILTER (WHERE l.kind = 'observed'),
    count(*) FILTER (WHERE l.kind = 'timeout') / count(*)::double precision,
    coalesce(sum(c.corrections), 0)::double precision / count(*),
    count(*) FILTER (WHERE l.seq IS NULL)
FROM {schema}.events AS e
LEFT JOIN {schema}.labels AS l ON l.event_seq = e.seq AND l.kind <> 'correction'
LEFT JOIN (SELECT event_seq, count(*) AS corrections FROM {schema}.labels WHERE kind = 'correction' GROUP BY event_seq) AS c
    ON c.event_seq = e.seq
GROUP BY (e.event_time AT TIME ZONE 'UTC')::date;
COMMENT ON VIEW metrics.label_delay IS 'How long labels take, by day of their events, as far back as the log is kept.';
COMMENT ON COLUMN metrics.label_delay.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.label_delay.day IS 'Day of the events, UTC.';
COMMENT ON COLUMN metrics.label_delay.events IS 'Events of the day.';
COMMENT ON COLUMN metrics.label_delay.p50 IS 'Median time from an event to its label.';
COMMENT ON COLUMN metrics.label_delay.p99 IS '99th percentile of it.';
COMMENT ON COLUMN metrics.label_delay.timeout_share IS 'Share of events whose label did not come within the window.';
COMMENT ON COLUMN metrics.label_delay.late_share IS 'Corrections per event: labels that came after the window, or changed.';
COMMENT ON COLUMN metrics.label_delay.open_events IS 'Events that still wait for their label.';
