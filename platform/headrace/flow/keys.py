"""Keys of events as their wire bytes, in one buffer, and what is remembered under them.

Equal values of one type have equal bytes. `Known` finds the newest event of a key, comparing bytes and not hashes alone, and
the newest answer to an event; both are hash tables for kernels, which grow and forget between calls. Keys that differ in their
last six bits lie side by side in them: sequences and times give keys in order, and a table of many megabytes in random
order would cost a miss of the cache and one of the page table for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.flow.wire import as_bytes
from headrace.models.text import hash_bytes, kernel, mix64

Ints = NDArray[np.int64]
_BITS = np.uint64(6)
_BESIDE = np.uint64(63)
_STEP = np.uint64(
    65
)  # from a slot that is taken to the next one: odd, so that it comes to all, and neighbours stay together


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys of n rows.

    Attributes
    ----------
    buffer
        uint8[bytes], read-only.
    start, length
        int64[n], int32[n]: where each one's bytes lie; none is missing.
    """

    buffer: NDArray[np.uint8]
    start: Ints
    length: NDArray[np.int32]

    @classmethod
    def of(cls, keys: Iterable[bytes]) -> Keys:
        """Of Python's bytes.

        >>> keys = Keys.of([b"a", b"bc"])
        >>> len(keys), keys[1]
        (2, b'bc')
        """
        parts = list(keys)
        length = np.array([len(part) for part in parts], dtype=np.int32)
        return cls(as_bytes(b"".join(parts)), np.cumsum(length, dtype=np.int64) - length, length)

    @classmethod
    def joined(cls, parts: Sequence[Keys], order: NDArray[np.intp]) -> Keys:
        """All of some, in another order; bytes that are not in one buffer are copied into one."""
        if len(parts) == 1:
            return parts[0].take(order)
        length = np.concatenate([part.length for part in parts])
        if all(part.buffer is parts[0].buffer for part in parts):
            return cls(parts[0].buffer, np.concatenate([part.start for part in parts])[order], length[order])
        ends = np.cumsum(length, dtype=np.int64)
        start, buffer = ends - length, np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
        first = 0
        for part in parts:
            _copy(part.buffer, part.start, part.length, start[first : first + len(part)], buffer)
            first += len(part)
        return cls(as_bytes(buffer), start[order], length[order])

    def take(self, rows: slice | NDArray[Any]) -> Keys:
        """Some of them; their bytes are shared."""
        return Keys(self.buffer, self.start[rows], self.length[rows])

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, row: int) -> bytes:
        start = int(self.start[row])
        return self.buffer[start : start + int(self.length[row])].tobytes()

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """uint64[n], see `hash_key`."""
        out = np.empty(len(self), dtype=np.uint64)
        _hash(self.buffer, self.start, self.length, out)
        return out


@kernel
def _copy(buffer: Any, start: Any, length: Any, to: Any, out: Any) -> None:
    for row in range(length.size):
        for k in range(length[row]):
            out[to[row] + k] = buffer[start[row] + k]


@kernel
def _beside(h: Any, last: Any) -> Any:
    """A hash of all but the last six bits, then these.

    They are turned by six bits of that hash: keys with neighbours stay beside them, those without go anywhere.
    """
    m = mix64(h)
    return (m & ~_BESIDE) | ((np.uint64(last) ^ (m >> np.uint64(58))) & _BESIDE)


@kernel
def hash_key(buffer: Any, start: Any, length: Any) -> Any:
    """A key's hash: keys that differ in the last six bits of their last byte alone are within 64 of each other."""
    if length == 0:
        return hash_bytes(buffer, start, length)
    last = np.uint64(buffer[start + length - 1])
    return _beside(hash_bytes(buffer, start, length - 1) ^ (last >> _BITS), last)


@kernel
def mark_of(h: Any, marks: Any) -> Any:
    """Place of a hash among few marks, where neighbours would be in each other's way."""
    return mix64(h) & np.uint64(marks - 1)


@kernel
def mark_all(hashes: Any, marks: Any) -> None:
    """Add 1 at each one's place."""
    for row in range(hashes.size):
        marks[mark_of(hashes[row], marks.size)] += 1


@kernel
def _hash(buffer: Any, start: Any, length: Any, out: Any) -> None:
    for row in range(length.size):
        out[row] = hash_key(buffer, start[row], np.int64(length[row]))


EVENTS, BYTES, ANSWERS = 0, 1, 2
"""Of `Known.count`: entries, bytes of their keys, answers."""

SEQ, START, LENGTH = 0, 1, 2
"""Columns of `Known.events`."""


