"""The intake: the one process that turns a stream's change stream into its training log.

A loop on one page: read what the slot has, cut it at a Commit, decode, gate and join it, write all of it with the new
position in one platform transaction, and only then acknowledge. A kill at any point loses nothing and repeats nothing:
Postgres sends again whatever was not acknowledged, from the stored position on.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import SeamError, ServerError, SourceError
from headrace.events import LogColumn, micros, moment
from headrace.flow.admit import Admission, Gates, Stretch
from headrace.flow.copybinary import WHOLE, pack_events, pack_table
from headrace.flow.gate import Rows
from headrace.flow.join import Join, Joined, rehearse
from headrace.flow.pgoutput import DELETE, INSERT, OLD, UPDATE, Changes, Messages, Session, parse
from headrace.flow.pgtypes import BOOL, TIMESTAMPTZ
from headrace.store import copyboth, db, log, source
from headrace.store.changes import PATIENCE, Large, Reader
from headrace.store.leases import Lease
from headrace.store.script import Script

logger = logging.getLogger(__name__)

_REPORT = 2.0  # seconds
_FEW = 1_000  # messages: what comes within a rest after so few shares a transaction, here and with all who read the log
_REST = 0.004  # seconds at most; as long as the transaction took, which is longer where others want the CPU
CLOCK = "headrace.clock"  # prefix of logical messages that carry stream time, as ISO 8601 text
_NO_CLOCK = -(2**63)

Index = NDArray[np.intp]


def admit(stream: Stream, columns: tuple[LogColumn, ...], messages: Messages, gates: Gates | None = None) -> Admission:
    """The changes of a stretch of the change stream, through the gate; what cannot be used is refused, never skipped."""
    admission = Admission(stream, columns, gates=gates)
    for changes in messages.changes:
        table = f"{changes.relation.namespace or 'pg_catalog'}.{changes.relation.name}"
        inserted, updated, deleted = (np.flatnonzero(changes.kind == kind) for kind in (INSERT, UPDATE, DELETE))
        nameless, updated = _nameless(changes, updated, stream.source.key if stream.own_row else stream.label_key)
        if table == stream.source.table:
            if not stream.own_row:  # the row has nothing but features, which stay as they were
                nameless, updated = nameless[:0], np.union1d(nameless, updated) if len(nameless) else updated
            if len(nameless):
                admission.nameless(_stretch(changes, messages, nameless))
            if len(inserted):
                admission.events(_stretch(changes, messages, inserted))
            admission.ignore(len(deleted))
            for part in _by_identity(changes, updated):
                admission.updates(_stretch(changes, messages, part))
        elif table == stream.label_table:
            if len(nameless):
                admission.nameless(_stretch(changes, messages, nameless))
            told = np.union1d(inserted, updated) if len(updated) else inserted
            if len(told):
                admission.labels(_stretch(changes, messages, told))
            if len(deleted):
                admission.unlabels(_stretch(changes, messages, deleted, old=True))
        else:
            known = f"{stream.source.table} and {stream.label_table}"
            reason = (
                f"{table} is not a table of the stream, expected {known}; publish them through their partition root "
                f"(publish_via_partition_root = true), and no other: `headrace source-sql {stream.name}`"
            )
            every = np.arange(len(changes.kind))
            admission.refuse(_stretch(changes, messages, every, old=True), table, "relation", reason)
    for truncate in messages.truncates:
        for oid in truncate.oids:
            relation = messages.session.relations[oid]
            commit = int(messages.transaction[truncate.index])
            admission.truncated(f"{relation.namespace or 'pg_catalog'}.{relation.name}", commit)
    return admission


def _nameless(changes: Changes, updated: Index, key: str) -> tuple[Index, Index]:
    """Updates that may have given their row another key without a word of it, and the others."""
    if any(c.name == key and not c.is_key for c in changes.relation.columns):
        known = changes.identity[updated] == OLD  # a partition may say more than its root promises
        return updated[~known], updated[known]
    return updated[:0], updated


def _by_identity(changes: Changes, rows: Index) -> list[Index]:
    """Rows whose state before was sent whole, and the others."""
    whole = changes.identity[rows] == OLD
    return [part for part in (rows[whole], rows[~whole]) if len(part)]


def _stretch(changes: Changes, messages: Messages, index: Index, *, old: bool = False) -> Stretch:
    """Some changes of one table; with `old`, deletes as they were before."""
    commit = changes.transaction[index].astype(np.int64)
    columns = {c.name: (i, c.type_oid) for i, c in enumerate(changes.relation.columns)}
    before = None if changes.old is None else Rows(changes.old.take(index), columns)
    whole = len(index) > 0 and bool((changes.identity[index] == OLD).all())
    cells = changes.filled() if not old or changes.old is None else changes.rows_before()
    rows = Rows(cells.take(index), columns, before if whole else None)
    return Stretch(rows, changes.message[index], commit, messages.transactions.commit_time[commit], before)


def clocks(messages: Messages, stream: Stream) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Stream time that each commit's heartbeats carry; the smallest int64 where there is none.

    A time too far ahead of its commit is not believed, as in a row: it would close every event that waits.
    """
    carried = np.full(len(messages.transactions.commit), _NO_CLOCK, dtype=np.int64)
    for message in messages.logical:
        if message.prefix == CLOCK and message.transactional:
            commit = int(messages.transaction[message.index])
            try:
                told = micros(datetime.fromisoformat(message.content.decode()))
                latest = int(messages.transactions.commit_time[commit]) + stream.max_ahead // timedelta(microseconds=1)
                if told > latest:
                    raise ValueError(f"later than {moment(latest).isoformat()}")
                carried[commit] = max(carried[commit], told)
            except (ValueError, TypeError) as error:
                logger.warning(
                    "ignored a heartbeat with content %r: expected an ISO time with its zone (%s)",
                    message.content,
                    error,
                )
    return carried


