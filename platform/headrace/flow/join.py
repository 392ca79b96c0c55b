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
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from headrace.definition.stream import Stream
from headrace.events import PARTITION_ENTRIES, EpochRange, LabelKind
from headrace.flow.waiting import Waiting

Ints = NDArray[np.int64]
NO_TIME = -(2**63)  # a deleted label has no time of its own: it gets the watermark
Key = bytes  # a key's wire bytes: equal values of one type have equal bytes
PART = 100_000  # labels that a commit's time-outs add to the log at a time
HELD = 1_000_000  # labels that wait for their event, at most


class Op(IntEnum):
    """What a change asks of the log."""

    EVENT = 0
    LABEL = 1  # set or changed
    UNLABEL = 2  # deleted, or set to NULL


@dataclass(frozen=True)
class Chunk:
    """Accepted changes of whole commits, or of a part of one, in stream order.

    Arrays have one element per change; `commit_clock` one per commit: stream time that a heartbeat carried, or the
    smallest int64.
    """

    commit: Ints  # ordinal of the change's commit, from 0
    op: NDArray[np.int8]
    key: list[Key]
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


_NO_ANSWER = Answer(0, float("nan"))


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
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class Joined:
    """What a chunk, or a part of one, adds to the log."""

    event_seq: list[int] = field(default_factory=list)
    event_row: list[int] = field(default_factory=list)
    label_seq: list[int] = field(default_factory=list)
    label_event: list[int] = field(default_factory=list)
    label_kind: list[int] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    y_before: list[float] = field(default_factory=list)
    corrects: list[int] = field(default_factory=list)  # seq of the label that a correction replaces, else 0
    label_time: list[int] = field(default_factory=list)
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)  # seq_first, seq_last, commit, watermark
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


