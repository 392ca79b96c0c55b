"""The source database: what a stream needs of it, the statements that prepare it, and reading its change stream.

Least privilege: REPLICATION and SELECT. headrace runs no DDL there; `statements` are for whoever may. The position that
is acknowledged is always one that the platform has made durable.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import errorcodes, sql
from psycopg2.extensions import connection as Connection
from psycopg2.extras import LogicalReplicationConnection, ReplicationCursor

from headrace.definition.stream import Stream
from headrace.errors import ServerError, SlotError, SourceError
from headrace.events import LogColumn
from headrace.flow.pgtypes import SUPPORTED, TIMESTAMPTZ
from headrace.store import db

_SLOT_SECONDS = 15.0
_FORMER_SECONDS = 5.0  # how long a backend that was ended may take to let go of the slot


@dataclass(frozen=True)
class Finding:
    """One thing that was tried."""

    ok: bool
    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class System:
    """Which cluster this is."""

    identifier: str
    timeline: int
    lsn: str


@dataclass(frozen=True)
class Feed:
    """What a log is read from."""

    slot: str
    system_identifier: str
    timeline: int
    publication: str  # what it is made of, as `publication_made` gives it


def identifiers(table: str) -> sql.Identifier:
    """`schema.table` as an identifier."""
    return sql.Identifier(*table.split("."))


def needed_columns(stream: Stream) -> dict[str, tuple[str, ...]]:
    """Columns that the stream reads, by table."""
    label = stream.label
    needed: dict[str, tuple[str, ...]] = {
        stream.source.table: (stream.source.key, stream.source.event_time, *stream.columns())
    }
    answers = (stream.label_key, label.value.column, label.label_time)
    needed[stream.label_table] = tuple(dict.fromkeys((*needed.get(stream.label_table, ()), *answers)))
    return needed


def identity_columns(conn: Connection, stream: Stream) -> dict[str, tuple[str, ...] | None]:
    """Columns of each table's replica identity, None for the whole row (FULL).

    A publication that leaves one out makes the table's updates fail, and so does any list of columns where it is FULL.
    """
    found: dict[str, tuple[str, ...] | None] = {}
    for table in needed_columns(stream):
        names = [name for (name,) in db.rows(conn, "source_identity_columns", {"table": _quoted(table)})]
        found[table] = None if None in names else tuple(dict.fromkeys(names))
    return found


def statements(
    stream: Stream, role: str = "headrace", identity: Mapping[str, Sequence[str] | None] | None = None
) -> str:
    """The statements that prepare the source for a stream, for a DBA to run: `headrace source-sql`.

    The publication sends only the columns that the stream reads, and those of the replica identity.

    Parameters
    ----------
    identity
        From `identity_columns`; left out, the tables' keys are taken to be the ones that the definition names.
    """
    tables = needed_columns(stream)
    known: dict[str, Sequence[str] | None] = dict.fromkeys(tables, ()) | dict(identity or {})
    frozen = any(e.kind == "immutable" for e in stream.contract) and known[stream.source.table] is not None
    whole = {stream.source.table: "to see what an UPDATE changed"} if frozen else {}
    for table, key in ((stream.source.table, stream.source.key), (stream.label_table, stream.label_key)):
        names = (identity or {}).get(table)
        if names is not None and key not in names:
            whole.setdefault(table, f"to see which {key} a row had before")
    known |= dict.fromkeys(whole, None)
    full = "".join(f"ALTER TABLE {_quoted(t)} REPLICA IDENTITY FULL; -- {why}\n" for t, why in whole.items())
    listed = ",\n    ".join(_published(table, columns, known[table]) for table, columns in tables.items())
    schemas = dict.fromkeys(table.split(".")[0] for table in tables)
    usage = "".join(f"GRANT USAGE ON SCHEMA {_quoted(schema)} TO {_quoted(role)};\n" for schema in schemas)
    grants = usage + "\n".join(f"GRANT SELECT ON {_quoted(table)} TO {_quoted(role)};" for table in tables)
    return (
        f"-- Prepares a database for the stream {stream.name}. Run it as the tables' owner; wal_level must be logical\n"
        "-- (ALTER SYSTEM SET wal_level = logical, then restart). Bound what a forgotten slot may cost:\n"
        "-- ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';\n"
        f"{full}CREATE PUBLICATION {_quoted(stream.publication)} FOR TABLE\n    {listed}\n"
        "    WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);\n"
        f"-- The role that headrace connects as, if it is not there yet:\n"
        f"-- CREATE ROLE {_quoted(role)} LOGIN REPLICATION PASSWORD '...';\n{grants}\n"
    )


def _published(table: str, columns: Sequence[str], identity: Sequence[str] | None) -> str:
    if identity is None:
        return _quoted(table)
    return f"{_quoted(table)} ({', '.join(map(_quoted, dict.fromkeys((*columns, *identity))))})"


def _quoted(name: str) -> str:
    """An identifier, or a qualified one; always in quotes, since any word may be a keyword of the next release."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def log_columns(conn: Connection, stream: Stream) -> tuple[LogColumn, ...]:
    """The log's columns with the source's types.

    Raises
    ------
    SourceError
        Listing every table and column that is missing or of a type that headrace cannot read.
    """
    problems = [f for f in _check_columns(conn, stream) if not f.ok]
    if problems:
        raise SourceError("; ".join(f"{f.what}: {f.found}; {f.remedy}" for f in problems))
    types = column_types(conn, stream.source.table)
    source = stream.source
    names = [(stream.log_column(c), c) for c in (source.key, source.event_time, *stream.columns())]
    return tuple(LogColumn(log, name, *types[name]) for log, name in names)


