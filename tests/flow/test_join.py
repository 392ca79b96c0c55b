"""The join against a log kept in dictionaries: however commits are chunked, and wherever it restarts, the same entries."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.events import EpochRange, LabelKind
from headrace.flow import steps
from headrace.flow.join import Answer, Chunk, Counts, Epoch, Held, Join, Joined, Orphan, Past
from headrace.flow.keys import Keys, Known
from headrace.flow.steps import NO_TIME, Op

NO_CLOCK = -(2**63)
WINDOW = 20


@dataclass(frozen=True)
class Change:
    op: Op
    key: bytes
    time: int
    y: float = math.nan


@dataclass(frozen=True)
class Commit:
    changes: tuple[Change, ...]
    clock: int = NO_CLOCK


def event(key: str, time: int) -> Change:
    return Change(Op.EVENT, key.encode(), time)


def label(key: str, time: int, y: float = 1.0) -> Change:
    return Change(Op.LABEL, key.encode(), time, y)


def unlabel(key: str) -> Change:
    return Change(Op.UNLABEL, key.encode(), NO_TIME)


def new_join(*, negative: bool = False, epoch_labels: int = 3, epoch_time: int = 50, **sizes: int) -> Join:
    return Join(window=WINDOW, negative=negative, epoch_labels=epoch_labels, epoch_time=epoch_time, **sizes)


def chunk_of(commits: Sequence[Commit], first_row: int) -> Chunk:
    changes = [(c, change) for c, commit in enumerate(commits) for change in commit.changes]
    return Chunk(
        np.array([c for c, _ in changes], dtype=np.int64),
        np.array([change.op for _, change in changes], dtype=np.int8),
        Keys.of(change.key for _, change in changes),
        np.array([change.time for _, change in changes], dtype=np.int64),
        np.array([change.y for _, change in changes], dtype=np.float64),
        np.arange(len(changes), dtype=np.int64) + first_row,
        np.array([commit.clock for commit in commits], dtype=np.int64),
    )


@dataclass
class Log:
    """What a database would hold, and give back to a join that starts again."""

    join: Join
    events: list[tuple[int, bytes]] = field(default_factory=list)  # seq, key
    labels: list[tuple[Any, ...]] = field(default_factory=list)  # seq, event, kind, y, y before, time
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)  # seq_first, seq_last, commit, watermark
    epochs: list[EpochRange] = field(default_factory=list)
    held: dict[bytes, Held] = field(default_factory=dict)
    orphans: list[Orphan] = field(default_factory=list)
    duplicates: list[tuple[int, int]] = field(default_factory=list)  # row, commit
    counts: Counts = field(default_factory=Counts)

    def add(self, commits: Sequence[Commit], first_row: int, first_commit: int) -> None:
        """Run one chunk and store what it gives."""
        chunk = chunk_of(commits, first_row)
        for joined in self.join.run(chunk, self.past):
            self._store(joined, chunk, first_row, first_commit)
        self.counts.received += len(chunk.op)

    def add_in_parts(self, commit: Commit, size: int, first_row: int, number: int) -> None:
        """Run one commit in parts."""
        reach = chunk_of([commit], first_row).reach()
        starts = range(0, max(len(commit.changes), 1), size)
        for start in starts:
            chunk = chunk_of([Commit(commit.changes[start : start + size], commit.clock)], first_row + start)
            for joined in self.join.run(chunk, self.past, goes_on=None if start == starts[-1] else reach):
                self._store(joined, chunk, first_row + start, number)
            self.counts.received += len(chunk.op)

    def _store(self, joined: Joined, chunk: Chunk, first_row: int, first_commit: int) -> None:
        self.counts += joined.counts
        self.segments += [(a, b, c + first_commit, w) for a, b, c, w in joined.segments.tolist()]
        self.events += [(seq, chunk.key[row - first_row]) for seq, row in joined.events.tolist()]
        for (seq, of, kind, _, time), (y, before) in zip(joined.labels.tolist(), joined.values.tolist(), strict=True):
            self.labels.append((seq, of, kind, y, before, time))
        self.epochs += joined.epochs
        self.duplicates += [(row, commit + first_commit) for row, commit in joined.duplicates]
        self.orphans += [replace(orphan, commit=orphan.commit + first_commit) for orphan in joined.orphans]
        for key in joined.released:
            self.held.pop(key, None)
        self.held |= {key: label for key, (_, label) in joined.held.items()}

    def clock(self) -> dict[int, int]:
        """The watermark that each entry came with."""
        return {seq: w for first, last, _, w in self.segments for seq in range(first, last + 1)}

    def past(self, keys: Sequence[bytes], before: int) -> dict[bytes, Past]:
        """The newest event of each key in older partitions, with its newest answer there: what indexes find."""
        found = {}
        for seq, key in self.events:
            if key in keys and seq < before:
                answers = [
                    Answer(at, y, kind == LabelKind.TIMEOUT)
                    for at, of, kind, y, *_ in self.labels
                    if of == seq and at < before
                ]
                found[key] = Past(seq, answers[-1] if answers else None)
        return found

    def restart(self, step: int = 3) -> None:
        """A new join, brought to where the log stands in steps, as `Appender.resume` does it."""
        old = self.join
        new = Join(
            window=old.window,
            negative=old._timeout_y == 0.0,
            epoch_labels=old._epoch_labels,
            epoch_time=old._epoch_time,
            partition=old.partition,
            part=old._part,
            held=old._held_at_most,
        )
        since = [first for first, _, _, watermark in self.segments if watermark > old.watermark - old.window]
        newest = old.seq // old.partition * old.partition
        new.start(max(min([*since, newest]) - 1, 0))
        while new.seq < old.seq:
            follow(new, self, min(new.seq + step, old.seq))
        self.hand_over(new)

    def hand_over(self, join: Join) -> None:
        """Go on with a join that followed this log."""
        old, self.join = self.join, join
        epoch = Epoch(old.epoch.number, old.epoch.seq_first, old.epoch.labels, old.epoch.watermark_first)
        self.join.resume(watermark=old.watermark, epoch=epoch, held=dict(self.held))

    def content(self) -> str:
        """Everything, comparable; repr since NaN differs from itself."""
        held, orphans = sorted(self.held.items(), key=repr), sorted(self.orphans, key=repr)
        return repr((self.events, self.labels, self.segments, self.epochs, held, orphans, self.duplicates, self.counts))


def follow(join: Join, log: Log, upto: int) -> None:
    """Give a join the log's next entries."""
    after, remembered = join.seq, upto // join.partition * join.partition
    events = [(seq, key) for seq, key in log.events if after < seq <= upto]
    labels = [label for label in log.labels if after < label[0] <= upto]
    join.follow(
        upto,
        np.array([seq for seq, _ in events], dtype=np.int64),
        Keys.of(key for seq, key in events if seq >= remembered),
        np.array([label[0] for label in labels], dtype=np.int64),
        np.array([label[1] for label in labels], dtype=np.int64),
        np.array([label[2] for label in labels], dtype=np.int64),
        np.array([label[3] for label in labels], dtype=np.float64),
        [(first, watermark) for first, _, _, watermark in log.segments if after < first <= upto],
    )


