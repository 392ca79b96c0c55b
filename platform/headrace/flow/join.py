"""The join: source changes become entries of the log, in order.

A state machine over commits. Each event gets the next seq and waits for its label; a label closes its event, waits
(`held`) when its event has not come yet, or becomes a correction when the event is closed already. After a commit's own
rows the watermark decides which events have waited long enough: they are closed by time-outs, first in first out; labels
that waited as long without an event are given up (`orphans`). Epochs end where enough labels, or enough stream time, have
passed; losses are never looked at. History and stream run this very code; how commits are grouped into chunks changes
nothing. It does no I/O: what must be looked up in the log is asked of the caller, see `LookUp`, and what a standby or a
restart must know is read from the log, see `follow`.

Memory does not grow with the label window: keys are remembered for the log's newest partition only (older ones are
indexed), and an event that waits costs one byte an entry since then, plus 16 for each commit that moved the watermark. One
heartbeat may close ten million events: what a chunk adds to the log comes in parts. Labels without an event are all in
memory, up to a bound; beyond it the oldest is given up.

A kernel goes over a chunk: events, labels of events that wait, time-outs, epochs. It stops at what is rare (a label
without an event, a correction, a key that comes again while its event waits), which is done here, and goes on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.stream import Stream
from headrace.events import PARTITION_ENTRIES, EpochRange, LabelKind
from headrace.flow.keys import Keys, Known, mark_all, mark_of
from headrace.flow.steps import (
    BEGIN,
    COMMIT,
    COMMIT_FIRST,
    CORRECTIONS,
    DONE,
    EPOCH,
    EPOCH_CLOCK,
    EPOCH_FIRST,
    EPOCH_LABELS,
    EPOCHS,
    EVENTS,
    FULL,
    IGNORED,
    LABELS,
    NEVER,
    NEXT,
    NO_TIME,
    OBSERVED,
    PHASE,
    RARE,
    REFUSED,
    REMEMBERED,
    ROWS,
    SEGMENTS,
    SEQ,
    TIMEOUTS,
    WATERMARK,
    WIDTH,
    Op,
    Room,
    enter_event,
    enter_label,
    go,
    unknown,
)
from headrace.flow.waiting import Waiting

Ints = NDArray[np.int64]
Key = bytes  # a key's wire bytes: equal values of one type have equal bytes
PART = 100_000  # labels that a commit's time-outs add to the log at a time
HELD = 1_000_000  # labels that wait for their event, at most


@dataclass(frozen=True)
class Chunk:
    """Accepted changes of whole commits, or of a part of one, in stream order.

    Arrays have one element per change; `commit_clock` one per commit: stream time that a heartbeat carried, or the
    smallest int64.
    """

    commit: Ints  # ordinal of the change's commit, from 0
    op: NDArray[np.int8]
    key: Keys
    time: Ints  # event time or label time, microseconds
    y: NDArray[np.float64]
    row: Ints  # the caller's number of the row; an event and the label that came in its own row share it
    commit_clock: Ints

    def reach(self) -> int:
        """The largest time in it, or the smallest int64."""
        return int(max(self.commit_clock.max(initial=NO_TIME), self.time.max(initial=NO_TIME)))


@dataclass(frozen=True, slots=True)
class Answer:
    """The last label of an event."""

    seq: int
    y: float  # NaN: it has no value
    timed_out: bool = False  # no label came within the window


@dataclass(frozen=True, slots=True)
class Past:
    """What the log's older partitions say of an event."""

    seq: int
    answer: Answer | None  # None: no label there


LookUp = Callable[[Sequence[Key], int], Mapping[Key, Past]]
"""What the log's entries before a seq say of events by their keys; none of a key that they do not have."""


@dataclass(frozen=True, slots=True)
class Held:
    """A label that waits for its event."""

    y: float
    time: int
    deadline: int  # when it is given up


@dataclass(frozen=True, slots=True)
class Orphan:
    """A label that is given up: no event came."""

    key: Key
    label: Held
    commit: int
    crowded: bool  # before its window ended: too many labels waited


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
    doubled: int = 0  # changes that brought two things, such as an event with its label: `received` has them twice

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(add, vars(self).values(), vars(other).values()))