def column_types(conn: Connection, table: str) -> dict[str, tuple[int, str]]:
    """Columns of a table with their types' oids and names; empty when there is no such table."""
    return {name: (oid, text) for name, oid, text in db.rows(conn, "source_columns", {"table": _quoted(table)})}


def _check_columns(conn: Connection, stream: Stream) -> Iterator[Finding]:
    """Tables, columns, types and replica identities."""
    types = {table: column_types(conn, table) for table in needed_columns(stream)}
    for table, columns in needed_columns(stream).items():
        if not types[table]:
            yield Finding(
                False, f"table {table}", "there is no such table", "create it, or correct the stream's definition"
            )
            continue
        for column in columns:
            if column not in types[table]:
                known = ", ".join(types[table])
                yield Finding(
                    False, f"column {table}.{column}", f"not among {known}", "correct the stream's definition"
                )
            elif types[table][column][0] not in SUPPORTED:
                names = ", ".join(t.name for t in SUPPORTED.values())
                found = f"has type {types[table][column][1]}, expected one of {names}"
                yield Finding(
                    False, f"column {table}.{column}", found, "leave it out, or publish a column of such a type"
                )
    events, labels = types[stream.source.table], types[stream.label_table]
    for table, column, found_types in (
        (stream.source.table, stream.source.event_time, events),
        (stream.label_table, stream.label.label_time, labels),
    ):
        if column in found_types and found_types[column][0] != TIMESTAMPTZ:
            found = f"has type {found_types[column][1]}, expected timestamp with time zone"
            yield Finding(
                False, f"time {table}.{column}", found, "times without a zone are ambiguous: change the column's type"
            )
    for table, column, wanted, remedy in _needed_kinds(stream):
        if (
            column in types[table]
            and (kind := SUPPORTED.get(types[table][column][0]))
            and kind.kind not in _KINDS[wanted]
        ):
            yield Finding(
                False, f"type of {table}.{column}", f"is {types[table][column][1]}, expected {wanted}", remedy
            )
    for expectation in stream.contract:
        if expectation.kind == "less_than" and all(c in events for c in expectation.columns):
            groups = [{w for w in _COMPARABLE if _kind(events[c][0]) in _KINDS[w]} for c in expectation.columns]
            if not groups[0] & groups[1]:
                found = " and ".join(f"{c} is {events[c][1]}" for c in expectation.columns)
                yield Finding(
                    False,
                    f"contract {expectation.name}",
                    f"{found}, expected types that compare",
                    "correct the contract",
                )
    if stream.source.key in events and SUPPORTED.get(events[stream.source.key][0], SUPPORTED[16]).kind not in (
        "int",
        "text",
        "uuid",
    ):
        found = f"has type {events[stream.source.key][1]}, expected integer, text or uuid"
        yield Finding(False, f"key {stream.source.table}.{stream.source.key}", found, "choose a key of such a type")
    keys = events.get(stream.source.key), labels.get(stream.label_key)
    if keys[0] and keys[1] and keys[0][0] != keys[1][0]:
        found = (
            f"{stream.source.table}.{stream.source.key} is {keys[0][1]}, "
            f"{stream.label_table}.{stream.label_key} is {keys[1][1]}"
        )
        yield Finding(False, "keys", found, "give both the same type")


