"""Which events wait for their label, and since when: what a label window of months costs.

One byte for each entry since the oldest event that waits, and 16 for each commit that moved the watermark. It knows no
keys and does no I/O.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

_WASTE = 65_536  # entries at the front that wait no more and are kept before they are cut off


class Waiting:
    """Which events wait for their label, and since when; in order of seq, one byte an entry."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 1  # seq of the first byte
        self._waits = bytearray()
        self._head = 0  # nothing before this byte waits
        self._clock_seq, self._clock = array("q"), array("q")  # the watermark from a seq on

    def __contains__(self, seq: int) -> bool:
        at = seq - self.first
        return 0 <= at < len(self._waits) and self._waits[at] == 1

    def enter(self, waits: bool) -> None:
        """The log's next entry."""
        self._waits.append(waits)
        self.count += waits

    def clock(self, seq: int, watermark: int) -> None:
        """Entries from `seq` on come with this watermark."""
        if self._clock_seq and self._clock_seq[-1] == seq:
            self._clock[-1] = watermark
        elif not self._clock or self._clock[-1] != watermark:
            self._clock_seq.append(seq)
            self._clock.append(watermark)

    def close(self, seq: int) -> None:
        """Its label came."""
        self._waits[seq - self.first] = 0
        self.count -= 1

    def oldest(self) -> tuple[int, int] | None:
        """(seq, watermark when it entered) of the event that waits longest."""
        at = self._waits.find(1, self._head)
        self._head = len(self._waits) if at < 0 else at
        if self._head >= _WASTE:
            self._cut()
        if at < 0:
            return None
        seq = self.first + self._head
        return seq, self._clock[bisect_right(self._clock_seq, seq) - 1]

    def follow(self, last: int, events: NDArray[np.int64], answered: NDArray[np.int64]) -> None:
        """Entries up to `last`: the events among them, and the events that their labels close."""
        self._waits.extend(bytes(last + 1 - self.first - len(self._waits)))
        waits = np.frombuffer(self._waits, dtype=np.uint8)
        waits[events - self.first] = 1
        closed = answered[answered >= self.first] - self.first
        self.count += len(events) - int(waits[closed].sum())
        waits[closed] = 0

    def _cut(self) -> None:
        del self._waits[: self._head]
        self.first += self._head
        self._head = 0
        known = max(bisect_right(self._clock_seq, self.first) - 1, 0)
        del self._clock_seq[:known], self._clock[:known]
