"""Admission: source rows through the gate, into one ordered chunk for the join.

The intake feeds it the changes of a stretch of the change stream, the history import stretches of the two tables. Every
row given to it comes out as exactly one of: a change in the chunk, a refused row, or a counted no-op; a row that brings
two things, such as an event with its label, is counted twice and noted as `doubled`. A row that cannot be used is refused
with what repairs it; nothing that a source does to its tables stops the stream.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.stream import Stream
from headrace.events import LogColumn
from headrace.flow.gate import Gate, Rows, event_gate, label_gate, label_values, update_gate
from headrace.flow.join import HELD, Chunk, Orphan
from headrace.flow.keys import Keys
from headrace.flow.pgtypes import SUPPORTED, TIMESTAMPTZ
from headrace.flow.recast import as_keys, can_recast, recast
from headrace.flow.steps import NO_TIME, Op
from headrace.flow.wire import Fields

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
_NO_ROW = -2  # of changes that are no event, nor came with one


@dataclass(frozen=True)
class Refusal:
    """A row that the gate refused."""

    relation: str
    key: str | None
    expectation: str
    found: str | None
    reason: str
    content: dict[str, str | None]
    commit: int


@dataclass(frozen=True)
class Stretch:
    """Rows of one table in the order of the change stream.

    `order` is each row's position among all changes, `commit` the ordinal of its commit, `commit_time` in microseconds.
    `identity` holds the columns that name the row before the change, where they were sent.
    """

    rows: Rows
    order: Ints
    commit: Ints
    commit_time: Ints
    identity: Rows | None = None

    def take(self, index: NDArray[np.intp]) -> Stretch:
        """Some of the rows."""
        identity = None if self.identity is None else self.identity.take(index)
        return Stretch(self.rows.take(index), self.order[index], self.commit[index], self.commit_time[index], identity)


@dataclass(frozen=True)
class Gates:
    """The checks of a stream's tables, and of updates of its events' table."""

    event: Gate
    label: Gate
    update: Gate

    @classmethod
    def of(cls, stream: Stream) -> Gates:
        """As its definition asks for."""
        return cls(event_gate(stream), label_gate(stream), update_gate(stream))


@dataclass
class _Part:
    order: Ints  # position among all changes of the stretch
    commit: Ints
    op: NDArray[np.int8]
    key: Keys
    time: Ints
    y: NDArray[np.float64]
    row: Ints


@dataclass
class Admission:
    """Collects one stretch of changes.

    Parameters
    ----------
    stream
        Its definition.
    columns
        The log's columns.
    """

    stream: Stream
    columns: Sequence[LogColumn]
    received: int = 0
    ignored: int = 0
    doubled: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    groups: list[tuple[int, list[Fields]]] = field(default_factory=list)  # events: first row, a field per log column
    _parts: list[_Part] = field(default_factory=list)
    _rows: list[Rows] = field(default_factory=list)  # of the groups
    _next_row: int = 0
    gates: Gates | None = None  # made if they are not at hand

    def __post_init__(self) -> None:
        self._gates = self.gates or Gates.of(self.stream)

    def ignore(self, count: int) -> None:
        """Count changes that mean nothing for the stream, such as the delete of an event's row."""
        self.received += count
        self.ignored += count

    def refuse(self, stretch: Stretch, relation: str, expectation: str, reason: str) -> None:
        """Rows that cannot be used at all."""
        self.received += len(stretch.rows)
        self._refuse(stretch, np.arange(len(stretch.rows)), relation, expectation, reason)

    def truncated(self, relation: str, commit: int) -> None:
        """A table that was emptied at once: which rows went is not in the change stream."""
        self.received += 1
        reason = (
            f"{relation} was truncated; expected deletes, since the rows that went are not named: the log keeps its events and "
            "labels. To take labels back, delete them row by row"
        )
        logger.warning("%s", reason)
        self.refusals.append(Refusal(relation, None, "truncate", None, reason, {}, commit))

    def events(self, stretch: Stretch, *, labels: bool = True) -> None:
        """Inserted rows of the events' table, with `labels` where those live in the same row."""
        source, label = self.stream.source, self.stream.label
        self.received += len(stretch.rows)
        wanted = {c.source: c.type_oid for c in self.columns}
        if self.stream.own_row:
            wanted |= {label.label_time: TIMESTAMPTZ, label.value.column: 0}
        fields, stretch = self._conform(stretch, source.table, source.key, wanted)
        rows, first = stretch.rows, self._next_row
        self._next_row += len(rows)
        self.groups.append((first, [fields[c.source] for c in self.columns]))
        self._rows.append(rows)
        kept = self._pass(stretch, self._gates.event, source.table, source.key)
        keys = fields[source.key]
        self._add(
            stretch.take(kept),
            np.zeros(len(kept), dtype=np.int8),
            _keys(keys, kept),
            rows[source.event_time].values[kept],
            np.full(len(kept), np.nan),
            first + kept,
        )
        if self.stream.own_row and labels:
            self._labels_of_events(stretch, kept, keys, first)

    def _labels_of_events(self, stretch: Stretch, kept: Ints, keys: Fields, first: int) -> None:
        y, times = self._label_parts(stretch.rows)
        told = kept[~np.isnan(y[kept])]
        self.received += len(told)
        self.doubled += len(told)
        op = np.full(len(told), Op.LABEL, dtype=np.int8)
        wires = _keys(keys, told)
        self._add(stretch.take(told), op, wires, times[told], y[told], first + told)

    def updates(self, stretch: Stretch) -> None:
        """Updated rows of the events' table: features stay as they were inserted; a label in the same row may have come."""
        source, label = self.stream.source, self.stream.label
        self.received += len(stretch.rows)
        frozen = [c for e in self.stream.contract if e.kind == "immutable" for c in e.columns]
        wanted = {source.key: self.columns[0].type_oid} | dict.fromkeys(frozen, 0)
        if self.stream.own_row:
            wanted |= {label.label_time: TIMESTAMPTZ, label.value.column: 0}
        if frozen and stretch.rows.before is None:
            reason = (
                f"the row before the UPDATE was not sent, so {', '.join(frozen)} cannot be checked; expected ALTER TABLE "
                f"{source.table} REPLICA IDENTITY FULL"
            )
            self._refuse(stretch, np.arange(len(stretch.rows)), source.table, f"immutable({', '.join(frozen)})", reason)
            return
        moved = _moved(stretch, source.key)
        reason = (
            f"the UPDATE gave the event another {source.key}; expected it to stay: the log has the event under its first one, "
            "under which labels find it"
        )
        self._refuse(stretch, np.flatnonzero(moved), source.table, f"immutable({source.key})", reason)
        fields, stretch = self._conform(stretch.take(np.flatnonzero(~moved)), source.table, source.key, wanted)
        kept = self._pass(stretch, self._gates.update, source.table, source.key)
        if self.stream.own_row:
            self._answers(stretch, kept, fields[source.key])
        else:
            self.ignored += len(kept)

    def labels(self, stretch: Stretch) -> None:
        """Inserted or updated rows of the labels' table."""
        table, key = self.stream.label_table, self.stream.label_key
        self.received += len(stretch.rows)
        label = self.stream.label
        wanted = {key: self.columns[0].type_oid, label.label_time: TIMESTAMPTZ, label.value.column: 0}
        fields, stretch = self._conform(stretch, table, key, wanted)
        self._leave_behind(stretch)
        kept = self._pass(stretch, self._gates.label, table, key)
        self._answers(stretch, kept, fields[key])

    def _leave_behind(self, stretch: Stretch) -> None:
        """A label that an UPDATE gave another key is taken from the event that had it before."""
        moved = np.flatnonzero(_moved(stretch, self.stream.label_key))
        if len(moved):
            assert stretch.identity is not None
            self.doubled += len(moved)
            self.unlabels(Stretch(stretch.identity, stretch.order, stretch.commit, stretch.commit_time).take(moved))

    def nameless(self, stretch: Stretch) -> None:
        """Updated rows with labels that do not say which key they had before: an event may keep a label that left it."""
        table, key = self.stream.label_table, self.stream.label_key
        reason = (
            f"the UPDATE does not say which {key} the row had before, so its label may have been another event's; expected "
            f"{key} in the replica identity of {table}: ALTER TABLE {table} REPLICA IDENTITY FULL, then `headrace source-sql`"
        )
        self.refuse(stretch, table, f"identity({key})", reason)

    def unlabels(self, stretch: Stretch) -> None:
        """Deleted rows of the labels' table, by their replica identity; one that does not name its event is refused."""
        table, key = self.stream.label_table, self.stream.label_key
        self.received += len(stretch.rows)
        fields, stretch = self._conform(stretch, table, key, {key: self.columns[0].type_oid})
        nameless = fields[key].length < 0
        reason = (
            f"the deleted row does not say its {key}, expected it in the replica identity of {table}: ALTER TABLE {table} "
            "REPLICA IDENTITY FULL"
        )
        self._refuse(stretch, np.flatnonzero(nameless), table, f"identity({key})", reason)
        kept = np.flatnonzero(~nameless)
        op = np.full(len(kept), Op.UNLABEL, dtype=np.int8)
        wires = _keys(fields[key], kept)
        self._add(stretch.take(kept), op, wires, np.full(len(kept), NO_TIME), np.full(len(kept), np.nan))

    def chunk(self, commit_clock: Ints) -> Chunk:
        """All changes that were let in, in order."""
        parts = self._parts
        if not parts:
            empty = np.zeros(0, dtype=np.int64)
            return Chunk(empty, empty.astype(np.int8), Keys.of([]), empty, np.zeros(0), empty, commit_clock)
        order = np.argsort(np.concatenate([p.order for p in parts]), kind="stable")

        def joined(name: str) -> NDArray[Any]:
            column: NDArray[Any] = np.concatenate([getattr(p, name) for p in parts])[order]
            return column

        return Chunk(
            joined("commit"),
            joined("op"),
            Keys.joined([p.key for p in parts], order),
            joined("time"),
            joined("y"),
            joined("row"),
            commit_clock,
        )

    def duplicate(self, row: int, commit: int) -> Refusal:
        """The refusal of an event whose key is open already."""
        key, table = self.stream.source.key, self.stream.source.table
        for (first, _), rows in zip(self.groups, self._rows, strict=True):
            at = row - first
            if at < len(rows):
                (content,) = rows.contents(np.array([at]))
                text = content[key]
                reason = f"{key} is {text!r}, which an event that waits for its label has already"
                return Refusal(table, text, f"unique({key})", text, reason, content, commit)
        raise AssertionError(f"row {row} is not of this stretch")

    def orphan(self, key: str, orphan: Orphan) -> Refusal:
        """The refusal of a label whose event did not come."""
        table, name = self.stream.label_table, self.stream.label_key
        window = self.stream.label.window
        if orphan.crowded:
            reason = (
                f"no event with {name} {key!r} has come and {HELD:,} younger labels wait for theirs, expected few: does {table} "
                f"have labels of events that are not in {self.stream.source.table}?"
            )
        else:
            reason = (
                f"no event with {name} {key!r} came within the label window of {window}, expected one: was it refused, or "
                "dropped by retention?"
            )
        content: dict[str, str | None] = {
            name: key,
            "y": str(orphan.label.y),
            "label_time": str(np.datetime64(orphan.label.time, "us")),
        }
        return Refusal(table, key, "orphan", key, reason, content, orphan.commit)

    def _conform(
        self, stretch: Stretch, table: str, key: str, wanted: dict[str, int]
    ) -> tuple[dict[str, Fields], Stretch]:
        """Wanted columns as the log has them, of those rows that have them; 0 stands for any type that can be read."""
        columns = stretch.rows.columns
        for name, oid in wanted.items():
            if name not in columns:
                reason = f"{table} has no column {name} any more: add it back, or publish it again"
                return self._none(stretch, table, f"column({name})", reason, wanted)
            found = columns[name][1]
            if found not in SUPPORTED or (oid and not can_recast(found, oid)):
                now = SUPPORTED[found].name if found in SUPPORTED else f"a type that headrace cannot read (oid {found})"
                was = f"was {SUPPORTED[oid].name} and " if oid else ""
                reason = f"{table}.{name} {was}is {now}: give it its old type, or start a new stream"
                return self._none(stretch, table, f"type({name})", reason, wanted)
            unsent = stretch.rows.unsent(name)
            if np.count_nonzero(unsent):
                reason = (
                    f"{name} is a large value that the UPDATE left as it was, so it was not sent; expected ALTER TABLE {table} "
                    "REPLICA IDENTITY FULL"
                )
                self._refuse(stretch, np.flatnonzero(unsent), table, f"sent({name})", reason)
                stretch = stretch.take(np.flatnonzero(~unsent))
        fields, misfit = {}, np.zeros(len(stretch.rows), dtype=np.bool_)
        for name, oid in wanted.items():
            index, found = columns[name]
            fields[name] = stretch.rows.cells.column(index)
            if oid in (0, found):
                continue
            fields[name], bad = recast(fields[name], stretch.rows[name], found, oid)
            was, now = SUPPORTED[oid].name, SUPPORTED[found].name
            reason = (
                f"{table}.{name} was {was} and is {now}: this value does not fit; start a new stream for the wider type"
            )
            self._refuse(stretch, np.flatnonzero(bad & ~misfit), table, f"type({name})", reason)
            misfit |= bad
        fields[key] = as_keys(fields[key], wanted[key])
        if misfit.any():
            kept = np.flatnonzero(~misfit)
            fields, stretch = {name: f.take(kept) for name, f in fields.items()}, stretch.take(kept)
        return fields, stretch

    def _none(
        self, stretch: Stretch, table: str, expectation: str, reason: str, wanted: dict[str, int]
    ) -> tuple[dict[str, Fields], Stretch]:
        """No row can be used."""
        if len(stretch.rows):
            logger.warning("%d rows refused: %s", len(stretch.rows), reason)
        self._refuse(stretch, np.arange(len(stretch.rows)), table, expectation, reason)
        nothing = stretch.take(np.zeros(0, dtype=np.intp))
        return {name: nothing.rows.cells.column(0) for name in wanted}, nothing

    def _pass(self, stretch: Stretch, gate: Gate, relation: str, key: str) -> Ints:
        """Rows that the gate lets in; the others become refusals."""
        rows = stretch.rows
        if not len(rows):
            return np.zeros(0, dtype=np.int64)
        verdict = gate.check(rows, stretch.commit_time)
        if not np.count_nonzero(broke := verdict >= 0):
            return np.arange(len(rows))
        refused = np.flatnonzero(broke)
        broken = zip(verdict[refused].tolist(), stretch.commit[refused].tolist(), rows.contents(refused), strict=True)
        for rule, commit, content in broken:
            self.refusals.append(Refusal(relation, content[key], *gate.explain(content, rule), content, commit))
        return np.flatnonzero(verdict < 0)

    def _refuse(self, stretch: Stretch, index: NDArray[np.intp], relation: str, expectation: str, reason: str) -> None:
        if not len(index):
            return
        rows = stretch.rows
        name = self.stream.source.key if relation == self.stream.source.table else self.stream.label_key
        for commit, content in zip(stretch.commit[index].tolist(), rows.contents(index), strict=True):
            self.refusals.append(Refusal(relation, content.get(name), expectation, None, reason, content, commit))

    def _label_parts(self, rows: Rows) -> tuple[NDArray[np.float64], Ints]:
        """(y, label time) of each row: NaN and `NO_TIME` where it has none."""
        label = self.stream.label
        y = label_values(label.value, rows[label.value.column])
        time = rows[label.label_time]
        if self.stream.own_row:
            y[time.null] = np.nan
        return y, np.where(time.null, NO_TIME, time.values)

    def _answers(self, stretch: Stretch, kept: Ints, keys: Fields) -> None:
        y, times = self._label_parts(stretch.rows)
        op = np.where(np.isnan(y[kept]), Op.UNLABEL, Op.LABEL).astype(np.int8)
        self._add(stretch.take(kept), op, _keys(keys, kept), times[kept], y[kept])

    def _add(
        self,
        stretch: Stretch,
        op: NDArray[np.int8],
        keys: Keys,
        times: Ints,
        y: NDArray[np.float64],
        row: Ints | None = None,
    ) -> None:
        rows = np.full(len(keys), _NO_ROW) if row is None else row
        self._parts.append(_Part(stretch.order, stretch.commit, op, keys, times, y, rows))


def _keys(fields: Fields, rows: Ints) -> Keys:
    """The keys of some rows."""
    return Keys(fields.buffer, fields.start, fields.length).take(rows)


def _moved(stretch: Stretch, key: str) -> Mask:
    """Where an UPDATE gave the row another key."""
    if stretch.identity is None or key not in stretch.rows.columns:
        return np.zeros(len(stretch.rows), dtype=np.bool_)
    index = stretch.rows.columns[key][0]
    old, new = stretch.identity.cells.column(index), stretch.rows.cells.column(index)
    sent = (old.length >= 0) & (new.length >= 0)
    return np.array([s and old.bytes_at(i) != new.bytes_at(i) for i, s in enumerate(sent.tolist())], dtype=np.bool_)
