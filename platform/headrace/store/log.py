"""The training log in SQL: appending what the join made, reading ranges back in columns.

`Appender` writes entries, quarantine, held labels, counts, epochs and position; its caller owns the transaction, so all
of it becomes durable at once. `read` gives a contiguous range as a `LogBatch`. COPY BINARY both ways: a field of the
source's change stream is written as it came.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import ForgottenError, ServerError
from headrace.events import (
    PARTITION_ENTRIES,
    Columns,
    EpochRange,
    LabelKind,
    LogBatch,
    LogColumn,
    Recalled,
    micros,
    moment,
)
from headrace.flow.admit import Admission, Refusal
from headrace.flow.copybinary import (
    CODE,
    NUMBER,
    REFERENCE,
    TIME,
    WHOLE,
    pack,
    pack_events,
    pack_table,
    unpack,
    unpack_table,
)
from headrace.flow.features import series
from headrace.flow.join import Answer, Counts, Epoch, Held, Join, Joined, Past, new_join
from headrace.flow.keys import Keys
from headrace.flow.pgtypes import BOOL, FLOAT8, INT4, INT8, TIMESTAMPTZ, decode
from headrace.flow.steps import NO_TIME
from headrace.flow.wire import Cells, Fields, as_bytes
from headrace.store import db
from headrace.store.copyout import copies_out, copy_out
from headrace.store.queries import all_queries, query
from headrace.store.script import Script
from headrace.store.source import Feed, lsn_text

_TOLD = re.compile(r"([0-9]{1,18}) ([0-9]{1,9})")  # seq and epoch
_LONG = 2_000  # entries, to read which the planner may think of a sort
_READ = {  # what a batch has beside events, and its columns
    "read_labels": (WHOLE, WHOLE, WHOLE, NUMBER, NUMBER, REFERENCE),
    "read_segments": (WHOLE, TIME, TIME),
    "read_epochs": (WHOLE, WHOLE, WHOLE, WHOLE, TIME, TIME),
}
_FOLLOW = 200_000  # entries that a join takes over at a time
_ERASED = b"\0erased"  # what stands for the key of an event that was erased: no type has such wire bytes
_KINDS = [kind.name.lower().encode() for kind in LabelKind]
_LARGE = 8 * 1024 * 1024  # bytes of a script that is run before it becomes larger


@dataclass(frozen=True)
class Position:
    """How far a stream's log goes."""

    seq: int
    lsn: str  # at the source: everything up to it is in the log
    watermark: datetime | None
    received_at: datetime | None
    epoch: Epoch
    consistent_lsn: str
    commit_time: datetime | None
    feed: Feed


@dataclass(frozen=True)
class Edge:
    """Where a stream's log ends."""

    seq: int
    epoch: int  # that is being filled

    @classmethod
    def told(cls, conn: Connection, stream: str) -> Edge | None:
        """What the newest notification said, which `notify` sent; None when none has come since they were cleared.

        Anybody may notify: what does not say where a log ends wakes its readers, and no more.
        """
        told = [n.payload for n in conn.notifies if n.channel == f"headrace_{stream}"]
        found = _TOLD.fullmatch(told[-1]) if told else None
        return cls(int(found[1]), int(found[2])) if found else None

    @classmethod
    def asked(cls, conn: Connection, stream: str) -> Edge | None:
        """What the database says; None before the history import is complete."""
        at = position(conn, stream)
        conn.commit()
        return None if at is None else cls(at.seq, at.epoch.number)


@dataclass(frozen=True)
class Commits:
    """The commits of a chunk.

    Attributes
    ----------
    end_lsn, time
        int64[n]: where they end at the source, and when they were made, in microseconds.
    """

    end_lsn: NDArray[np.int64]
    time: NDArray[np.int64]

    @classmethod
    def alike(cls, lsn: int, time: int, count: int = 1) -> Commits:
        """Some that end at one place and were made at one time."""
        return cls(np.full(count, lsn), np.full(count, time))

    def lsn_text(self, commit: int) -> str:
        """Where one ends, as Postgres writes it."""
        return lsn_text(int(self.end_lsn[commit]))