def run(commits: Sequence[Commit], cuts: Sequence[tuple[int, bool]] = (), **options: Any) -> Log:
    """Join commits, cut before the given ones; at each cut, perhaps, starting again from what is stored."""
    log = Log(new_join(**options))
    restarts = dict(cuts)
    bounds = [0, *sorted(set(restarts)), len(commits)]
    row = 0
    for start, end in pairwise(bounds):
        if restarts.get(start):
            log.restart()
        log.add(commits[start:end], row, start)
        row += sum(len(commit.changes) for commit in commits[start:end])
    return log


keys = st.sampled_from([b"a", b"b", b"c", b"d"])
times = st.integers(0, 120)
changes = st.one_of(
    st.builds(Change, st.just(Op.EVENT), keys, times),
    st.builds(Change, st.just(Op.LABEL), keys, times, st.sampled_from([0.0, 1.0])),
    st.builds(Change, st.just(Op.UNLABEL), keys, st.one_of(st.just(NO_TIME), times)),
)
commits_of = st.lists(
    st.builds(Commit, st.lists(changes, max_size=5).map(tuple), st.one_of(st.just(NO_CLOCK), times)),
    min_size=1,
    max_size=25,
)


@st.composite
def cut_histories(draw: st.DrawFn) -> tuple[list[Commit], list[tuple[int, bool]]]:
    commits = draw(commits_of)
    cut = st.tuples(st.integers(1, max(1, len(commits) - 1)), st.booleans())
    return commits, draw(st.lists(cut, max_size=len(commits), unique_by=lambda c: c[0]))