class _Remembered:
    """What is remembered of a partition of the log: keys of its events, and the answers that it holds, by event."""

    def __init__(self, first: int) -> None:
        self.first = first  # seq
        self.keys: dict[Key, int] = {}
        self._answers: dict[int, int] = {}  # 2 seq, odd for a time-out: a million objects would take 100 MB
        self._y: dict[int, float] = {}  # where it is not 0

    def put(self, event: int, answer: Answer) -> None:
        """An event's newest answer."""
        self._answers[event] = 2 * answer.seq + answer.timed_out
        if answer.y != 0.0:
            self._y[event] = answer.y
        else:
            self._y.pop(event, None)

    def answer(self, event: int) -> Answer | None:
        """An event's newest answer, if this partition holds one."""
        packed = self._answers.get(event)
        return None if packed is None else Answer(packed // 2, self._y.get(event, 0.0), timed_out=packed % 2 == 1)


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
        self.seq = 0
        self.watermark = NO_TIME
        self.epoch = Epoch()
        self.held: dict[Key, Held] = {}  # in order of deadline
        self.window, self.partition = window, partition
        self._part, self._held_at_most = part, held
        self._timeout_y = 0.0 if negative else float("nan")
        self._epoch_labels, self._epoch_time = epoch_labels, epoch_time
        self._waiting = Waiting()
        self._remembered = [_Remembered(0)]  # the newest last; more than one within a chunk only
        self._past: Mapping[Key, Past] = {}
        self._commit_first = 0  # seq of the first entry of a commit that is under way, or 0
        self._refused = -1  # row of the event that was refused last

    @property
    def open_events(self) -> int:
        """Events that wait for their label."""
        return self._waiting.count

    @property
    def remembers_from(self) -> int:
        """From this seq on the join knows keys and answers by itself; `run` must be told of what lies before."""
        return self._remembered[0].first

    def start(self, seq: int) -> None:
        """Begin after `seq`, up to where no event waits; the rest of the log comes through `follow`."""
        self.seq, self._waiting.first = seq, seq + 1

    def follow(
        self, last: int, events: Ints, keys: list[Key], labels: Ints, answered: Ints, kind: Ints, y: NDArray[np.float64],
        clocks: list[tuple[int, int]],
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
        self.seq = last
        self._turn()
        newest = self._remembered[-1]
        newest.keys.update(zip(keys, events[len(events) - len(keys) :].tolist(), strict=True))
        recent = slice(int(np.searchsorted(labels, newest.first)), None)
        columns = (labels, answered, kind, y)
        for seq, event, k, value in zip(*(column[recent].tolist() for column in columns), strict=True):
            newest.put(event, Answer(seq, value, timed_out=k == LabelKind.TIMEOUT))
        self._forget()

    def resume(self, *, watermark: int, epoch: Epoch, held: dict[Key, Held]) -> None:
        """What the log says beside its entries."""
        self.watermark, self.epoch, self.held = watermark, epoch, held

    def remembers(self, key: Key) -> bool:
        """Whether an event with this key is in the log's newest partition."""
        return key in self._remembered[-1].keys

    def unknown_keys(self, chunk: Chunk, first: int = 0) -> list[Key]:
        """Keys of labels that only the log's older partitions may know: not remembered, nor held, nor of this chunk.

        Changes of the chunk before `first` have been dealt with.
        """
        events: set[Key] = set()
        unknown: dict[Key, None] = {}
        for key, op in zip(chunk.key[first:], chunk.op[first:].tolist(), strict=True):
            if op == Op.EVENT:
                events.add(key)
            elif key not in events and key not in self._remembered[0].keys and key not in self.held:
                unknown[key] = None
        return list(unknown)

    def run(self, chunk: Chunk, look_up: LookUp, *, goes_on: int | None = None) -> Iterator[Joined]:
        """Join a chunk; each part of what it gives must be in the log before the next one is asked for, to the last.

        Parameters
        ----------
        look_up
            Asked for `unknown_keys`.
        goes_on
            When the last commit is too large for a chunk and goes on in the next one: the largest time in the whole of it,
            `Chunk.reach` over its chunks. It then gives what one chunk would have given.
        """
        self._past = look_up(self.unknown_keys(chunk), self.remembers_from)
        bounds = np.searchsorted(chunk.commit, np.arange(len(chunk.commit_clock) + 1)).tolist()
        out, last = Joined(), len(chunk.commit_clock) - 1
        for commit, clock in enumerate(chunk.commit_clock.tolist()):
            rows = slice(bounds[commit], bounds[commit + 1])
            more = goes_on if commit == last else None
            if not self._commit_first:
                self._begin(int(chunk.time[rows].max(initial=clock)) if more is None else more)
            self._rows(out, chunk, rows, commit)
            if more is not None:
                break
            while not self._time_out(out, commit):
                yield out
                out = Joined()
                if self._forget():
                    self._past = look_up(self.unknown_keys(chunk, bounds[commit + 1]), self.remembers_from)
            self._end(out, commit)
        yield out
        self._forget()
        self._past = {}

    def _begin(self, reach: int) -> None:
        self.watermark = max(self.watermark, reach)
        self._waiting.clock(self.seq + 1, self.watermark)
        self._commit_first = self.seq + 1

    def _end(self, out: Joined, commit: int) -> None:
        if self.seq >= self._commit_first:
            out.segments.append((self._commit_first, self.seq, commit, self.watermark))
        self._commit_first = 0

    def _rows(self, out: Joined, chunk: Chunk, rows: slice, commit: int) -> None:
        times, ys, numbers = chunk.time[rows].tolist(), chunk.y[rows].tolist(), chunk.row[rows].tolist()
        changes = zip(chunk.op[rows].tolist(), chunk.key[rows], times, ys, numbers, strict=True)
        for op, key, time, y, row in changes:
            if op == Op.EVENT:
                self._event(out, key, row, commit)
            elif row == self._refused:
                out.counts.ignored += 1  # the label of an event that was refused, in its own row
            else:
                told = self.watermark if time == NO_TIME else time
                self._answer(out, key, y if op == Op.LABEL else float("nan"), told, commit)
        self._refused = -1

    def _event(self, out: Joined, key: Key, row: int, commit: int) -> None:
        known = self._remembered[-1].keys.get(key, -1)
        if known in self._waiting and known >= self._partition_of(self.seq + 1):
            out.duplicates.append((row, commit))
            out.counts.quarantined += 1
            self._refused = row
            return
        self._enter(waits=True)
        out.event_seq.append(self.seq)
        out.event_row.append(row)
        out.counts.events += 1
        self._remembered[-1].keys[key] = self.seq
        if key in self.held:
            label = self._release(out, key)
            out.counts.labels += 1
            self._close(out, self.seq, LabelKind.OBSERVED, label.y, label.time)

    def _answer(self, out: Joined, key: Key, y: float, time: int, commit: int) -> None:
        no_value = y != y
        seq = self._find(key)
        if seq is None:
            self._hold(out, key, y, time, commit)
        elif seq in self._waiting:
            if no_value:
                out.counts.ignored += 1  # no value is what an event that waits has
            else:
                out.counts.labels += 1
                self._close(out, seq, LabelKind.OBSERVED, y, time)
        else:
            self._correct(out, key, seq, y, time)

    def _correct(self, out: Joined, key: Key, seq: int, y: float, time: int) -> None:
        before = self._last_answer(key, seq)
        no_value = y != y
        if (no_value and before.timed_out) or (not before.timed_out and _same(y, before.y)):
            out.counts.ignored += 1  # nothing new
            return
        out.counts.corrections += 1
        self._enter(waits=False)
        self._label(out, seq, LabelKind.CORRECTION, y, before, time)

    def _hold(self, out: Joined, key: Key, y: float, time: int, commit: int) -> None:
        known = self.held.get(key)
        if y != y:
            if known is not None:
                self._release(out, key)
                out.counts.ignored += 1
            out.counts.ignored += 1
            return
        out.counts.ignored += known is not None  # the older value of a label that still waits
        out.counts.held += known is None
        deadline = self.watermark + self.window if known is None else known.deadline
        self.held[key] = Held(y, time, deadline)
        out.held[key] = (commit, self.held[key])
        if len(self.held) > self._held_at_most:
            self._give_up(out, commit, crowded=True)

    def _release(self, out: Joined, key: Key) -> Held:
        """Take a label that waits; it may be stored, or of this chunk, or both when this chunk changed it."""
        out.held.pop(key, None)
        out.released.append(key)
        out.counts.held -= 1
        return self.held.pop(key)

    def _time_out(self, out: Joined, commit: int) -> bool:
        """Close what has waited long enough; whether that is all, or the part is full."""
        while (oldest := self._waiting.oldest()) and oldest[1] + self.window <= self.watermark:
            if len(out.label_seq) >= self._part:
                return False
            seq, entered = oldest
            out.counts.timeouts += 1
            self._close(out, seq, LabelKind.TIMEOUT, self._timeout_y, entered + self.window)
        while self.held and next(iter(self.held.values())).deadline <= self.watermark:
            if len(out.orphans) >= self._part:
                return False
            self._give_up(out, commit, crowded=False)
        return True

    def _give_up(self, out: Joined, commit: int, *, crowded: bool) -> None:
        """The label that waits longest for its event."""
        key = next(iter(self.held))
        out.orphans.append(Orphan(key, self._release(out, key), commit, crowded))
        out.counts.quarantined += 1

    def _close(self, out: Joined, event: int, kind: LabelKind, y: float, time: int) -> None:
        self._waiting.close(event)
        self._enter(waits=False)
        self._label(out, event, kind, y, _NO_ANSWER, time)
        if y == y:
            self._count_label(out)

    def _label(self, out: Joined, event: int, kind: LabelKind, y: float, before: Answer, time: int) -> None:
        self._remembered[-1].put(event, Answer(self.seq, y, timed_out=kind == LabelKind.TIMEOUT))
        out.label_seq.append(self.seq)
        out.label_event.append(event)
        out.label_kind.append(int(kind))
        out.y.append(y)
        out.y_before.append(before.y)
        out.corrects.append(before.seq)
        out.label_time.append(time)

    def _enter(self, *, waits: bool) -> None:
        self.seq += 1
        self._waiting.enter(waits)
        self._turn()
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

    def _find(self, key: Key) -> int | None:
        """The newest event of a key."""
        for partition in reversed(self._remembered):
            if key in partition.keys:
                return partition.keys[key]
        past = self._past.get(key)
        return None if past is None else past.seq

    def _last_answer(self, key: Key, event: int) -> Answer:
        """What is known of an event that does not wait any more."""
        for partition in reversed(self._remembered):
            if (remembered := partition.answer(event)) is not None:
                return remembered
        answer = self._past[key].answer
        assert answer is not None  # an event that does not wait has one
        return answer

    def _partition_of(self, seq: int) -> int:
        return seq // self.partition * self.partition

    def _turn(self) -> None:
        """Remember the log's newest partition apart from the one before."""
        if (first := self._partition_of(self.seq)) > self._remembered[-1].first:
            self._remembered.append(_Remembered(first))

    def _forget(self) -> bool:
        """What lies before the newest partition is in the log and indexed by now; whether there was something."""
        old = len(self._remembered) - 1
        del self._remembered[:old]
        return old > 0


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
