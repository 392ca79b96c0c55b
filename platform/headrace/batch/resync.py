"""Resync: close the seam after changes that nobody can read any more.

A slot was lost or dropped, the platform was restored from a backup, or the source failed over: what happened since the
log's position is not in the WAL that can be read. A new slot exports its snapshot; what the source's tables hold then is
compared with the log, and what the log lacks enters it: events by their key, labels where they differ, deletions of labels
that are gone. Nothing comes twice. Every row that was looked at is accounted for; one that is left out counts as ignored,
and the result says why. What was inserted and deleted within the gap is lost for good, so the gap is recorded. All of it
is one transaction of the platform.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.batch.history import Progress, Spool, Timed, append, looking, spool, stretches
from headrace.definition.stream import Stream
from headrace.errors import BatchError, SourceError
from headrace.events import LogColumn, micros
from headrace.flow.admit import Admission, Stretch
from headrace.flow.copybinary import unpack
from headrace.flow.gate import Rows
from headrace.flow.join import Counts, Join
from headrace.flow.recast import as_keys, can_recast, recast
from headrace.flow.wire import Fields
from headrace.store import copyout, db, log, source
from headrace.store.changes import PATIENCE
from headrace.store.leases import Lease
from headrace.store.log import Appender, Position
from headrace.store.queries import all_queries
from headrace.store.script import Script


@dataclass(frozen=True)
class Resynced:
    """What a resync brought."""

    lsn_from: str  # where the log stood
    lsn_to: str  # from where the new slot reads on
    why: str
    events: int
    labels: int
    corrections: int
    quarantined: int
    known: int  # events and labels left out: the log has them
    forgotten: int  # left out: of the time that retention dropped, so that the log may have had them
    refused: int  # left out: the quarantine has a row of their key
    erased: int  # left out: their key was erased
    seq_first: int
    seq_last: int

    @property
    def sentence(self) -> str:
        """What it means."""
        reasons = (
            (self.known, "that the log has already"),
            (self.forgotten, "of the time that retention dropped"),
            (self.refused, "whose key the quarantine has"),
            (self.erased, "whose key was erased"),
        )
        left = ", ".join(f"{count:,} {why}" for count, why in reasons if count)
        return (
            f"The gap from {self.lsn_from} to {self.lsn_to} is closed: {self.events:,} events, {self.labels:,} labels and "
            f"{self.corrections:,} corrections entered the log, {self.quarantined:,} rows went to quarantine. "
            + (f"Events and labels left out: {left}. " if left else "")
            + "Rows that were inserted and deleted within the gap are lost."
        )


def resync(
    conn: Connection, dsn: str, stream: Stream, columns: Sequence[LogColumn], lease: Lease, progress: Progress
) -> Resynced:
    """Close a stream's seam and make a new slot.

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
    BatchError
        When there is no seam: the slot fits the log's position, or there is no log yet.
    SourceError
        When the publication is missing, the key changed its type, or the slot cannot be created.
    psycopg2.Error
        When the source went away, or hangs.
    """
    at = log.position(conn, stream.name)
    conn.commit()
    if at is None:
        raise BatchError(f"stream {stream.name!r} has no log yet: `headrace up` imports its history")
    with looking(dsn, "headrace resync") as origin:
        with source.replication(dsn) as cursor, db.answering(cursor.connection, PATIENCE):
            why = source.seam(origin, source.system(cursor), stream, at.feed, at.lsn)
        if why is None:
            raise BatchError(
                f"slot {at.feed.slot!r} fits the log at {at.lsn}: there is nothing to resync; run `headrace up`"
            )
        made = source.published(origin, stream)
        for table, key in ((stream.source.table, stream.source.key), (stream.label_table, stream.label_key)):
            found, name = source.column_types(origin, table)[key]
            if not can_recast(found, columns[0].type_oid):
                raise SourceError(
                    f"{table}.{key} was {columns[0].type_name} when the log began and is {name}: the log's events cannot be "
                    "found by it; give it its old type, or start a new stream"
                )
        source.drop_slot(origin, at.feed.slot)
    with tempfile.TemporaryDirectory(prefix="headrace-resync-") as folder, source.replication(dsn) as cursor:
        with db.answering(cursor.connection, PATIENCE):
            system = source.system(cursor)
        lsn, snapshot = source.create_slot(dsn, cursor, at.feed.slot)
        spools, total = spool(dsn, stream, snapshot, Path(folder), progress)
        feed = source.Feed(at.feed.slot, system.identifier, system.timeline, made)
        return _close(conn, stream, columns, lease, at, spools, total, feed, lsn, why, progress)


def _close(
    conn: Connection,
    stream: Stream,
    columns: Sequence[LogColumn],
    lease: Lease,
    at: Position,
    spools: list[Spool],
    total: int,
    feed: source.Feed,
    lsn: str,
    why: str,
    progress: Progress,
) -> Resynced:
    now, done, sums = datetime.now(UTC), 0, Counts()
    with db.transaction(conn):
        lease.check(conn)
        join, appender = log.open_log(conn, stream, columns)
        appender.resume(conn, join, at)
        first = join.seq + 1
        known, script = _Known(conn, stream, columns[0], appender, join), Script(conn)
        for events, labels in stretches(*spools):
            done += len(events[0]) + len(labels[0])
            new = known.new_events(events)
            told = known.labels_of(labels, new)
            counts = append(script, appender, join, Admission(stream, columns), new, told, lsn, now, "resync")
            script.run()
            sums += counts
            progress("closing the gap", done, total)
        sums += _take_back(conn, script, appender, join, stream, columns, spools, lsn, now)
        script.add("add_accounting", {"stream": stream.name, "origin": "resync", **vars(known.left_out)})
        log.move(script, stream.name, join, feed, lsn=lsn, commit_time=now, received_at=now)
        log.notify(script, stream.name, join)
        script.run()
        made = Resynced(
            lsn_from=at.lsn,
            lsn_to=lsn,
            why=why,
            events=sums.events,
            labels=sums.labels,
            corrections=sums.corrections,
            quarantined=sums.quarantined,
            known=sums.ignored + known.left["known"],
            forgotten=known.left["forgotten"],
            refused=known.left["refused"],
            erased=known.left["erased"],
            seq_first=first,
            seq_last=join.seq,
        )
        db.run(conn, "add_gap", {"stream": stream.name, **vars(made)})
        db.run(conn, "close_incidents", {"stream": stream.name, "role": "intake"})
        return made


class _Known:
    """What the log and the quarantine have already, and what was left out for it.

    Attributes
    ----------
    left
        Events and labels that were left out, by reason.
    left_out
        The same for the accounting.
    """

    def __init__(self, conn: Connection, stream: Stream, key: LogColumn, appender: Appender, join: Join) -> None:
        self._conn, self._stream, self._key, self._appender, self._join = conn, stream, key, appender, join
        row = db.row(conn, "log_forgot", {"stream": stream.name})
        self._forgot = -(2**63) if row is None or row[0] is None else micros(row[0])
        self._erased = {sha for (sha,) in db.rows(conn, "erased_keys", {"stream": stream.name})}
        self.left: Counter[str] = Counter()
        self.left_out = Counts()

    def new_events(self, rows: Timed) -> Timed:
        """Events that neither the log nor the quarantine has; what may be of the time that retention dropped is left out."""
        key, table = self._stream.source.key, self._stream.source.table
        return self._without(rows, {"known": self._logged(rows[0], key), **self._unwanted(rows, key, (table,))})

    def labels_of(self, rows: Timed, new: Timed) -> Timed:
        """Labels of events that the log has or gets, and of those that it may still get."""
        key, stream = self._stream.label_key, self._stream
        logged = self._logged(rows[0], key)
        coming = set(_wires(new[0], stream.source.key, self._key))
        logged |= np.array([wire in coming for wire in _wires(rows[0], key, self._key)], dtype=np.bool_)
        unwanted = self._unwanted(rows, key, (stream.source.table, stream.label_table))
        made = self._without(rows, {why: ~logged & which for why, which in unwanted.items()})
        if stream.own_row:  # their rows were looked at for the event already
            self.left_out.doubled += len(rows[1]) - len(made[1])
        return made

    def _without(self, rows: Timed, unwanted: Mapping[str, NDArray[np.bool_]]) -> Timed:
        """The other rows; each that is left out counts for the first reason."""
        wanted = np.ones(len(rows[1]), dtype=np.bool_)
        for why, which in unwanted.items():
            self.left[why] += int(np.count_nonzero(wanted & which))
            wanted &= ~which
        out = int(np.count_nonzero(~wanted))
        self.left_out.received += out
        self.left_out.ignored += out
        return _some(rows, np.flatnonzero(wanted))

    def _logged(self, rows: Rows, key: str) -> NDArray[np.bool_]:
        wires = _wires(rows, key, self._key)
        asked = [w for w in dict.fromkeys(wires) if w is not None and not self._join.remembers(w)]
        past = self._appender.past(Script(self._conn), asked, self._join.remembers_from)
        return np.array([w is not None and (self._join.remembers(w) or w in past) for w in wires], dtype=np.bool_)

    def _unwanted(self, rows: Timed, key: str, tables: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
        """Rows that must not enter though the log lacks them, by reason."""
        texts = rows[0].shown(key)
        params = {"relations": list(tables), "keys": [text for text in texts if text is not None]}
        found = {text for (text,) in db.rows(self._conn, "refused_keys", params, schema=self._stream.name)}
        gone = {text for text in params["keys"] if self._erased and sha256(text.encode()).hexdigest() in self._erased}
        return {
            "erased": np.array([text in gone for text in texts], dtype=np.bool_),
            "refused": np.array([text in found for text in texts], dtype=np.bool_),
            "forgotten": rows[1] <= self._forgot,
        }


def _keys(rows: Rows, name: str, key: LogColumn) -> Fields:
    """Keys as the log has them; NULL where one does not fit."""
    index, found = rows.columns[name]
    return as_keys(recast(rows.cells.column(index), rows[name], found, key.type_oid)[0], key.type_oid)


def _wires(rows: Rows, name: str, key: LogColumn) -> list[bytes | None]:
    fields = _keys(rows, name, key)
    return [fields.bytes_at(i) if fields.length[i] >= 0 else None for i in range(len(rows))]


def _some(rows: Timed, index: NDArray[np.intp]) -> Timed:
    return rows[0].take(index), rows[1][index]


def _take_back(
    conn: Connection,
    script: Script,
    appender: Appender,
    join: Join,
    stream: Stream,
    columns: Sequence[LogColumn],
    spools: Sequence[Spool],
    lsn: str,
    now: datetime,
) -> Counts:
    """Labels that the log has and the source has no more: they were deleted, or set to NULL, within the gap."""
    key = columns[0]
    with conn.cursor() as cursor:
        cursor.execute(sql.SQL(all_queries()["make_resync_keys"]).format(key_type=sql.SQL(key.type_name)))
    table, name = spools[0 if stream.own_row else 1], stream.label_key
    for rows in table.chunks():
        if stream.own_row:  # rows without a label; a row that is gone was archived, which says nothing of its label
            rows = rows.take(np.flatnonzero(rows[stream.label.label_time].null))
        log.copy_in(conn, sql.SQL(all_queries()["write_resync_keys"]), [_keys(rows, name, key)])
    which = "labels_unset" if stream.own_row else "labels_gone"
    gone = sql.SQL(all_queries()[which]).format(schema=sql.Identifier(stream.name))
    cells = unpack(copyout.copy_out(conn, gone), 1)
    admission = Admission(stream, columns)
    zeros = np.zeros(cells.rows, dtype=np.int64)
    admission.unlabels(Stretch(Rows(cells, {name: (0, key.type_oid)}), np.arange(cells.rows), zeros, zeros))
    chunk = admission.chunk(np.full(1, -(2**63)))
    parts = join.run(chunk, partial(appender.past, script))
    commits = log.Commits.alike(source.lsn_number(lsn), micros(now))
    return appender.append(script, parts, admission, commits, "resync")
