CREATE OR REPLACE VIEW metrics.training_curves AS
SELECT c.stream, c.version, v.recipe, c.iteration, c.learning_rate, c.loss_train, c.loss_heldout
FROM headrace.training_curves AS c
JOIN headrace.versions AS v USING (stream, version);
COMMENT ON VIEW metrics.training_curves IS 'How a bootstrap''s training went: one row for each tree, or for each pass of batch training. Training stopped where the held-out loss was least.';
COMMENT ON COLUMN metrics.training_curves.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.training_curves.version IS 'Version that was trained.';
COMMENT ON COLUMN metrics.training_curves.recipe IS 'Its recipe.';
COMMENT ON COLUMN metrics.training_curves.iteration IS 'Number of trees, or of passes over the labels (others call them epochs), so far.';
COMMENT ON COLUMN metrics.training_curves.learning_rate IS 'LightGBM''s learning rate; of passes the alpha of the newest shuffled one: the last pass of all follows the log at the recipe''s.';
COMMENT ON COLUMN metrics.training_curves.loss_train IS 'Mean loss, the stream''s, over the labels that were trained on, as the model then was. With a negative_rate trees count the labels that teach, as they teach.';
COMMENT ON COLUMN metrics.training_curves.loss_heldout IS 'Mean loss over the held-out end: by trees that stand still; after passes by the model that learns on there, each event predicted before its label came.';