_KINDS: dict[str, tuple[str, ...]] = {
    "a number": ("int", "float", "numeric"),
    "a number or a boolean": ("int", "float", "numeric", "bool"),
    "a boolean": ("bool",),
    "a text": ("text", "char"),
    "a text or uuid": ("text", "char", "uuid"),
    "a time": ("timestamp", "date"),
    "a list of texts (text[] or varchar[])": ("texts",),
    "a single value": ("int", "float", "numeric", "bool", "timestamp", "date", "char", "text", "uuid"),
}
_COMPARABLE = ("a number", "a text", "a time", "a boolean")


def _kind(oid: int) -> str | None:
    return SUPPORTED[oid].kind if oid in SUPPORTED else None


def _needed_kinds(stream: Stream) -> Iterator[tuple[str, str, str, str]]:
    """(table, column, what it must be, remedy) wherever the definition works with a column's values."""
    events, label = stream.source.table, stream.label
    for feature in stream.features:
        for column in feature.columns:
            if feature.kind == "number":
                yield events, column, "a number or a boolean", f"declare category({column!r}) instead"
            elif feature.kind == "tokens":
                yield events, column, "a list of texts (text[] or varchar[])", f"declare category({column!r}) instead"
            elif feature.kind == "category":
                yield events, column, "a single value", f"declare tokens({column!r}) instead"
            elif feature.kind in ("hour_of_day", "day_of_week"):
                yield events, column, "a time", f"leave {feature.kind}({column!r}) out"
    for expectation in stream.contract:
        remedy = f"leave {expectation.name} out of the contract, or correct it"
        values = expectation.params.get("values", ())
        for column in expectation.columns:
            if expectation.kind in ("between", "finite"):
                yield events, column, "a number", remedy
            elif expectation.kind in ("regex", "length"):
                yield events, column, "a text", remedy
            elif expectation.kind in ("in_set", "not_in_set") and values:
                yield (
                    events,
                    column,
                    "a text or uuid" if isinstance(values[0], str) else "a number",
                    remedy,
                )
    remedy, constant = f"correct label.value, which is {label.value}", label.value.constant
    match label.value.operator:
        case "value":
            wanted = "a number" if stream.loss.regression else "a number or a boolean"
            yield stream.label_table, label.value.column, wanted, remedy
        case ">" | ">=" | "<" | "<=":
            yield stream.label_table, label.value.column, "a number", remedy
        case "==" | "!=":
            wanted = (
                "a text or uuid"
                if isinstance(constant, str)
                else "a boolean"
                if isinstance(constant, bool)
                else "a number"
            )
            yield stream.label_table, label.value.column, wanted, remedy


def _expected(found: str, expected: str) -> str:
    return found if found == expected else f"{found}, expected {expected}"


