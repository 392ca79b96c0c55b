CREATE OR REPLACE VIEW metrics.experiments AS
SELECT x.stream, x.experiment_id, x.made_at, x.seq_first, x.seq_last, x.verdict, m.key AS model, m.value ->> 'family' AS family,
    (m.value ->> 'log_loss')::double precision AS log_loss, (m.value ->> 'ne')::double precision AS normalised_entropy,
    (m.value ->> 'auc')::double precision AS auc, (m.value ->> 'calibration')::double precision AS calibration,
    (m.value ->> 'us_per_label')::double precision AS us_per_label,
    (x.found -> 'families' ->> (m.value ->> 'family'))::double precision AS family_log_loss, x.found
FROM headrace.experiments AS x, jsonb_each(x.found -> 'models') AS m;
COMMENT ON VIEW metrics.experiments IS 'What `headrace worth` found on a stream: one row for each model of each run. They are replays, no versions.';
COMMENT ON COLUMN metrics.experiments.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.experiments.experiment_id IS 'Number of the run.';
COMMENT ON COLUMN metrics.experiments.made_at IS 'When it ended.';
COMMENT ON COLUMN metrics.experiments.seq_first IS 'First entry of the log that it read.';
COMMENT ON COLUMN metrics.experiments.seq_last IS 'Last entry that it read.';
COMMENT ON COLUMN metrics.experiments.verdict IS 'Whether online training pays: yes, no, or not_yet when the data cannot tell.';
COMMENT ON COLUMN metrics.experiments.model IS 'Name of the model.';
COMMENT ON COLUMN metrics.experiments.family IS 'batch, online, or hybrid: trained in batches and learning on.';
COMMENT ON COLUMN metrics.experiments.log_loss IS 'Mean log loss in nats over the last four fifths, each label predicted with what was known at its event.';
COMMENT ON COLUMN metrics.experiments.normalised_entropy IS 'Log loss over the entropy of the label rate.';
COMMENT ON COLUMN metrics.experiments.auc IS 'Area under the ROC curve.';
COMMENT ON COLUMN metrics.experiments.calibration IS 'Predicted over observed positives.';
COMMENT ON COLUMN metrics.experiments.us_per_label IS 'CPU microseconds for each label, training included.';
COMMENT ON COLUMN metrics.experiments.family_log_loss IS 'Log loss of a stack of all models of the family; hybrid is a stack of all.';
COMMENT ON COLUMN metrics.experiments.found IS 'The whole result, as `headrace worth --json` prints it.';
