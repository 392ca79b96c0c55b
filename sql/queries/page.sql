-- catching_up: what a version should be, and what its learner said last
SELECT v.status, coalesce(w.done, 0), coalesce(w.goal, 0), coalesce(w.per_second, 0)
FROM headrace.versions AS v
LEFT JOIN headrace.worker_progress AS w ON w.stream = v.stream AND w.role = v.version
WHERE v.stream = %(stream)s AND v.version = %(version)s;

-- version_statuses: what each version of a stream should be, oldest first
SELECT version, status, recipe FROM headrace.versions WHERE stream = %(stream)s ORDER BY number;

-- page_streams: each stream with who serves it, since when and why, and how far its log goes
SELECT s.stream, h.version, h.recipe, lower(h.during), h.why, p.seq, p.watermark, p.updated_at, now()
FROM headrace.streams AS s
LEFT JOIN metrics.serving_history AS h ON h.stream = s.stream AND h.seq_last IS NULL
LEFT JOIN headrace.intake_positions AS p ON p.stream = s.stream
ORDER BY s.stream;

-- page_leaderboard: the versions that run, the best one first
SELECT l.version, l.recipe, l.status, l.labels, l.loss, l.normalised_entropy, l.calibration, l.own_labels, l.own_loss, l.loss_kind, l.rmse, l.r2, l.bias
FROM metrics.leaderboard AS l
WHERE l.stream = %(stream)s AND l.status <> 'retired'
ORDER BY l.loss NULLS LAST, l.own_loss NULLS LAST, l.version;

-- page_race: loss of each running version over the last epochs, merged into at most 60 buckets
WITH last AS (
    SELECT e.epoch, (row_number() OVER (ORDER BY e.epoch) - 1) * least(60, count(*) OVER ()) / count(*) OVER () AS bucket
    FROM (SELECT epoch FROM headrace.epochs WHERE stream = %(stream)s ORDER BY epoch DESC LIMIT 240) AS e
)
SELECT m.version, l.bucket, sum(m.loss_sum) / nullif(sum(m.labels), 0), min(m.event_time), max(m.event_time_last)
FROM metrics.progressive AS m
JOIN last AS l USING (epoch)
JOIN headrace.versions AS v USING (stream, version)
WHERE m.stream = %(stream)s AND v.status IN ('champion', 'shadow', 'probation')
GROUP BY m.version, l.bucket
HAVING sum(m.labels) > 0
ORDER BY m.version, l.bucket;

-- page_comparisons: open comparisons with the evidence of their last look
SELECT c.champion, c.challenger, v.recipe, c.rule, c.labels, c.gain, c.gain_low, c.gain_high, c.log_e, c.log_e_needed, c.missing,
    c.looked_at
FROM metrics.comparisons AS c
LEFT JOIN headrace.versions AS v ON v.stream = c.stream AND v.version = c.challenger
WHERE c.stream = %(stream)s AND c.closed_at IS NULL
ORDER BY c.log_e DESC NULLS LAST, c.challenger;

-- page_workers: how far the intake and each learner are behind
SELECT l.worker, coalesce(w.phase, 'streaming'), coalesce(w.message, ''), l.position, l.entries_behind,
    extract(epoch FROM l.time_behind)::double precision, l.slot_wal_bytes, l.safe_wal_bytes, l.reported_at
FROM metrics.lag AS l
LEFT JOIN headrace.worker_progress AS w ON w.stream = l.stream AND w.role = l.worker
WHERE l.stream = %(stream)s
ORDER BY l.worker <> 'intake', l.worker;

-- page_verdicts: the last verdicts; looks in a row that said the same about the same pair are one line
WITH latest AS (
    SELECT d.*, lag(d.verdict) OVER pair AS before
    FROM (SELECT * FROM metrics.decisions WHERE stream = %(stream)s ORDER BY decision_id DESC LIMIT 400) AS d
    WINDOW pair AS (PARTITION BY d.champion, d.challenger ORDER BY d.decision_id)
), runs AS (
    SELECT l.*, count(*) FILTER (WHERE l.before IS DISTINCT FROM l.verdict) OVER (
        PARTITION BY l.champion, l.challenger ORDER BY l.decision_id) AS run
    FROM latest AS l
), newest AS (
    SELECT DISTINCT ON (champion, challenger, run) r.*, count(*) OVER (PARTITION BY champion, challenger, run) AS looks
    FROM runs AS r
    ORDER BY champion, challenger, run, decision_id DESC
)
SELECT decided_at, verdict, champion, challenger, reason, decided_by, run_type, dag_run_id, looks
FROM newest
ORDER BY decision_id DESC
LIMIT 8;

-- page_quality: the last quality run: when, how many expectations held, and the names of those that did not
SELECT max(q.checked_at), count(*), count(*) FILTER (WHERE q.success),
    coalesce(array_agg(q.expectation ORDER BY q.expectation) FILTER (WHERE NOT q.success), ARRAY[]::text[])
FROM metrics.quality AS q
WHERE q.stream = %(stream)s AND q.dag_run_id = (
    SELECT dag_run_id FROM metrics.quality WHERE stream = %(stream)s ORDER BY quality_id DESC LIMIT 1)
HAVING count(*) > 0;

-- page_incidents: what is wrong now
SELECT i.role, i.state, i.message, i.opened_at
FROM metrics.incidents AS i
WHERE i.stream = %(stream)s AND i.closed_at IS NULL
ORDER BY i.opened_at;