def doctor(dsn: str, stream: Stream) -> list[Finding]:
    """Try everything that the intake will need; nothing is left behind.

    Raises
    ------
    ServerError
        When no connection can be made at all.
    """
    findings = []
    with closing(db.connect(dsn, application="headrace doctor", autocommit=True)) as conn:
        settings = db.row(conn, "source_settings")
        assert settings is not None  # one row of settings
        wal_level, slots, used, keep, version, encoding = settings
        findings.append(Finding(True, "connection", f"PostgreSQL {version // 10_000} at {db.describe(dsn)}"))
        remedy = (
            "ALTER SYSTEM SET wal_level = logical, then restart the server (managed services: their parameter group)"
        )
        findings.append(Finding(wal_level == "logical", "wal_level", _expected(wal_level, "logical"), remedy))
        findings.append(
            Finding(
                used < slots,
                "replication slots",
                f"{used} of {slots} in use",
                "raise max_replication_slots, or drop unused ones",
            )
        )
        if encoding == "SQL_ASCII":
            found = "SQL_ASCII, which says nothing of what its bytes mean"
            remedy = "copy the data into a database with the encoding that it has (CREATE DATABASE ... ENCODING 'UTF8')"
            findings.append(Finding(False, "encoding", found, remedy))
        if keep == "-1":
            findings.append(
                Finding(
                    True,
                    "max_slot_wal_keep_size",
                    "unlimited: a slot that nobody reads would fill the disk; consider a limit",
                )
            )
        bad = list(_check_columns(conn, stream))
        findings.extend(bad or [Finding(True, "tables and columns", "all there, of types that headrace reads")])
        if not bad:
            findings.extend(_try_select(conn, stream))
            findings.extend(_check_identity(conn, stream))
        findings.extend(check_publication(conn, stream))
    if wal_level == "logical":
        findings.append(_try_slot(dsn))
    return findings


def _try_select(conn: Connection, stream: Stream) -> Iterator[Finding]:
    for table, columns in needed_columns(stream).items():
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        try:
            with conn.cursor() as cursor:
                cursor.execute(sql.SQL("SELECT {} FROM {} LIMIT 0").format(names, identifiers(table)))
            yield Finding(True, f"SELECT on {table}", "granted")
        except psycopg2.errors.InsufficientPrivilege as error:
            yield Finding(False, f"SELECT on {table}", str(error).strip(), "run the GRANTs of `headrace source-sql`")


def _check_identity(conn: Connection, stream: Stream) -> Iterator[Finding]:
    frozen = [e.name for e in stream.contract if e.kind == "immutable"]
    for table in needed_columns(stream):
        whole = bool(frozen) and table == stream.source.table
        key = stream.source.key if table == stream.source.table else stream.label_key
        yield from _partition_identity(
            conn, table, key, f"which {frozen[0]} needs to see what an UPDATE changed" if whole else ""
        )


def _partition_identity(conn: Connection, table: str, key: str, needs_full: str) -> Iterator[Finding]:
    """Of a table, or of each partition that holds its rows."""
    parts = db.rows(conn, "source_identity", {"table": _quoted(table)}) or [("n", False, table, [])]
    for identity, primary, part, columns in parts:
        name = table if len(parts) == 1 else part
        named = identity in ("f", "i") or (identity == "d" and primary)
        if needs_full and identity != "f":
            remedy = f"ALTER TABLE {part} REPLICA IDENTITY FULL, then `headrace source-sql` again; or leave it out"
            yield Finding(False, f"replica identity of {name}", f"not FULL, {needs_full}", remedy)
            continue
        if named and identity != "f" and key not in columns:
            remedy = f"ALTER TABLE {part} REPLICA IDENTITY FULL, then `headrace source-sql` again"
            names = ", ".join(columns)
            found = f"{names} without {key}: an UPDATE that gives a row another {key} would not say which it had"
            yield Finding(False, f"replica identity of {name}", found, remedy)
            continue
        kind = {"n": "NOTHING", "d": "DEFAULT without a primary key"}.get(identity, identity)
        yield Finding(
            named,
            f"replica identity of {name}",
            "names its rows" if named else f"{kind}: updates and deletes of published rows would fail",
            f"ALTER TABLE {part} ADD PRIMARY KEY (...), or ALTER TABLE {part} REPLICA IDENTITY FULL",
        )


