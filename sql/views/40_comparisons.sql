CREATE OR REPLACE VIEW metrics.comparisons AS
SELECT c.stream, c.comparison_id, c.champion, c.challenger, c.rule, c.opened_at, c.closed_at, c.looked_at, c.evidence_seq,
    (c.evidence ->> 'labels')::bigint AS labels, (c.evidence ->> 'blocks')::integer AS blocks,
    (c.evidence ->> 'loss_champion')::double precision AS loss_champion,
    (c.evidence ->> 'loss_challenger')::double precision AS loss_challenger,
    (c.evidence ->> 'gain')::double precision AS gain, (c.evidence ->> 'gain_low')::double precision AS gain_low,
    (c.evidence ->> 'gain_high')::double precision AS gain_high, (c.evidence ->> 'log_e')::double precision AS log_e,
    (c.evidence ->> 'log_e_needed')::double precision AS log_e_needed, c.evidence ->> 'missing' AS missing,
    (c.evidence ->> 'calibration_champion')::double precision AS calibration_champion,
    (c.evidence ->> 'calibration_challenger')::double precision AS calibration_challenger
FROM headrace.comparisons AS c;
COMMENT ON VIEW metrics.comparisons IS 'Every comparison of a champion with a challenger, with the numbers of its last look.';
COMMENT ON COLUMN metrics.comparisons.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.comparisons.comparison_id IS 'Number of the comparison.';
COMMENT ON COLUMN metrics.comparisons.champion IS 'Version that served when it was opened.';
COMMENT ON COLUMN metrics.comparisons.challenger IS 'Version that would take over; under rule probation, the one that did.';
COMMENT ON COLUMN metrics.comparisons.rule IS 'promotion: may the challenger take over; probation: must the new champion give way.';
COMMENT ON COLUMN metrics.comparisons.opened_at IS 'When it was opened.';
COMMENT ON COLUMN metrics.comparisons.closed_at IS 'When a verdict closed it; NULL while it is open.';
COMMENT ON COLUMN metrics.comparisons.looked_at IS 'When a compare run last looked.';
COMMENT ON COLUMN metrics.comparisons.evidence_seq IS 'First entry whose epochs count.';
COMMENT ON COLUMN metrics.comparisons.labels IS 'Labels that both versions scored.';
COMMENT ON COLUMN metrics.comparisons.blocks IS 'Blocks of whole epochs that the statistic stands on.';
COMMENT ON COLUMN metrics.comparisons.loss_champion IS 'Champion''s mean loss over them.';
COMMENT ON COLUMN metrics.comparisons.loss_challenger IS 'Challenger''s mean loss over them.';
COMMENT ON COLUMN metrics.comparisons.gain IS 'Relative gain of the challenger: 0.02 is 2% lower loss.';
COMMENT ON COLUMN metrics.comparisons.gain_low IS 'Lower end of its confidence sequence, valid at every look: a bound at the level of the verdict.';
COMMENT ON COLUMN metrics.comparisons.gain_high IS 'Upper end of it.';
COMMENT ON COLUMN metrics.comparisons.log_e IS 'Evidence so far: the natural logarithm of the e-process.';
COMMENT ON COLUMN metrics.comparisons.log_e_needed IS 'What it must reach.';
COMMENT ON COLUMN metrics.comparisons.missing IS 'What is missing for a verdict, in numbers.';
COMMENT ON COLUMN metrics.comparisons.calibration_champion IS 'Sum of the champion''s predictions over the positive labels, on all labels that both scored: 1 is right. NULL in probation.';
COMMENT ON COLUMN metrics.comparisons.calibration_challenger IS 'The challenger''s. With Policy(guards=["calibration"]) it must not be further off than the champion''s.';
