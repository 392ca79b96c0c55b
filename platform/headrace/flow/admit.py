"""Admission: source rows through the gate, into one ordered chunk for the join.

The intake feeds it the changes of a stretch of the change stream, the history import stretches of the two tables. Every
row given to it comes out as exactly one of: a change in the chunk, a refused row, or a counted no-op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.stream import Stream
from headrace.errors import SourceError
from headrace.events import LogColumn
from headrace.flow.gate import Gate, Rows, event_gate, label_gate, label_values
from headrace.flow.join import NO_TIME, Chunk, Op
from headrace.flow.pgtypes import SUPPORTED
from headrace.flow.wire import Cells

Ints = NDArray[np.int64]


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


@dataclass
class _Part:
    order: Ints  # position among all changes of the stretch
    commit: Ints
    op: NDArray[np.int8]
    key: list[bytes]
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
    refusals: list[Refusal] = field(default_factory=list)
    groups: list[tuple[int, Cells, list[int]]] = field(
        default_factory=list
    )  # first row, fields, their index per log column
    _parts: list[_Part] = field(default_factory=list)
    _rows: list[Rows] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._event_gate, self._label_gate = event_gate(self.stream), label_gate(self.stream)

    def ignore(self, count: int) -> None:
        """Count changes that mean nothing for the stream, such as an update of an event's row."""
        self.received += count
        self.ignored += count

    def events(self, rows: Rows, order: Ints, commit: Ints, commit_time: Ints) -> None:
        """Inserted rows of the events' table."""
        fields = []
        for column in self.columns:
            if column.source not in rows.columns:
                raise SourceError(
                    f"{self.stream.source.table} has no column {column.source!r} any more, expected {column.type_name}: add "
                    "it back, or publish it again"
                )
            index, oid = rows.columns[column.source]
            if oid != column.type_oid:
                found = SUPPORTED[oid].name if oid in SUPPORTED else f"type oid {oid}"
                raise SourceError(
                    f"{self.stream.source.table}.{column.source} is {found} by now, expected {column.type_name}"
                )
            fields.append(index)
        source = self.stream.source
        first = self._first_row()
        self.groups.append((first, rows.cells, fields))
        kept = self._pass(rows, self._event_gate, source.table, source.key, commit, commit_time)
        keys = rows.cells.column(rows.columns[source.key][0])
        self._add(
            rows,
            _Part(
                order[kept],
                commit[kept],
                np.zeros(len(kept), dtype=np.int8),
                [keys.bytes_at(i) for i in kept.tolist()],
                rows[source.event_time].values[kept],
                np.full(len(kept), np.nan),
                first + kept,
            ),
        )

    def labels(self, rows: Rows, order: Ints, commit: Ints, commit_time: Ints) -> None:
        """Inserted or updated rows of the labels' table."""
        label = self.stream.label
        for name in (label.key, label.label_time, label.value.column):
            if name not in rows.columns:
                raise SourceError(f"{label.table} has no column {name!r} any more: add it back, or publish it again")
        kept = self._pass(rows, self._label_gate, label.table, label.key, commit, commit_time)
        y = label_values(label.value, rows[label.value.column])[kept]
        keys = rows.cells.column(rows.columns[label.key][0])
        wires = [keys.bytes_at(i) for i in kept.tolist()]
        op = np.where(np.isnan(y), Op.UNLABEL, Op.LABEL).astype(np.int8)
        times = rows[label.label_time].values[kept]
        self._add(rows, _Part(order[kept], commit[kept], op, wires, times, y, self._first_row() + kept))

    def unlabels(self, rows: Rows, order: Ints, commit: Ints) -> None:
        """Deleted rows of the labels' table, by their replica identity; one that does not name its event is refused."""
        label = self.stream.label
        keys = rows.cells.column(rows.columns[label.key][0])
        self.received += len(rows)
        for i in np.flatnonzero(keys.length < 0).tolist():
            reason = (
                f"the deleted row does not say its {label.key}, expected it in the replica identity of {label.table}"
            )
            refusal = Refusal(
                label.table, None, f"identity({label.key})", None, reason, _content(rows, i), int(commit[i])
            )
            self.refusals.append(refusal)
        kept = np.flatnonzero(keys.length >= 0)
        wires = [keys.bytes_at(i) for i in kept.tolist()]
        op = np.full(len(kept), Op.UNLABEL, dtype=np.int8)
        nothing, no_time = np.full(len(kept), np.nan), np.full(len(kept), NO_TIME)
        self._add(rows, _Part(order[kept], commit[kept], op, wires, no_time, nothing, self._first_row() + kept))

    def chunk(self, commit_clock: Ints) -> Chunk:
        """All changes that were let in, in order."""
        parts = self._parts
        if not parts:
            empty = np.zeros(0, dtype=np.int64)
            return Chunk(empty, empty.astype(np.int8), [], empty, np.zeros(0), empty, commit_clock)
        order = np.argsort(np.concatenate([p.order for p in parts]), kind="stable")
        keys = [key for p in parts for key in p.key]

        def joined(name: str) -> NDArray[Any]:
            column: NDArray[Any] = np.concatenate([getattr(p, name) for p in parts])[order]
            return column

        return Chunk(
            joined("commit"),
            joined("op"),
            [keys[i] for i in order],
            joined("time"),
            joined("y"),
            joined("row"),
            commit_clock,
        )

    def duplicate(self, row: int, commit: int) -> Refusal:
        """The refusal of an event whose key is open already."""
        first, key = 0, self.stream.source.key
        for rows in self._rows:
            at = row - first
            if at < len(rows):
                text = rows.as_text(key, at)
                reason = f"{key} is {text!r}, which an event that waits for its label has already"
                return Refusal(
                    self.stream.source.table, text, f"unique({key})", text, reason, _content(rows, at), commit
                )
            first += len(rows)
        raise AssertionError(f"row {row} is not of this stretch")

    def _first_row(self) -> int:
        return sum(len(rows) for rows in self._rows)

    def _add(self, rows: Rows, part: _Part) -> None:
        self._parts.append(part)
        self._rows.append(rows)

    def _pass(self, rows: Rows, gate: Gate, relation: str, key: str, commit: Ints, commit_time: Ints) -> Ints:
        """Rows that the gate lets in; the others become refusals."""
        self.received += len(rows)
        verdict = gate.check(rows, commit_time)
        for row in np.flatnonzero(verdict >= 0).tolist():
            expectation, found, reason = gate.explain(rows, row, int(verdict[row]))
            refusal = Refusal(
                relation, rows.as_text(key, row), expectation, found, reason, _content(rows, row), int(commit[row])
            )
            self.refusals.append(refusal)
        return np.flatnonzero(verdict < 0)


def _content(rows: Rows, row: int) -> dict[str, str | None]:
    return {name: rows.as_text(name, row) for name, (_, oid) in rows.columns.items() if oid in SUPPORTED}