def check_publication(conn: Connection, stream: Stream) -> Iterator[Finding]:
    """Whether the stream's publication sends what it needs."""
    rows = db.rows(conn, "source_publication", {"publication": stream.publication})
    published = {table: (columns, listed) for table, columns, listed, _ in rows}
    remedy = f"run the statements of `headrace source-sql {stream.name}` as the tables' owner"
    if not published:
        yield Finding(False, f"publication {stream.publication}", "missing, or without tables", remedy)
        return
    kinds = db.row(conn, "source_publication_kinds", {"publication": stream.publication})
    left_out = ", ".join(kinds[0]) if kinds is not None else ""
    every = f"ALTER PUBLICATION {_quoted(stream.publication)} SET (publish = 'insert, update, delete, truncate')"
    found = f"leaves out {left_out}, which would never arrive" if left_out else "sends every kind of change"
    yield Finding(not left_out, f"publication {stream.publication}", found, every)
    identity, needed = identity_columns(conn, stream), needed_columns(stream)
    for table, _, _, rule in rows:
        if rule is not None and table in needed:
            found = f"sends only rows WHERE {rule}; the others would never arrive, nor rows that change so"
            yield Finding(
                False, f"rows of {table}", found, f"DROP PUBLICATION {_quoted(stream.publication)}; then {remedy}"
            )
    for table, columns in needed.items():
        sent, listed = published.get(table, ((), False))
        missing = [c for c in dict.fromkeys((*columns, *(identity[table] or ()))) if c not in (sent or ())]
        found = "sends all columns needed" if not missing else f"lacks {', '.join(missing)}"
        if listed and identity[table] is None:
            found = "lists columns, which REPLICA IDENTITY FULL does not allow: updates and deletes of the table fail"
        yield Finding(not missing and found.startswith("sends"), f"publication of {table}", found, remedy)
    for table in published.keys() - needed.keys():
        found = "is published too, and no table of the stream"
        remedy = (
            f"ALTER PUBLICATION {stream.publication} DROP TABLE {table}; partitions: publish their root, with "
            "publish_via_partition_root = true"
        )
        yield Finding(False, f"publication of {table}", found, remedy)


def publication_made(conn: Connection, stream: Stream) -> str:
    """Which catalog rows the stream's publication is made of.

    While it lacked a table nothing of that table was sent, and no LSN tells: a publication whose rows are not those that
    the log began with may have left something out.
    """
    row = db.row(conn, "source_publication_made", {"publication": stream.publication})
    return "" if row is None else str(row[0])


def _try_slot(dsn: str) -> Finding:
    try:
        with replication(dsn) as cursor:
            _create(dsn, cursor, f"headrace_doctor_{os.getpid()}", temporary=True)  # goes with its connection
    except (SourceError, psycopg2.Error) as error:
        return Finding(
            False,
            "replication",
            " ".join(str(error).split()),
            "ALTER ROLE ... REPLICATION, and a direct DSN without a pooler",
        )
    return Finding(True, "replication", "a slot could be created")


@contextmanager
def replication(dsn: str) -> Iterator[ReplicationCursor]:
    """A replication connection's cursor.

    Raises
    ------
    SourceError
        When the server refuses replication to this role, or a pooler stands between.
    """
    try:
        conn = psycopg2.connect(
            dsn,
            connection_factory=LogicalReplicationConnection,
            application_name="headrace intake",
            **db.NETWORK,  # the walsender converts to our encoding, too
        )
    except psycopg2.OperationalError as error:
        raise SourceError(
            f"{db.describe(dsn)} refuses a replication connection: {' '.join(str(error).split())}; expected a role with "
            "REPLICATION and a direct DSN (no pooler): run `headrace doctor`",
            state="source_away",
        ) from error
    with closing(conn), conn.cursor() as cursor:
        yield cursor


def system(cursor: ReplicationCursor) -> System:
    """Which cluster a replication connection talks to."""
    cursor.execute("IDENTIFY_SYSTEM")
    row = cursor.fetchone()
    assert row is not None  # the command always answers
    return System(row[0], row[1], row[2])


