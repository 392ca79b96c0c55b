"""History import: what the source holds already, once, into an empty log, in the order of its times.

A slot is created first and exports its snapshot; both tables are copied as that snapshot sees them, and streaming starts
at the slot's consistent point, so no change is missed and none comes twice. Everything enters the log in one
transaction: an interrupted import leaves nothing but its slot, which the next attempt replaces, and learners see nothing
before it is complete. Labels enter at their own time, after every event that happened before; they are honest about
their delay.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import SlotError
from headrace.events import LogColumn, micros
from headrace.flow.admit import Admission, Stretch
from headrace.flow.copybinary import unpack_chunk
from headrace.flow.gate import Rows
from headrace.flow.join import Counts, Join
from headrace.store import db, log, source
from headrace.store.changes import PATIENCE
from headrace.store.leases import Lease
from headrace.store.queries import all_queries
from headrace.store.script import Script

TICK = 60_000_000  # stream time that one commit of history spans at most: the watermark's grain, in microseconds
_CHUNK = 50_000  # rows of a table at a time

_NO_TIME = np.iinfo(np.int64).max  # of rows without one, which the gate refuses

Progress = Callable[[str, int, int], None]  # phase, rows done, rows in all
Timed = tuple[Rows, NDArray[np.int64]]


@dataclass(frozen=True)
class Imported:
    """What a history import brought."""

    events: int
    labels: int
    quarantined: int
    held: int


def import_history(
    conn: Connection, dsn: str, stream: Stream, columns: Sequence[LogColumn], lease: Lease, progress: Progress
) -> Imported:
    """Import a stream's history and set its position; the log must be empty.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_intake.
    dsn
        The source.
    lease
        The intake's role on `conn`.

    Raises
    ------
    SourceError
        When the publication is missing, or the slot cannot be created.
    psycopg2.Error
        When the source went away, or hangs.
    """
    with looking(dsn, "headrace import") as origin:
        made = source.published(origin, stream)
        _replace_slot(conn, origin, stream)
    with tempfile.TemporaryDirectory(prefix="headrace-import-") as folder:
        with source.replication(dsn) as cursor:
            with db.answering(cursor.connection, PATIENCE):
                system = source.system(cursor)
            lsn, snapshot = source.create_slot(dsn, cursor, stream.slot)
            spools, total = spool(dsn, stream, snapshot, Path(folder), progress)
        feed = source.Feed(stream.slot, system.identifier, system.timeline, made)
        return _load(conn, stream, columns, lease, spools, total, feed, lsn, progress)


@contextmanager
def looking(dsn: str, application: str) -> Iterator[Connection]:
    """A connection to the source for what is answered in moments; it ends when it is not."""
    with (
        closing(db.connect(dsn, application=application, autocommit=True)) as origin,
        db.answering(origin, PATIENCE),
    ):
        yield origin


def _replace_slot(conn: Connection, origin: Connection, stream: Stream) -> None:
    """Drop the slot that an interrupted import of this platform left; one that it did not make may be in use elsewhere."""
    began = db.row(conn, "progress", {"stream": stream.name, "role": "intake"})
    if began is None and db.row(origin, "source_slot", {"slot": stream.slot}) is not None:
        raise SlotError(
            f"slot {stream.slot!r} is there already and this platform did not make it: another one may read it; drop it at "
            "the source if it is a leftover, or give the stream another name"
        )
    params = {
        "stream": stream.name,
        "role": "intake",
        "phase": "importing history",
        "done": 0,
        "goal": 0,
        "per_second": 0.0,
        "message": "creating the slot",
        "received_through": None,
    }
    with db.transaction(conn):
        db.run(conn, "report_progress", params)
    source.drop_slot(origin, stream.slot)


def spool(dsn: str, stream: Stream, snapshot: str, folder: Path, progress: Progress) -> tuple[list[Spool], int]:
    """Copy both tables, as the snapshot sees them, into files in order of time and key; gives their number of rows.

    A source that works may take its time; one that hangs is left with an error of psycopg2's.
    """
    copied: list[tuple[Path, dict[str, tuple[int, int]], str]] = []
    total, needed = 0, source.needed_columns(stream)
    answers = (stream.label_key, stream.label.value.column, stream.label.label_time)
    tables = (
        (stream.source.table, "source_rows", stream.source.event_time, stream.source.key, needed[stream.source.table]),
        (
            stream.label_table,
            "source_labelled" if stream.own_row else "source_rows",
            stream.label.label_time,
            stream.label_key,
            tuple(dict.fromkeys(answers)),
        ),
    )
    with (
        closing(db.connect(dsn, application="headrace import")) as origin,
        origin.cursor() as cursor,
        db.working(origin, dsn, PATIENCE, partial(_size, folder)),
    ):
        origin.set_session(isolation_level="REPEATABLE READ", readonly=True)
        cursor.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        for number, (table, query, time, key, columns) in enumerate(tables):
            name = source.identifiers(table)
            cursor.execute(sql.SQL(all_queries()["source_count"]).format(table=name))
            row = cursor.fetchone()
            count = int(row[0]) if row else 0
            total += count
            progress(f"copying {count:,} rows of {table}", 0, count)
            path = folder / f"{number}.copy"
            text = sql.SQL(all_queries()[query]).format(
                columns=source.columns_text(columns), table=name, time=sql.Identifier(time), key=sql.Identifier(key)
            )
            with path.open("wb") as file:
                cursor.copy_expert(text, file)
            types = source.column_types(origin, table)
            copied.append((path, {c: (i, types[c][0]) for i, c in enumerate(columns)}, time))
    return [Spool(*one) for one in copied], total


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


class Spool:
    """One table's rows from its file, a chunk at a time, in order of time and key; rows without a time are the last."""

    def __init__(self, path: Path, columns: dict[str, tuple[int, int]], time: str) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._buffer = np.frombuffer(self._map, dtype=np.uint8)
        self._columns, self._time = columns, time
        self._read(0)

    @property
    def left(self) -> bool:
        """Whether some rows were not taken."""
        return self._next < len(self._times) or self._end < self._buffer.size

    @property
    def first(self) -> int:
        """Time of the first row that was not taken; `_NO_TIME` when there is none in the chunk."""
        return int(self._times[self._next]) if self._next < len(self._times) else _NO_TIME

    @property
    def last(self) -> int:
        """No row beyond the chunk is older; `_NO_TIME` when there is none."""
        return int(self._times[-1]) if self._end < self._buffer.size else _NO_TIME

    def _read(self, offset: int) -> None:
        cells, self._end = unpack_chunk(self._buffer, tuple(self._columns), offset=offset, max_rows=_CHUNK)
        self._forget(offset)
        self._rows, self._next = Rows(cells, self._columns), 0
        time = self._rows[self._time]
        self._times = np.where(time.null, _NO_TIME, time.values)

    def _forget(self, offset: int) -> None:
        """Give back the memory of the file's pages before an offset."""
        if passed := offset // mmap.PAGESIZE * mmap.PAGESIZE:
            self._map.madvise(mmap.MADV_DONTNEED, 0, passed)

    def chunks(self) -> Iterator[Rows]:
        """All rows from the start, some at a time; what `take` gave does not matter."""
        offset = 0
        while offset < self._buffer.size:
            cells, offset = unpack_chunk(self._buffer, tuple(self._columns), offset=offset, max_rows=_CHUNK)
            yield Rows(cells, self._columns)
            self._forget(offset)

    def fill(self) -> None:
        """Read on from the first row that was not taken."""
        if self._next == len(self._times):
            self._read(self._end)
        elif self._next:  # a row starts with its number of fields (2 bytes) and the first field's length (4 bytes)
            self._read(int(self._rows.cells.start[0, self._next]) - 6)

    def take(self, limit: int, *, equal: bool = False) -> Timed:
        """Rows up to a time, without or with those that are equal to it, and their times."""
        end = max(self._next, int(np.searchsorted(self._times, limit, side="right" if equal else "left")))
        index, self._next = np.arange(self._next, end), end
        return Rows(self._rows.cells.take(index), self._columns), self._times[index]


