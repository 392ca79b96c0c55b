-- log_position: how far the log goes, and the stream's clock
SELECT seq, lsn::text, watermark, received_at, epoch, epoch_seq_first, epoch_labels, epoch_watermark_first,
    consistent_lsn::text, commit_time, slot, system_identifier, timeline, publication
FROM headrace.intake_positions WHERE stream = %(stream)s;

-- move_position: move seq and source position, in the log's own transaction
INSERT INTO headrace.intake_positions AS p (stream, slot, system_identifier, timeline, publication, consistent_lsn, lsn, seq, epoch, epoch_seq_first,
    epoch_labels, epoch_watermark_first, watermark, commit_time, received_at, updated_at)
VALUES (%(stream)s, %(slot)s, %(system_identifier)s, %(timeline)s, %(publication)s, %(lsn)s, %(lsn)s, %(seq)s, %(epoch)s, %(epoch_seq_first)s,
    %(epoch_labels)s, %(epoch_watermark_first)s, %(watermark)s, %(commit_time)s, %(received_at)s, now())
ON CONFLICT (stream) DO UPDATE SET slot = excluded.slot, system_identifier = excluded.system_identifier,
    timeline = excluded.timeline, publication = excluded.publication, lsn = excluded.lsn, seq = excluded.seq, epoch = excluded.epoch,
    epoch_seq_first = excluded.epoch_seq_first, epoch_labels = excluded.epoch_labels,
    epoch_watermark_first = excluded.epoch_watermark_first, watermark = excluded.watermark,
    commit_time = coalesce(excluded.commit_time, p.commit_time), received_at = coalesce(excluded.received_at, p.received_at),
    updated_at = now();

-- rest_position: move the source position past WAL that holds nothing for the stream
UPDATE headrace.intake_positions SET lsn = greatest(lsn, %(lsn)s::pg_lsn) WHERE stream = %(stream)s RETURNING lsn::text;

-- report_slot: what the intake saw of its slot at the source
UPDATE headrace.intake_positions SET slot_wal_bytes = %(slot_wal_bytes)s, safe_wal_bytes = %(safe_wal_bytes)s, updated_at = now()
WHERE stream = %(stream)s;

-- add_accounting: what became of the changes of a transaction
INSERT INTO headrace.accounting AS a (stream, origin, received, events, labels, corrections, held, quarantined, ignored, timeouts,
    doubled)
VALUES (%(stream)s, %(origin)s, %(received)s, %(events)s, %(labels)s, %(corrections)s, %(held)s, %(quarantined)s, %(ignored)s,
    %(timeouts)s, %(doubled)s)
ON CONFLICT (stream, origin) DO UPDATE SET received = a.received + excluded.received, events = a.events + excluded.events,
    labels = a.labels + excluded.labels, corrections = a.corrections + excluded.corrections, held = a.held + excluded.held,
    quarantined = a.quarantined + excluded.quarantined, ignored = a.ignored + excluded.ignored,
    timeouts = a.timeouts + excluded.timeouts, doubled = a.doubled + excluded.doubled;

-- notify: wake the learners of a stream, and tell how far its log goes by now
SELECT pg_notify(%(channel)s, %(told)s);

-- add_epoch: an epoch that the entries of this transaction filled
INSERT INTO headrace.epochs (stream, epoch, seq_first, seq_last, labels, watermark_first, watermark_last)
VALUES (%(stream)s, %(epoch)s, %(seq_first)s, %(seq_last)s, %(labels)s, %(watermark_first)s, %(watermark_last)s);

-- partition_entries: how many entries a partition of the stream's log has
SELECT partition_entries FROM headrace.streams WHERE stream = %(stream)s;

-- partitions: the log's partitions of a stream by name
SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = %(parent)s::regclass ORDER BY 1;

-- create_partition: a new partition, attached so that readers are not blocked
CREATE TABLE {schema}.{name} (LIKE {schema}.{parent} INCLUDING DEFAULTS INCLUDING INDEXES INCLUDING CONSTRAINTS);

-- attach_partition: make it part of the log
ALTER TABLE {schema}.{parent} ATTACH PARTITION {schema}.{name} FOR VALUES FROM ({first}) TO ({last});

-- index_closed_partition: closed partitions are looked up by {column}, the hot one is not
CREATE INDEX ON {schema}.{name} ({column});

-- write_events: events of a transaction
COPY {schema}.events (seq, {columns}) FROM STDIN (FORMAT binary);

-- write_labels: labels of a transaction
COPY {schema}.labels (seq, event_seq, kind, y, y_before, corrects, label_time) FROM STDIN (FORMAT binary);

-- write_segments: segments of a transaction
COPY {schema}.segments (seq_first, seq_last, lsn, commit_time, received_at, watermark, definition_hash, origin)
FROM STDIN (FORMAT binary);

