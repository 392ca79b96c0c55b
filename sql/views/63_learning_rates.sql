CREATE OR REPLACE VIEW metrics.learning_rates AS
SELECT c.stream, c.version, v.recipe, c.seq, c.epoch, r.feature, r.weights, r.nonzero, r.p50, r.p90, c.created_at
FROM headrace.checkpoints AS c JOIN headrace.versions AS v USING (stream, version)
CROSS JOIN LATERAL jsonb_to_recordset(c.rates) AS r (feature text, weights bigint, nonzero bigint, p50 double precision, p90 double precision);
COMMENT ON VIEW metrics.learning_rates IS 'How far a gradient of one moves the weights of each feature, at each checkpoint that is kept: rates fall as labels come.';
COMMENT ON COLUMN metrics.learning_rates.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.learning_rates.version IS 'Name of the version; models without such rates have no rows.';
COMMENT ON COLUMN metrics.learning_rates.recipe IS 'Name of its recipe.';
COMMENT ON COLUMN metrics.learning_rates.seq IS 'Log position of the checkpoint.';
COMMENT ON COLUMN metrics.learning_rates.epoch IS 'Epoch that ended there.';
COMMENT ON COLUMN metrics.learning_rates.feature IS 'A column of the model, the bins of a number, pairs, or bias.';
COMMENT ON COLUMN metrics.learning_rates.weights IS 'Its weights: one for each value that has been seen; an estimate when there are more than 100,000.';
COMMENT ON COLUMN metrics.learning_rates.nonzero IS 'Of them, those that are not 0: L1 keeps others at 0.';
COMMENT ON COLUMN metrics.learning_rates.p50 IS 'Median of its weights'' effective learning rates, alpha / (beta + sqrt(n)).';
COMMENT ON COLUMN metrics.learning_rates.p90 IS 'Their 90th percentile: values that are seen seldom learn fastest.';
COMMENT ON COLUMN metrics.learning_rates.created_at IS 'When the checkpoint became durable.';
