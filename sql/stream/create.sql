-- The schema of one stream: its training log, owned by role headrace_intake. Run once, when the stream is registered.
-- The schema is named after the stream; the log's columns have the source's types, key and event_time first.
CREATE SCHEMA {schema} AUTHORIZATION headrace_intake;
SET LOCAL ROLE headrace_intake;

CREATE TABLE {schema}.events (
    seq bigint NOT NULL,
    {columns},
    PRIMARY KEY (seq)
) PARTITION BY RANGE (seq);
COMMENT ON TABLE {schema}.events IS 'Entries of the training log that ask for a prediction, with their features as known then. An erased one has no key.';

CREATE TABLE {schema}.labels (
    seq bigint NOT NULL,
    event_seq bigint NOT NULL,
    kind headrace.label_kind NOT NULL,
    y double precision,
    y_before double precision,
    corrects bigint,
    label_time timestamptz,
    PRIMARY KEY (seq)
) PARTITION BY RANGE (seq);
COMMENT ON TABLE {schema}.labels IS 'Entries of the training log that answer an event: observed, timeout (none came within the window) or correction (of the label at seq corrects).';

CREATE TABLE {schema}.segments (
    seq_first bigint PRIMARY KEY,
    seq_last bigint NOT NULL,
    lsn pg_lsn NOT NULL,
    commit_time timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    watermark timestamptz NOT NULL,
    definition_hash text NOT NULL,
    origin text NOT NULL
);
COMMENT ON TABLE {schema}.segments IS 'One row per commit of the source: its range of seq, position, times and the watermark after it.';

CREATE TABLE {schema}.held (
    key {key_type} PRIMARY KEY,
    held_id bigint GENERATED ALWAYS AS IDENTITY,
    y double precision,
    label_time timestamptz NOT NULL,
    deadline timestamptz NOT NULL,
    lsn pg_lsn NOT NULL,
    received_at timestamptz NOT NULL
);
COMMENT ON TABLE {schema}.held IS 'Labels that came before their event, waiting for it until the watermark reaches their deadline; the oldest is given up before when there are a million.';
COMMENT ON COLUMN {schema}.held.held_id IS 'The order in which they came.';

CREATE TABLE {schema}.quarantine (
    quarantine_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation text NOT NULL,
    key text,
    expectation text NOT NULL,
    found text,
    reason text NOT NULL,
    content jsonb NOT NULL,
    lsn pg_lsn NOT NULL,
    origin text NOT NULL,
    received_at timestamptz NOT NULL
);
COMMENT ON TABLE {schema}.quarantine IS 'Rows that the contract refused, whole, with the reason. They never reach a model.';

CREATE VIEW {schema}.examples AS
    SELECT e.*, l.seq AS label_seq, l.kind, l.y, l.label_time
    FROM {schema}.labels AS l
    JOIN {schema}.events AS e ON e.seq = l.event_seq
    WHERE l.kind <> 'correction' AND l.y IS NOT NULL;
COMMENT ON VIEW {schema}.examples IS 'Labelled events: the training set, for SQL, Great Expectations and LightGBM.';

GRANT USAGE ON SCHEMA {schema} TO headrace_learner, headrace_steer, headrace_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO headrace_learner, headrace_steer, headrace_reader;
GRANT CREATE ON SCHEMA {schema} TO headrace_steer;
RESET ROLE;