class Known:
    """The newest event of each key, and the newest answer to each event.

    Attributes
    ----------
    slots
        uint64[slots, 2]: the hash of a key, and the number of its entry, from 1 on; 0 where a slot is empty.
    events
        int64[room, 3]: seq of an entry's event, and where its key lies in `arena`. One whose key came again is not found.
    answered
        int64[slots, 2]: an event, 0 where a slot is empty, and its answer: twice its label's seq, odd for a time-out.
    y
        float64[slots] of the answers.
    count
        int64[3].
    """

    def __init__(self) -> None:
        self.count = np.zeros(3, dtype=np.int64)
        self.slots = np.zeros((64, 2), dtype=np.uint64)
        self.events = np.empty((32, 3), dtype=np.int64)
        self.arena = np.empty(256, dtype=np.uint8)
        self.answered = np.zeros((64, 2), dtype=np.int64)
        self.y = np.empty(64)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """As the kernels take them."""
        return self.slots, self.events, self.arena, self.answered, self.y, self.count

    def room(self, events: int, size: int, answers: int) -> None:
        """Have room for so many more events, bytes of their keys, and answers."""
        entries, used, known = self.count.tolist()
        if entries + events > len(self.events):
            self._have(events=_doubled(len(self.events), entries + events))
        if used + size > len(self.arena):
            self.arena = _longer(self.arena, _doubled(len(self.arena), used + size))
        if 2 * (known + answers) > len(self.answered):
            self._answer_slots(_doubled(len(self.answered), 2 * (known + answers)), 0)

    def _have(self, events: int) -> None:
        longer = np.empty((events, 3), dtype=np.int64)
        longer[: len(self.events)] = self.events
        self.events, self.slots = longer, np.zeros((2 * events, 2), dtype=np.uint64)
        _place_all(self.slots, self.events, self.arena, self.count)

    def _answer_slots(self, slots: int, first: int) -> None:
        old, y = self.answered, self.y
        self.answered, self.y = np.zeros((slots, 2), dtype=np.int64), np.empty(slots)
        self.count[ANSWERS] = 0
        _keep_answers(old, y, first, self.answered, self.y, self.count)

    def forget(self, first: int) -> None:
        """Events and answers from before a seq."""
        kept, size = _events_from(self.slots, self.events, first)
        events = np.empty((_doubled(32, int(kept)), 3), dtype=np.int64)
        slots, arena = (
            np.zeros((2 * len(events), 2), dtype=np.uint64),
            np.empty(_doubled(256, int(size)), dtype=np.uint8),
        )
        self.count[[EVENTS, BYTES]] = 0
        _move_events(self.slots, self.events, self.arena, first, slots, events, arena, self.count)
        self.slots, self.events, self.arena = slots, events, arena
        live = int(np.count_nonzero((self.answered[:, 0] > 0) & (self.answered[:, 1] >> 1 >= first)))
        self._answer_slots(_doubled(64, 2 * live), first)

    def find(self, keys: Keys, row: int) -> int:
        """The newest event of a key, or -1."""
        key = keys.hashes[row], keys.buffer, keys.start[row], np.int64(keys.length[row])
        return int(find(*key, self.slots, self.events, self.arena))

    def put(self, keys: Keys, row: int, seq: int) -> None:
        """Remember an event; there is room."""
        one = slice(row, row + 1)
        _put_all(
            keys.hashes[one], keys.buffer, keys.start[one], keys.length[one], np.array([seq]), self.slots, self.events,
            self.arena, self.count,
        )  # fmt: skip

    def add_all(self, keys: Keys, seqs: Ints) -> None:
        """Remember events in order."""
        self.room(len(keys), int(keys.length.sum()), 0)
        _put_all(
            keys.hashes, keys.buffer, keys.start, keys.length, seqs, self.slots, self.events, self.arena, self.count
        )

    def put_answers(self, events: Ints, packed: Ints, y: NDArray[np.float64]) -> None:
        """An event's newest answer, of several in order."""
        self.room(0, 0, len(events))
        _put_answers(events, packed, y, self.answered, self.y, self.count)


def _doubled(size: int, wanted: int) -> int:
    while size < wanted:
        size *= 2
    return size


def _longer(values: NDArray[Any], size: int) -> NDArray[Any]:
    longer = np.empty(size, dtype=values.dtype)
    longer[: len(values)] = values
    return longer


@kernel
def _slot_of(h: Any, buffer: Any, start: Any, length: Any, slots: Any, events: Any, arena: Any) -> Any:
    """The slot of a key, or the empty one where it would be."""
    mask = np.uint64(slots.shape[0] - 1)
    slot = h & mask
    while slots[slot, 1] != np.uint64(0):
        if slots[slot, 0] == h:
            entry = np.int64(slots[slot, 1]) - 1
            if events[entry, LENGTH] == length:
                at, k = events[entry, START], 0
                while k < length and arena[at + k] == buffer[start + k]:
                    k += 1
                if k == length:
                    break
        slot = (slot + _STEP) & mask
    return np.int64(slot)


