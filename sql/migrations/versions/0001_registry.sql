-- Group roles, without login: a process connects as the deployment's user and takes the one that its work needs.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['headrace_intake', 'headrace_learner', 'headrace_steer', 'headrace_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- roles belong to the server: another database's migration was quicker
            END;
        END IF;
        -- Who created a role may still not act as it (PostgreSQL 16): that takes a grant of its own.
        EXECUTE format('GRANT %I TO %I', wanted, current_user);
    END LOOP;
END $$;

CREATE TYPE headrace.label_kind AS ENUM ('observed', 'timeout', 'correction');

CREATE TABLE headrace.repeatable (
    name text PRIMARY KEY,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE headrace.schema_version IS 'Which numbered migration was applied last; Alembic keeps it.';
COMMENT ON TABLE headrace.repeatable IS 'Hashes of the views as last applied: a second migrate changes nothing.';

CREATE TABLE headrace.streams (
    stream text PRIMARY KEY,
    definition jsonb NOT NULL,
    definition_hash text NOT NULL,
    columns jsonb NOT NULL,
    partition_entries bigint NOT NULL DEFAULT 1000000,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE headrace.streams IS 'One row per stream. Its row lock serialises every decision about who serves.';
COMMENT ON COLUMN headrace.streams.partition_entries IS 'Entries of a partition of its log; fixed once the log has any.';
COMMENT ON COLUMN headrace.streams.columns IS 'The log''s columns: [{name, source, type}], key and event_time first.';

CREATE TABLE headrace.artifacts (
    stream text NOT NULL,
    version text NOT NULL,
    sha256 text NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (stream, version, sha256)
);
COMMENT ON TABLE headrace.artifacts IS 'Large arrays of a version''s states, by content: one that did not change is stored once; they go with their last checkpoint.';

CREATE TABLE headrace.versions (
    stream text NOT NULL REFERENCES headrace.streams,
    version text NOT NULL,
    number integer NOT NULL,
    recipe text NOT NULL,
    config jsonb NOT NULL,
    first_seq bigint NOT NULL,
    evidence_seq bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('candidate', 'catching_up', 'shadow', 'champion', 'probation', 'retired', 'rejected')),
    engine jsonb NOT NULL,
    code_sha text NOT NULL,
    definition_hash text NOT NULL,
    heldout jsonb,
    rebuildable boolean NOT NULL DEFAULT true,
    why_not_rebuildable text,
    dag_run_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, version),
    UNIQUE (stream, number)
);
COMMENT ON TABLE headrace.versions IS 'A version: recipe + configuration + base + first seq + engine. status is what should be true; learners make it so.';
COMMENT ON COLUMN headrace.versions.heldout IS 'What its bootstrap found on the held-out end; of a stack also where it started and where its trees were trained again.';
COMMENT ON COLUMN headrace.versions.evidence_seq IS 'First seq whose epochs may count as evidence for this version: after its registration, for a new recipe.';
COMMENT ON COLUMN headrace.versions.rebuildable IS 'Whether the log still holds all that it read since its base, as it read it.';

CREATE TABLE headrace.checkpoints (
    stream text NOT NULL,
    version text NOT NULL,
    seq bigint NOT NULL,
    epoch integer NOT NULL,
    digest bytea NOT NULL,
    state_digest bytea NOT NULL,
    engine text NOT NULL,
    arrays jsonb NOT NULL,
    state bytea NOT NULL,
    learned bigint NOT NULL,
    bytes bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    rates jsonb,
    PRIMARY KEY (stream, version, seq),
    FOREIGN KEY (stream, version) REFERENCES headrace.versions
);
COMMENT ON TABLE headrace.checkpoints IS 'A version''s state at a seq, written together with the metrics up to it.';
COMMENT ON COLUMN headrace.checkpoints.arrays IS 'Large arrays kept in headrace.artifacts: {array name: sha256}.';
COMMENT ON COLUMN headrace.checkpoints.rates IS 'Learning rates of each feature, for metrics.learning_rates; NULL for models without.';

