"""The join's steps over a chunk, compiled: what is usual is done here, at what is rare they stop.

`go` goes over commits, events, labels of events that wait, time-outs and epochs; `headrace.flow.join` says what they mean and
does the rest. State is one array of integers, whose places are named below, and the tables that kernels share.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from headrace.events import LabelKind
from headrace.flow import waiting
from headrace.flow.keys import answer_slot, find, mark_of, put, put_answer
from headrace.models.text import kernel

NO_TIME = -(2**63)  # a deleted label has no time of its own: it gets the watermark


class Op(IntEnum):
    """What a change asks of the log."""

    EVENT = 0
    LABEL = 1  # set or changed
    UNLABEL = 2  # deleted, or set to NULL


# Places of the state: the log's; where in a chunk the join is; what it has made of it.
SEQ, WATERMARK, REMEMBERED, COMMIT_FIRST, EPOCH, EPOCH_FIRST, EPOCH_LABELS, EPOCH_CLOCK = range(8)
COMMIT, NEXT, PHASE, REFUSED = range(8, 12)
EVENTS, LABELS, SEGMENTS, EPOCHS, OBSERVED, CORRECTIONS, IGNORED, TIMEOUTS, WIDTH = range(12, 21)
BEGIN, ROWS, TIME_OUTS = range(3)  # phases of a commit
DONE, RARE, FULL, HELD_DUE = range(4)  # why the kernel stopped
_OP_EVENT, _OP_LABEL = int(Op.EVENT), int(Op.LABEL)
_IS_OBSERVED, _TIMEOUT, _CORRECTION = int(LabelKind.OBSERVED), int(LabelKind.TIMEOUT), int(LabelKind.CORRECTION)
NEVER = 2**63 - 1


class Room:
    """Where the kernel writes: events, labels, their values, segments, epochs."""

    def __init__(self) -> None:
        self.arrays = _room(0, 0, 0)

    def have(self, *wanted: int) -> None:
        """Room for so many events, labels and segments; what is there is lost."""
        there = [len(self.arrays[place]) for place in (0, 1, 3)]
        if any(more > size for more, size in zip(wanted, there, strict=True)):
            self.arrays = _room(*map(max, wanted, there))

    def copies(self, events: int, labels: int, segments: int, epochs: int) -> tuple[Any, ...]:
        """What was written, in arrays of its own."""
        sizes = (events, labels, labels, segments, epochs)
        return tuple(array[:size].copy() for array, size in zip(self.arrays, sizes, strict=True))


def _room(events: int, labels: int, segments: int) -> tuple[Any, ...]:
    return (
        np.empty((events, 2), dtype=np.int64),
        np.empty((labels, 5), dtype=np.int64),
        np.empty((labels, 2)),
        np.empty((segments, 4), dtype=np.int64),
        np.empty((labels, 6), dtype=np.int64),
    )


@kernel
def unknown(op: Any, key: Any, known: Any, here: Any, collects: Any) -> Any:
    """Which changes are labels whose key is neither remembered nor, if these are collected, that of an event before it."""
    out = np.zeros(op.size, dtype=np.bool_)
    for i in range(op.size):
        h, start, length = key[0][i], key[2][i], np.int64(key[3][i])
        if op[i] != _OP_EVENT:
            seq = find(h, key[1], start, length, known[0], known[1], known[2])
            out[i] = seq < 0 and find(h, key[1], start, length, here[0], here[1], here[2]) < 0
        elif collects:
            put(h, key[1], start, length, i, here[0], here[1], here[2], here[5])
    return out


@kernel
def _enter(at: Any, waits: Any, waiting_arrays: Any) -> None:
    at[SEQ] += 1
    waiting.enter(waits, waiting_arrays[0], waiting_arrays[2])
    if at[EPOCH_CLOCK] == NO_TIME:
        at[EPOCH_CLOCK] = at[WATERMARK]


@kernel
def enter_event(at: Any, row: Any, waiting_arrays: Any, out: Any) -> None:
    """The log's next entry is an event."""
    _enter(at, True, waiting_arrays)
    n = at[EVENTS]
    out[0][n, 0], out[0][n, 1] = at[SEQ], row
    at[EVENTS] = n + 1


