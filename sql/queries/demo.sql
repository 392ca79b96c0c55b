-- race_versions: the running versions of a stream, for the demo's terminal
SELECT v.version, v.recipe, v.status, coalesce(w.done, 0), coalesce(w.message, 'starting'), l.labels, l.log_loss, l.own_log_loss
FROM headrace.versions AS v
LEFT JOIN headrace.worker_progress AS w ON w.stream = v.stream AND w.role = v.version
LEFT JOIN metrics.leaderboard AS l ON l.stream = v.stream AND l.version = v.version
WHERE v.stream = %(stream)s AND v.status <> 'rejected' ORDER BY v.number;

-- race_evidence: the open comparisons
SELECT challenger, rule, coalesce(labels, 0), gain, coalesce(log_e, 0), log_e_needed, missing FROM metrics.comparisons
WHERE stream = %(stream)s AND closed_at IS NULL AND looked_at IS NOT NULL ORDER BY comparison_id;

-- race_log: how far the log is, and what it holds
SELECT p.seq, p.watermark, sum(a.received), sum(a.quarantined), sum(a.timeouts)
FROM headrace.intake_positions AS p JOIN headrace.accounting AS a USING (stream)
WHERE p.stream = %(stream)s GROUP BY p.seq, p.watermark;

-- race_accounting: what the demo imported and streamed
SELECT origin, events, labels, quarantined, timeouts FROM headrace.accounting WHERE stream = %(stream)s;

-- race_promotions: verdicts that changed the champion, oldest first
SELECT d.challenger, v.recipe, d.dag_run_id, d.run_type, d.seq, d.decided_at, d.evidence ->> 'log_e', d.evidence ->> 'log_e_needed', d.reason
FROM headrace.decisions AS d JOIN headrace.versions AS v ON v.stream = d.stream AND v.version = d.challenger
WHERE d.stream = %(stream)s AND d.verdict = 'promote' ORDER BY d.decision_id;

-- race_learned: labels learned online by each version
SELECT version, sum(learned) FROM headrace.epoch_metrics WHERE stream = %(stream)s GROUP BY version ORDER BY version;

-- race_losses: two versions over the epochs that both scored whole
SELECT sum(a.loss_sum) / sum(a.labels), sum(b.loss_sum) / sum(b.labels), sum(a.labels)
FROM headrace.epoch_metrics AS a JOIN headrace.epoch_metrics AS b USING (stream, epoch)
WHERE a.stream = %(stream)s AND a.version = %(first)s AND b.version = %(champion)s AND a.unscored = 0 AND b.unscored = 0;

-- slots_of_database: replication slots that keep a database from being dropped
SELECT slot_name FROM pg_replication_slots WHERE database = %(database)s AND NOT active;