@dataclass
class Standing:
    """A join that follows the log: what an intake must know to write its next entry."""

    stream: Stream
    columns: tuple[LogColumn, ...]
    join: Join
    appender: log.Appender
    gates: Gates

    def admit(self, messages: Messages) -> Admission:
        """As `admit`, by its definition."""
        return admit(self.stream, self.columns, messages, self.gates)

    def follow(self, conn: Connection) -> int:
        """Take over what the log has by now; gives the seq that it has come to."""
        at = log.position(conn, self.stream.name)
        if at is not None and at.seq > self.join.seq:
            self.appender.follow(conn, self.join, at)
        conn.commit()
        return self.join.seq


def standing(conn: Connection, stream: Stream, columns: tuple[LogColumn, ...]) -> Standing:
    """A join that knows nothing yet."""
    _rehearse(stream, columns)
    known = Standing(stream, columns, *log.open_log(conn, stream, columns), Gates.of(stream))
    conn.commit()
    return known


def _rehearse(stream: Stream, columns: tuple[LogColumn, ...]) -> None:
    """Take an event without values from decoder to encoder, so that a take-over finds all kernels loaded."""
    copyboth.rehearse()
    rehearse()
    types = {c.source: c.type_oid for c in columns}
    if stream.own_row:
        types |= {stream.label.label_time: TIMESTAMPTZ, stream.label.value.column: BOOL}
    described = b"".join(struct.pack(f">b{len(n.encode()) + 1}sii", 0, n.encode(), oid, -1) for n, oid in types.items())
    schema, table = (part.encode() + b"\0" for part in stream.source.table.split("."))
    payloads = [
        struct.pack(">cqqi", b"B", 1, 0, 1),
        b"R" + struct.pack(">i", 1) + schema + table + b"d" + struct.pack(">h", len(types)) + described,
        b"I" + struct.pack(">ich", 1, b"N", len(types)) + b"n" * len(types),
        struct.pack(">cbqqq", b"C", 0, 1, 2, 0),
    ]
    offsets = np.cumsum([0, *map(len, payloads)])
    messages = parse(b"".join(payloads), offsets, Session())
    admission = admit(stream, columns, messages)
    admission.chunk(clocks(messages, stream))
    pack_events(np.zeros(1, dtype=np.int64), admission.groups[0][1], np.zeros(1, dtype=np.int64))
    pack_table(np.zeros((1, 1), dtype=np.int64), [WHOLE])