def patience(conn: Connection) -> float | None:
    """Seconds that the source waits for a sign of its reader, who may wait as long for one of it; None when without end."""
    row = db.row(conn, "source_patience")
    assert row is not None  # one row of settings
    return row[0] / 1000 or None


def create_slot(dsn: str, cursor: ReplicationCursor, slot: str) -> tuple[str, str]:
    """Create a slot; gives (consistent LSN, name of the exported snapshot), which lives until the cursor's next command.

    Raises
    ------
    SlotError
        When it is there already, or older transactions block it; the message names them.
    psycopg2.Error
        When the source went away, or does not answer.
    """
    try:
        row = _create(dsn, cursor, slot)
    except psycopg2.errors.DuplicateObject as error:
        raise SlotError(
            f"slot {slot!r} is there already, but the log knows no position in it: drop it, then start again"
        ) from error
    except psycopg2.errors.QueryCanceled as error:
        with closing(db.connect(dsn, autocommit=True)) as conn:
            names = [
                f"pid {pid} ({user}, {state}: {text})" for pid, user, state, text in db.rows(conn, "source_blockers")
            ]
        raise SlotError(
            f"slot {slot!r} could not be created within {_SLOT_SECONDS:g} s, since older transactions are still open: "
            f"{'; '.join(names) or 'none by now'}; end them, or try again"
        ) from error
    except psycopg2.Error as error:
        if db.state_of(error) == db.AWAY:
            raise
        raise SlotError(
            f"slot {slot!r} could not be created: {' '.join(str(error).split())}; `headrace doctor` says what is missing"
        ) from error
    return row[1], row[2]


def _create(dsn: str, cursor: ReplicationCursor, slot: str, *, temporary: bool = False) -> tuple[Any, ...]:
    timer = threading.Timer(_SLOT_SECONDS, _cancel, [dsn, cursor.connection.info.backend_pid])
    timer.daemon = True
    timer.start()
    try:
        with db.answering(cursor.connection, 2 * _SLOT_SECONDS):  # to cancel takes a moment, and may go unheard
            kind = sql.SQL(" TEMPORARY" if temporary else "")
            cursor.execute(sql.SQL("CREATE_REPLICATION_SLOT {}{} LOGICAL pgoutput").format(sql.Identifier(slot), kind))
            row = cursor.fetchone()
    finally:
        timer.cancel()
    assert row is not None  # the command always answers
    return row


def _cancel(dsn: str, pid: int) -> None:
    """End a backend's command. Not by psycopg2's `cancel`, which lets no other thread run until the server answers."""
    with (
        suppress(ServerError, psycopg2.Error),
        closing(db.connect(dsn, autocommit=True)) as conn,
        db.answering(conn, _SLOT_SECONDS),
    ):
        db.run(conn, "cancel_backend", {"pid": pid})


def give_up_slot(conn: Connection, slot: str) -> None:
    """Drop a slot, whoever reads it.

    Raises
    ------
    SlotError
        When its reader came back in between: try again.
    """
    db.run(conn, "end_reader", {"slot": slot})
    drop_slot(conn, slot)


def drop_slot(conn: Connection, slot: str) -> None:
    """Drop a slot if it is there.

    Raises
    ------
    SlotError
        When somebody reads it.
    """
    if db.row(conn, "source_slot", {"slot": slot}) is None:
        return
    try:
        db.run(conn, "drop_slot", {"slot": slot})
    except psycopg2.errors.ObjectInUse as error:
        raise SlotError(
            f"slot {slot!r} is in use by another reader: {' '.join(str(error).split())}; stop that one first"
        ) from error