CREATE TABLE headrace.epochs (
    stream text NOT NULL,
    epoch integer NOT NULL,
    seq_first bigint NOT NULL,
    seq_last bigint NOT NULL,
    labels integer NOT NULL,
    watermark_first timestamptz NOT NULL,
    watermark_last timestamptz NOT NULL,
    PRIMARY KEY (stream, epoch),
    UNIQUE (stream, seq_last),
    CHECK (seq_first <= seq_last)
);
COMMENT ON TABLE headrace.epochs IS 'Ranges of seq fixed by the intake, the same for all versions, blind to losses.';

CREATE TABLE headrace.epoch_metrics (
    stream text NOT NULL,
    version text NOT NULL,
    epoch integer NOT NULL,
    seq_first bigint NOT NULL,
    seq_last bigint NOT NULL,
    labels integer NOT NULL,
    loss_kind text NOT NULL DEFAULT 'log' CHECK (loss_kind IN ('log', 'absolute', 'squared')),
    loss_sum double precision NOT NULL,
    loss_sq_sum double precision NOT NULL,
    p_sum double precision NOT NULL,
    clips integer NOT NULL,
    positives integer,
    brier_sum double precision,
    histogram bytea,
    abs_sum double precision,
    sq_sum double precision,
    y_sum double precision,
    y_sq_sum double precision,
    learned integer NOT NULL,
    left_out integer NOT NULL,
    unscored integer NOT NULL,
    cpu_seconds double precision NOT NULL,
    peak_rss_bytes bigint NOT NULL,
    event_time_first timestamptz,
    event_time_last timestamptz,
    mode text NOT NULL CHECK (mode IN ('live', 'replay')),
    digest bytea NOT NULL,
    engine text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, version, epoch),
    CHECK (CASE WHEN loss_kind = 'log' THEN num_nulls(positives, brier_sum, histogram) = 0 AND num_nonnulls(abs_sum, sq_sum, y_sum, y_sq_sum) = 0
        ELSE num_nonnulls(positives, brier_sum, histogram) = 0 AND num_nulls(abs_sum, sq_sum, y_sum, y_sq_sum) = 0 END)
);
COMMENT ON TABLE headrace.epoch_metrics IS 'Mergeable sums of one version over one epoch, with the digest of its scores chained from the epoch before.';
COMMENT ON COLUMN headrace.epoch_metrics.loss_kind IS 'What loss_sum adds up: log losses of a yes or no; absolute, or capped squared, errors of a number.';
COMMENT ON COLUMN headrace.epoch_metrics.positives IS 'Of a yes or no, as brier_sum and histogram; abs_sum, sq_sum, y_sum and y_sq_sum are a number''s.';

CREATE TABLE headrace.slice_metrics (
    stream text NOT NULL,
    version text NOT NULL,
    epoch integer NOT NULL,
    slice text NOT NULL,
    value text NOT NULL,
    labels integer NOT NULL,
    positives integer,
    y_sum double precision,
    loss_sum double precision NOT NULL,
    p_sum double precision NOT NULL,
    PRIMARY KEY (stream, version, epoch, slice, value)
);
COMMENT ON TABLE headrace.slice_metrics IS 'The same sums for each value of each slice that the stream declares.';

CREATE TABLE headrace.member_metrics (
    stream text NOT NULL,
    version text NOT NULL,
    epoch integer NOT NULL,
    member text NOT NULL,
    labels integer NOT NULL,
    loss_sum double precision NOT NULL,
    weight double precision NOT NULL,
    top_weights double precision[] NOT NULL,
    PRIMARY KEY (stream, version, epoch, member)
);
COMMENT ON TABLE headrace.member_metrics IS 'What each member of a stack did in an epoch, and what it weighs at its end.';