def position(conn: Connection, stream: str) -> Position | None:
    """The log's position; None before the history import is complete."""
    row = db.row(conn, "log_position", {"stream": stream})
    if row is None:
        return None
    (
        seq,
        lsn,
        watermark,
        received,
        number,
        first,
        labels,
        epoch_watermark,
        consistent,
        commit,
        *feed,
    ) = row
    epoch = Epoch(number, first, labels, None if epoch_watermark is None else micros(epoch_watermark))
    return Position(seq, lsn, watermark, received, epoch, consistent, commit, Feed(*feed))


def partition_entries(conn: Connection, stream: str) -> int:
    """How many entries a partition of a stream's log has."""
    row = db.row(conn, "partition_entries", {"stream": stream})
    return PARTITION_ENTRIES if row is None else int(row[0])


def dropped_through(conn: Connection, stream: str) -> int:
    """The last entry that retention dropped: the log begins after it; 0 when it has all."""
    row = db.row(conn, "dropped_through", {"stream": stream})
    return 0 if row is None else int(row[0])


@contextmanager
def kept_whole(conn: Connection, stream: str) -> Iterator[None]:
    """While the block runs, nothing of the log is dropped or erased; for readers of its past."""
    db.run(conn, "keep_past", {"stream": stream})
    try:
        yield
    finally:
        if not conn.closed:
            conn.rollback()  # what failed may have left its transaction broken; the lock is the connection's
            db.run(conn, "let_past_go", {"stream": stream})
            conn.rollback()


def open_log(conn: Connection, stream: Stream, columns: Sequence[LogColumn]) -> tuple[Join, Appender]:
    """A join and an appender of a stream's log; `Appender.resume` brings the join to where the log stands."""
    entries = partition_entries(conn, stream.name)
    return new_join(stream, entries), Appender(stream.name, stream.hash(), columns, entries)


