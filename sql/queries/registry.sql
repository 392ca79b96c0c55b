-- get_stream: a registered stream
SELECT definition, definition_hash, columns FROM headrace.streams WHERE stream = %(stream)s;

-- list_streams: all registered streams
SELECT stream FROM headrace.streams ORDER BY stream;

-- lock_stream: serialise decisions about a stream until the transaction ends
SELECT stream FROM headrace.streams WHERE stream = %(stream)s FOR UPDATE;

-- lock_registration: one process registers streams at a time
SELECT pg_advisory_xact_lock(hashtextextended('headrace/registration', 0));

-- add_stream: register a stream
INSERT INTO headrace.streams (stream, definition, definition_hash, columns)
VALUES (%(stream)s, %(definition)s, %(definition_hash)s, %(columns)s);

-- update_definition: recipes or policy changed; what the log depends on did not
UPDATE headrace.streams SET definition = %(definition)s WHERE stream = %(stream)s AND definition IS DISTINCT FROM %(definition)s::jsonb;

-- next_number: number of a stream's next version
SELECT coalesce(max(number), 0) + 1 FROM headrace.versions WHERE stream = %(stream)s;

-- add_version: register a version
INSERT INTO headrace.versions (stream, version, number, recipe, config, first_seq, evidence_seq, status, engine, code_sha,
    definition_hash, heldout, dag_run_id)
VALUES (%(stream)s, %(version)s, %(number)s, %(recipe)s, %(config)s, %(first_seq)s, %(evidence_seq)s, %(status)s, %(engine)s,
    %(code_sha)s, %(definition_hash)s, %(heldout)s, %(dag_run_id)s);

-- get_version: one version
SELECT version, number, recipe, config, first_seq, evidence_seq, status, engine ->> 'id', definition_hash, heldout, dag_run_id, created_at
FROM headrace.versions WHERE stream = %(stream)s AND version = %(version)s;

-- list_versions: a stream's versions in order
SELECT version, number, recipe, config, first_seq, evidence_seq, status, engine ->> 'id', definition_hash, heldout, dag_run_id, created_at
FROM headrace.versions WHERE stream = %(stream)s ORDER BY number;

-- set_status: what a version should be
UPDATE headrace.versions SET status = %(status)s WHERE stream = %(stream)s AND version = %(version)s AND status = ANY (%(was)s);

-- set_evidence: from where epochs count for a version
UPDATE headrace.versions SET evidence_seq = %(evidence_seq)s WHERE stream = %(stream)s AND version = %(version)s;

-- champion: who serves
SELECT version, seq_first, decision_id FROM headrace.serving_history WHERE stream = %(stream)s AND seq_last IS NULL;

-- former_champion: who served before the champion
SELECT version, seq_first, seq_last FROM headrace.serving_history
WHERE stream = %(stream)s AND seq_last IS NOT NULL ORDER BY decision_id DESC LIMIT 1;

-- end_serving: close the champion's row, if it still is the champion
UPDATE headrace.serving_history SET seq_last = %(seq)s, during = tstzrange(lower(during), now(), '[)')
WHERE stream = %(stream)s AND version = %(version)s AND seq_last IS NULL;

-- begin_serving: open the new champion's row
INSERT INTO headrace.serving_history (stream, version, seq_first, during, why, decision_id)
VALUES (%(stream)s, %(version)s, %(seq_first)s, tstzrange(now(), NULL, '[)'), %(why)s, %(decision_id)s);

-- add_decision: a verdict with its reason and numbers
INSERT INTO headrace.decisions (stream, verdict, champion, challenger, reason, evidence, epoch_first, epoch_last, seq, comparison_id,
    decided_by, dag_run_id, run_type)
VALUES (%(stream)s, %(verdict)s, %(champion)s, %(challenger)s, %(reason)s, %(evidence)s, %(epoch_first)s, %(epoch_last)s, %(seq)s,
    %(comparison_id)s, %(decided_by)s, %(dag_run_id)s, %(run_type)s)
RETURNING decision_id;

-- last_decisions: the last verdicts of a stream
SELECT decided_at, verdict, champion, challenger, reason, evidence, seq, dag_run_id, run_type, decision_id
FROM headrace.decisions WHERE stream = %(stream)s ORDER BY decision_id DESC LIMIT %(many)s;

-- open_comparison: the open comparison of a pair, made when there is none
INSERT INTO headrace.comparisons AS c (stream, champion, challenger, rule, evidence_seq)
VALUES (%(stream)s, %(champion)s, %(challenger)s, %(rule)s, %(evidence_seq)s)
ON CONFLICT (stream, champion, challenger, rule) WHERE closed_at IS NULL DO UPDATE SET rule = excluded.rule
RETURNING comparison_id, evidence_seq;

-- look: what a compare run found
UPDATE headrace.comparisons SET evidence = %(evidence)s, looked_at = now(), closed_at = CASE WHEN %(close)s THEN now() END
WHERE comparison_id = %(comparison_id)s;

-- close_comparisons: those that a change of champion or a retirement ends
UPDATE headrace.comparisons SET closed_at = now()
WHERE stream = %(stream)s AND closed_at IS NULL AND (rule = 'probation' OR champion <> %(champion)s OR challenger = ANY (%(retired)s));

-- paired_epochs: epochs that both versions scored whole, from a seq on
SELECT a.epoch, a.labels, a.loss_sum, b.loss_sum, e.watermark_first, e.watermark_last, a.cpu_seconds, b.cpu_seconds,
    a.mode = b.mode, a.positives, a.p_sum, b.p_sum
