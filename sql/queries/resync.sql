-- log_forgot: latest time of the events that retention dropped; NULL when the log has all from the start
SELECT max(event_time_last) FROM headrace.retention WHERE stream = %(stream)s;

-- erased_keys: hashes of the keys that were erased
SELECT key_sha256 FROM headrace.erasures WHERE stream = %(stream)s;

-- refused_keys: keys that the quarantine has
SELECT DISTINCT key FROM {schema}.quarantine WHERE relation = ANY (%(relations)s) AND key = ANY (%(keys)s);

-- make_resync_keys: room for the keys of a source table
CREATE TEMPORARY TABLE resync_keys (key {key_type}) ON COMMIT DROP;

-- write_resync_keys: keys of a source table
COPY pg_temp.resync_keys (key) FROM STDIN (FORMAT binary);

-- labels_gone: keys whose last event has a label in the log, or that have one which waits for its event, and none at the source
COPY (
    (SELECT e.key FROM (SELECT DISTINCT ON (key) key, seq FROM {schema}.events ORDER BY key, seq DESC) AS e
    JOIN (SELECT DISTINCT ON (event_seq) event_seq, kind, y FROM {schema}.labels ORDER BY event_seq, seq DESC) AS l
        ON l.event_seq = e.seq AND l.kind <> 'timeout' AND l.y IS NOT NULL
    WHERE NOT EXISTS (SELECT FROM pg_temp.resync_keys AS k WHERE k.key = e.key) ORDER BY e.seq)
    UNION ALL
    (SELECT h.key FROM {schema}.held AS h
    WHERE NOT EXISTS (SELECT FROM pg_temp.resync_keys AS k WHERE k.key = h.key) ORDER BY h.held_id)
) TO STDOUT (FORMAT binary);

-- labels_unset: keys whose last event has a label in the log, and whose row has none at the source
COPY (
    SELECT e.key FROM (SELECT DISTINCT ON (key) key, seq FROM {schema}.events ORDER BY key, seq DESC) AS e
    JOIN (SELECT DISTINCT ON (event_seq) event_seq, kind, y FROM {schema}.labels ORDER BY event_seq, seq DESC) AS l
        ON l.event_seq = e.seq AND l.kind <> 'timeout' AND l.y IS NOT NULL
    WHERE EXISTS (SELECT FROM pg_temp.resync_keys AS k WHERE k.key = e.key) ORDER BY e.seq
) TO STDOUT (FORMAT binary);

-- add_gap: changes that nobody could read, and what was brought in instead
INSERT INTO headrace.gaps (stream, lsn_from, lsn_to, why, events, labels, corrections, quarantined, known, forgotten,
    refused, erased, seq_first, seq_last)
VALUES (%(stream)s, %(lsn_from)s, %(lsn_to)s, %(why)s, %(events)s, %(labels)s, %(corrections)s, %(quarantined)s, %(known)s,
    %(forgotten)s, %(refused)s, %(erased)s, %(seq_first)s, %(seq_last)s);

-- gaps: stretches of the change stream that a resync closed
SELECT lsn_from::text, lsn_to::text, why FROM headrace.gaps WHERE stream = %(stream)s ORDER BY gap_id;