def stretches(events: Spool, labels: Spool) -> Iterator[tuple[Timed, Timed]]:
    """Rows of both tables in order of time, events before labels; cut between ticks where those fit into a chunk."""
    while events.left or labels.left:
        known = min(events.last, labels.last)
        limit = known if known == _NO_TIME else known // TICK * TICK
        if min(events.first, labels.first) < limit:
            yield events.take(limit), labels.take(limit)
        else:
            # One tick is more than a chunk. An event that was not read yet may be as old as the last one that was, and comes
            # before the labels of its time.
            until = events.last
            yield events.take(labels.last, equal=True), labels.take(until, equal=until == _NO_TIME)
        for table in (events, labels):
            if table.left and table.first // TICK >= table.last // TICK:
                table.fill()


def _load(
    conn: Connection,
    stream: Stream,
    columns: Sequence[LogColumn],
    lease: Lease,
    spools: list[Spool],
    total: int,
    feed: source.Feed,
    lsn: str,
    progress: Progress,
) -> Imported:
    """Merge, gate, join and append; one transaction."""
    now, done, sums = datetime.now(UTC), 0, Counts()
    with db.transaction(conn):
        lease.check(conn)
        join, appender = log.open_log(conn, stream, columns)
        script = Script(conn)
        for events, labels in stretches(*spools):
            counts = append(script, appender, join, Admission(stream, columns), events, labels, lsn, now)
            sums += counts
            done += counts.received
            progress("writing the log", done, total)
        log.move(script, stream.name, join, feed, lsn=lsn, commit_time=now, received_at=now)
        log.notify(script, stream.name, join)
        script.run()
    return Imported(sums.events, sums.labels, sums.quarantined, sums.held)


def append(
    script: Script,
    appender: log.Appender,
    join: Join,
    admission: Admission,
    events: Timed,
    labels: Timed,
    lsn: str,
    now: datetime,
    origin: str = "history",
) -> Counts:
    """One stretch of rows in order of time into the log, by a script in the caller's transaction."""
    times = np.concatenate([events[1], labels[1]])
    split = len(events[1])
    # Order: time, event before label, key; both tables come in order of time and key.
    rank = np.empty(len(times), dtype=np.int64)
    rank[np.argsort(times, kind="stable")] = np.arange(len(times))
    ticks, commit = np.unique(times // TICK, return_inverse=True)
    commit_time = np.full(len(times), micros(now))
    admission.events(Stretch(events[0], rank[:split], commit[:split], commit_time[:split]), labels=False)
    admission.labels(Stretch(labels[0], rank[split:], commit[split:], commit_time[split:]))
    if admission.stream.own_row:
        admission.doubled += len(labels[0])
    chunk = admission.chunk(np.full(len(ticks), -(2**63)))
    commits = log.Commits.alike(source.lsn_number(lsn), micros(now), len(ticks))
    parts = join.run(chunk, partial(appender.past, script))
    return appender.append(script, parts, admission, commits, origin)
