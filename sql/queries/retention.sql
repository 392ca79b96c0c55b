-- log_sizes: the log's partitions by number, with the bytes of both tables
SELECT split_part(c.relname, '_', 2)::integer, sum(pg_total_relation_size(c.oid))::bigint
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent IN (%(events)s::regclass, %(labels)s::regclass) GROUP BY 1 ORDER BY 1;

-- watermark_at: the stream's clock at an entry
SELECT watermark FROM {schema}.segments WHERE seq_first <= %(seq)s ORDER BY seq_first DESC LIMIT 1;

-- readers: versions that run or may yet, with the oldest of the checkpoints that they may start from again
SELECT v.version, v.status, coalesce((SELECT min(n.seq) FROM (SELECT c.seq FROM headrace.checkpoints AS c
    WHERE (c.stream, c.version) = (v.stream, v.version) ORDER BY c.seq DESC LIMIT %(keep)s) AS n), v.first_seq - 1)
FROM headrace.versions AS v
WHERE v.stream = %(stream)s AND v.status NOT IN ('retired', 'rejected') ORDER BY v.number;

-- evidence_ranges: versions that are compared with the champion, and from where on their evidence is
SELECT v.version, v.status, h.version, greatest(h.seq_first, v.evidence_seq) FROM headrace.versions AS v
JOIN headrace.serving_history AS h ON h.stream = v.stream AND h.seq_last IS NULL
WHERE v.stream = %(stream)s AND v.status IN ('shadow', 'probation') ORDER BY v.number;

-- first_waiting: the first event of a range that has no label yet
SELECT min(e.seq) FROM {schema}.events AS e WHERE e.seq BETWEEN %(seq_first)s AND %(seq_last)s
    AND NOT EXISTS (SELECT FROM {schema}.labels AS l WHERE l.event_seq = e.seq AND l.kind <> 'correction');

-- last_answer: the last label, among those that models read, of an event of a range
SELECT max(seq) FROM {schema}.labels WHERE event_seq BETWEEN %(seq_first)s AND %(seq_last)s AND (kind <> 'correction' OR %(late)s);

-- answers_since: such labels after a seq
SELECT count(*) FROM {schema}.labels WHERE seq > %(seq)s AND event_seq BETWEEN %(seq_first)s AND %(seq_last)s
    AND (kind <> 'correction' OR %(late)s);

-- range_counts: entries of a range by origin, and how many of its labels epochs count
SELECT s.origin, count(*) FILTER (WHERE l.kind IS NULL), count(*) FILTER (WHERE l.kind = 'observed'),
    count(*) FILTER (WHERE l.kind = 'timeout'), count(*) FILTER (WHERE l.kind = 'correction'),
    count(*) FILTER (WHERE l.kind <> 'correction' AND l.y IS NOT NULL), max(l.event_time)
FROM (SELECT seq, NULL::headrace.label_kind AS kind, NULL::double precision AS y, event_time FROM {schema}.events
        WHERE seq BETWEEN %(seq_first)s AND %(seq_last)s
    UNION ALL SELECT seq, kind, y, NULL FROM {schema}.labels WHERE seq BETWEEN %(seq_first)s AND %(seq_last)s) AS l
JOIN {schema}.segments AS s ON s.seq_first = (SELECT max(t.seq_first) FROM {schema}.segments AS t WHERE t.seq_first <= l.seq)
GROUP BY s.origin;

-- keep_past: until this connection lets go or ends, nothing of the log is dropped or erased
SELECT pg_advisory_lock_shared(hashtextextended('headrace/' || %(stream)s || '/past', 0));

-- let_past_go: it may be again
SELECT pg_advisory_unlock_shared(hashtextextended('headrace/' || %(stream)s || '/past', 0));

-- claim_role: whether no connection holds a lock on this; then this transaction does
SELECT pg_try_advisory_xact_lock(hashtextextended('headrace/' || %(stream)s || '/' || %(role)s, 0));

-- act_as: take another group role until the transaction ends
SELECT set_config('role', %(role)s, true);

-- lock_timeout: give up soon, in this transaction, instead of making others wait
SELECT set_config('lock_timeout', %(lock_timeout)s, true);

-- lock_log: nobody reads or writes the log until the transaction ends
LOCK TABLE ONLY {schema}.events, ONLY {schema}.labels IN ACCESS EXCLUSIVE MODE;

-- detach_partition: it is no part of the log any more
ALTER TABLE {schema}.{parent} DETACH PARTITION {schema}.{name};

-- drop_partition: a partition that was detached
DROP TABLE {schema}.{name};

-- drop_segments: segments of a range that is gone
DELETE FROM {schema}.segments WHERE seq_last <= %(seq_last)s;

-- cut_segment: the segment over the end of a range that is gone begins after it
UPDATE {schema}.segments SET seq_first = %(seq_last)s + 1 WHERE seq_first <= %(seq_last)s;

-- add_retention: a partition that was dropped, with what it held
INSERT INTO headrace.retention (stream, partition, seq_first, seq_last, read_seq, event_time_last, bytes, counts, labelled, segments, why)
VALUES (%(stream)s, %(partition)s, %(seq_first)s, %(seq_last)s, %(read_seq)s, %(event_time_last)s, %(bytes)s, %(counts)s, %(labelled)s,
    %(segments)s, %(why)s);

-- dropped_through: the last entry that retention dropped
SELECT coalesce(max(seq_last), 0) FROM headrace.retention WHERE stream = %(stream)s;

-- intact_after: a state at this seq or later never reads again what was dropped or erased
SELECT greatest((SELECT coalesce(max(read_seq), 0) FROM headrace.retention WHERE stream = %(stream)s),
    (SELECT coalesce(max(read_seq), 0) FROM headrace.erasures WHERE stream = %(stream)s));

-- not_rebuildable: versions that would read what is gone
UPDATE headrace.versions SET rebuildable = false, why_not_rebuildable = %(why)s
WHERE stream = %(stream)s AND rebuildable AND first_seq <= %(read_seq)s RETURNING version;

-- why_not_rebuildable: why a version cannot be rebuilt from its base; NULL when it can
SELECT why_not_rebuildable FROM headrace.versions WHERE stream = %(stream)s AND version = %(version)s;

-- first_checkpoint_after: a version's oldest checkpoint at a seq or later
SELECT min(seq) FROM headrace.checkpoints WHERE stream = %(stream)s AND version = %(version)s AND seq >= %(seq)s;

-- idle_versions: versions that nobody runs
SELECT version FROM headrace.versions WHERE stream = %(stream)s AND status IN ('retired', 'rejected') ORDER BY number;
