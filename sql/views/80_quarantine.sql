CREATE OR REPLACE VIEW metrics.quarantine AS
SELECT NULL::text AS stream, NULL::bigint AS quarantine_id, NULL::timestamptz AS received_at, NULL::text AS relation,
    NULL::text AS key, NULL::text AS expectation, NULL::text AS found, NULL::text AS reason, NULL::jsonb AS content,
    NULL::pg_lsn AS lsn, NULL::text AS origin
WHERE false
-- each stream
UNION ALL
SELECT {stream}, quarantine_id, received_at, relation, key, expectation, found, reason, content, lsn, origin
FROM {schema}.quarantine;
COMMENT ON VIEW metrics.quarantine IS 'Rows that the contract refused, with the reason.';
COMMENT ON COLUMN metrics.quarantine.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.quarantine.quarantine_id IS 'Number of the row within its stream.';
COMMENT ON COLUMN metrics.quarantine.received_at IS 'When it was received.';
COMMENT ON COLUMN metrics.quarantine.relation IS 'Source table that it came from.';
COMMENT ON COLUMN metrics.quarantine.key IS 'Key of the event that it belongs to.';
COMMENT ON COLUMN metrics.quarantine.expectation IS 'Expectation that it broke first.';
COMMENT ON COLUMN metrics.quarantine.found IS 'The value that broke it.';
COMMENT ON COLUMN metrics.quarantine.reason IS 'What was found and what was expected.';
COMMENT ON COLUMN metrics.quarantine.content IS 'The whole row as received.';
COMMENT ON COLUMN metrics.quarantine.lsn IS 'Position of its commit at the source.';
COMMENT ON COLUMN metrics.quarantine.origin IS 'history or stream.';
