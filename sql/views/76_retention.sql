CREATE OR REPLACE VIEW metrics.retention AS
SELECT r.stream, r.partition, r.seq_first, r.seq_last, sum((o.counts ->> 'events')::bigint)::bigint AS events,
    sum((o.counts ->> 'observed')::bigint)::bigint AS observed, sum((o.counts ->> 'timeouts')::bigint)::bigint AS timeouts,
    sum((o.counts ->> 'corrections')::bigint)::bigint AS corrections, r.event_time_last, r.segments, r.bytes, r.why, r.dropped_at
FROM headrace.retention AS r, jsonb_each(r.counts) AS o(origin, counts)
GROUP BY r.stream, r.partition;
COMMENT ON VIEW metrics.retention IS 'Partitions of the log that housekeeping dropped, and what they held. The log of a stream begins after the last of them.';
COMMENT ON COLUMN metrics.retention.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.retention.partition IS 'Number of the partition: of events_<number> and labels_<number>.';
COMMENT ON COLUMN metrics.retention.seq_first IS 'Its first entry.';
COMMENT ON COLUMN metrics.retention.seq_last IS 'Its last entry.';
COMMENT ON COLUMN metrics.retention.events IS 'Events that it held.';
COMMENT ON COLUMN metrics.retention.observed IS 'Observed labels that it held.';
COMMENT ON COLUMN metrics.retention.timeouts IS 'Time-outs that it held.';
COMMENT ON COLUMN metrics.retention.corrections IS 'Corrections that it held.';
COMMENT ON COLUMN metrics.retention.event_time_last IS 'Latest time of its events.';
COMMENT ON COLUMN metrics.retention.segments IS 'Segments that went with it.';
COMMENT ON COLUMN metrics.retention.bytes IS 'Bytes of its two tables with their indexes.';
COMMENT ON COLUMN metrics.retention.why IS 'What made it old enough or one too many.';
COMMENT ON COLUMN metrics.retention.dropped_at IS 'When it was dropped.';
