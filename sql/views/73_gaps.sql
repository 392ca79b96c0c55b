CREATE OR REPLACE VIEW metrics.gaps AS
SELECT g.stream, g.gap_id, g.why, g.lsn_from, g.lsn_to, g.lsn_to - g.lsn_from AS wal_bytes, g.events, g.labels, g.corrections,
    g.quarantined, g.known, g.forgotten, g.refused, g.erased, g.seq_first, g.seq_last, g.closed_at
FROM headrace.gaps AS g;
COMMENT ON VIEW metrics.gaps IS 'Stretches of the change stream that could not be read, and what `headrace resync` took from the source''s tables instead.';
COMMENT ON COLUMN metrics.gaps.stream IS 'Name of the stream.';
COMMENT ON COLUMN metrics.gaps.gap_id IS 'Number of the gap.';
COMMENT ON COLUMN metrics.gaps.why IS 'State that the stream was in: slot_lost, slot_missing, platform_behind or another_source, with what was found.';
COMMENT ON COLUMN metrics.gaps.lsn_from IS 'Where the log stood at the source.';
COMMENT ON COLUMN metrics.gaps.lsn_to IS 'From where the new slot reads on.';
COMMENT ON COLUMN metrics.gaps.wal_bytes IS 'WAL between them; meaningless when the source is another cluster.';
COMMENT ON COLUMN metrics.gaps.events IS 'Events that entered the log.';
COMMENT ON COLUMN metrics.gaps.labels IS 'Labels that entered the log.';
COMMENT ON COLUMN metrics.gaps.corrections IS 'Labels that had changed, come late, or gone.';
COMMENT ON COLUMN metrics.gaps.quarantined IS 'Rows that were refused.';
COMMENT ON COLUMN metrics.gaps.known IS 'Events and labels at the source that the log had already.';
COMMENT ON COLUMN metrics.gaps.forgotten IS 'Events and labels left out: of the time that retention dropped, so that the log may have had them.';
COMMENT ON COLUMN metrics.gaps.refused IS 'Events and labels left out: the quarantine had a row of their key.';
COMMENT ON COLUMN metrics.gaps.erased IS 'Events and labels left out: their key was erased.';
COMMENT ON COLUMN metrics.gaps.seq_first IS 'First entry that the resync made; rows inserted and deleted before it, within the gap, are lost.';
COMMENT ON COLUMN metrics.gaps.seq_last IS 'Last entry that the resync made.';
COMMENT ON COLUMN metrics.gaps.closed_at IS 'When the resync was done.';
