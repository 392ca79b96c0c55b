-- source_columns: columns of a table with their types
SELECT a.attname, a.atttypid::int, format_type(a.atttypid, -1)
FROM pg_attribute AS a WHERE a.attrelid = to_regclass(%(table)s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum;

-- source_identity: how updates and deletes of a table, or of the partitions that hold its rows, name their row
SELECT c.relreplident::text, EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary), c.oid::regclass::text,
    ARRAY(
        SELECT a.attname::text FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = c.oid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
        ORDER BY a.attnum)
FROM pg_class AS c
WHERE c.oid = to_regclass(%(table)s) AND c.relkind <> 'p'
    OR c.oid IN (SELECT t.relid FROM pg_partition_tree(to_regclass(%(table)s)) AS t WHERE t.isleaf)
ORDER BY 3;

-- source_identity_columns: columns that name a table's row in updates and deletes; NULL where it is the whole row
SELECT CASE WHEN c.relreplident <> 'f' THEN a.attname END FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE (c.oid = to_regclass(%(table)s) OR c.oid IN (SELECT t.relid FROM pg_partition_tree(to_regclass(%(table)s)) AS t WHERE t.isleaf))
    AND (c.relreplident = 'f' OR EXISTS (
    SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey)
        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END))
ORDER BY a.attnum;

-- source_publication_kinds: kinds of change that a publication leaves out
SELECT array_remove(ARRAY[CASE WHEN NOT pubinsert THEN 'insert' END, CASE WHEN NOT pubupdate THEN 'update' END,
    CASE WHEN NOT pubdelete THEN 'delete' END, CASE WHEN NOT pubtruncate THEN 'truncate' END], NULL)
FROM pg_publication WHERE pubname = %(publication)s;

-- source_publication: tables of a publication with the columns it sends, whether they were listed, and which rows it sends
SELECT p.schemaname || '.' || p.tablename, p.attnames::text[], EXISTS (
    SELECT FROM pg_publication_rel AS r JOIN pg_publication AS b ON b.oid = r.prpubid
    WHERE b.pubname = p.pubname AND r.prrelid = format('%%I.%%I', p.schemaname, p.tablename)::regclass AND r.prattrs IS NOT NULL),
    p.rowfilter
FROM pg_publication_tables AS p WHERE p.pubname = %(publication)s;

-- source_publication_made: the catalog rows that a publication is made of; any change of it is another text
SELECT format('%%s.%%s', p.oid, p.xmin) || coalesce((
        SELECT string_agg(format(' %%s.%%s', r.oid, r.xmin), '' ORDER BY r.oid) FROM pg_publication_rel AS r WHERE r.prpubid = p.oid), '')
    || coalesce((
        SELECT string_agg(format(' %%s.%%s', n.oid, n.xmin), '' ORDER BY n.oid) FROM pg_publication_namespace AS n WHERE n.pnpubid = p.oid), '')
FROM pg_publication AS p WHERE p.pubname = %(publication)s;

-- source_settings: what decides whether the server can stream changes
SELECT current_setting('wal_level'), current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots),
    current_setting('max_slot_wal_keep_size'), current_setting('server_version_num')::int, current_setting('server_encoding');

-- source_patience: milliseconds after which the server gives up a reader that says nothing; it speaks within half of them
SELECT setting::int FROM pg_settings WHERE name = 'wal_sender_timeout';

-- source_slot: state of a slot
SELECT slot_name, active, confirmed_flush_lsn::text, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,
    safe_wal_size, active_pid
FROM pg_replication_slots WHERE slot_name = %(slot)s;

-- end_former_reader: end the walsender that worked for who held the role before
SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %(slot)s AND active_pid = %(pid)s;

-- end_reader: end the walsender that reads a slot
SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = %(slot)s AND active_pid IS NOT NULL;

-- cancel_backend: end a backend's command
SELECT pg_cancel_backend(%(pid)s);

-- source_blockers: transactions that keep a slot from being created
SELECT l.pid, a.usename, coalesce(a.state, 'state hidden'), coalesce(left(a.query, 80), '')
FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid()
ORDER BY a.xact_start LIMIT 3;

-- source_count: rows of a table
SELECT count(*) FROM {table};

-- source_rows: rows of a table in order of time, for the history import
COPY (SELECT {columns} FROM {table} ORDER BY {time}, {key}) TO STDOUT (FORMAT binary);

-- source_labelled: labels that live in their events' rows, in order of time, for the history import
COPY (SELECT {columns} FROM {table} WHERE {time} IS NOT NULL ORDER BY {time}, {key}) TO STDOUT (FORMAT binary);

-- drop_slot: let go of a slot
SELECT pg_drop_replication_slot(%(slot)s);

-- backend_works: whether a backend works, which is not to wait for its client
SELECT state = 'active' AND wait_event_type IS DISTINCT FROM 'Client' FROM pg_stat_activity WHERE pid = %(pid)s;
