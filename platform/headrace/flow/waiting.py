"""Which events wait for their label, and since when: what a label window of months costs.

One byte for each entry since the oldest event that waits, and 16 for each commit that moved the watermark, both up to a
half more: arrays grow by a quarter, and an eighth of them may wait to be cut off. It knows no keys and does no I/O.
Kernels work on its arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.models.text import kernel

_WASTE = 65_536  # entries at the front that wait no more and are kept before they are cut off

FIRST, LENGTH, HEAD, COUNT, CLOCKS = 0, 1, 2, 3, 4
"""Of `Waiting.state`: seq of the first byte, entries, nothing before this byte waits, events that wait, clocks."""


class Waiting:
    """Which events wait for their label, and since when; in order of seq.

    Attributes
    ----------
    waits
        uint8[room]: 1 for an event that waits.
    clocks
        int64[room, 2]: from a seq on, the watermark.
    state
        int64[5].
    """

    def __init__(self) -> None:
        self.state = np.zeros(5, dtype=np.int64)
        self.state[FIRST] = 1
        self.waits = np.zeros(64, dtype=np.uint8)
        self.clocks = np.empty((16, 2), dtype=np.int64)

    @property
    def count(self) -> int:
        """Events that wait."""
        return int(self.state[COUNT])

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        """As the kernels take them."""
        return self.waits, self.clocks, self.state

    def __contains__(self, seq: int) -> bool:
        return bool(waits_for(seq, self.waits, self.state))

    def start(self, seq: int) -> None:
        """Begin after `seq`."""
        self.state[FIRST] = seq + 1

    def room(self, entries: int, clocks: int) -> None:
        """Have room for so many more entries, and commits that move the watermark; what waits no more is cut off."""
        self._cut()
        if (wanted := int(self.state[LENGTH]) + entries) > len(self.waits):
            longer = np.zeros(max(len(self.waits) * 5 // 4, wanted), dtype=np.uint8)
            longer[: self.state[LENGTH]] = self.waits[: self.state[LENGTH]]
            self.waits = longer
        if (wanted := int(self.state[CLOCKS]) + clocks) > len(self.clocks):
            more = np.empty((max(len(self.clocks) * 5 // 4, wanted), 2), dtype=np.int64)
            more[: self.state[CLOCKS]] = self.clocks[: self.state[CLOCKS]]
            self.clocks = more

    def _cut(self) -> None:
        head, length = int(self.state[HEAD]), int(self.state[LENGTH])
        if head >= max(_WASTE, length // 8):
            self.waits[: length - head] = self.waits[head:length].copy()
            self.waits[length - head : length] = 0
            self.state[[FIRST, LENGTH, HEAD]] = self.state[FIRST] + head, length - head, 0
            count = int(self.state[CLOCKS])
            known = max(int(np.searchsorted(self.clocks[:count, 0], self.state[FIRST], side="right")) - 1, 0)
            self.clocks[: count - known] = self.clocks[known:count].copy()
            self.state[CLOCKS] = count - known

    def clock(self, seq: int, watermark: int) -> None:
        """Entries from `seq` on come with this watermark."""
        self.room(0, 1)
        clock(seq, watermark, self.clocks, self.state)

    def oldest(self) -> tuple[int, int] | None:
        """(seq, watermark when it entered) of the event that waits longest."""
        seq = int(oldest(self.waits, self.state))
        return None if seq < 0 else (seq, int(entered(seq, self.clocks, self.state)))

    def follow(self, last: int, events: NDArray[np.int64], answered: NDArray[np.int64]) -> None:
        """Entries up to `last`: the events among them, and the events that their labels close."""
        oldest(self.waits, self.state)  # what waits no more can go
        first = int(self.state[FIRST])
        self.room(last + 1 - first - int(self.state[LENGTH]), 0)
        first = int(self.state[FIRST])  # what waits no more may have been cut off
        self.state[LENGTH] = last + 1 - first
        self.waits[events - first] = 1
        closed = answered[answered >= first] - first
        self.state[COUNT] += len(events) - int(self.waits[closed].sum())
        self.waits[closed] = 0


@kernel
def waits_for(seq: Any, waits: Any, state: Any) -> Any:
    """Whether an entry is an event that waits."""
    at = seq - state[FIRST]
    return at >= 0 and at < state[LENGTH] and waits[at] == 1


@kernel
def enter(waiting: Any, waits: Any, state: Any) -> None:
    """The log's next entry; there is room."""
    waits[state[LENGTH]] = 1 if waiting else 0
    state[LENGTH] += 1
    state[COUNT] += 1 if waiting else 0


@kernel
def close(seq: Any, waits: Any, state: Any) -> None:
    """An event's label came."""
    waits[seq - state[FIRST]] = 0
    state[COUNT] -= 1


@kernel
def clock(seq: Any, watermark: Any, clocks: Any, state: Any) -> None:
    """Entries from `seq` on come with this watermark; there is room."""
    count = state[CLOCKS]
    if count and clocks[count - 1, 0] == seq:
        clocks[count - 1, 1] = watermark
    elif not count or clocks[count - 1, 1] != watermark:
        clocks[count, 0], clocks[count, 1] = seq, watermark
        state[CLOCKS] = count + 1


@kernel
def oldest(waits: Any, state: Any) -> Any:
    """The event that waits longest, or -1."""
    at = state[HEAD]
    if state[COUNT]:
        while waits[at] == 0:
            at += 1
    else:
        at = state[LENGTH]
    state[HEAD] = at
    return state[FIRST] + at if state[COUNT] else np.int64(-1)


@kernel
def entered(seq: Any, clocks: Any, state: Any) -> Any:
    """The watermark when an entry was made."""
    low, high = 0, state[CLOCKS]
    while low < high:
        middle = (low + high) // 2
        if clocks[middle, 0] <= seq:
            low = middle + 1
        else:
            high = middle
    return clocks[low - 1, 1]
