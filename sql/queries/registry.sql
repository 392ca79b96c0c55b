-- get_stream: a registered stream
SELECT definition, definition_hash, columns FROM headrace.streams WHERE stream = %(stream)s;

-- list_streams: all registered streams
SELECT stream FROM headrace.streams ORDER BY stream;

-- lock_stream: serialise decisions about a stream until the transaction ends
SELECT stream FROM headrace.streams WHERE stream = %(stream)s FOR UPDATE;

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
WHERE stream = %(stream)s AND seq_last IS NOT NULL ORDER BY seq_first DESC LIMIT 1;

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
    a.mode = b.mode
FROM headrace.epoch_metrics AS a
JOIN headrace.epoch_metrics AS b USING (stream, epoch)
JOIN headrace.epochs AS e USING (stream, epoch)
WHERE a.stream = %(stream)s AND a.version = %(champion)s AND b.version = %(challenger)s AND e.seq_first >= %(evidence_seq)s
    AND a.unscored = 0 AND b.unscored = 0 AND a.labels = b.labels
ORDER BY epoch;

-- add_curve: a training curve's point
INSERT INTO headrace.training_curves (stream, version, iteration, loss_train, loss_heldout)
VALUES (%(stream)s, %(version)s, %(iteration)s, %(loss_train)s, %(loss_heldout)s);

-- range_metrics: a version's sums over the epochs within a range of seq
SELECT count(*), sum(labels), sum(loss_sum) FROM headrace.epoch_metrics
WHERE stream = %(stream)s AND version = %(version)s AND seq_first >= %(first)s AND seq_last <= %(last)s;

-- range_epochs: the epochs within a range of seq
SELECT epoch, seq_first, seq_last, labels FROM headrace.epochs
WHERE stream = %(stream)s AND seq_first >= %(first)s AND seq_last <= %(last)s ORDER BY epoch;