@settings(max_examples=200, deadline=None)
@given(
    cut_histories(), st.booleans(), st.sampled_from([1, 4, 1000]), st.integers(1, 4), st.sampled_from([1, 2, 1000]),
    st.sampled_from([1, 2, 1000]),
)  # fmt: skip
def test_chunks_restarts_and_parts_change_nothing(
    history: tuple[list[Commit], list[tuple[int, bool]]], negative: bool, partition: int, size: int, part: int,
    held: int,
) -> None:  # fmt: skip
    commits, cuts = history
    options: dict[str, Any] = {"negative": negative, "partition": partition, "held": held}
    whole = run(commits, **options)
    options["part"] = part
    assert run(commits, **options).content() == whole.content()
    assert run(commits, cuts, **options).content() == whole.content()
    single = [(i, True) for i in range(1, len(commits))]
    assert run(commits, single, **options).content() == whole.content()
    parts = Log(new_join(**options))
    row = 0
    for number, commit in enumerate(commits):
        parts.add_in_parts(commit, size, row, number)
        row += len(commit.changes)
    assert parts.content() == whole.content()


@settings(max_examples=200, deadline=None)
@given(commits_of, st.booleans(), st.sampled_from([1, 4, 1000]), st.data())
def test_a_join_that_followed_the_log_goes_on_with_it(
    commits: list[Commit], negative: bool, partition: int, data: st.DataObject
) -> None:
    """A standby takes over: it made no entry, and knows what their maker knows."""
    whole = run(commits, negative=negative, partition=partition)
    log, standby = (
        Log(new_join(negative=negative, partition=partition)),
        new_join(negative=negative, partition=partition),
    )
    row, takeover = 0, data.draw(st.integers(0, len(commits)))
    for number, commit in enumerate(commits):
        if number == takeover:
            log.hand_over(standby)
        log.add([commit], row, number)
        row += len(commit.changes)
        if log.join.seq > standby.seq:
            follow(standby, log, log.join.seq)
    assert log.content() == whole.content()


@settings(max_examples=200, deadline=None)
@given(commits_of, st.booleans())
def test_what_came_in_is_accounted_for(commits: list[Commit], negative: bool) -> None:
    log = run(commits, negative=negative)
    counts, join = log.counts, log.join
    assert counts.received == (
        counts.events + counts.labels + counts.corrections + counts.held + counts.quarantined + counts.ignored
    )
    assert counts.held == len(log.held) == len(join.held)
    assert counts.quarantined == len(log.duplicates) + len(log.orphans)
    kinds = [LabelKind(kind) for _, _, kind, *_ in log.labels]
    assert counts.events == len(log.events)
    assert (counts.labels, counts.timeouts, counts.corrections) == tuple(kinds.count(k) for k in LabelKind)

    seqs = sorted([seq for seq, *_ in log.events] + [seq for seq, *_ in log.labels])
    assert seqs == list(range(1, join.seq + 1))
    covered = [seq for first, last, *_ in log.segments for seq in range(first, last + 1)]
    assert covered == seqs
    watermarks = [w for *_, w in log.segments]
    assert watermarks == sorted(watermarks)

    closing = [of for _, of, kind, *_ in log.labels if kind != LabelKind.CORRECTION]
    assert len(closing) == len(set(closing))
    assert join.open_events == len(log.events) - len(closing)
    events = {seq for seq, _ in log.events}
    assert all(of in events and of < seq for seq, of, *_ in log.labels)


@settings(max_examples=200, deadline=None)
@given(commits_of, st.booleans())
def test_time_outs_come_exactly_when_due(commits: list[Commit], negative: bool) -> None:
    log = run(commits, negative=negative)
    commit_of = {seq: c for first, last, c, _ in log.segments for seq in range(first, last + 1)}
    reached, clock = [], NO_CLOCK  # the watermark after each commit
    for commit in commits:
        clock = max([clock, commit.clock, *(c.time for c in commit.changes)])
        reached.append(clock)
    closing = {
        of: (seq, LabelKind(kind), y, time) for seq, of, kind, y, _, time in log.labels if kind != LabelKind.CORRECTION
    }
    entered = log.clock()
    for seq, _ in log.events:
        deadline = entered[seq] + WINDOW
        due = next((c for c in range(commit_of[seq], len(commits)) if reached[c] >= deadline), None)
        if seq not in closing:
            assert due is None, "it waits longer than its window"
            continue
        at, kind, y, time = closing[seq]
        if kind == LabelKind.TIMEOUT:
            assert commit_of[at] == due
            assert time == deadline
            assert y == 0.0 if negative else math.isnan(y)
        else:
            assert due is None or commit_of[at] <= due
    for first, last, _, _ in log.segments:  # after the commit's own rows, first in first out
        kinds = {seq: kind for seq, _, kind, *_ in log.labels}
        tail = [seq for seq in range(first, last + 1) if kinds.get(seq) == LabelKind.TIMEOUT]
        assert tail == list(range(last - len(tail) + 1, last + 1))
        answered = [of for seq, of, *_ in log.labels if seq in tail]
        assert answered == sorted(answered)


