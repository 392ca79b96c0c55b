-- lock_role: whether nobody's connection holds this role; then this one does, until it ends
SELECT pg_try_advisory_lock(hashtextextended('headrace/' || %(stream)s || '/' || %(role)s, 0));

-- former_holder: who held a role before, whether it let go of it, and its backend at the source
SELECT holder, released, walsender_pid FROM headrace.leases WHERE stream = %(stream)s AND role = %(role)s;

-- take_lease: become the holder of a role whose lock this connection has; the token fences earlier holders out
INSERT INTO headrace.leases AS l (stream, role, holder, token, backend_pid, acquired_at, renewed_at, expires_at)
VALUES (%(stream)s, %(role)s, %(holder)s, 1, pg_backend_pid(), clock_timestamp(), clock_timestamp(), clock_timestamp() + %(lease)s)
ON CONFLICT (stream, role) DO UPDATE SET holder = excluded.holder, token = l.token + 1, backend_pid = excluded.backend_pid,
    walsender_pid = NULL, released = false, acquired_at = excluded.acquired_at, renewed_at = excluded.renewed_at,
    expires_at = excluded.expires_at
RETURNING token;

-- who_holds: the holder of a role
SELECT holder, backend_pid, renewed_at FROM headrace.leases WHERE stream = %(stream)s AND role = %(role)s;

-- keep_lease: an error unless the role is still the caller's; the row may be renewed meanwhile, but not be deleted
SELECT headrace.keep_lease(%(stream)s, %(role)s, %(token)s);

-- renew_lease: the holder lives
UPDATE headrace.leases SET renewed_at = clock_timestamp(), expires_at = clock_timestamp() + %(lease)s
WHERE stream = %(stream)s AND role = %(role)s AND token = %(token)s;

-- release_lease: the holder ends of its own will
UPDATE headrace.leases SET released = true, expires_at = clock_timestamp()
WHERE stream = %(stream)s AND role = %(role)s AND token = %(token)s;

-- lease_ready: the backend at the source that works for the holder
UPDATE headrace.leases SET walsender_pid = %(walsender_pid)s
WHERE stream = %(stream)s AND role = %(role)s AND token = %(token)s;

-- renewals: when each holder of a role last said that it lives, and for how long that holds
SELECT holder, token, renewed_at, expires_at - renewed_at FROM headrace.leases
WHERE stream = ANY (%(streams)s) AND NOT released;

-- last_renewal: when the holder of a role last said that it lives, and for how long that holds
SELECT token, renewed_at, expires_at - renewed_at FROM headrace.leases WHERE stream = %(stream)s AND role = %(role)s AND NOT released;

-- end_silent_holder: end the connection that has a role's lock, if its holder has not renewed since
SELECT pg_terminate_backend(k.pid) FROM pg_locks AS k
JOIN headrace.leases AS l ON l.stream = %(stream)s AND l.role = %(role)s AND l.token = %(token)s AND l.renewed_at = %(renewed_at)s
WHERE k.locktype = 'advisory' AND k.granted AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (k.classid::bigint << 32 | k.objid::bigint) = hashtextextended('headrace/' || l.stream || '/' || l.role, 0);

-- add_failover: a role went from one process to another; attempts since then that did not come to work are one with it
WITH again AS (
    UPDATE headrace.failovers SET token = %(token)s, to_holder = %(holder)s
    WHERE stream = %(stream)s AND role = %(role)s AND ready_at IS NULL RETURNING token
)
INSERT INTO headrace.failovers (stream, role, token, from_holder, to_holder, why)
SELECT %(stream)s, %(role)s, %(token)s, %(from_holder)s, %(holder)s, %(why)s WHERE NOT EXISTS (SELECT FROM again);

-- failover_ready: the process that took over is at work
UPDATE headrace.failovers SET ready_at = clock_timestamp()
WHERE stream = %(stream)s AND role = %(role)s AND token = %(token)s AND ready_at IS NULL;

-- report_standby: a process that would take over
INSERT INTO headrace.standbys AS s (stream, role, holder, seq, reported_at)
VALUES (%(stream)s, %(role)s, %(holder)s, %(seq)s, clock_timestamp())
ON CONFLICT (stream, role, holder) DO UPDATE SET seq = excluded.seq, reported_at = excluded.reported_at;

