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
    SELECT m.stream, m.version, max(m.loss_kind) AS loss_kind, sum(m.labels) AS labels, sum(m.positives) AS positives,
        sum(m.loss_sum) AS loss_sum, sum(m.p_sum) AS p_sum, sum(m.brier_sum) AS brier_sum, sum(m.abs_sum) AS abs_sum,
        sum(m.sq_sum) AS sq_sum, sum(m.y_sum) AS y_sum, sum(m.y_sq_sum) AS y_sq_sum, min(m.event_time_first) AS since
    FROM headrace.epoch_metrics AS m JOIN shared USING (stream, epoch) JOIN running USING (stream, version)
    GROUP BY m.stream, m.version
), own AS (
    SELECT stream, version, max(loss_kind) AS loss_kind, sum(labels) AS labels, sum(loss_sum) / nullif(sum(labels), 0) AS loss
    FROM headrace.epoch_metrics GROUP BY stream, version
)
SELECT v.stream, v.version, v.recipe, v.status, s.labels,
    CASE WHEN s.loss_kind = 'log' THEN round((s.loss_sum / nullif(s.labels, 0))::numeric, 6)::double precision END AS log_loss,
    round((s.loss_sum / nullif(-(s.positives * ln(nullif(s.positives, 0)::double precision / s.labels)
        + (s.labels - s.positives) * ln(nullif(s.labels - s.positives, 0)::double precision / s.labels)), 0))::numeric, 6)::double precision
        AS normalised_entropy,
    round((s.brier_sum / nullif(s.labels, 0))::numeric, 6)::double precision AS brier,
    round((s.p_sum / nullif(s.positives, 0))::numeric, 4)::double precision AS calibration,
    s.since, own.labels AS own_labels,
    CASE WHEN own.loss_kind = 'log' THEN round(own.loss::numeric, 6)::double precision END AS own_log_loss,
    own.loss_kind, s.loss_sum / nullif(s.labels, 0) AS loss, own.loss AS own_loss, s.abs_sum / nullif(s.labels, 0) AS mae,
    sqrt(s.sq_sum / nullif(s.labels, 0)) AS rmse,
    CASE WHEN s.y_sq_sum - s.y_sum * s.y_sum / nullif(s.labels, 0) > 1e-10 * s.y_sq_sum THEN 1 - s.sq_sum / (s.y_sq_sum - s.y_sum * s.y_sum / nullif(s.labels, 0)) END AS r2,
    CASE WHEN s.loss_kind <> 'log' THEN (s.p_sum - s.y_sum) / nullif(s.labels, 0) END AS bias
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
COMMENT ON COLUMN metrics.leaderboard.log_loss IS 'Mean log loss over the shared epochs: comparable between the rows of a stream; NULL where labels are numbers, as the next three.';
COMMENT ON COLUMN metrics.leaderboard.normalised_entropy IS 'Log loss over the entropy of the label rate: 1 is as good as always answering the mean.';
COMMENT ON COLUMN metrics.leaderboard.brier IS 'Mean squared error of the probability over the shared epochs.';
COMMENT ON COLUMN metrics.leaderboard.calibration IS 'Sum of predictions over number of positives: 1 is calibrated.';
COMMENT ON COLUMN metrics.leaderboard.since IS 'Earliest event time of the shared epochs.';
COMMENT ON COLUMN metrics.leaderboard.own_labels IS 'Labels that this version scored in all.';
COMMENT ON COLUMN metrics.leaderboard.own_log_loss IS 'Mean log loss over all of them: not comparable between versions that started at different times; NULL where labels are numbers.';
COMMENT ON COLUMN metrics.leaderboard.loss_kind IS 'What verdicts stand on: log (log loss), absolute (absolute error) or squared (squared error with the stream''s cap).';
COMMENT ON COLUMN metrics.leaderboard.loss IS 'Mean of that loss over the shared epochs: lower is better, comparable between the rows of a stream.';
COMMENT ON COLUMN metrics.leaderboard.own_loss IS 'Mean of that loss over all labels that this version scored: not comparable between versions that started at different times.';
COMMENT ON COLUMN metrics.leaderboard.mae IS 'Where labels are numbers: mean absolute error over the shared epochs, in the label''s unit.';
COMMENT ON COLUMN metrics.leaderboard.rmse IS 'Where labels are numbers: root of the mean squared error, not capped.';
COMMENT ON COLUMN metrics.leaderboard.r2 IS 'Where labels are numbers: share of their variance that is predicted; 0 is as good as always answering their mean; NULL also where labels lie so far from 0 that their sums cannot tell.';
COMMENT ON COLUMN metrics.leaderboard.bias IS 'Where labels are numbers: mean prediction less mean label.';
