CREATE OR REPLACE VIEW metrics.leaderboard AS
WITH running AS (
    SELECT stream, version FROM headrace.versions WHERE status IN ('champion', 'shadow', 'probation')
), shared AS (
    SELECT m.stream, m.epoch
    FROM headrace.epoch_metrics AS m JOIN running AS r USING (stream, version)
    WHERE m.unscored = 0
    GROUP BY m.stream, m.epoch
    HAVING count(*) = (SELECT count(*) FROM running AS r WHERE r.stream = m.stream)
), sums AS (
    SELECT m.stream, m.version, sum(m.labels) AS labels, sum(m.positives) AS positives, sum(m.loss_sum) AS loss_sum,
        sum(m.p_sum) AS p_sum, sum(m.brier_sum) AS brier_sum, min(m.event_time_first) AS since
    FROM headrace.epoch_metrics AS m JOIN shared USING (stream, epoch) JOIN running USING (stream, version)
    GROUP BY m.stream, m.version
), own AS (
    SELECT stream, version, sum(labels) AS labels, sum(loss_sum) / nullif(sum(labels), 0) AS log_loss
    FROM headrace.epoch_metrics GROUP BY stream, version
)
SELECT v.stream, v.version, v.recipe, v.status, s.labels,
    round((s.loss_sum / nullif(s.labels, 0))::numeric, 6)::double precision AS log_loss,
    round((s.loss_sum / nullif(-(s.positives * ln(nullif(s.positives, 0)::double precision / s.labels)
        + (s.labels - s.positives) * ln(nullif(s.labels - s.positives, 0)::double precision / s.labels)), 0))::numeric, 6)::double precision
        AS normalised_entropy,
    round((s.brier_sum / nullif(s.labels, 0))::numeric, 6)::double precision AS brier,
    round((s.p_sum / nullif(s.positives, 0))::numeric, 4)::double precision AS calibration,
    s.since, own.labels AS own_labels, round(own.log_loss::numeric, 6)::double precision AS own_log_loss
FROM headrace.versions AS v
LEFT JOIN sums AS s USING (stream, version)
LEFT JOIN own USING (stream, version)
WHERE v.status NOT IN ('candidate', 'rejected');
COMMENT ON VIEW metrics.leaderboard IS 'Who predicts how well: the running versions of each stream over the epochs that all of them scored.';
COMMENT ON COLUMN metrics.leaderboard.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.leaderboard.version IS 'Name of the version.';
COMMENT ON COLUMN metrics.leaderboard.recipe IS 'Name of its recipe.';
COMMENT ON COLUMN metrics.leaderboard.status IS 'champion, shadow, probation, catching_up or retired.';
COMMENT ON COLUMN metrics.leaderboard.labels IS 'Labels scored in the epochs that all running versions share; NULL for versions that do not run.';
COMMENT ON COLUMN metrics.leaderboard.log_loss IS 'Mean log loss over the shared epochs: comparable between the rows of a stream.';
COMMENT ON COLUMN metrics.leaderboard.normalised_entropy IS 'Log loss over the entropy of the label rate: 1 is as good as always answering the mean.';
COMMENT ON COLUMN metrics.leaderboard.brier IS 'Mean squared error of the probability over the shared epochs.';
COMMENT ON COLUMN metrics.leaderboard.calibration IS 'Sum of predictions over number of positives: 1 is calibrated.';
COMMENT ON COLUMN metrics.leaderboard.since IS 'Earliest event time of the shared epochs.';
COMMENT ON COLUMN metrics.leaderboard.own_labels IS 'Labels that this version scored in all.';
COMMENT ON COLUMN metrics.leaderboard.own_log_loss IS 'Mean log loss over all of them: not comparable between versions that started at different times.';