CREATE TABLE headrace.training_curves (
    stream text NOT NULL,
    version text NOT NULL,
    iteration integer NOT NULL,
    learning_rate double precision NOT NULL,
    loss_train double precision,
    loss_heldout double precision,
    PRIMARY KEY (stream, version, iteration),
    FOREIGN KEY (stream, version) REFERENCES headrace.versions
);
COMMENT ON TABLE headrace.training_curves IS 'Loss after each tree, or pass over the window, of a bootstrap, on its training part and on its held-out end.';

CREATE TABLE headrace.serving_history (
    stream text NOT NULL,
    version text NOT NULL,
    seq_first bigint NOT NULL,
    seq_last bigint,
    during tstzrange NOT NULL,
    why text NOT NULL,
    decision_id bigint NOT NULL,
    PRIMARY KEY (stream, decision_id), -- two changes between two entries have the same seq_first
    FOREIGN KEY (stream, version) REFERENCES headrace.versions
);
CREATE UNIQUE INDEX serving_history_current ON headrace.serving_history (stream) WHERE seq_last IS NULL;
COMMENT ON TABLE headrace.serving_history IS 'Who serves from which seq to which, and why. The open row is the champion.';

CREATE TABLE headrace.comparisons (
    comparison_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL,
    champion text NOT NULL,
    challenger text NOT NULL,
    rule text NOT NULL CHECK (rule IN ('promotion', 'probation')),
    evidence_seq bigint NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz,
    looked_at timestamptz,
    evidence jsonb NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX comparisons_open ON headrace.comparisons (stream, champion, challenger, rule) WHERE closed_at IS NULL;
COMMENT ON TABLE headrace.comparisons IS 'One champion against one challenger; evidence holds the numbers of the last look.';

CREATE TABLE headrace.decisions (
    decision_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    verdict text NOT NULL CHECK (verdict IN ('first', 'promote', 'keep', 'retire', 'rollback')),
    champion text,
    challenger text,
    reason text NOT NULL,
    evidence jsonb NOT NULL DEFAULT '{}',
    epoch_first integer,
    epoch_last integer,
    seq bigint NOT NULL,
    comparison_id bigint REFERENCES headrace.comparisons,
    decided_by text NOT NULL,
    approved_by text,
    dag_run_id text,
    run_type text
);
COMMENT ON TABLE headrace.decisions IS 'Every verdict with its reason and the numbers it stood on.';

CREATE TABLE headrace.leases (
    stream text NOT NULL,
    role text NOT NULL,
    holder text NOT NULL,
    token bigint NOT NULL,
    backend_pid integer NOT NULL,
    walsender_pid integer,
    released boolean NOT NULL DEFAULT false,
    acquired_at timestamptz NOT NULL,
    renewed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (stream, role)
);
COMMENT ON TABLE headrace.leases IS 'Who holds a writer''s role. Its connection holds an advisory lock; every transaction of a writer checks its token.';
COMMENT ON COLUMN headrace.leases.released IS 'Whether the holder ended of its own will: who takes the role then does not take over.';
COMMENT ON COLUMN headrace.leases.walsender_pid IS 'The backend at the source that reads the slot for the holder.';

CREATE TABLE headrace.failovers (
    stream text NOT NULL,
    role text NOT NULL,
    token bigint NOT NULL,
    from_holder text NOT NULL,
    to_holder text NOT NULL,
    why text NOT NULL CHECK (why IN ('ended', 'silent')),
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ready_at timestamptz,
    PRIMARY KEY (stream, role, token)
);
COMMENT ON TABLE headrace.failovers IS 'Roles that went from one process to another without being released.';

CREATE TABLE headrace.standbys (
    stream text NOT NULL,
    role text NOT NULL,
    holder text NOT NULL,
    seq bigint NOT NULL,
    reported_at timestamptz NOT NULL,
    PRIMARY KEY (stream, role, holder)
);
COMMENT ON TABLE headrace.standbys IS 'Processes that follow the log and would take a role over.';

CREATE TABLE headrace.worker_progress (
    stream text NOT NULL,
    role text NOT NULL,
    phase text NOT NULL,
    done bigint NOT NULL,
    goal bigint NOT NULL,
    per_second double precision NOT NULL DEFAULT 0,
    message text NOT NULL DEFAULT '',
    received_through timestamptz,
    reported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, role)
);
COMMENT ON TABLE headrace.worker_progress IS 'What each worker says it is doing: for people and progress bars, never for correctness.';

