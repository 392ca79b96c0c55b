-- key_as_text: a key as the log would write it
SELECT %(key)s::{key_type}::text;

-- lock_intake: wait for the intake's transaction, and let it begin no other, until this one ends
SELECT token FROM headrace.leases WHERE stream = %(stream)s AND role = 'intake' FOR UPDATE;

-- find_key: a key's events, with their last labels among those that models read, and how many labels epochs count
SELECT e.seq, max(l.seq) FILTER (WHERE l.kind <> 'correction' OR %(late)s), count(*) FILTER (WHERE l.kind <> 'correction' AND l.y IS NOT NULL),
    count(*) FILTER (WHERE l.kind <> 'correction') = 0
FROM {schema}.events AS e LEFT JOIN {schema}.labels AS l ON l.event_seq = e.seq
WHERE e.key = %(key)s::{key_type} GROUP BY e.seq ORDER BY e.seq;

-- blank_events: what a model may know of an event; its seq stays, and of its time the day
UPDATE {schema}.events SET key = NULL, event_time = date_trunc('day', event_time, 'UTC'){features} WHERE seq = ANY (%(seqs)s);

-- blank_labels: what was said of an event; the seq and kind of its labels stay
UPDATE {schema}.labels SET y = NULL, y_before = NULL, label_time = NULL WHERE event_seq = ANY (%(seqs)s);

-- blank_quarantine: refused rows of a key; that something was refused stays
UPDATE {schema}.quarantine SET key = NULL, found = NULL, reason = 'erased', content = '{{}}'
WHERE key = %(key)s OR relation = %(events)s AND content ->> %(event_key)s = %(key)s
    OR relation = %(labels)s AND content ->> %(label_key)s = %(key)s;

-- forget_held: the label that waits for an event of a key
DELETE FROM {schema}.held WHERE key = %(key)s::{key_type};

-- restart_intake: whoever has the role finds that it is lost, and takes up what the tables say
UPDATE headrace.leases SET token = token + 1 WHERE stream = %(stream)s AND role = 'intake';

-- add_erasure: what was erased
INSERT INTO headrace.erasures (stream, key_sha256, seqs, read_seq, labelled, quarantined, held, reason, erased_by)
VALUES (%(stream)s, %(key_sha256)s, %(seqs)s, %(read_seq)s, %(labelled)s, %(quarantined)s, %(held)s, %(reason)s, %(erased_by)s)
RETURNING erasure_id;

-- erased_before: when a key was erased last
SELECT max(erased_at) FROM headrace.erasures WHERE stream = %(stream)s AND key_sha256 = %(key_sha256)s;