def run(conn: Connection, dsn: str, known: Standing, lease: Lease, stop: Callable[[], bool]) -> None:
    """Read, write, acknowledge, until `stop` says so.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_intake; the lease is held on it.
    dsn
        The source.

    Raises
    ------
    SeamError
        When the slot does not fit the stored position.
    LeaseError
        When another process took the role.
    """
    stream, join = known.stream, known.join
    at = log.position(conn, stream.name)
    if at is None:
        raise SourceError(
            f"stream {stream.name!r} has no history yet: `headrace intake {stream.name}` imports it first"
        )
    known.appender.resume(conn, join, at)
    conn.commit()
    with closing(_watch(dsn)) as watch, source.replication(dsn) as cursor:
        with db.answering(watch, PATIENCE), db.answering(cursor.connection, PATIENCE):
            _check_publication(watch, stream)
            if why := source.seam(watch, source.system(cursor), stream, at.feed, at.lsn):
                raise _broken(stream, why)
            patience = source.patience(watch) or PATIENCE
            source.start_after(watch, cursor, at.feed.slot, stream.publication, at.lsn, lease.former_walsender)
        with db.transaction(conn):
            db.run(conn, "close_incidents", {"stream": stream.name, "role": "intake"})
        lease.ready(conn, cursor.connection.info.backend_pid)
        logger.info(
            "streaming %s from %s: seq %d, %d events wait for their label",
            stream.name,
            at.lsn,
            at.seq,
            join.open_events,
        )
        looked, pause = 0.0, min(_REPORT, patience / 4)
        with closing(Reader(cursor, patience)) as reader:
            while not stop():
                lease.pulse.beat()
                read = reader.read(wait=0.5)
                if isinstance(read, Large):
                    reader.acknowledge(_write_large(conn, known, lease, at, reader, read))
                elif read is not None:
                    began = time.monotonic()
                    reader.acknowledge(_write(conn, known, lease, at, read))
                    if len(read.kind) < _FEW:
                        time.sleep(min(time.monotonic() - began, _REST))
                if reader.asked or time.monotonic() - looked > pause:
                    with db.answering(watch, patience):
                        kept, safe = _look(watch, stream, at.feed)
                    reader.acknowledge(_report(conn, stream, lease, join, reader.idle_at, kept, safe))
                    looked = time.monotonic()


def _watch(dsn: str) -> Connection:
    """A connection that looks after the slot."""
    try:
        return db.connect(dsn, application="headrace watch", autocommit=True)
    except ServerError as error:
        raise SourceError(str(error), state="source_away") from error


def _broken(stream: Stream, why: str) -> SeamError:
    return SeamError(f"{why}; `headrace resync {stream.name}` closes the gap", state=why.split(":")[0])


def _check_publication(watch: Connection, stream: Stream) -> None:
    """Postgres 18 would stream on without a word, and the position would move past changes that were never sent."""
    if problems := [f for f in source.check_publication(watch, stream) if not f.ok]:
        raise SourceError("; ".join(f"{f.what}: {f.found}; {f.remedy}" for f in problems), state="publication")