FROM headrace.epoch_metrics AS a
JOIN headrace.epoch_metrics AS b USING (stream, epoch)
JOIN headrace.epochs AS e USING (stream, epoch)
WHERE a.stream = %(stream)s AND a.version = %(champion)s AND b.version = %(challenger)s AND e.seq_first >= %(evidence_seq)s
    AND a.unscored = 0 AND b.unscored = 0 AND a.labels = b.labels
ORDER BY epoch;

-- add_curve: a training curve's point
INSERT INTO headrace.training_curves (stream, version, iteration, learning_rate, loss_train, loss_heldout)
VALUES (%(stream)s, %(version)s, %(iteration)s, %(learning_rate)s, %(loss_train)s, %(loss_heldout)s);

-- range_metrics: a version's sums over the epochs within a range of seq
SELECT count(*), sum(labels), sum(loss_sum) FROM headrace.epoch_metrics
WHERE stream = %(stream)s AND version = %(version)s AND seq_first >= %(first)s AND seq_last <= %(last)s;

-- range_epochs: the epochs within a range of seq
SELECT epoch, seq_first, seq_last, labels FROM headrace.epochs
WHERE stream = %(stream)s AND seq_first >= %(first)s AND seq_last <= %(last)s ORDER BY epoch;

-- last_epoch: the newest complete epoch
SELECT epoch, seq_last FROM headrace.epochs WHERE stream = %(stream)s ORDER BY epoch DESC LIMIT 1;

-- epochs_between: epochs by their numbers
SELECT epoch, seq_first, seq_last FROM headrace.epochs
WHERE stream = %(stream)s AND epoch BETWEEN %(first)s AND %(last)s ORDER BY epoch;

-- label_range: mean, least and largest label up to a seq; of a yes or no the mean is the share of positive ones
SELECT avg(y), min(y), max(y) FROM {schema}.labels WHERE kind <> 'correction' AND y IS NOT NULL AND seq <= %(upto)s;

-- create_window: a view of a range of the log, without what was erased, for Great Expectations
CREATE VIEW {schema}.{view} AS
SELECT e.*, l.y FROM {schema}.events AS e
LEFT JOIN {schema}.labels AS l ON l.event_seq = e.seq AND l.kind <> 'correction' AND l.seq <= {last}
WHERE e.seq BETWEEN {first} AND {last} AND e.key IS NOT NULL;

-- drop_window: the view is done with
DROP VIEW {schema}.{view};

-- add_quality_result: one expectation's result
INSERT INTO headrace.quality_results (stream, dag_run_id, seq_first, seq_last, expectation, success, rows_checked, rows_unexpected,
    observed, exception)
VALUES (%(stream)s, %(dag_run_id)s, %(seq_first)s, %(seq_last)s, %(expectation)s, %(success)s, %(rows_checked)s,
    %(rows_unexpected)s, %(observed)s, %(exception)s);

-- status_intake: what the intake does; last of all, whether its lease was not renewed in time: it hangs, if it runs
SELECT EXISTS (SELECT FROM pg_locks AS k WHERE k.locktype = 'advisory' AND k.granted
        AND (k.classid::bigint << 32 | k.objid::bigint) = hashtextextended('headrace/' || s.stream || '/intake', 0)),
    w.phase, w.message, p.seq, p.lsn::text, p.watermark, p.slot_wal_bytes, p.safe_wal_bytes, w.reported_at,
    coalesce(NOT h.released AND h.expires_at < clock_timestamp(), false)
FROM headrace.streams AS s
LEFT JOIN headrace.intake_positions AS p USING (stream)
LEFT JOIN headrace.worker_progress AS w ON w.stream = s.stream AND w.role = 'intake'
LEFT JOIN headrace.leases AS h ON h.stream = s.stream AND h.role = 'intake'
WHERE s.stream = %(stream)s AND (p.stream IS NOT NULL OR w.stream IS NOT NULL);

-- status_versions: what each version does; at the end whether its learner's lease was not renewed in time, and which loss it has
SELECT v.version, v.recipe, v.status, coalesce(w.done, v.first_seq - 1), greatest(coalesce(p.seq, 0) - coalesce(w.done, v.first_seq - 1), 0),
    w.phase, w.message, w.reported_at,
    EXISTS (SELECT FROM pg_locks AS k WHERE k.locktype = 'advisory' AND k.granted
        AND (k.classid::bigint << 32 | k.objid::bigint) = hashtextextended('headrace/' || v.stream || '/' || v.version, 0)),
    l.loss, l.labels, coalesce(NOT h.released AND h.expires_at < clock_timestamp(), false), l.loss_kind
FROM headrace.versions AS v
LEFT JOIN headrace.leases AS h ON h.stream = v.stream AND h.role = v.version
LEFT JOIN headrace.worker_progress AS w ON w.stream = v.stream AND w.role = v.version
LEFT JOIN headrace.intake_positions AS p ON p.stream = v.stream
LEFT JOIN metrics.leaderboard AS l ON l.stream = v.stream AND l.version = v.version
WHERE v.stream = %(stream)s ORDER BY v.number;

-- status_standbys: who would take a role over
SELECT role, holder, entries_behind FROM metrics.standbys WHERE stream = %(stream)s ORDER BY role, holder;

-- status_incidents: what is wrong now
SELECT role, state, message, opened_at FROM metrics.incidents WHERE stream = %(stream)s AND closed_at IS NULL ORDER BY opened_at;
