CREATE OR REPLACE VIEW metrics.quality AS
SELECT q.stream, q.quality_id, q.dag_run_id, q.checked_at, q.seq_first, q.seq_last, q.expectation, q.success, q.rows_checked,
    q.rows_unexpected, q.observed, q.exception
FROM headrace.quality_results AS q;
COMMENT ON VIEW metrics.quality IS 'Each expectation''s result of each quality run.';
COMMENT ON COLUMN metrics.quality.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.quality.quality_id IS 'Number of the result.';
COMMENT ON COLUMN metrics.quality.dag_run_id IS 'Airflow run that checked.';
COMMENT ON COLUMN metrics.quality.checked_at IS 'When.';
COMMENT ON COLUMN metrics.quality.seq_first IS 'First entry of the window.';
COMMENT ON COLUMN metrics.quality.seq_last IS 'Last entry of the window.';
COMMENT ON COLUMN metrics.quality.expectation IS 'The expectation, as declared in the contract.';
COMMENT ON COLUMN metrics.quality.success IS 'Whether the window satisfies it.';
COMMENT ON COLUMN metrics.quality.rows_checked IS 'Rows that it was checked on.';
COMMENT ON COLUMN metrics.quality.rows_unexpected IS 'Rows that break it.';
COMMENT ON COLUMN metrics.quality.observed IS 'What was observed, for expectations about a window.';
COMMENT ON COLUMN metrics.quality.exception IS 'Set when the check itself could not be made: neither a pass nor a failure of the data.';
