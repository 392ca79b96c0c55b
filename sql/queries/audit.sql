-- audit_log_counts: entries of the log by what they are and where they came from
SELECT s.origin, count(e.seq) AS events, 0::bigint AS observed, 0::bigint AS timeouts, 0::bigint AS corrections
FROM {schema}.events AS e
JOIN {schema}.segments AS s ON s.seq_first = (SELECT max(t.seq_first) FROM {schema}.segments AS t WHERE t.seq_first <= e.seq)
GROUP BY s.origin
UNION ALL
SELECT s.origin, 0, count(*) FILTER (WHERE l.kind = 'observed'), count(*) FILTER (WHERE l.kind = 'timeout'),
    count(*) FILTER (WHERE l.kind = 'correction')
FROM {schema}.labels AS l
JOIN {schema}.segments AS s ON s.seq_first = (SELECT max(t.seq_first) FROM {schema}.segments AS t WHERE t.seq_first <= l.seq)
GROUP BY s.origin;

-- audit_accounting: what the accounting says
SELECT origin, received, events, labels, corrections, held, quarantined, ignored, timeouts, doubled FROM headrace.accounting
WHERE stream = %(stream)s ORDER BY origin;

-- audit_dropped: entries that retention dropped, by what they were and where they came from
SELECT o.origin, sum((o.counts ->> 'events')::bigint)::bigint, sum((o.counts ->> 'observed')::bigint)::bigint,
    sum((o.counts ->> 'timeouts')::bigint)::bigint, sum((o.counts ->> 'corrections')::bigint)::bigint
FROM headrace.retention AS r, jsonb_each(r.counts) AS o(origin, counts) WHERE r.stream = %(stream)s GROUP BY o.origin;

-- audit_gone: labels that epochs count and the log has no more, dropped or erased
SELECT coalesce((SELECT sum(labelled) FROM headrace.retention WHERE stream = %(stream)s), 0)::bigint
    + coalesce((SELECT sum(labelled) FROM headrace.erasures WHERE stream = %(stream)s), 0)::bigint;

-- audit_kept: rows that wait or were refused
SELECT (SELECT count(*) FROM {schema}.held), (SELECT count(*) FROM {schema}.quarantine);

-- audit_refused: refused rows by source table
SELECT relation, count(*) FROM {schema}.quarantine GROUP BY relation;

-- audit_seq: whether seq is dense
SELECT count(*), count(DISTINCT seq), min(seq), max(seq)
FROM (SELECT seq FROM {schema}.events UNION ALL SELECT seq FROM {schema}.labels) AS entries;

-- audit_segments: whether segments cover the log without gap or overlap
SELECT count(*), count(*) FILTER (WHERE seq_first <> before + 1), max(seq_last), sum(seq_last - seq_first + 1)
FROM (SELECT seq_first, seq_last, lag(seq_last, 1, %(dropped)s::bigint) OVER (ORDER BY seq_first) AS before FROM {schema}.segments) AS s;

-- audit_labels: labels that answer nothing, come before their event, or answer it twice
SELECT count(*), count(*) FILTER (WHERE e.seq IS NULL AND l.event_seq > %(dropped)s), count(*) FILTER (WHERE l.seq <= l.event_seq),
    (SELECT count(*) FROM (SELECT event_seq FROM {schema}.labels WHERE kind <> 'correction' GROUP BY event_seq HAVING count(*) > 1) AS twice)
FROM {schema}.labels AS l LEFT JOIN {schema}.events AS e ON e.seq = l.event_seq;

-- audit_epochs: epochs that leave a gap, overlap, or count labels that are not there
SELECT count(*), count(*) FILTER (WHERE seq_first <> before + 1), max(seq_last), sum(labels),
    (SELECT count(*) FROM {schema}.labels AS l WHERE l.kind <> 'correction' AND l.y IS NOT NULL AND l.seq <= max(e.seq_last))
FROM (SELECT seq_first, seq_last, labels, lag(seq_last, 1, 0::bigint) OVER (ORDER BY epoch) AS before
    FROM headrace.epochs WHERE stream = %(stream)s) AS e;

-- audit_learned: for each version, what it learned in each epoch against the labels of that epoch
SELECT m.version, count(*), min(m.epoch), max(m.epoch), sum(m.learned), sum(m.left_out), sum(m.labels), sum(m.unscored),
    count(*) FILTER (WHERE m.learned + m.left_out <> e.labels OR (m.left_out > 0 AND NOT v.config ? 'negatives')), count(*) FILTER (WHERE m.learned + m.left_out <> m.labels + m.unscored),
    count(*) FILTER (WHERE (m.seq_first, m.seq_last) <> (e.seq_first, e.seq_last)), min(m.seq_first), max(m.seq_last)
FROM headrace.epoch_metrics AS m JOIN headrace.epochs AS e USING (stream, epoch) JOIN headrace.versions AS v USING (stream, version)
WHERE m.stream = %(stream)s GROUP BY m.version ORDER BY m.version;

-- audit_checkpoints: each version's newest checkpoint
SELECT DISTINCT ON (version) version, seq, epoch, learned FROM headrace.checkpoints
WHERE stream = %(stream)s ORDER BY version, seq DESC;

-- audit_slices: epochs whose slices do not add up to the epoch
SELECT count(*), count(*) FILTER (WHERE s.labels <> m.labels OR s.positives <> m.positives
    OR abs(s.loss_sum - m.loss_sum) > 1e-6 + 1e-9 * abs(m.loss_sum))
FROM headrace.epoch_metrics AS m
JOIN (SELECT stream, version, epoch, slice, sum(labels) AS labels, sum(positives) AS positives, sum(loss_sum) AS loss_sum
    FROM headrace.slice_metrics GROUP BY stream, version, epoch, slice) AS s USING (stream, version, epoch)
WHERE m.stream = %(stream)s;

-- audit_serving: who served, in order
SELECT version, seq_first, seq_last, lower(during), upper(during) FROM headrace.serving_history
WHERE stream = %(stream)s ORDER BY decision_id;