-- forget_standby: it stands by no more; neither does who has been silent for a minute
DELETE FROM headrace.standbys WHERE stream = %(stream)s AND role = %(role)s
    AND (holder = %(holder)s OR reported_at < clock_timestamp() - interval '1 minute');

-- digests_between: the chained digests of a version's epochs after one, up to another
SELECT epoch, digest, engine FROM headrace.epoch_metrics
WHERE stream = %(stream)s AND version = %(version)s AND epoch > %(after)s AND epoch <= %(upto)s ORDER BY epoch;

-- report_progress: what a worker is doing, for people
INSERT INTO headrace.worker_progress AS w (stream, role, phase, done, goal, per_second, message, received_through, reported_at)
VALUES (%(stream)s, %(role)s, %(phase)s, %(done)s, %(goal)s, %(per_second)s, %(message)s, %(received_through)s, clock_timestamp())
ON CONFLICT (stream, role) DO UPDATE SET phase = excluded.phase, done = excluded.done, goal = excluded.goal,
    per_second = excluded.per_second, message = excluded.message,
    received_through = coalesce(excluded.received_through, w.received_through), reported_at = excluded.reported_at;

-- progress: what a worker said last
SELECT phase, done, goal, per_second, message, reported_at FROM headrace.worker_progress WHERE stream = %(stream)s AND role = %(role)s;

-- open_incident: a named state that a worker is in
INSERT INTO headrace.incidents (stream, role, state, message)
SELECT %(stream)s, %(role)s, %(state)s, %(message)s
WHERE NOT EXISTS (SELECT FROM headrace.incidents WHERE stream = %(stream)s AND role = %(role)s AND state = %(state)s AND closed_at IS NULL);

-- add_past_incident: a named state that nobody could report while it lasted
INSERT INTO headrace.incidents (stream, role, state, message, opened_at, closed_at)
VALUES (%(stream)s, %(role)s, %(state)s, %(message)s, %(opened_at)s, now());

-- open_divergence: a replica of a version learned an epoch otherwise than its learner
INSERT INTO headrace.incidents (stream, role, state, message, version, epoch)
SELECT %(stream)s, %(role)s, 'diverged', %(message)s, %(version)s, %(epoch)s
WHERE NOT EXISTS (SELECT FROM headrace.incidents WHERE stream = %(stream)s AND role = %(role)s AND version = %(version)s
    AND state = 'diverged' AND closed_at IS NULL);

-- report_endpoint: the same of an endpoint on one machine
SELECT headrace.report_endpoint(%(stream)s, %(host)s, %(version)s, %(epoch)s, %(message)s);

-- settle_divergences: a rebuild proved what a version's learner stored for these epochs
UPDATE headrace.incidents SET closed_at = now()
WHERE stream = %(stream)s AND version = %(version)s AND state = 'diverged' AND epoch = ANY (%(epochs)s) AND closed_at IS NULL;

-- drop_divergences: nobody runs the version any more
UPDATE headrace.incidents SET closed_at = now()
WHERE stream = %(stream)s AND version = %(version)s AND state = 'diverged' AND closed_at IS NULL;

-- close_state: one named state is over
UPDATE headrace.incidents SET closed_at = now() WHERE stream = %(stream)s AND role = %(role)s AND state = %(state)s AND closed_at IS NULL;

-- close_incidents: the worker is well again; that says nothing about digests
UPDATE headrace.incidents SET closed_at = now()
WHERE stream = %(stream)s AND role = %(role)s AND state <> 'diverged' AND closed_at IS NULL;

-- last_checkpoint: a version's newest state, or the newest up to a seq
SELECT seq, epoch, digest, engine, arrays, state, learned FROM headrace.checkpoints
WHERE stream = %(stream)s AND version = %(version)s AND seq <= coalesce(%(until)s::bigint, seq) ORDER BY seq DESC LIMIT 1;

-- digests: the chained digests of a version's epochs
SELECT epoch, seq_first, seq_last, digest, engine FROM headrace.epoch_metrics WHERE stream = %(stream)s AND version = %(version)s ORDER BY epoch;