class Appender:
    """Writes one stream's log.

    Parameters
    ----------
    stream, definition_hash
        The stream, and the hash of the definition that its entries are made by.
    columns
        The events table's columns after seq.
    partition
        Entries of a partition; the stream's join must count by the same.
    """

    def __init__(
        self, stream: str, definition_hash: str, columns: Sequence[LogColumn], partition: int = PARTITION_ENTRIES
    ) -> None:
        self.stream, self._hash, self._columns = stream, definition_hash, tuple(columns)
        self._partition = partition
        self._partitions: dict[str, set[str]] = {}
        self._texts: dict[str, sql.SQL] = {}

    def append(
        self,
        script: Script,
        parts: Iterable[Joined],
        admission: Admission,
        commits: Commits,
        origin: str,
    ) -> Counts:
        """Have a script write what a chunk of commits added; the position is moved by `move`.

        Parameters
        ----------
        script
            Partitions are made on its connection; when it becomes large it is run in a transaction that is begun then.
        parts, admission
            What the join makes of the chunk, and the rows that it is made of.
        commits
            The chunk's commits, by the ordinals in the parts' segments.
        origin
            "history" or "stream".

        Returns
        -------
        Counts
            What became of the chunk's rows.
        """
        now = datetime.now(UTC)
        sums = Counts(admission.received, quarantined=len(admission.refusals))
        sums.ignored, sums.doubled = admission.ignored, admission.doubled
        self._write_refusals(script, admission.refusals, commits, origin, now)
        for joined in parts:
            self._write(script, joined, admission, commits, origin, now)
            sums += joined.counts
            if script.size > _LARGE:
                script.begin()
                script.run()
        script.add("add_accounting", {"stream": self.stream, "origin": origin, **vars(sums)})
        return sums

    def _write(
        self,
        script: Script,
        joined: Joined,
        admission: Admission,
        commits: Commits,
        origin: str,
        now: datetime,
    ) -> None:
        seqs = [int(part[i, 0]) for part in (joined.events, joined.labels) if len(part) for i in (0, -1)]
        if seqs:
            self._make_room(script, min(seqs), max(seqs))
            self._write_events(script, joined, admission.groups)
            self._write_labels(script, joined)
        self._write_segments(script, joined, commits, origin, now)
        for epoch in joined.epochs:
            script.add("add_epoch", {"stream": self.stream, **_epoch_params(epoch)})
        refused = [admission.duplicate(row, commit) for row, commit in joined.duplicates]
        given_up = self._key_text([orphan.key for orphan in joined.orphans])
        refused += [admission.orphan(text, orphan) for text, orphan in zip(given_up, joined.orphans, strict=True)]
        self._write_refusals(script, refused, commits, origin, now)
        self._write_held(script, joined, commits, now)

    def _write_refusals(
        self, script: Script, refused: Sequence[Refusal], commits: Commits, origin: str, now: datetime
    ) -> None:
        if not refused:
            return
        rows = (
            (
                r.relation,
                r.key,
                r.expectation,
                r.found,
                r.reason,
                json.dumps(r.content),
                commits.lsn_text(r.commit),
                origin,
                now,
            )
            for r in refused
        )
        text = "".join("\t".join(map(_text, row)) + "\n" for row in rows)
        script.copy(self._query(script, "write_quarantine"), text.encode())

    def past(self, script: Script, keys: Sequence[bytes], before: int) -> dict[bytes, Past]:
        """What the log's entries before a seq say of events by their keys; their partitions are indexed.

        Entries that the script has not written yet are among them.
        """
        if not keys or not before:
            return {}
        script.begin()
        script.run()
        texts = self._key_text(keys)
        with script.conn.cursor() as cursor:
            cursor.execute(self._typed("past_events", before=before), {"keys": texts})
            found = {key: Past(seq, self._answer(*label)) for key, seq, *label in cursor.fetchall()}
        return {wire: found[text] for wire, text in zip(keys, texts, strict=True) if text in found}

    @staticmethod
    def _answer(seq: int | None, kind: str, y: float | None) -> Answer | None:
        return None if seq is None else Answer(seq, np.nan if y is None else y, timed_out=kind == "timeout")

    def _key_text(self, keys: Sequence[bytes]) -> list[str]:
        """Keys as Postgres writes them, from their wire bytes."""
        if not keys:
            return []
        lengths = np.array([len(key) for key in keys], dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        binary = np.zeros((1, len(keys)), dtype=np.bool_)
        cells = Cells(as_bytes(b"".join(keys)), starts[None], lengths[None], binary, ("key",))
        return [str(value) for value in decode(cells, 0, self._columns[0].type_oid).values.tolist()]

    def resume(self, conn: Connection, join: Join, at: Position) -> None:
        """Let a join go on where the log stands: a new one, or one that followed the log up to an earlier position.

        Raises
        ------
        ForgottenError
            As `follow`.
        """
        self.follow(conn, join, at)
        join.resume(
            watermark=NO_TIME if at.watermark is None else micros(at.watermark),
            epoch=replace(at.epoch),
            held=self._held(conn),
        )

    def follow(self, conn: Connection, join: Join, at: Position) -> None:
        """Bring a join to where the log stands, as far as its entries tell; before it makes one, `resume` it.

        Raises
        ------
        ForgottenError
            When the join stood before what retention has dropped since.
        """
        if 0 < join.seq < (dropped := dropped_through(conn, self.stream)):
            raise _forgotten(self.stream, join.seq, dropped)
        if at.watermark is not None:
            watermark = micros(at.watermark)
            if join.seq == 0:
                first = db.row(conn, "first_open", {"since": moment(watermark - join.window)}, schema=self.stream)
                newest = (
                    at.seq // self._partition * self._partition
                )  # its keys are not indexed: the join remembers them
                waiting = at.seq + 1 if first is None or first[0] is None else int(first[0])
                join.start(max(min(waiting, newest) - 1, 0))
            while join.seq < at.seq:
                self._follow(conn, join, min(join.seq + _FOLLOW, at.seq))

    def _follow(self, conn: Connection, join: Join, upto: int) -> None:
        after, remembered = join.seq, upto // self._partition * self._partition
        entries = _unpack(conn, "follow_events", self.stream, 2, after=after, upto=upto, remembered=remembered)
        events, keys = decode(entries, 0, INT8).values, entries.column(1)
        labels = _unpack(conn, "follow_labels", self.stream, 4, after=after, upto=upto)
        segments = _unpack(conn, "read_segments", self.stream, 3, after=after, upto=upto)
        clocks = zip(
            decode(segments, 0, INT8).values.tolist(), decode(segments, 1, TIMESTAMPTZ).values.tolist(), strict=True
        )
        join.follow(
            upto,
            events,
            Keys.of(
                keys.bytes_at(i) if keys.length[i] >= 0 else _ERASED
                for i in np.flatnonzero(events >= remembered).tolist()
            ),
            decode(labels, 0, INT8).values,
            decode(labels, 1, INT8).values,
            decode(labels, 2, INT4).values,
            decode(labels, 3, FLOAT8).to_float(),
            [(first, clock) for first, clock in clocks if first > after],
        )

    def _held(self, conn: Connection) -> dict[bytes, Held]:
        cells = unpack(copy_out(conn, query("read_held", self.stream)), 4)
        ys, times = decode(cells, 1, FLOAT8).to_float().tolist(), decode(cells, 2, TIMESTAMPTZ).values.tolist()
        deadlines, keys = decode(cells, 3, TIMESTAMPTZ).values.tolist(), cells.column(0)
        return {keys.bytes_at(i): Held(ys[i], times[i], deadlines[i]) for i in range(cells.rows)}

    def _query(self, script: Script, name: str, **parts: sql.Composable) -> sql.Composable:
        """A named query of the stream's schema; the same each time."""
        if name not in self._texts:
            made = sql.SQL(all_queries()[name]).format(schema=sql.Identifier(self.stream), **parts)
            self._texts[name] = sql.SQL(made.as_string(script.conn))
        return self._texts[name]

    def _write_events(self, script: Script, joined: Joined, groups: Sequence[tuple[int, Sequence[Fields]]]) -> None:
        if not len(joined.events):
            return
        seqs, rows = joined.events.T
        names = sql.SQL(", ").join(sql.Identifier(c.name) for c in self._columns)
        text = self._query(script, "write_events", columns=names)
        for first, fields in groups:
            mine = (rows >= first) & (rows < first + len(fields[0].length))
            if np.count_nonzero(mine):
                script.copy(text, pack_events(seqs[mine], fields, rows[mine] - first))

    def _write_labels(self, script: Script, joined: Joined) -> None:
        if not len(joined.labels):
            return
        seq, event, kind, corrects, time = joined.labels.T
        y, before = joined.values.view(np.int64).T
        rows = np.column_stack([seq, event, kind, y, before, corrects, time])
        kinds = (WHOLE, WHOLE, CODE, NUMBER, NUMBER, REFERENCE, TIME)
        script.copy(self._query(script, "write_labels"), pack_table(rows, kinds, _KINDS))

    def _write_segments(self, script: Script, joined: Joined, commits: Commits, origin: str, now: datetime) -> None:
        if not len(joined.segments):
            return
        first, last, commit, watermark = joined.segments.T
        received, texts = np.full(len(first), micros(now)), np.zeros(len(first), dtype=np.int64)
        times = (commits.time[commit], received, watermark)
        rows = np.column_stack([first, last, commits.end_lsn[commit], *times, texts, texts + 1])
        kinds = (WHOLE, WHOLE, WHOLE, TIME, TIME, TIME, CODE, CODE)
        packed = pack_table(rows, kinds, [self._hash.encode(), origin.encode()])
        script.copy(self._query(script, "write_segments"), packed)

    def _write_held(self, script: Script, joined: Joined, commits: Commits, now: datetime) -> None:
        if joined.released:
            script.add_text(self._typed("release_labels"), {"keys": self._key_text(joined.released)})
        if joined.held:
            params = {
                "keys": self._key_text(list(joined.held)),
                "ys": [label.y for _, label in joined.held.values()],
                "label_times": [moment(label.time) for _, label in joined.held.values()],
                "deadlines": [moment(label.deadline) for _, label in joined.held.values()],
                "lsns": [commits.lsn_text(commit) for commit, _ in joined.held.values()],
                "received_at": now,
            }
            script.add_text(self._typed("hold_labels"), params)

    def _typed(self, name: str, **parts: int) -> sql.Composable:
        composed = {k: sql.Literal(v) for k, v in parts.items()}
        return sql.SQL(all_queries()[name]).format(
            schema=sql.Identifier(self.stream), key_type=sql.SQL(self._columns[0].type_name), **composed
        )

    def _make_room(self, script: Script, first: int, last: int) -> None:
        """Partitions for a range of seq; a partition that closes gets its look-up index."""
        for parent, lookup in (("events", "key"), ("labels", "event_seq")):
            known = self._partitions.get(parent)
            if known is None:
                found = db.rows(script.conn, "partitions", {"parent": f'"{self.stream}".{parent}'})
                known = self._partitions[parent] = {name for (name,) in found}
            for number in range(first // self._partition, last // self._partition + 1):
                if partition_name(parent, number) not in known:
                    script.begin()  # the lease is checked before a lock is taken: an erasure holds it and wants the partitions
                    script.run()
                    self._add_partition(script.conn, parent, number)
                    known.add(partition_name(parent, number))
                    if (before := partition_name(parent, number - 1)) in known:
                        self._execute(script.conn, "index_closed_partition", name=before, column=lookup)

    def _add_partition(self, conn: Connection, parent: str, number: int) -> None:
        name, first = partition_name(parent, number), number * self._partition
        self._execute(conn, "create_partition", name=name, parent=parent)
        self._execute(conn, "attach_partition", name=name, parent=parent, first=first, last=first + self._partition)

    def _execute(self, conn: Connection, statement: str, /, **parts: str | int) -> None:
        composed = {k: sql.Identifier(v) if isinstance(v, str) else sql.Literal(v) for k, v in parts.items()}
        with conn.cursor() as cursor:
            cursor.execute(sql.SQL(all_queries()[statement]).format(schema=sql.Identifier(self.stream), **composed))

    def forget_partitions(self) -> None:
        """After a rollback: look them up again."""
        self._partitions.clear()


def move(
    script: Script,
    stream: str,
    join: Join,
    feed: Feed,
    lsn: str,
    commit_time: datetime | None,
    received_at: datetime | None,
) -> None:
    """Have a script move the stream's position to where the join stands."""
    params = {
        "stream": stream,
        **vars(feed),
        "lsn": lsn,
        "seq": join.seq,
        "epoch": join.epoch.number,
        "epoch_seq_first": join.epoch.seq_first,
        "epoch_labels": join.epoch.labels,
        "epoch_watermark_first": None if join.epoch.watermark_first is None else moment(join.epoch.watermark_first),
        "watermark": None if join.watermark == -(2**63) else moment(join.watermark),
        "commit_time": commit_time,
        "received_at": received_at,
    }
    script.add("move_position", params)


def notify(script: Script, stream: str, join: Join) -> None:
    """Have a script wake who reads the log, and tell where it ends by then, see `Edge`."""
    script.add("notify", {"channel": f"headrace_{stream}", "told": f"{join.seq} {join.epoch.number}"})


def read(conn: Connection, stream: str, columns: Sequence[LogColumn], after: int, upto: int) -> LogBatch:
    """Entries after `after` up to `upto`, which must be in the log already.

    Raises
    ------
    ForgottenError
        When retention has dropped some of them.
    ServerError
        When some are missing.
    """
    text = _read_text(conn, stream, tuple(c.name for c in columns), long=upto - after > _LONG)
    found, *others = copies_out(conn, text.replace(_AFTER, str(after)).replace(_UPTO, str(upto)))
    events, event_columns = _decoded(found, columns)
    labels, segments, epochs = (unpack_table(rows, kinds) for rows, kinds in zip(others, _READ.values(), strict=True))
    label_seq, label_event, label_kind, y, y_before, corrects = labels
    starts, watermarks, received = segments
    if len(events) + len(label_seq) != upto - after:
        if after < (dropped := dropped_through(conn, stream)):
            raise _forgotten(stream, after, dropped)
        raise ServerError(
            f"the log of {stream!r} has {len(events) + len(label_seq)} entries from seq {after + 1} to {upto}, expected "
            f"{upto - after}: run `headrace check`"
        )
    clock_corrected, corrects_timeout = _corrected(conn, stream, corrects)
    return LogBatch(
        seq_first=after + 1,
        seq_last=upto,
        event_seq=events,
        event_time=np.asarray(event_columns["event_time"], dtype=np.int64),
        events=event_columns,
        clock_events=watermarks[np.searchsorted(starts, events, side="right") - 1],
        label_seq=label_seq,
        label_event=label_event,
        label_kind=label_kind,
        y=y.view(np.float64),
        y_before=y_before.view(np.float64),
        clock_corrected=clock_corrected,
        corrects_timeout=corrects_timeout,
        clock_labels=watermarks[np.searchsorted(starts, label_seq, side="right") - 1],
        epochs=tuple(EpochRange(*end) for end in epochs.T.tolist()),
        received_through=moment(int(received[-1])) if len(received) else None,
    )


_AFTER, _UPTO = "\0after", "\0upto"  # no identifier has a zero byte
_read_texts: dict[tuple[str, tuple[str, ...], bool], str] = {}


def _read_text(conn: Connection, stream: str, columns: tuple[str, ...], *, long: bool) -> str:
    """The statements of `read`, made once: at the edge of the log they are run hundreds of times a second."""
    which = stream, columns, long
    if (known := _read_texts.get(which)) is not None:
        return known
    parts = {"stream": sql.Literal(stream), "after": sql.SQL(_AFTER), "upto": sql.SQL(_UPTO)}
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    texts = [_copy(name, stream, columns=names, **parts) for name in ("read_events", *_READ)]
    if long:
        texts = [query("read_in_order"), *texts, query("read_in_any_order")]
    _read_texts[which] = sql.SQL("; ").join(texts).as_string(conn)
    return _read_texts[which]


def _forgotten(stream: str, after: int, dropped: int) -> ForgottenError:
    return ForgottenError(
        f"the log of {stream!r} begins at seq {dropped + 1} by now, and was to be read from {after + 1} on: start again from "
        "the newest checkpoint"
    )


def _corrected(
    conn: Connection, stream: str, corrects: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of the labels that some replace: the watermark, and whether that was a time-out; 0 and False of other labels."""
    clock, timed_out = np.zeros(len(corrects), dtype=np.int64), np.zeros(len(corrects), dtype=np.bool_)
    if np.count_nonzero(corrects):
        some = corrects > 0
        cells = unpack(copy_out(conn, _copy("read_corrected", stream, seqs=_bigints(corrects[some]))), 2)
        clock[some], timed_out[some] = decode(cells, 0, TIMESTAMPTZ).values, decode(cells, 1, BOOL).values
    return clock, timed_out


def _bigints(seqs: NDArray[np.int64]) -> sql.Composable:
    return sql.SQL("{}::bigint[]").format(sql.Literal(seqs.tolist()))


def recall(conn: Connection, stream: str, columns: Sequence[LogColumn], seqs: NDArray[np.int64]) -> Recalled:
    """Log columns of some events, in order of seq; those that the log has no more are left out."""
    parts = {"seqs": _bigints(seqs)}
    names = sql.SQL(", ").join(sql.Identifier(c.name) for c in columns)
    return Recalled(*_decoded(copy_out(conn, _copy("read_events_by_seq", stream, columns=names, **parts)), columns))


def check_recalled(conn: Connection, stream: str, wanted: NDArray[np.int64], recalled: Recalled) -> None:
    """Whether events that a reader wants back are there still: without them it would learn something else, or nothing.

    Raises
    ------
    ForgottenError
        When retention has dropped some of them: nobody who started at one of the newest checkpoints wants those.
    """
    missing = np.setdiff1d(wanted, recalled.seq)
    if len(missing) and missing[0] <= (dropped := dropped_through(conn, stream)):
        raise _forgotten(stream, int(missing[0]) - 1, dropped)


def _decoded(rows: NDArray[np.uint8], columns: Sequence[LogColumn]) -> tuple[NDArray[np.int64], Columns]:
    """Seqs and columns of events."""
    cells = unpack(rows, len(columns) + 1)
    seqs: NDArray[np.int64] = decode(cells, 0, INT8).values
    return seqs, {c.name: series(cells, i, c.type_oid) for i, c in enumerate(columns, start=1)}


def _copy(name: str, schema: str, **parts: sql.Composable) -> sql.Composable:
    return sql.SQL(all_queries()[name]).format(schema=sql.Identifier(schema), **parts)


def _unpack(conn: Connection, name: str, stream: str, width: int, **parts: int) -> Cells:
    return unpack(copy_out(conn, _copy(name, stream, **{k: sql.Literal(v) for k, v in parts.items()})), width)


def copy_in(conn: Connection, text: sql.Composable, fields: Sequence[Fields]) -> None:
    """Give rows to a COPY ... FROM STDIN."""
    with conn.cursor() as cursor:
        cursor.copy_expert(text, io.BytesIO(pack(fields).data))


def _text(value: object) -> str:
    """One value in COPY's text format."""
    if value is None:
        return r"\N"
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _epoch_params(epoch: EpochRange) -> dict[str, Any]:
    times = {"watermark_first": moment(epoch.watermark_first), "watermark_last": moment(epoch.watermark_last)}
    return {**asdict(epoch), **times}


def partition_name(parent: str, number: int) -> str:
    """Name of a partition's table."""
    return f"{parent}_{number:06d}"