def start(cursor: ReplicationCursor, slot: str, publication: str, lsn: str) -> None:
    """Start streaming after a position.

    Raises
    ------
    SlotError
        When the slot is missing, invalidated or in use.
    """
    try:
        cursor.start_replication(
            slot_name=slot,
            decode=False,
            start_lsn=lsn_number(lsn),
            options={"proto_version": "1", "publication_names": publication, "binary": "true", "messages": "true"},
        )
    except psycopg2.errors.ObjectInUse as error:
        raise SlotError(f"slot {slot!r} is in use by another reader; stop that one first") from error
    except psycopg2.errors.UndefinedObject as error:
        raise SlotError(
            f"slot {slot!r} or publication {publication!r} is missing at the source: {' '.join(str(error).split())}"
        ) from error
    except psycopg2.Error as error:
        if error.pgcode == errorcodes.OBJECT_NOT_IN_PREREQUISITE_STATE:
            raise SlotError(
                f"slot {slot!r} was invalidated: {' '.join(str(error).split())}; its WAL is gone"
            ) from error
        raise


def start_after(
    watch: Connection, cursor: ReplicationCursor, slot: str, publication: str, lsn: str, former: int | None
) -> None:
    """Start streaming where somebody else may have done so a moment ago.

    Parameters
    ----------
    watch
        The source.
    former
        The backend that read the slot for whom this process takes over from: it is ended if it still does. Any other
        reader of the slot is none of ours.

    Raises
    ------
    SlotError
        As `start`.
    """
    deadline = time.monotonic() + _FORMER_SECONDS
    while True:
        row = db.row(watch, "source_slot", {"slot": slot})
        ours = row is not None and row[6] is not None and row[6] == former
        if not ours or time.monotonic() > deadline:
            return start(cursor, slot, publication, lsn)
        db.run(watch, "end_former_reader", {"slot": slot, "pid": former})
        time.sleep(0.005)


def published(conn: Connection, stream: Stream) -> str:
    """What the publication is made of, after a check that it sends all that the stream reads.

    Raises
    ------
    SourceError
        When it is missing, or leaves something out.
    """
    if problems := [f for f in check_publication(conn, stream) if not f.ok]:
        raise SourceError("; ".join(f"{f.what}: {f.found}; {f.remedy}" for f in problems), state="publication")
    return publication_made(conn, stream)


def seam(conn: Connection, found: System, stream: Stream, feed: Feed, lsn: str) -> str | None:
    """Why reading cannot go on from a position; None when it can.

    Parameters
    ----------
    conn, found
        The source, and which cluster it is.
    feed, lsn
        What the log was read from, and the position up to which everything is stored.
    """
    if (found.identifier, found.timeline) != (feed.system_identifier, feed.timeline):
        return (
            f"another_source: the source is cluster {found.identifier}, timeline {found.timeline}; the log was filled from "
            f"cluster {feed.system_identifier}, timeline {feed.timeline}: correct the connection if this is the wrong one"
        )
    slot = feed.slot
    row = db.row(conn, "source_slot", {"slot": slot})
    if row is None:
        return f"slot_missing: slot {slot!r} is gone at the source, but the log stands at {lsn}: changes since then are lost"
    _, _, confirmed, status, _, _, _ = row
    if status == "lost":
        return f"slot_lost: slot {slot!r} was invalidated, its WAL is gone; the log stands at {lsn}"
    if confirmed is not None and lsn_number(confirmed) > lsn_number(lsn):
        return (
            f"platform_behind: slot {slot!r} confirmed {confirmed}, the log stands at {lsn}: was the platform restored from a "
            "backup? Postgres would skip what lies between"
        )
    return publication_seam(conn, stream, feed)


def publication_seam(conn: Connection, stream: Stream, feed: Feed) -> str | None:
    """Why a publication may have left something out since the log began to read it; None when it cannot have."""
    if publication_made(conn, stream) == feed.publication:
        return None
    return (
        f"publication_changed: publication {stream.publication!r} was changed or made anew since the log began to read it: "
        "what was committed meanwhile may not have been sent"
    )


def lsn_text(lsn: int) -> str:
    """An LSN as Postgres writes it.

    >>> lsn_text(0x1_0000_00A8)
    '1/A8'
    """
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """The inverse of `lsn_text`."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def columns_text(columns: Sequence[str]) -> sql.Composed:
    """Columns as a list of identifiers."""
    return sql.SQL(", ").join(map(sql.Identifier, columns))