@settings(max_examples=150, deadline=None)
@given(commits_of, st.booleans(), st.integers(1, 5), st.integers(1, 60))
def test_epochs_end_with_enough_labels_or_enough_time(
    commits: list[Commit], negative: bool, epoch_labels: int, epoch_time: int
) -> None:
    log = run(commits, negative=negative, epoch_labels=epoch_labels, epoch_time=epoch_time)
    clock = {seq: w for first, last, _, w in log.segments for seq in range(first, last + 1)}
    counted = [seq for seq, _, kind, y, *_ in log.labels if kind != LabelKind.CORRECTION and not math.isnan(y)]
    epochs: list[EpochRange] = []
    first, labels = 1, 0
    for seq in counted:  # a second, plainer account of the rule
        labels += 1
        if labels == epoch_labels or clock[seq] - clock[first] >= epoch_time:
            epochs.append(EpochRange(len(epochs) + 1, first, seq, labels, clock[first], clock[seq]))
            first, labels = seq + 1, 0
    assert log.epochs == epochs
    assert (log.join.epoch.number, log.join.epoch.seq_first, log.join.epoch.labels) == (len(epochs) + 1, first, labels)


def test_a_label_closes_its_event() -> None:
    log = run([Commit((event("a", 1),)), Commit((label("a", 5),))])
    assert log.labels[0][:4] == (2, 1, LabelKind.OBSERVED, 1.0)


def test_a_label_before_its_event_is_held_then_logged_with_its_own_time() -> None:
    log = run([Commit((label("a", 1),)), Commit((event("a", 5),))], [(1, True)])
    assert log.events == [(1, b"a")]
    assert log.labels[0][0] == 2
    assert log.labels[0][5] == 1
    assert log.held == {}


def test_a_held_label_that_changes_counts_once() -> None:
    commits = [Commit((label("a", 1, 0.0),)), Commit((label("a", 2, 1.0), event("a", 3)))]
    for cuts in ([], [(1, True)]):
        log = run(commits, cuts)
        assert [(kind, y) for _, _, kind, y, _, _ in log.labels] == [(LabelKind.OBSERVED, 1.0)]
        assert log.held == {}, "the stored label would come back at the next start"
        assert (log.counts.labels, log.counts.ignored, log.counts.held) == (1, 1, 0)


def test_of_too_many_labels_without_an_event_the_oldest_is_given_up() -> None:
    commits = [Commit((label("a", 1), label("b", 1))), Commit((label("c", 2), event("a", 3), event("b", 3)))]
    log = run(commits, [(1, True)], held=2)
    assert [(o.key, o.commit, o.crowded) for o in log.orphans] == [(b"a", 1, True)]
    assert (list(log.held), [of for _, of, *_ in log.labels]) == ([b"c"], [2])
    assert (log.counts.held, log.counts.quarantined, log.counts.labels) == (1, 1, 1)


def test_time_outs_of_one_heartbeat_come_in_parts() -> None:
    """Events of a part that is in the log already are looked up there, as its keys are forgotten."""
    join = new_join(partition=10, part=7)
    log = Log(join)
    log.add([Commit(tuple(event(f"{i}", 0) for i in range(40)))], 0, 0)
    sizes: list[int] = []
    chunk = chunk_of([Commit((), clock=WINDOW), Commit((label("3", 30), label("39", 30)))], 40)
    for joined in join.run(chunk, log.past):
        sizes.append(len(joined.labels))
        log._store(joined, chunk, 40, 1)
    assert sizes == [7, 7, 7, 7, 7, 7]  # 40 time-outs and two corrections
    assert [(of, kind) for _, of, kind, *_ in log.labels[-2:]] == [
        (4, LabelKind.CORRECTION),
        (40, LabelKind.CORRECTION),
    ]
    assert log.segments[1:] == [(41, 80, 1, WINDOW), (81, 82, 2, 30)]