@kernel
def enter_label(
    at: Any, event: Any, kind: Any, y: Any, before: Any, corrects: Any, time: Any, epoch_labels: Any, epoch_time: Any,
    known: Any, waiting_arrays: Any, out: Any,
) -> None:  # fmt: skip
    """The log's next entry is a label; unless it corrects another, it closes its event and counts for the epoch."""
    if kind != _CORRECTION:
        waiting.close(event, waiting_arrays[0], waiting_arrays[2])
    _enter(at, False, waiting_arrays)
    put_answer(event, 2 * at[SEQ] + (1 if kind == _TIMEOUT else 0), y, known[3], known[4], known[5])
    n, labels, values = at[LABELS], out[1], out[2]
    labels[n, 0], labels[n, 1], labels[n, 2], labels[n, 3], labels[n, 4] = at[SEQ], event, kind, corrects, time
    values[n, 0], values[n, 1] = y, before
    at[LABELS] = n + 1
    if kind == _CORRECTION or y != y:
        return
    at[EPOCH_LABELS] += 1
    if at[EPOCH_LABELS] >= epoch_labels or at[WATERMARK] - at[EPOCH_CLOCK] >= epoch_time:
        n, epochs = at[EPOCHS], out[4]
        epochs[n, 0], epochs[n, 1], epochs[n, 2] = at[EPOCH], at[EPOCH_FIRST], at[SEQ]
        epochs[n, 3], epochs[n, 4], epochs[n, 5] = at[EPOCH_LABELS], at[EPOCH_CLOCK], at[WATERMARK]
        at[EPOCHS] = n + 1
        at[EPOCH], at[EPOCH_FIRST], at[EPOCH_LABELS], at[EPOCH_CLOCK] = at[EPOCH] + 1, at[SEQ] + 1, 0, NO_TIME


@kernel
def _begin(at: Any, first: Any, last: Any, reach: Any, times: Any, waiting_arrays: Any) -> None:
    for i in range(first, last):
        reach = max(reach, times[i])
    at[WATERMARK] = max(at[WATERMARK], reach)
    waiting.clock(at[SEQ] + 1, at[WATERMARK], waiting_arrays[1], waiting_arrays[2])
    at[COMMIT_FIRST] = at[SEQ] + 1


@kernel
def _correct(at: Any, rules: Any, event: Any, y: Any, time: Any, known: Any, waiting_arrays: Any, out: Any) -> Any:
    """Another answer to an event that has one; whether that one is known here."""
    slot = answer_slot(event, known[3])
    if known[3][slot, 0] == 0:
        return False
    packed, before = known[3][slot, 1], known[4][slot]
    timed_out = packed & 1 == 1
    if (timed_out and y != y) or (not timed_out and (y == before or (y != y and before != before))):
        at[IGNORED] += 1  # nothing new
        return True
    at[CORRECTIONS] += 1
    enter_label(at, event, _CORRECTION, y, before, packed >> 1, time, rules[2], rules[3], known, waiting_arrays, out)
    return True