CREATE TABLE headrace.intake_positions (
    stream text PRIMARY KEY REFERENCES headrace.streams,
    slot text NOT NULL,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    publication text NOT NULL,
    consistent_lsn pg_lsn NOT NULL,
    lsn pg_lsn NOT NULL,
    seq bigint NOT NULL,
    epoch integer NOT NULL,
    epoch_seq_first bigint NOT NULL,
    epoch_labels integer NOT NULL,
    epoch_watermark_first timestamptz,
    watermark timestamptz,
    commit_time timestamptz,
    received_at timestamptz,
    slot_wal_bytes bigint,
    safe_wal_bytes bigint,
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN headrace.intake_positions.publication IS 'What the publication was made of when the log began, or at its last resync; another text means that it was changed since.';
COMMENT ON COLUMN headrace.intake_positions.slot_wal_bytes IS 'WAL that the slot keeps at the source, as the intake last saw it.';
COMMENT ON TABLE headrace.intake_positions IS 'How far the log goes: the source position (a Commit''s end_lsn, or later where nothing follows it) and seq, moved in the log''s own transaction.';

CREATE TABLE headrace.gaps (
    gap_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL REFERENCES headrace.streams,
    lsn_from pg_lsn NOT NULL,
    lsn_to pg_lsn NOT NULL,
    why text NOT NULL,
    events bigint NOT NULL,
    labels bigint NOT NULL,
    corrections bigint NOT NULL,
    quarantined bigint NOT NULL,
    known bigint NOT NULL,
    forgotten bigint NOT NULL,
    refused bigint NOT NULL,
    erased bigint NOT NULL,
    seq_first bigint NOT NULL,
    seq_last bigint NOT NULL,
    closed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE headrace.gaps IS 'Stretches of the change stream that could not be read, and the entries that a resync made of the source''s tables instead.';

CREATE TABLE headrace.retention (
    stream text NOT NULL REFERENCES headrace.streams,
    partition integer NOT NULL,
    seq_first bigint NOT NULL,
    seq_last bigint NOT NULL,
    read_seq bigint NOT NULL,
    event_time_last timestamptz,
    bytes bigint NOT NULL,
    counts jsonb NOT NULL,
    labelled bigint NOT NULL,
    segments bigint NOT NULL,
    why text NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, partition)
);
COMMENT ON TABLE headrace.retention IS 'Partitions of a log that housekeeping dropped, oldest first, with what they held.';
COMMENT ON COLUMN headrace.retention.read_seq IS 'Last entry that makes a model read of it: its own last one, or a later label of one of its events.';
COMMENT ON COLUMN headrace.retention.event_time_last IS 'Latest time of its events.';
COMMENT ON COLUMN headrace.retention.counts IS 'Entries by origin: {origin: {events, observed, timeouts, corrections}}.';
COMMENT ON COLUMN headrace.retention.labelled IS 'Labels among them that epochs count: no corrections, and with a value.';
COMMENT ON COLUMN headrace.retention.segments IS 'Segments that went with it.';

CREATE TABLE headrace.experiments (
    experiment_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL REFERENCES headrace.streams,
    seq_first bigint NOT NULL,
    seq_last bigint NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('yes', 'no', 'not_yet')),
    found jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE headrace.experiments IS 'Replays of a log by `headrace worth`: what would have been. They are no versions and take no slot.';
COMMENT ON COLUMN headrace.experiments.found IS 'Everything that it found: models, families, freshness, advice.';

CREATE TABLE headrace.erasures (
    erasure_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL REFERENCES headrace.streams,
    key_sha256 text NOT NULL,
    seqs bigint[] NOT NULL,
    read_seq bigint NOT NULL,
    labelled bigint NOT NULL,
    quarantined bigint NOT NULL,
    held bigint NOT NULL,
    reason text NOT NULL,
    erased_by text NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE headrace.erasures IS 'Keys whose content was erased from the log: which entries, when, by whom and why. The key itself is not kept.';
COMMENT ON COLUMN headrace.erasures.key_sha256 IS 'SHA-256 of the key as text, in hex.';
COMMENT ON COLUMN headrace.erasures.seqs IS 'Events that were blanked, with all of their labels.';
COMMENT ON COLUMN headrace.erasures.read_seq IS 'Last entry that makes a model read of them; 0 where there are none.';
COMMENT ON COLUMN headrace.erasures.labelled IS 'Labels among them that epochs count, and whose value is gone.';
COMMENT ON COLUMN headrace.erasures.quarantined IS 'Refused rows that were blanked.';
COMMENT ON COLUMN headrace.erasures.held IS 'Labels waiting for an event that were given up.';

CREATE TABLE headrace.accounting (
    stream text NOT NULL REFERENCES headrace.streams,
    origin text NOT NULL CHECK (origin IN ('history', 'stream', 'resync')),
    received bigint NOT NULL DEFAULT 0,
    events bigint NOT NULL DEFAULT 0,
    labels bigint NOT NULL DEFAULT 0,
    corrections bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    quarantined bigint NOT NULL DEFAULT 0,
    ignored bigint NOT NULL DEFAULT 0,
    timeouts bigint NOT NULL DEFAULT 0,
    doubled bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (stream, origin)
);
COMMENT ON TABLE headrace.accounting IS 'What became of every change that was received. Timeouts are entries that no change caused.';
COMMENT ON COLUMN headrace.accounting.doubled IS 'Changes that brought two things, such as an event with its label: received counts them twice.';

CREATE TABLE headrace.quality_results (
    quality_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL,
    dag_run_id text NOT NULL,
    checked_at timestamptz NOT NULL DEFAULT now(),
    seq_first bigint NOT NULL,
    seq_last bigint NOT NULL,
    expectation text NOT NULL,
    success boolean NOT NULL,
    rows_checked bigint,
    rows_unexpected bigint,
    observed jsonb,
    exception text
);
COMMENT ON TABLE headrace.quality_results IS 'Each expectation''s result of each quality run.';

CREATE TABLE headrace.incidents (
    incident_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream text NOT NULL,
    role text NOT NULL,
    state text NOT NULL,
    message text NOT NULL,
    version text,
    epoch integer,
    opened_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz
);
COMMENT ON TABLE headrace.incidents IS 'What went wrong, in a named state, with what repairs it.';
COMMENT ON COLUMN headrace.incidents.version IS 'Of state diverged: the version that was learned in two ways.';
COMMENT ON COLUMN headrace.incidents.epoch IS 'Of state diverged: the first epoch whose digests differ.';

-- Endpoints write nothing else, so that headrace_reader is all they need.
CREATE FUNCTION headrace.report_endpoint(stream text, host text, version text, epoch integer, message text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = headrace, pg_temp AS $$
    INSERT INTO incidents (stream, role, state, message, version, epoch)
    SELECT $1, 'serve on ' || $2, 'diverged', $5, $3, $4
    WHERE NOT EXISTS (SELECT FROM incidents AS i
        WHERE i.stream = $1 AND i.role = 'serve on ' || $2 AND i.version = $3 AND i.closed_at IS NULL);
$$;
REVOKE ALL ON FUNCTION headrace.report_endpoint FROM PUBLIC;
GRANT EXECUTE ON FUNCTION headrace.report_endpoint TO headrace_reader;
COMMENT ON FUNCTION headrace.report_endpoint IS 'Opens the incident of an endpoint whose digests are not the learner''s.';

CREATE FUNCTION headrace.keep_lease(held_stream text, held_role text, held_token bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM headrace.leases WHERE stream = held_stream AND role = held_role AND token = held_token FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'lost the role ''%'' of stream ''%'' to another process; nothing was written', held_role, held_stream
            USING ERRCODE = 'HR001';
    END IF;
END $$;
COMMENT ON FUNCTION headrace.keep_lease IS 'Fails unless the role is still the caller''s; for transactions that go to the server as one query.';

-- headrace.flow.negatives draws the same; splitmix64, whose products wrap at 64 bits, of the event's seq.
CREATE FUNCTION headrace.wrapped(product numeric) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (CASE WHEN low >= 9223372036854775808 THEN low - 18446744073709551616 ELSE low END)::bigint
    FROM (SELECT mod(mod($1, 18446744073709551616) + 18446744073709551616, 18446744073709551616) AS low) AS wrapped;
$$;
COMMENT ON FUNCTION headrace.wrapped IS 'The lowest 64 bits of an integer of any size.';
CREATE FUNCTION headrace.negative_teaches(event_seq bigint, rate double precision) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    h bigint := headrace.wrapped(event_seq * -7046029254386353131::numeric);
BEGIN
    h := headrace.wrapped((h # ((h >> 30) & ((1::bigint << 34) - 1))) * -4658895280553007687::numeric);
    h := headrace.wrapped((h # ((h >> 27) & ((1::bigint << 37) - 1))) * -7723592293110705685::numeric);
    h := h # ((h >> 31) & ((1::bigint << 33) - 1));
    RETURN ((h >> 11) & ((1::bigint << 53) - 1))::double precision / (1::bigint << 53) < rate;
END $$;
COMMENT ON FUNCTION headrace.negative_teaches IS 'Whether a negative label of an event teaches versions of a negative_rate.';

-- Privileges: the intake writes the log, learners their checkpoints and metrics, Airflow's tasks steer, people read.
GRANT USAGE ON SCHEMA headrace TO headrace_intake, headrace_learner, headrace_steer, headrace_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA headrace TO headrace_intake, headrace_learner, headrace_steer, headrace_reader;
GRANT INSERT, UPDATE ON headrace.leases, headrace.failovers, headrace.worker_progress, headrace.incidents
    TO headrace_intake, headrace_learner, headrace_steer;
GRANT INSERT, UPDATE, DELETE ON headrace.standbys TO headrace_intake, headrace_learner;
GRANT INSERT, UPDATE, DELETE ON headrace.intake_positions, headrace.accounting, headrace.epochs TO headrace_intake;
GRANT INSERT ON headrace.gaps TO headrace_intake;
GRANT INSERT, DELETE ON headrace.checkpoints, headrace.artifacts TO headrace_learner, headrace_steer;
GRANT INSERT ON headrace.epoch_metrics, headrace.slice_metrics, headrace.member_metrics TO headrace_learner, headrace_steer;
GRANT UPDATE (status) ON headrace.versions TO headrace_learner;
GRANT INSERT, UPDATE ON headrace.streams, headrace.versions, headrace.serving_history, headrace.comparisons, headrace.decisions,
    headrace.quality_results, headrace.training_curves TO headrace_steer;
GRANT INSERT ON headrace.experiments TO headrace_steer;
GRANT DELETE ON headrace.versions, headrace.training_curves TO headrace_steer;
GRANT INSERT ON headrace.retention, headrace.erasures TO headrace_steer;
GRANT UPDATE ON headrace.streams TO headrace_intake;