def test_a_late_label_corrects_a_dropped_event() -> None:
    log = run([Commit((event("a", 0),)), Commit((), clock=WINDOW), Commit((label("a", 30),))], [(2, True)])
    (_, _, timeout, dropped, _, _), (_, of, kind, y, before, _) = log.labels
    assert (timeout, kind, of, y) == (LabelKind.TIMEOUT, LabelKind.CORRECTION, 1, 1.0)
    assert math.isnan(dropped)
    assert math.isnan(before)


def test_deleting_a_label_takes_its_value_back() -> None:
    log = run([Commit((event("a", 0), label("a", 1))), Commit((unlabel("a"),)), Commit((unlabel("a"),))])
    _, (_, _, kind, y, before, _) = log.labels
    assert (kind, before) == (LabelKind.CORRECTION, 1.0)
    assert math.isnan(y)
    assert log.counts.ignored == 1


def test_an_open_event_has_no_label_to_delete() -> None:
    """Also when its key was used before: the earlier event keeps its label."""
    commits = [Commit((event("a", 0), label("a", 1))), Commit((event("a", 2), unlabel("a")))]
    whole, cut = run(commits), run(commits, [(1, False)])
    assert whole.content() == cut.content()
    assert [kind for _, _, kind, *_ in whole.labels] == [LabelKind.OBSERVED]


def test_a_correction_goes_to_the_event_that_was_there_before_the_key_came_again() -> None:
    commits = [Commit((event("a", 0), label("a", 1))), Commit((label("a", 2, 0.0), event("a", 3)))]
    for cuts in ([], [(1, False)], [(1, True)]):
        assert [(of, kind) for _, of, kind, *_ in run(commits, cuts).labels] == [(1, 0), (1, LabelKind.CORRECTION)]


@pytest.mark.parametrize("negative", [True, False])
def test_a_heartbeat_moves_the_clock(negative: bool) -> None:
    log = run([Commit((event("a", 0),)), Commit((), clock=WINDOW - 1), Commit((), clock=WINDOW)], negative=negative)
    assert log.segments[-1] == (2, 2, 2, WINDOW)
    assert log.counts.timeouts == 1


def test_kernels_are_compiled_once_for_keys_from_anywhere() -> None:
    """A second form of the same arrays would be compiled, or loaded, at the first chunk after a take-over."""
    one, two = Keys.of([b"a", b"b"]), Keys.joined([Keys.of([b"a"]), Keys.of([b"b"])], np.array([1, 0]))
    rows = np.arange(2)
    for keys in (one, two, Keys.joined([one], np.array([1, 0]))):
        op, y = np.array([Op.EVENT, Op.LABEL], dtype=np.int8), np.array([math.nan, 1.0])
        list(new_join().run(Chunk(rows * 0, op, keys, rows, y, rows, np.array([NO_CLOCK])), lambda keys, before: {}))
    assert len(steps.go.signatures) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "key",
    [
        lambda n: struct.pack(">q", n),
        lambda n: struct.pack(">q", 100 * n),
        lambda n: struct.pack(">q", n << 22),  # of a generator whose last bits count within a millisecond
        lambda n: b"order-%08d" % n,
        lambda n: b"%d@shop" % n,
        lambda n: str(UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)).encode(),
    ],
)
def test_keys_of_any_shape_are_found_at_once(key: Callable[[int], bytes]) -> None:
    """Slots that are taken between a key's first one and its own: few, at the highest load."""
    keys, known = Keys.of(map(key, range(16_384))), Known()
    known.add_all(keys, np.arange(len(keys)))
    size = len(known.slots)
    assert size == 2 * len(keys)
    place = {int(entry) - 1: slot for slot, entry in enumerate(known.slots[:, 1].tolist()) if entry}
    steps = [(place[n] - int(h)) * pow(65, -1, size) % size for n, h in enumerate(keys.hashes.tolist())]
    assert np.mean(steps) < 1 and max(steps) < 40


def test_a_join_is_not_changed_by_asking() -> None:
    log = run([Commit((event("a", 0),))])
    before = copy(vars(log.join))
    one = np.ones(1, dtype=np.int64)
    chunk = Chunk(one - 1, one.astype(np.int8), Keys.of([b"z"]), one, np.ones(1), one, one)
    assert log.join.unknown_keys(chunk) == [b"z"]
    assert vars(log.join) == before