@kernel
def find(h: Any, buffer: Any, start: Any, length: Any, slots: Any, events: Any, arena: Any) -> Any:
    """The newest event of a key, or -1."""
    slot = _slot_of(h, buffer, start, length, slots, events, arena)
    entry = np.int64(slots[slot, 1]) - 1
    return events[entry, SEQ] if entry >= 0 else np.int64(-1)


@kernel
def put(
    h: Any, buffer: Any, start: Any, length: Any, seq: Any, slots: Any, events: Any, arena: Any, count: Any
) -> None:
    """Remember an event; there is room."""
    slot = _slot_of(h, buffer, start, length, slots, events, arena)
    if slots[slot, 1] != np.uint64(0):  # the key came again: its bytes are there
        events[np.int64(slots[slot, 1]) - 1, SEQ] = seq
        return
    entry, at = count[EVENTS], count[BYTES]
    for k in range(length):
        arena[at + k] = buffer[start + k]
    events[entry, SEQ], events[entry, START], events[entry, LENGTH] = seq, at, length
    slots[slot, 0], slots[slot, 1] = h, np.uint64(entry + 1)
    count[EVENTS], count[BYTES] = entry + 1, at + length


@kernel
def _put_all(
    hashes: Any, buffer: Any, start: Any, length: Any, seqs: Any, slots: Any, events: Any, arena: Any, count: Any
) -> None:
    for row in range(seqs.size):
        put(hashes[row], buffer, start[row], np.int64(length[row]), seqs[row], slots, events, arena, count)


@kernel
def _place_all(slots: Any, events: Any, arena: Any, count: Any) -> None:
    for entry in range(count[EVENTS]):
        h = hash_key(arena, events[entry, START], events[entry, LENGTH])
        slot = h & np.uint64(slots.shape[0] - 1)
        while slots[slot, 1] != np.uint64(0):
            slot = (slot + _STEP) & np.uint64(slots.shape[0] - 1)
        slots[slot, 0], slots[slot, 1] = h, np.uint64(entry + 1)


@kernel
def _events_from(slots: Any, events: Any, first: Any) -> Any:
    """How many entries there are from a seq on, and the bytes of their keys."""
    kept, size = np.int64(0), np.int64(0)
    for slot in range(slots.shape[0]):
        entry = np.int64(slots[slot, 1]) - 1
        if entry >= 0 and events[entry, SEQ] >= first:
            kept += 1
            size += events[entry, LENGTH]
    return kept, size


@kernel
def _move_events(
    old_slots: Any, old_events: Any, old_arena: Any, first: Any, slots: Any, events: Any, arena: Any, count: Any
) -> None:
    for slot in range(old_slots.shape[0]):
        entry = np.int64(old_slots[slot, 1]) - 1
        if entry >= 0 and old_events[entry, SEQ] >= first:
            put(
                old_slots[slot, 0], old_arena, old_events[entry, START], old_events[entry, LENGTH],
                old_events[entry, SEQ], slots, events, arena, count,
            )  # fmt: skip


@kernel
def answer_slot(event: Any, answered: Any) -> Any:
    """The slot of an event's answer, or the empty one where it would be."""
    mask = np.uint64(answered.shape[0] - 1)
    slot = _beside(np.uint64(event) >> _BITS, event) & mask
    while answered[slot, 0] != event and answered[slot, 0] != 0:
        slot = (slot + _STEP) & mask
    return np.int64(slot)


@kernel
def put_answer(event: Any, packed: Any, value: Any, answered: Any, y: Any, count: Any) -> None:
    """An event's newest answer; there is room."""
    slot = answer_slot(event, answered)
    if answered[slot, 0] == 0:
        answered[slot, 0] = event
        count[ANSWERS] += 1
    answered[slot, 1], y[slot] = packed, value


@kernel
def _put_answers(events: Any, packed: Any, values: Any, answered: Any, y: Any, count: Any) -> None:
    for i in range(events.size):
        put_answer(events[i], packed[i], values[i], answered, y, count)


@kernel
def _keep_answers(old: Any, old_y: Any, first: Any, answered: Any, y: Any, count: Any) -> None:
    for slot in range(old.shape[0]):
        if old[slot, 0] != 0 and old[slot, 1] >> 1 >= first:
            put_answer(old[slot, 0], old[slot, 1], old_y[slot], answered, y, count)
