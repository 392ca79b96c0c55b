CREATE OR REPLACE VIEW metrics.members AS
SELECT b.stream, b.version, b.epoch, m.seq_last AS seq, b.member, b.weight, b.labels, b.loss_sum, b.loss_sum / nullif(b.labels, 0) AS log_loss,
    b.top_weights, m.event_time_first AS event_time, m.written_at
FROM headrace.member_metrics AS b JOIN headrace.epoch_metrics AS m USING (stream, version, epoch);
COMMENT ON VIEW metrics.members IS 'Stacks from within: each member''s weight and loss, a row per version, epoch and member.';
COMMENT ON COLUMN metrics.members.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.members.version IS 'Name of the stack''s version.';
COMMENT ON COLUMN metrics.members.epoch IS 'Number of the epoch.';
COMMENT ON COLUMN metrics.members.seq IS 'Last entry of the epoch, where the weights were read.';
COMMENT ON COLUMN metrics.members.member IS 'Name of the member''s recipe.';
COMMENT ON COLUMN metrics.members.weight IS 'What the member''s logit is multiplied with: the mean over the stackers, by the top''s weights. May be negative.';
COMMENT ON COLUMN metrics.members.labels IS 'Labels learned of the epoch whose event the member had predicted: with a negative_rate not all.';
COMMENT ON COLUMN metrics.members.loss_sum IS 'Sum of the log losses of its own predictions, clipped to [0.001, 0.999] as the stack takes them, before any calibration of sampled negatives.';
COMMENT ON COLUMN metrics.members.log_loss IS 'Its mean log loss over the epoch.';
COMMENT ON COLUMN metrics.members.top_weights IS 'Weights of the four stackers at the epoch''s end: (s, r) = (0.1, 0), (0.1, 0.003), (1, 0), (1, 0.003).';
COMMENT ON COLUMN metrics.members.event_time IS 'Earliest event time among the labels scored.';
COMMENT ON COLUMN metrics.members.written_at IS 'When the row became durable.';
