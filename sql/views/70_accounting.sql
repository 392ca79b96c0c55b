CREATE OR REPLACE VIEW metrics.accounting AS
SELECT a.stream, a.origin, a.received, a.events + a.labels + a.corrections AS logged, a.held, a.quarantined, a.ignored,
    a.events, a.labels, a.corrections, a.timeouts, a.received - a.doubled AS changes
FROM headrace.accounting AS a;
COMMENT ON VIEW metrics.accounting IS 'What became of every change that was received: received - logged - held - quarantined - ignored is 0, or something was lost.';
COMMENT ON COLUMN metrics.accounting.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.accounting.origin IS 'history (the import) or stream (the slot).';
COMMENT ON COLUMN metrics.accounting.received IS 'What the row changes brought: one that brings two things, such as an event with its label, counts twice.';
COMMENT ON COLUMN metrics.accounting.logged IS 'Those that became entries of the log.';
COMMENT ON COLUMN metrics.accounting.held IS 'Labels that wait for their event.';
COMMENT ON COLUMN metrics.accounting.quarantined IS 'Rows that were refused, and labels whose event never came.';
COMMENT ON COLUMN metrics.accounting.ignored IS 'Changes without effect on the stream, such as an update of another column.';
COMMENT ON COLUMN metrics.accounting.events IS 'Logged events.';
COMMENT ON COLUMN metrics.accounting.labels IS 'Logged labels.';
COMMENT ON COLUMN metrics.accounting.corrections IS 'Logged corrections.';
COMMENT ON COLUMN metrics.accounting.timeouts IS 'Entries for labels that never came: no change caused them.';
COMMENT ON COLUMN metrics.accounting.changes IS 'Row changes received.';