-- add_checkpoint: a version's state at a seq
INSERT INTO headrace.checkpoints (stream, version, seq, epoch, digest, state_digest, engine, arrays, state, learned, bytes, rates)
VALUES (%(stream)s, %(version)s, %(seq)s, %(epoch)s, %(digest)s, %(state_digest)s, %(engine)s, %(arrays)s, %(state)s, %(learned)s,
    %(bytes)s, %(rates)s);

-- thin_checkpoints: keep a version's newest checkpoints, one per hour of a day, one per day of 30, and its base
WITH judged AS (
    SELECT c.seq, row_number() OVER (ORDER BY c.seq DESC) <= %(keep)s
        OR c.created_at > now() - interval '1 day' AND row_number() OVER (PARTITION BY date_trunc('hour', c.created_at) ORDER BY c.seq) = 1
        OR c.created_at > now() - interval '30 days' AND row_number() OVER (PARTITION BY date_trunc('day', c.created_at) ORDER BY c.seq) = 1
        OR v.rebuildable AND c.seq < v.first_seq AS stays
    FROM headrace.checkpoints AS c JOIN headrace.versions AS v USING (stream, version)
    WHERE c.stream = %(stream)s AND c.version = %(version)s
)
DELETE FROM headrace.checkpoints AS c USING judged
WHERE c.stream = %(stream)s AND c.version = %(version)s AND c.seq = judged.seq AND NOT judged.stays;

-- add_artifact: a large array, once
COPY headrace.artifacts (stream, version, sha256, content) FROM STDIN (FORMAT binary);

-- thin_artifacts: let go of arrays that no checkpoint of the version refers to any more
DELETE FROM headrace.artifacts WHERE stream = %(stream)s AND version = %(version)s AND sha256 NOT IN (
    SELECT r.value FROM headrace.checkpoints AS c, jsonb_each_text(c.arrays) AS r
    WHERE c.stream = %(stream)s AND c.version = %(version)s);

-- artifact: a large array by its hash
SELECT content FROM headrace.artifacts WHERE stream = %(stream)s AND version = %(version)s AND sha256 = %(sha256)s;

-- stored_artifacts: which large arrays are there already
SELECT sha256 FROM headrace.artifacts WHERE stream = %(stream)s AND version = %(version)s AND sha256 = ANY (%(sha256)s);

-- add_epoch_metrics: what a version did in an epoch
INSERT INTO headrace.epoch_metrics (stream, version, epoch, seq_first, seq_last, labels, loss_kind, loss_sum, loss_sq_sum, p_sum, clips,
    positives, brier_sum, histogram, abs_sum, sq_sum, y_sum, y_sq_sum, learned, left_out, unscored, cpu_seconds, peak_rss_bytes,
    event_time_first, event_time_last, mode, digest, engine)
VALUES (%(stream)s, %(version)s, %(epoch)s, %(seq_first)s, %(seq_last)s, %(labels)s, %(loss_kind)s, %(loss_sum)s, %(loss_sq_sum)s,
    %(p_sum)s, %(clips)s, %(positives)s, %(brier_sum)s, %(histogram)s, %(abs_sum)s, %(sq_sum)s, %(y_sum)s, %(y_sq_sum)s, %(learned)s,
    %(left_out)s, %(unscored)s, %(cpu_seconds)s, %(peak_rss_bytes)s, %(event_time_first)s, %(event_time_last)s, %(mode)s, %(digest)s, %(engine)s);

-- add_slice_metrics: the same for one value of a slice
INSERT INTO headrace.slice_metrics (stream, version, epoch, slice, value, labels, positives, y_sum, loss_sum, p_sum)
VALUES (%(stream)s, %(version)s, %(epoch)s, %(slice)s, %(value)s, %(labels)s, %(positives)s, %(y_sum)s, %(loss_sum)s, %(p_sum)s);

-- add_experiment: what a replay of a log found
INSERT INTO headrace.experiments (stream, seq_first, seq_last, verdict, found)
VALUES (%(stream)s, %(seq_first)s, %(seq_last)s, %(verdict)s, %(found)s);

-- add_member_metrics: the same for one member of a stack, with its weight at the epoch's end
INSERT INTO headrace.member_metrics (stream, version, epoch, member, labels, loss_sum, weight, top_weights)
VALUES (%(stream)s, %(version)s, %(epoch)s, %(member)s, %(labels)s, %(loss_sum)s, %(weight)s, %(top_weights)s);