@kernel
def _change(
    at: Any, rules: Any, i: Any, op: Any, times: Any, ys: Any, row: Any, key: Any, marks: Any, known: Any, past: Any,
    waiting_arrays: Any, out: Any,
) -> Any:  # fmt: skip
    """One change; whether that could be done here."""
    h, start, length = key[0][i], key[2][i], np.int64(key[3][i])
    seq = find(h, key[1], start, length, known[0], known[1], known[2])
    if op == _OP_EVENT:
        waits = seq >= 0 and waiting.waits_for(seq, waiting_arrays[0], waiting_arrays[2])
        if (waits and seq >= (at[SEQ] + 1) // rules[1] * rules[1]) or marks[mark_of(h, marks.size)]:
            return False
        enter_event(at, row, waiting_arrays, out)
        put(h, key[1], start, length, at[SEQ], known[0], known[1], known[2], known[5])
        return True
    if row == at[REFUSED]:
        at[IGNORED] += 1  # the label of an event that was refused, in its own row
        return True
    if seq < 0:
        seq = find(h, key[1], start, length, past[0], past[1], past[2])
    if seq < 0:
        return False
    y = ys[i] if op == _OP_LABEL else np.nan
    time = at[WATERMARK] if times[i] == NO_TIME else times[i]
    if not waiting.waits_for(seq, waiting_arrays[0], waiting_arrays[2]):
        return _correct(at, rules, seq, y, time, known, waiting_arrays, out)
    if y != y:
        at[IGNORED] += 1  # no value is what an event that waits has
        return True
    at[OBSERVED] += 1
    enter_label(at, seq, _IS_OBSERVED, y, np.nan, 0, time, rules[2], rules[3], known, waiting_arrays, out)
    return True


@kernel
def _time_out(at: Any, rules: Any, timeout_y: Any, earliest: Any, known: Any, waiting_arrays: Any, out: Any) -> Any:
    """Close what has waited long enough; `FULL` when the part is, `HELD_DUE` when labels have waited for their event."""
    while True:
        seq = waiting.oldest(waiting_arrays[0], waiting_arrays[2])
        if seq < 0:
            break
        deadline = waiting.entered(seq, waiting_arrays[1], waiting_arrays[2]) + rules[0]
        if deadline > at[WATERMARK]:
            break
        if at[LABELS] >= rules[4]:
            return FULL
        at[TIMEOUTS] += 1
        enter_label(at, seq, _TIMEOUT, timeout_y, np.nan, 0, deadline, rules[2], rules[3], known, waiting_arrays, out)
    return HELD_DUE if earliest <= at[WATERMARK] else DONE


@kernel
def go(
    at: Any, rules: Any, timeout_y: Any, earliest: Any, bounds: Any, commit_clock: Any, op: Any, times: Any, ys: Any,
    rows: Any, key: Any, marks: Any, known: Any, past: Any, waiting_arrays: Any, out: Any,
) -> Any:  # fmt: skip
    """Go on with a chunk: to its end, or to where somebody else must do something."""
    last = commit_clock.size - 1
    while at[COMMIT] <= last:
        commit = at[COMMIT]
        goes_on = rules[5] and commit == last
        if at[PHASE] == BEGIN:
            if goes_on:
                _begin(at, 0, 0, rules[6], times, waiting_arrays)
            else:
                _begin(at, bounds[commit], bounds[commit + 1], commit_clock[commit], times, waiting_arrays)
            at[PHASE], at[NEXT] = ROWS, bounds[commit]
        if at[PHASE] == ROWS:
            for i in range(at[NEXT], bounds[commit + 1]):
                if not _change(at, rules, i, op[i], times, ys, rows[i], key, marks, known, past, waiting_arrays, out):
                    at[NEXT] = i
                    return RARE
            at[NEXT], at[REFUSED] = bounds[commit + 1], -1
            if goes_on:
                return DONE
            at[PHASE] = TIME_OUTS
        stopped = _time_out(at, rules, timeout_y, earliest, known, waiting_arrays, out)
        if stopped != DONE:
            return stopped
        if at[SEQ] >= at[COMMIT_FIRST]:
            n, segments = at[SEGMENTS], out[3]
            segments[n, 0], segments[n, 1], segments[n, 2] = at[COMMIT_FIRST], at[SEQ], commit
            segments[n, 3] = at[WATERMARK]
            at[SEGMENTS] = n + 1
        at[COMMIT_FIRST], at[COMMIT], at[PHASE] = 0, commit + 1, BEGIN
    return DONE
