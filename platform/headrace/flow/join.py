"""The join: source changes become entries of the log, in order.

A state machine over commits. Each event gets the next seq and waits for its label; a label closes its event, waits
(`held`) when its event has not come yet, or becomes a correction when the event is closed already. After a commit's own
rows the watermark decides which events have waited long enough: they are closed by time-outs, first in first out. Epochs
end where enough labels, or enough stream time, have passed; losses are never looked at. History and stream run this very
code; how commits are grouped into chunks changes nothing. It does no I/O: what must be looked up in the log is asked of
the caller before a chunk, see `unknown_keys`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from headrace.definition.stream import Stream
from headrace.events import EpochRange, LabelKind

Ints = NDArray[np.int64]
NO_TIME = -(2**63)  # a deleted label has no time of its own: it gets the watermark
Key = bytes  # a key's wire bytes: equal values of one type have equal bytes


class Op(IntEnum):
    """What a change asks of the log."""

    EVENT = 0
    LABEL = 1  # set or changed
    UNLABEL = 2  # deleted, or set to NULL


@dataclass(frozen=True)
class Chunk:
    """Accepted changes of whole commits, in stream order.

    Arrays have one element per change; `commit_clock` one per commit: stream time that a heartbeat carried, or the
    smallest int64.
    """

    commit: Ints  # ordinal of the change's commit, from 0
    op: NDArray[np.int8]
    key: list[Key]
    time: Ints  # event time or label time, microseconds
    y: NDArray[np.float64]
    row: Ints  # the caller's number of the row
    commit_clock: Ints


@dataclass(frozen=True)
class Past:
    """What the log says of an event that is closed."""

    seq: int
    y: float  # the last value, NaN when it has none


@dataclass
class Counts:
    """What became of changes; `held` may fall, since a released label becomes a logged one."""

    received: int = 0
    events: int = 0
    labels: int = 0
    corrections: int = 0
    held: int = 0
    quarantined: int = 0
    ignored: int = 0
    timeouts: int = 0


@dataclass
class Joined:
    """What a chunk adds to the log."""

    event_seq: list[int] = field(default_factory=list)
    event_row: list[int] = field(default_factory=list)
    label_seq: list[int] = field(default_factory=list)
    label_event: list[int] = field(default_factory=list)
    label_kind: list[int] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    y_before: list[float] = field(default_factory=list)
    label_time: list[int] = field(default_factory=list)
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)  # seq_first, seq_last, commit, watermark
    epochs: list[EpochRange] = field(default_factory=list)
    held: dict[Key, tuple[int, float, int]] = field(default_factory=dict)  # key -> commit, y, label_time: to be stored
    released: list[Key] = field(default_factory=list)  # held keys to be deleted
    duplicates: list[tuple[int, int]] = field(default_factory=list)  # row, commit: events whose key is open already
    counts: Counts = field(default_factory=Counts)


@dataclass
class Epoch:
    """The epoch being filled."""

    number: int = 1
    seq_first: int = 1
    labels: int = 0
    watermark_first: int | None = None


class Join:
    """The join of one stream.

    Parameters
    ----------
    window
        Label window in microseconds.
    negative
        Whether a label that did not come means negative; else the event is dropped.
    epoch_labels, epoch_time
        An epoch ends with the label that fills it, or with the first one after so many microseconds.
    """

    def __init__(self, *, window: int, negative: bool, epoch_labels: int, epoch_time: int) -> None:
        self.seq = 0
        self.watermark = -(2**63)
        self.epoch = Epoch()
        self.held: dict[Key, tuple[float, int]] = {}  # key -> y, label_time
        self._open: dict[Key, int] = {}
        self._waiting: deque[tuple[int, int, Key]] = deque()  # deadline, seq, key
        self.window, self._timeout_y = window, 0.0 if negative else float("nan")
        self._epoch_labels, self._epoch_time = epoch_labels, epoch_time

    def resume(self, *, seq: int, watermark: int, epoch: Epoch, held: dict[Key, tuple[float, int]]) -> None:
        """Go on where the log stands; open events follow through `reopen`."""
        self.seq, self.watermark, self.epoch, self.held = seq, watermark, epoch, held

    def reopen(self, keys: list[Key], seqs: list[int], entered: list[int]) -> None:
        """Open events from the log in order of seq, with the watermark when each entered."""
        for key, seq, clock in zip(keys, seqs, entered, strict=True):
            self._open[key] = seq
            self._waiting.append((clock + self.window, seq, key))

    @property
    def open_events(self) -> int:
        """Events that wait for their label."""
        return len(self._open)

    def unknown_keys(self, chunk: Chunk) -> list[Key]:
        """Keys of labels that only the log may know: neither open, nor held, nor an earlier event of this chunk."""
        events: set[Key] = set()
        unknown: dict[Key, None] = {}
        for key, op in zip(chunk.key, chunk.op.tolist(), strict=True):
            if op == Op.EVENT:
                events.add(key)
            elif key not in events and key not in self._open and key not in self.held:
                unknown[key] = None
        return list(unknown)

    def run(self, chunk: Chunk, past: Mapping[Key, Past]) -> Joined:
        """Join a chunk.

        Parameters
        ----------
        chunk
            Whole commits.
        past
            What the log knows of `unknown_keys`.
        """
        out = Joined()
        closed: dict[Key, Past] = dict(past)
        bounds = np.searchsorted(chunk.commit, np.arange(len(chunk.commit_clock) + 1)).tolist()
        ops, times, ys, rows = chunk.op.tolist(), chunk.time.tolist(), chunk.y.tolist(), chunk.row.tolist()
        for commit, clock in enumerate(chunk.commit_clock.tolist()):
            start, end = bounds[commit], bounds[commit + 1]
            self.watermark = max(self.watermark, clock, *times[start:end])
            first = self.seq + 1
            for i in range(start, end):
                key = chunk.key[i]
                if ops[i] == Op.EVENT:
                    self._event(out, key, rows[i], commit, closed)
                else:
                    time = self.watermark if times[i] == NO_TIME else times[i]
                    self._answer(out, key, ys[i] if ops[i] == Op.LABEL else float("nan"), time, commit, closed)
            self._time_out(out, closed)
            if self.seq >= first:
                out.segments.append((first, self.seq, commit, self.watermark))
        return out

    def _event(self, out: Joined, key: Key, row: int, commit: int, closed: dict[Key, Past]) -> None:
        if key in self._open:
            out.duplicates.append((row, commit))
            out.counts.quarantined += 1
            return
        self._enter()
        out.event_seq.append(self.seq)
        out.event_row.append(row)
        out.counts.events += 1
        self._open[key] = self.seq
        self._waiting.append((self.watermark + self.window, self.seq, key))
        if key in self.held:
            y, time = self._release(out, key)
            out.counts.labels += 1
            self._close(out, key, LabelKind.OBSERVED, y, time, closed)

    def _answer(self, out: Joined, key: Key, y: float, time: int, commit: int, closed: dict[Key, Past]) -> None:
        no_value = y != y
        if key in self._open and not no_value:
            out.counts.labels += 1
            self._close(out, key, LabelKind.OBSERVED, y, time, closed)
        elif key in self._open:
            out.counts.ignored += 1  # no value is what an open event has
        elif key in closed and not _same(y, closed[key].y):
            out.counts.corrections += 1
            self._enter()
            before = closed[key]
            closed[key] = Past(before.seq, y)
            self._label(out, before.seq, LabelKind.CORRECTION, y, before.y, time)
        elif no_value and key in self.held:
            self._release(out, key)
            out.counts.ignored += 2
        elif no_value or key in closed:
            out.counts.ignored += 1
        else:
            out.counts.ignored += key in self.held  # the older value of a label that still waits
            out.counts.held += key not in self.held
            self.held[key] = (y, time)
            out.held[key] = (commit, y, time)

    def _release(self, out: Joined, key: Key) -> tuple[float, int]:
        """Take a label that waits; it may be stored, or of this chunk, or both when this chunk changed it."""
        out.held.pop(key, None)
        out.released.append(key)
        out.counts.held -= 1
        return self.held.pop(key)

    def _time_out(self, out: Joined, closed: dict[Key, Past]) -> None:
        while self._waiting and self._waiting[0][0] <= self.watermark:
            deadline, seq, key = self._waiting.popleft()
            if self._open.get(key) == seq:
                out.counts.timeouts += 1
                self._close(out, key, LabelKind.TIMEOUT, self._timeout_y, deadline, closed)

    def _close(self, out: Joined, key: Key, kind: LabelKind, y: float, time: int, closed: dict[Key, Past]) -> None:
        event = self._open.pop(key)
        closed[key] = Past(event, y)
        self._enter()
        self._label(out, event, kind, y, float("nan"), time)
        if y == y:
            self._count_label(out)

    def _label(self, out: Joined, event: int, kind: LabelKind, y: float, before: float, time: int) -> None:
        out.label_seq.append(self.seq)
        out.label_event.append(event)
        out.label_kind.append(int(kind))
        out.y.append(y)
        out.y_before.append(before)
        out.label_time.append(time)

    def _enter(self) -> None:
        self.seq += 1
        if self.epoch.watermark_first is None:
            self.epoch.watermark_first = self.watermark

    def _count_label(self, out: Joined) -> None:
        epoch = self.epoch
        epoch.labels += 1
        assert epoch.watermark_first is not None  # set by the entry that this label is
        if epoch.labels >= self._epoch_labels or self.watermark - epoch.watermark_first >= self._epoch_time:
            out.epochs.append(
                EpochRange(epoch.number, epoch.seq_first, self.seq, epoch.labels, epoch.watermark_first, self.watermark)
            )
            self.epoch = Epoch(epoch.number + 1, self.seq + 1)


def new_join(stream: Stream) -> Join:
    """A join as the stream's definition asks for."""
    policy, label = stream.policy, stream.label
    return Join(
        window=int(label.window.total_seconds() * 1e6),
        negative=label.if_missing == "negative",
        epoch_labels=policy.epoch_labels,
        epoch_time=int(policy.epoch_time.total_seconds() * 1e6),
    )


def _same(a: float, b: float) -> bool:
    return a == b or (a != a and b != b)
