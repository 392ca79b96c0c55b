CREATE OR REPLACE VIEW metrics.erasures AS
SELECT e.stream, e.erasure_id, e.key_sha256, cardinality(e.seqs) AS events, e.quarantined, e.held, e.reason, e.erased_by, e.erased_at
FROM headrace.erasures AS e;
COMMENT ON VIEW metrics.erasures IS 'Keys whose content was erased from the log, and from quarantine and held labels. The keys themselves are not kept.';
COMMENT ON COLUMN metrics.erasures.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.erasures.erasure_id IS 'Number of the erasure.';
COMMENT ON COLUMN metrics.erasures.key_sha256 IS 'SHA-256 of the key as text, in hex.';
COMMENT ON COLUMN metrics.erasures.events IS 'Events that were blanked, with all of their labels.';
COMMENT ON COLUMN metrics.erasures.quarantined IS 'Refused rows that were blanked.';
COMMENT ON COLUMN metrics.erasures.held IS 'Labels that waited for their event and were given up.';
COMMENT ON COLUMN metrics.erasures.reason IS 'Why, as it was told.';
COMMENT ON COLUMN metrics.erasures.erased_by IS 'Who did it.';
COMMENT ON COLUMN metrics.erasures.erased_at IS 'When.';
