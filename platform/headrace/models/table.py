"""A hash table of 64-bit keys for numba kernels: no collisions, bounded, the same to the bit wherever it continues.

Rows of one array: a key (0: empty), when it was last used, and the owner's own numbers. Open addressing with linear
probing; removing shifts rows back, so there are no tombstones. A full table makes room by dropping the one that was not
used for longest among the next few rows (approximate LRU, as in Redis), and rows that are too old go a few at a time with
each insertion. All of it happens in log order within the kernel that learns, and a saved table has its rows where they
were: a restored one goes on with the same evictions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ModelError
from headrace.models.contract import Arrays
from headrace.models.text import kernel

KEY, LAST, OWN = 0, 1, 2
"""Columns of a row: its key, the clock of its last use, and where the owner's numbers begin."""

_LEAST = 1024  # rows of an empty table
_LOOKED_AT = 8  # rows among which a full table drops one
_SWEPT = 2  # rows looked at for age with each insertion
COUNT, HAND, EVICTED, EXPIRED, LIMIT = 0, 1, 2, 3, 4
"""Of `Table.state`: rows in use, where the next look falls, rows dropped for room and for age, rows at most."""


@dataclass
class Table:
    """Keys with numbers of their own.

    Parameters
    ----------
    width
        Numbers of each row, beside key and last use.
    limit
        Keys at most; there are two rows of 8 (2 + width) bytes for each, up to four when it is no power of two.
    """

    width: int
    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ModelError(f"found a table of at most {self.limit} keys, expected at least 1")
        self.state = np.zeros(5, dtype=np.int64)
        self.state[LIMIT] = self.limit
        self._have(_LEAST)

    def _have(self, capacity: int) -> None:
        self.cells = np.zeros((capacity, OWN + self.width), dtype=np.uint64)

    @property
    def floats(self) -> NDArray[np.float64]:
        """`cells`, the same memory, as numbers; made anew each time, since a copied view would be of other memory."""
        return self.cells.view(np.float64)

    def __len__(self) -> int:
        return int(self.state[COUNT])

    def grow(self) -> None:
        """Twice as many rows; a kernel that finds the table half full stops and asks for it."""
        old = self.cells
        self._have(2 * len(old))
        self.state[HAND] = 0
        _rehash(old, self.cells)

    def used(self) -> NDArray[np.intp]:
        """Rows in use."""
        return np.flatnonzero(self.cells[:, KEY])

    def save(self, prefix: str) -> tuple[Arrays, dict[str, Any]]:
        """Rows in use, where they are, and the counters."""
        used = self.used()
        arrays: Arrays = {f"{prefix}_row": used, f"{prefix}_cells": self.cells[used]}
        return arrays, {"capacity": len(self.cells), "counters": self.state.tolist()}

    def load(self, prefix: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take over what `save` gave.

        Raises
        ------
        ModelError
            It was saved with rows of another width, or for another number of keys.
        """
        cells = arrays[f"{prefix}_cells"]
        if cells.shape[1] != OWN + self.width or meta["counters"][LIMIT] != self.limit:
            raise ModelError(
                f"found a table of {cells.shape[1] - OWN} numbers a key and at most {meta['counters'][LIMIT]:,} keys, expected "
                f"{self.width} and {self.limit:,}: the recipe has changed"
            )
        self._have(int(meta["capacity"]))
        self.cells[arrays[f"{prefix}_row"]] = cells
        self.state[:] = meta["counters"]


@kernel
def find(cells: Any, key: Any) -> Any:
    """The row of a key, or -1."""
    mask = np.uint64(cells.shape[0] - 1)
    slot = key & mask
    there = cells[slot, KEY]
    while there != key and there != np.uint64(0):
        slot = (slot + np.uint64(1)) & mask
        there = cells[slot, KEY]
    return np.int64(slot) if there == key else np.int64(-1)


@kernel
def _place(cells: Any, key: Any) -> Any:
    mask = np.uint64(cells.shape[0] - 1)
    slot = key & mask
    while cells[slot, KEY] != np.uint64(0):
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@kernel
def _rehash(old: Any, new: Any) -> None:
    for row in range(old.shape[0]):
        if old[row, KEY] != np.uint64(0):
            slot = _place(new, old[row, KEY])
            for k in range(old.shape[1]):
                new[slot, k] = old[row, k]


@kernel
def remove(cells: Any, state: Any, row: Any) -> None:
    """Take a row out; those that probed past it move up."""
    mask = cells.shape[0] - 1
    hole, at = row, row
    while True:
        at = (at + 1) & mask
        if cells[at, KEY] == np.uint64(0):
            break
        home = np.int64(cells[at, KEY] & np.uint64(mask))
        if ((at - home) & mask) >= ((at - hole) & mask):
            for k in range(cells.shape[1]):
                cells[hole, k] = cells[at, k]
            hole = at
    for k in range(cells.shape[1]):
        cells[hole, k] = np.uint64(0)
    state[COUNT] -= 1


@kernel
def must_grow(cells: Any, state: Any, more: Any) -> Any:
    """Whether so many more keys need a larger array first."""
    wanted = min(state[COUNT] + more, state[LIMIT])
    return 2 * wanted > cells.shape[0]


@kernel
def insert(cells: Any, state: Any, key: Any, now: Any, oldest: Any) -> Any:
    """Give a key, which is not there, a row of zeros; `must_grow` was asked before.

    Rows last used before `oldest` go when the hand comes by. The numbers of other rows may move: look rows up again.
    """
    mask = cells.shape[0] - 1
    for _ in range(_SWEPT):
        hand = state[HAND] & mask
        if cells[hand, KEY] != np.uint64(0) and np.int64(cells[hand, LAST]) < oldest:
            remove(cells, state, hand)  # what moved up into this row is looked at next time
            state[EXPIRED] += 1
        else:
            state[HAND] = hand + 1
    if state[COUNT] >= state[LIMIT]:
        victim, hand, looked = np.int64(-1), state[HAND] & mask, 0
        while looked < _LOOKED_AT:
            if cells[hand, KEY] != np.uint64(0):
                looked += 1
                if victim < 0 or np.int64(cells[hand, LAST]) < np.int64(cells[victim, LAST]):
                    victim = hand
            hand = (hand + 1) & mask
        state[HAND] = hand
        remove(cells, state, victim)
        state[EVICTED] += 1
    slot = _place(cells, key)
    cells[slot, KEY], cells[slot, LAST] = key, np.uint64(now)
    state[COUNT] += 1
    return slot