@dataclass
class Joined:
    """What a chunk, or a part of one, adds to the log.

    Attributes
    ----------
    events
        int64[n, 2]: seq, row.
    labels
        int64[m, 5]: seq, event, kind, seq of the label that a correction replaces (else 0), time.
    values
        float64[m, 2]: y, and y before a correction; NaN for none.
    segments
        int64[k, 4]: seq_first, seq_last, commit, watermark.
    """

    events: Ints = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))
    labels: Ints = field(default_factory=lambda: np.empty((0, 5), dtype=np.int64))
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    segments: Ints = field(default_factory=lambda: np.empty((0, 4), dtype=np.int64))
    epochs: list[EpochRange] = field(default_factory=list)
    held: dict[Key, tuple[int, Held]] = field(default_factory=dict)  # key -> commit, label: to be stored
    released: list[Key] = field(default_factory=list)  # held keys to be deleted
    orphans: list[Orphan] = field(default_factory=list)
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
    partition
        Entries of a partition of the log.
    part
        Labels after which time-outs go to the log before more are made.
    held
        Labels without an event that are kept.
    """

    def __init__(
        self,
        *,
        window: int,
        negative: bool,
        epoch_labels: int,
        epoch_time: int,
        partition: int = PARTITION_ENTRIES,
        part: int = PART,
        held: int = HELD,
    ) -> None:
        self.held = OrderedDict[Key, Held]()  # in order of deadline; its first is found at once, whatever was before it
        self.window, self.partition = window, partition
        self._part, self._held_at_most = part, held
        self._timeout_y = 0.0 if negative else float("nan")
        self._epoch_labels, self._epoch_time = epoch_labels, epoch_time
        self._waiting, self._known = Waiting(), Known()
        self._at = np.zeros(WIDTH, dtype=np.int64)
        self._at[[WATERMARK, REFUSED]] = NO_TIME, -1
        self.epoch = Epoch()
        self._out = Room()
        self._marks = np.zeros(1, dtype=np.uint32)  # how many held keys have a hash that ends so

    @property
    def seq(self) -> int:
        """The log's last entry."""
        return int(self._at[SEQ])

    @property
    def watermark(self) -> int:
        """The stream's clock, microseconds."""
        return int(self._at[WATERMARK])

    @property
    def epoch(self) -> Epoch:
        """The epoch that is being filled."""
        number, first, labels, clock = self._at[[EPOCH, EPOCH_FIRST, EPOCH_LABELS, EPOCH_CLOCK]].tolist()
        return Epoch(number, first, labels, None if clock == NO_TIME else clock)

    @epoch.setter
    def epoch(self, epoch: Epoch) -> None:
        clock = NO_TIME if epoch.watermark_first is None else epoch.watermark_first
        self._at[[EPOCH, EPOCH_FIRST, EPOCH_LABELS, EPOCH_CLOCK]] = (
            epoch.number, epoch.seq_first, epoch.labels, clock,
        )  # fmt: skip

    @property
    def open_events(self) -> int:
        """Events that wait for their label."""
        return self._waiting.count

    @property
    def remembers_from(self) -> int:
        """From this seq on the join knows keys and answers by itself; `run` must be told of what lies before."""
        return int(self._at[REMEMBERED])

    def start(self, seq: int) -> None:
        """Begin after `seq`, up to where no event waits; the rest of the log comes through `follow`."""
        self._at[SEQ] = seq
        self._waiting.start(seq)

    def follow(
        self, last: int, events: Ints, keys: Keys, labels: Ints, answered: Ints, kind: Ints, y: NDArray[np.float64],
        clocks: Sequence[tuple[int, int]],
    ) -> None:  # fmt: skip
        """Take over the log's next entries, which another join made.

        Parameters
        ----------
        last
            Seq of the last one.
        events, keys
            int64[n], seqs of the events; the keys of the last ones of them, from the newest partition's first on.
        labels, answered, kind, y
            The labels, all of m: seqs, the events that they answer, kinds and values.
        clocks
            First seq and watermark of each commit.
        """
        for seq, watermark in clocks:
            self._waiting.clock(seq, watermark)
        self._waiting.follow(last, events, answered[kind != LabelKind.CORRECTION])
        self._at[SEQ] = last
        self._forget()
        self._known.add_all(keys, events[len(events) - len(keys) :])
        recent = slice(int(np.searchsorted(labels, self.remembers_from)), None)
        packed = 2 * labels[recent] + (kind[recent] == LabelKind.TIMEOUT)
        self._known.put_answers(answered[recent], packed, y[recent])

    def resume(self, *, watermark: int, epoch: Epoch, held: dict[Key, Held]) -> None:
        """What the log says beside its entries."""
        self._at[WATERMARK], self.epoch, self.held = watermark, epoch, OrderedDict(held)
        self._mark_all()

    def remembers(self, key: Key) -> bool:
        """Whether an event with this key is in the log's newest partition."""
        return self._known.find(Keys.of([key]), 0) >= self._partition_of(self.seq)

    def unknown_keys(self, chunk: Chunk, first: int = 0) -> list[Key]:
        """Keys of labels that only the log's older partitions may know: not remembered, nor held, nor of this chunk.

        Changes of the chunk before `first` have been dealt with.
        """
        key, op = chunk.key, chunk.op[first:]
        parts = (key.hashes[first:], key.buffer, key.start[first:], key.length[first:])
        strange = unknown(op, parts, self._known.arrays, _NOTHING.arrays, False)
        if strange.any() and (op == Op.EVENT).any():  # perhaps of events of this chunk
            here = Known()
            here.room(len(op), int(key.length[first:].sum()), 0)
            strange &= unknown(op, parts, self._known.arrays, here.arrays, True)
        asked = dict.fromkeys(key[row] for row in (first + np.flatnonzero(strange)).tolist())
        return [key for key in asked if key not in self.held]

    def run(self, chunk: Chunk, look_up: LookUp, *, goes_on: int | None = None) -> Iterator[Joined]:
        """Join a chunk; each part of what it gives must be in the log before the next one is asked for, to the last.

        Parameters
        ----------
        look_up
            Asked for `unknown_keys` at the first of them.
        goes_on
            When the last commit is too large for a chunk and goes on in the next one: the largest time in the whole of it,
            `Chunk.reach` over its chunks. It then gives what one chunk would have given.
        """
        past: _Past | None = None  # until it is asked for
        bounds = np.searchsorted(chunk.commit, np.arange(len(chunk.commit_clock) + 1))
        self._at[[COMMIT, NEXT, PHASE]] = 0, 0, ROWS if self._at[COMMIT_FIRST] else BEGIN
        out, entries = Joined(), self._entries(chunk, bounds, past, goes_on)
        while (stopped := self._go(*entries)) != DONE:
            if stopped == RARE and past is None and chunk.op[at := int(self._at[NEXT])] != Op.EVENT:
                past = _past(look_up(self.unknown_keys(chunk, at), self.remembers_from))
                entries = (*entries[:2], self._tables(past))
            elif stopped == RARE:
                self._rare(out, chunk, past)
            elif stopped == FULL or not self._give_up_due(out):
                yield self._taken(out)
                out = Joined()
                if self._forget():
                    past = None
                entries = self._entries(chunk, bounds, past, goes_on)
        yield self._taken(out)
        self._forget()

    def _entries(self, chunk: Chunk, bounds: Ints, past: _Past | None, goes_on: int | None) -> tuple[Any, Any, Any]:
        """What the kernel is given until the part is full: no array grows before."""
        self._make_room(chunk)
        key, more = chunk.key, (goes_on is not None, NO_TIME if goes_on is None else goes_on)
        rules = (self.window, self.partition, self._epoch_labels, self._epoch_time, self._part, *more)
        rows = (bounds, chunk.commit_clock, chunk.op, chunk.time, chunk.y, chunk.row)
        parts = (key.hashes, key.buffer, key.start, key.length)
        return rules, (*rows, parts), self._tables(past)

    def _tables(self, past: _Past | None) -> tuple[Any, ...]:
        known = (_NOTHING if past is None else past[1]).arrays[:3]
        return self._known.arrays, known, self._waiting.arrays, self._out.arrays

    def _go(self, rules: Any, rows: Any, tables: Any) -> int:
        earliest = next(iter(self.held.values())).deadline if self.held else NEVER
        arguments = [self._at, rules, self._timeout_y, earliest, *rows, self._marks, *tables]
        return int(go(*arguments))

    def _make_room(self, chunk: Chunk) -> None:
        """For all that the kernel may add before the part is full, or the chunk at its end."""
        rows, commits = len(chunk.op), len(chunk.commit_clock)
        self._out.have(rows, rows + self._part, commits)
        self._waiting.room(2 * rows + self._part, commits)
        self._known.room(rows, int(chunk.key.length.sum()), rows + self._part)

    def _taken(self, out: Joined) -> Joined:
        """What the kernel has made goes into a part."""
        made = self._at[[EVENTS, LABELS, SEGMENTS, EPOCHS]].tolist()
        out.events, out.labels, out.values, out.segments, epochs = self._out.copies(*made)
        out.epochs = [EpochRange(*epoch) for epoch in epochs.tolist()]
        labels, corrections, ignored, timeouts = self._at[[OBSERVED, CORRECTIONS, IGNORED, TIMEOUTS]].tolist()
        out.counts += Counts(events=made[0], labels=labels, corrections=corrections, ignored=ignored, timeouts=timeouts)
        self._at[EVENTS:WIDTH] = 0
        return out

    def _rare(self, out: Joined, chunk: Chunk, past: _Past | None) -> None:
        """The change at which the kernel stopped."""
        row, commit = self._at[[NEXT, COMMIT]].tolist()
        self._at[NEXT] += 1
        time, op = int(chunk.time[row]), int(chunk.op[row])
        if op == Op.EVENT:
            self._event(out, chunk.key, row, int(chunk.row[row]), commit)
        else:
            y = float(chunk.y[row]) if op == Op.LABEL else float("nan")
            told = self.watermark if time == NO_TIME else time
            assert past is not None  # looked up at the first such label
            self._answer(out, chunk.key, row, y, told, commit, past[0])

    def _event(self, out: Joined, keys: Keys, at: int, row: int, commit: int) -> None:
        known = self._known.find(keys, at)
        if known in self._waiting and known >= self._partition_of(self.seq + 1):
            out.duplicates.append((row, commit))
            out.counts.quarantined += 1
            self._at[REFUSED] = row
            return
        enter_event(self._at, row, self._waiting.arrays, self._out.arrays)
        self._known.put(keys, at, self.seq)
        if (key := keys[at]) in self.held:
            label = self._release(out, key, int(keys.hashes[at]))
            self._at[OBSERVED] += 1
            self._label(self.seq, LabelKind.OBSERVED, label.y, float("nan"), 0, label.time)

    def _answer(
        self, out: Joined, keys: Keys, at: int, y: float, time: int, commit: int, past: Mapping[Key, Past]
    ) -> None:
        """A label of an event that is not known, or whose last answer lies in older partitions."""
        key, seq = keys[at], self._known.find(keys, at)
        if seq < 0 and key in past:
            seq = past[key].seq
        if seq < 0:
            self._hold(out, key, int(keys.hashes[at]), y, time, commit)
            return
        before = past[key].answer
        assert before is not None  # an event that does not wait has one
        no_value = y != y
        if (no_value and before.timed_out) or (not before.timed_out and _same(y, before.y)):
            out.counts.ignored += 1  # nothing new
            return
        out.counts.corrections += 1
        self._label(seq, LabelKind.CORRECTION, y, before.y, before.seq, time)

    def _label(self, event: int, kind: LabelKind, y: float, before: float, corrects: int, time: int) -> None:
        enter_label(
            self._at, event, int(kind), y, before, corrects, time, self._epoch_labels, self._epoch_time, self._known.arrays,
            self._waiting.arrays, self._out.arrays,
        )  # fmt: skip

    def _hold(self, out: Joined, key: Key, hashed: int, y: float, time: int, commit: int) -> None:
        known = self.held.get(key)
        if y != y:
            if known is not None:
                self._release(out, key, hashed)
                out.counts.ignored += 1
            out.counts.ignored += 1
            return
        out.counts.ignored += known is not None  # the older value of a label that still waits
        out.counts.held += known is None
        deadline = self.watermark + self.window if known is None else known.deadline
        self.held[key] = Held(y, time, deadline)
        out.held[key] = (commit, self.held[key])
        if known is None:
            self._mark(hashed)
        if len(self.held) > self._held_at_most:
            self._give_up(out, commit, crowded=True)

    def _release(self, out: Joined, key: Key, hashed: int) -> Held:
        """Take a label that waits; it may be stored, or of this chunk, or both when this chunk changed it."""
        out.held.pop(key, None)
        out.released.append(key)
        out.counts.held -= 1
        self._marks[mark_of(np.uint64(hashed), len(self._marks))] -= 1
        return self.held.pop(key)

    def _mark(self, hashed: int) -> None:
        """Let the kernel stop at an event with the key that was held last."""
        if 2 * len(self.held) > len(self._marks):
            self._mark_all()
        else:
            self._marks[mark_of(np.uint64(hashed), len(self._marks))] += 1

    def _mark_all(self) -> None:
        size = 1 << (4 * len(self.held)).bit_length() if self.held else 1
        self._marks = np.zeros(size, dtype=np.uint32)
        if self.held:
            mark_all(Keys.of(self.held).hashes, self._marks)

    def _give_up_due(self, out: Joined) -> bool:
        """Labels that have waited long enough for their event; whether those are all, or the part is full."""
        commit = int(self._at[COMMIT])
        while self.held and next(iter(self.held.values())).deadline <= self.watermark:
            if len(out.orphans) >= self._part:
                return False
            self._give_up(out, commit, crowded=False)
        return True

    def _give_up(self, out: Joined, commit: int, *, crowded: bool) -> None:
        """The label that waits longest for its event."""
        key = next(iter(self.held))
        hashed = int(Keys.of([key]).hashes[0])
        out.orphans.append(Orphan(key, self._release(out, key, hashed), commit, crowded))
        out.counts.quarantined += 1

    def _partition_of(self, seq: int) -> int:
        return seq // self.partition * self.partition

    def _forget(self) -> bool:
        """What lies before the newest partition is in the log and indexed by now; whether there was something."""
        first = self._partition_of(self.seq)
        if first <= self.remembers_from:
            return False
        self._known.forget(first)
        self._at[REMEMBERED] = first
        return True


