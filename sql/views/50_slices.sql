CREATE OR REPLACE VIEW metrics.slices AS
WITH champion AS (
    SELECT stream, version FROM headrace.serving_history WHERE seq_last IS NULL
), pairs AS (
    SELECT b.stream, a.version AS champion, b.version AS challenger, b.slice, b.value, sum(b.labels) AS labels,
        sum(a.loss_sum) AS loss_champion, sum(b.loss_sum) AS loss_challenger,
        sum(a.positives) AS positives, sum(a.p_sum) AS p_champion, sum(b.p_sum) AS p_challenger
    FROM headrace.slice_metrics AS b
    JOIN champion AS c USING (stream)
    JOIN headrace.slice_metrics AS a ON (a.stream, a.version, a.epoch, a.slice, a.value, a.labels)
        = (b.stream, c.version, b.epoch, b.slice, b.value, b.labels)
    WHERE b.version <> c.version
    GROUP BY b.stream, a.version, b.version, b.slice, b.value
)
SELECT stream, champion, challenger, slice, value, labels, loss_champion / nullif(labels, 0) AS loss_champion,
    loss_challenger / nullif(labels, 0) AS loss_challenger, loss_challenger / nullif(loss_champion, 0) - 1 AS relative_change,
    p_champion / nullif(positives, 0) AS calibration_champion, p_challenger / nullif(positives, 0) AS calibration_challenger
FROM pairs;
COMMENT ON VIEW metrics.slices IS 'Champion against challengers on each value of the declared slices, over the epochs both scored.';
COMMENT ON COLUMN metrics.slices.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.slices.champion IS 'Version that serves now.';
COMMENT ON COLUMN metrics.slices.challenger IS 'Version compared with it.';
COMMENT ON COLUMN metrics.slices.slice IS 'Column whose values are told apart.';
COMMENT ON COLUMN metrics.slices.value IS 'The value.';
COMMENT ON COLUMN metrics.slices.labels IS 'Labels of this value that both scored.';
COMMENT ON COLUMN metrics.slices.loss_champion IS 'Champion''s mean loss on them.';
COMMENT ON COLUMN metrics.slices.loss_challenger IS 'Challenger''s mean loss on them.';
COMMENT ON COLUMN metrics.slices.relative_change IS 'How much higher the challenger''s loss is: above 0 is worse.';
COMMENT ON COLUMN metrics.slices.calibration_champion IS 'Sum of the champion''s predictions over the positive labels: 1 is right, above 1 it promises too much. NULL without a positive.';
COMMENT ON COLUMN metrics.slices.calibration_challenger IS 'The challenger''s.';