-- write_quarantine: refused rows of a transaction
COPY {schema}.quarantine (relation, key, expectation, found, reason, content, lsn, origin, received_at) FROM STDIN (FORMAT text);

-- hold_labels: keep labels until their events come
INSERT INTO {schema}.held (key, y, label_time, deadline, lsn, received_at)
SELECT t.key::{key_type}, t.y, t.label_time, t.deadline, t.lsn, %(received_at)s
FROM unnest(%(keys)s::text[], %(ys)s::double precision[], %(label_times)s::timestamptz[], %(deadlines)s::timestamptz[],
    %(lsns)s::pg_lsn[]) WITH ORDINALITY AS t (key, y, label_time, deadline, lsn, place)
ORDER BY t.place
ON CONFLICT (key) DO UPDATE SET y = excluded.y, label_time = excluded.label_time, deadline = excluded.deadline,
    lsn = excluded.lsn, received_at = excluded.received_at;

-- release_labels: labels whose event came, or that were deleted
DELETE FROM {schema}.held WHERE key = ANY (%(keys)s::text[]::{key_type}[]);

-- past_events: what the log's entries before a seq say of events, by their keys
SELECT DISTINCT ON (e.seq) e.key::text, e.seq, l.seq, l.kind::text, l.y
FROM {schema}.events AS e
LEFT JOIN {schema}.labels AS l ON l.event_seq = e.seq AND l.seq < {before}
WHERE e.key = ANY (%(keys)s::text[]::{key_type}[]) AND e.seq < {before}
ORDER BY e.seq, l.seq DESC;

-- first_open: no entry before this one may still wait for its label
SELECT min(seq_first) FROM {schema}.segments WHERE watermark > %(since)s;

-- follow_events: the events of a range, with the keys of those from a seq on
COPY (
    SELECT seq, CASE WHEN seq >= {remembered} THEN key END FROM {schema}.events WHERE seq > {after} AND seq <= {upto} ORDER BY seq
) TO STDOUT (FORMAT binary);

-- read_held: labels that wait for their event, in the order in which they will be given up
COPY (SELECT key, y, label_time, deadline FROM {schema}.held ORDER BY held_id) TO STDOUT (FORMAT binary);

-- read_in_order: for long ranges; entries lie in order of seq, but a planner without statistics would collect and sort them
SELECT set_config('enable_sort', 'off', true);

-- read_in_any_order: the planner may sort again
SELECT set_config('enable_sort', 'on', true);

-- read_events: a range of events in order
COPY (SELECT seq, {columns} FROM {schema}.events WHERE seq > {after} AND seq <= {upto} ORDER BY seq) TO STDOUT (FORMAT binary);

-- read_events_by_seq: some events in order
COPY (SELECT seq, {columns} FROM {schema}.events WHERE seq = ANY ({seqs}) ORDER BY seq) TO STDOUT (FORMAT binary);

-- read_labels: a range of labels in order
COPY (
    SELECT seq, event_seq, CASE kind WHEN 'observed' THEN 0 WHEN 'timeout' THEN 1 ELSE 2 END, y, y_before, corrects
    FROM {schema}.labels WHERE seq > {after} AND seq <= {upto} ORDER BY seq
) TO STDOUT (FORMAT binary);

-- read_corrected: of labels that corrections replace the watermark, and whether they were time-outs; for it all partitions are planned
COPY (
    SELECT (SELECT s.watermark FROM {schema}.segments AS s WHERE s.seq_first <= t.seq ORDER BY s.seq_first DESC LIMIT 1),
        EXISTS (SELECT FROM {schema}.labels AS c WHERE c.seq = t.seq AND c.kind = 'timeout')
    FROM unnest({seqs}) WITH ORDINALITY AS t (seq, place) ORDER BY place
) TO STDOUT (FORMAT binary);

-- follow_labels: what a join must know of a range of labels
COPY (
    SELECT seq, event_seq, CASE kind WHEN 'observed' THEN 0 WHEN 'timeout' THEN 1 ELSE 2 END, y
    FROM {schema}.labels WHERE seq > {after} AND seq <= {upto} ORDER BY seq
) TO STDOUT (FORMAT binary);

-- read_segments: the segments that a range of seq touches
COPY (
    SELECT seq_first, watermark, received_at FROM {schema}.segments
    WHERE seq_first >= coalesce((SELECT max(s.seq_first) FROM {schema}.segments AS s WHERE s.seq_first <= {after} + 1), 0)
        AND seq_first <= {upto}
    ORDER BY seq_first
) TO STDOUT (FORMAT binary);

-- read_epochs: the epochs that end within a range of seq
COPY (
    SELECT epoch, seq_first, seq_last, labels, watermark_first, watermark_last
    FROM headrace.epochs WHERE stream = {stream} AND seq_last > {after} AND seq_last <= {upto} ORDER BY epoch
) TO STDOUT (FORMAT binary);