def new_join(stream: Stream, partition: int = PARTITION_ENTRIES) -> Join:
    """A join as the stream's definition asks for."""
    policy, label = stream.policy, stream.label
    return Join(
        window=int(label.window.total_seconds() * 1e6),
        negative=label.if_missing == "negative",
        epoch_labels=policy.epoch_labels,
        epoch_time=int(policy.epoch_time.total_seconds() * 1e6),
        partition=partition,
    )


def _same(a: float, b: float) -> bool:
    return a == b or (a != a and b != b)


_Past = tuple[Mapping[Key, Past], Known]


_NOTHING = Known()


def _past(found: Mapping[Key, Past]) -> _Past:
    """What was looked up, for the kernel as well."""
    if not found:
        return found, _NOTHING
    known = Known()
    known.add_all(Keys.of(found), np.array([past.seq for past in found.values()], dtype=np.int64))
    return found, known


def rehearse() -> None:
    """Have all kernels compiled, or loaded: a label before its event, one that changes, time-outs, and a partition that turns."""
    join = Join(window=1, negative=True, epoch_labels=2, epoch_time=1, partition=2)
    keys, op = Keys.of([b"a", b"a", b"a", b"b", b"c"]), [Op.LABEL, Op.EVENT, Op.LABEL, Op.EVENT, Op.EVENT]
    rows, y = np.arange(5), np.array([1.0, np.nan, 0.0, np.nan, np.nan])
    commit_clock = np.array([NO_TIME, 9])
    list(
        join.run(
            Chunk(rows * 0, np.array(op, dtype=np.int8), keys, rows, y, rows, commit_clock), lambda keys, before: {}
        )
    )