def _write(conn: Connection, known: Standing, lease: Lease, at: log.Position, messages: Messages) -> str:
    """One platform transaction; gives the position that it made durable."""
    admission, script = known.admit(messages), Script(conn)
    chunk = admission.chunk(clocks(messages, known.stream))
    commits = log.Commits(messages.transactions.end_lsn, messages.transactions.commit_time)
    end, join = commits.lsn_text(-1), known.join
    with db.transaction(conn):
        lease.keep(script)
        before, parts = join.seq, join.run(chunk, partial(known.appender.past, script))
        known.appender.append(script, _alive(parts, lease), admission, commits, "stream")
        _move(script, known, at, end, moment(int(commits.time[-1])), new=join.seq > before)
        script.run()
    return end


def _alive(parts: Iterator[Joined], lease: Lease) -> Iterator[Joined]:
    """Say after each part that the work goes on: one heartbeat may close millions of events."""
    for part in parts:
        yield part
        lease.pulse.beat()


def _write_large(
    conn: Connection, known: Standing, lease: Lease, at: log.Position, reader: Reader, large: Large
) -> str:
    """The same for a transaction that does not fit into memory: twice through it, since the watermark comes first."""
    end, reach, join, script = source.lsn_text(large.end_lsn), _NO_CLOCK, known.join, Script(conn)
    with closing(large):
        for messages, _ in large.parts():
            chunk = known.admit(messages).chunk(clocks(messages, known.stream))
            reach = max(reach, chunk.reach())
            lease.pulse.beat()
        before = join.seq
        with db.transaction(conn):
            lease.keep(script)
            for messages, last in large.parts():
                admission = known.admit(messages)
                chunk = admission.chunk(clocks(messages, known.stream))
                parts = join.run(chunk, partial(known.appender.past, script), goes_on=None if last else reach)
                commits = log.Commits.alike(large.end_lsn, int(messages.transactions.commit_time[0]))
                known.appender.append(script, _alive(parts, lease), admission, commits, "stream")
            _move(script, known, at, end, moment(int(commits.time[0])), new=join.seq > before)
            script.run()
        reader.done(large)
    logger.info("a transaction of %d entries is in the log, up to seq %d", join.seq - before, join.seq)
    return end


def _move(script: Script, known: Standing, at: log.Position, lsn: str, commit_time: datetime, *, new: bool) -> None:
    """Move the position, and wake who reads the log when it has new entries."""
    name, now = known.stream.name, datetime.now(UTC)
    log.move(script, name, known.join, at.feed, lsn=lsn, commit_time=commit_time, received_at=now)
    if new:
        log.notify(script, name, known.join)


def _look(watch: Connection, stream: Stream, feed: source.Feed) -> tuple[int | None, int | None]:
    """Whether the publication still is what it was; gives the WAL that the slot keeps, and what it may still keep."""
    if why := source.publication_seam(watch, stream, feed):
        _check_publication(watch, stream)
        raise _broken(stream, why)
    slot = db.row(watch, "source_slot", {"slot": feed.slot})
    if slot is None:
        return None, None
    safe = stream.policy.max_slot_bytes - (slot[4] or 0)
    return slot[4], safe if slot[5] is None else min(safe, slot[5])


def _report(
    conn: Connection, stream: Stream, lease: Lease, join: Join, idle_at: str, kept: int | None, safe: int | None
) -> str:
    """What people and other processes should know of this one.

    It also moves the position past WAL that holds nothing for the stream, so that an idle slot keeps none; gives the
    position that is durable now.
    """
    with db.transaction(conn):
        lease.check(conn)
        rested = db.row(conn, "rest_position", {"stream": stream.name, "lsn": idle_at})
        assert rested is not None  # the position was there at the start
        if safe is not None:
            db.run(conn, "report_slot", {"stream": stream.name, "slot_wal_bytes": kept, "safe_wal_bytes": safe})
        params = {
            "stream": stream.name,
            "role": "intake",
            "phase": "streaming",
            "done": join.seq,
            "goal": join.seq,
            "per_second": 0.0,
            "message": f"{join.open_events:,} events wait for their label",
            "received_through": None,
        }
        db.run(conn, "report_progress", params)
    return str(rested[0])
