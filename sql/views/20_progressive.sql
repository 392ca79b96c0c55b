CREATE OR REPLACE VIEW metrics.progressive AS
SELECT m.stream, m.version, v.recipe, m.epoch, m.seq_first, m.seq_last, m.event_time_first AS event_time, m.event_time_last,
    m.labels, m.positives, m.loss_sum, m.loss_sq_sum, m.brier_sum, m.p_sum, m.clips, m.mode, encode(m.digest, 'hex') AS digest, m.engine,
    m.loss_kind, m.abs_sum, m.sq_sum, m.y_sum, m.y_sq_sum, m.learned, m.left_out
FROM headrace.epoch_metrics AS m
JOIN headrace.versions AS v USING (stream, version);
COMMENT ON VIEW metrics.progressive IS 'Mergeable sums of progressive validation, a row per version and epoch: sum(loss_sum) / sum(labels) is the loss of any group.';
COMMENT ON COLUMN metrics.progressive.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.progressive.version IS 'Name of the version.';
COMMENT ON COLUMN metrics.progressive.recipe IS 'Name of its recipe.';
COMMENT ON COLUMN metrics.progressive.epoch IS 'Number of the epoch: a range of seq that is the same for all versions.';
COMMENT ON COLUMN metrics.progressive.seq_first IS 'First entry of the epoch.';
COMMENT ON COLUMN metrics.progressive.seq_last IS 'Last entry of the epoch.';
COMMENT ON COLUMN metrics.progressive.event_time IS 'Earliest event time among the labels scored.';
COMMENT ON COLUMN metrics.progressive.event_time_last IS 'Latest event time among the labels scored.';
COMMENT ON COLUMN metrics.progressive.labels IS 'Labels scored, each with the prediction made at its event.';
COMMENT ON COLUMN metrics.progressive.positives IS 'Positive ones among them; NULL where labels are numbers.';
COMMENT ON COLUMN metrics.progressive.loss_sum IS 'Sum of their losses, which verdicts stand on: loss_kind says which.';
COMMENT ON COLUMN metrics.progressive.loss_sq_sum IS 'Sum of the squares of their losses.';
COMMENT ON COLUMN metrics.progressive.brier_sum IS 'Sum of (p - y)^2 of probabilities; NULL where labels are numbers.';
COMMENT ON COLUMN metrics.progressive.p_sum IS 'Sum of the predictions: of probabilities, clipped.';
COMMENT ON COLUMN metrics.progressive.clips IS 'Predictions that were clipped to [1e-6, 1 - 1e-6] for the log loss, or squared errors that were capped.';
COMMENT ON COLUMN metrics.progressive.mode IS 'live, or replay while catching up.';
COMMENT ON COLUMN metrics.progressive.digest IS 'Hash over the scores in order, chained from epoch to epoch.';
COMMENT ON COLUMN metrics.progressive.engine IS 'Engine that the digest belongs to.';
COMMENT ON COLUMN metrics.progressive.loss_kind IS 'log: log loss, natural logarithm; absolute: absolute error; squared: squared error with the stream''s cap.';
COMMENT ON COLUMN metrics.progressive.abs_sum IS 'Where labels are numbers: sum of the absolute errors.';
COMMENT ON COLUMN metrics.progressive.sq_sum IS 'Where labels are numbers: sum of the squared errors, not capped.';
COMMENT ON COLUMN metrics.progressive.y_sum IS 'Where labels are numbers: their sum.';
COMMENT ON COLUMN metrics.progressive.y_sq_sum IS 'Where labels are numbers: sum of their squares.';
COMMENT ON COLUMN metrics.progressive.learned IS 'Labels learned, with those of events that came before the version''s first entry.';
COMMENT ON COLUMN metrics.progressive.left_out IS 'Negative labels that were scored like all others, but did not teach: the stream''s negative_rate.';
