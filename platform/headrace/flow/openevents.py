"""What a version keeps of events that wait for their label: predictions in pages, features of the newest ones.

A label window of months may hold ten million open events. Of each a version must keep what nobody can tell it again: its
prediction, the model's memo and the target means that it read. Those lie in pages, one for each stretch of the log, that
are written once: a checkpoint stores a page once however many checkpoints refer to it. Features can be read back from the
log, so only the newest ones stay in memory. How the log is cut into batches does not show in what is saved. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.events import Columns
from headrace.models.tokens import Tokens

Arrays = dict[str, NDArray[Any]]
Ints = NDArray[np.int64]

PAGE = 131_072  # entries of the log whose events share a page
RECENT = 65_536  # events whose features stay in memory; up to twice as many between two batches


class _GrownTokens:
    """One column of lists of numbers that grows at the end, as an array does for `_Grown`."""

    def __init__(self) -> None:
        self._rows, self._flat = _Grown(), _Grown()

    def extend(self, more: Tokens) -> None:
        """More rows."""
        own = more.compact()
        self._rows.extend({"start": self._flat.size + own.start, "count": own.count})
        self._flat.extend({"values": own.values})

    @property
    def all(self) -> Tokens:
        """The rows; not copies, and valid until the next `extend`."""
        return Tokens(self._flat["values"], self._rows["start"], self._rows["count"])


class _Grown:
    """Columns of equal length that grow at the end."""

    def __init__(self) -> None:
        self.size = 0
        self._arrays: Arrays = {}
        self._tokens: dict[str, _GrownTokens] = {}

    def __getitem__(self, name: str) -> Any:
        return self._tokens[name].all if name in self._tokens else self._arrays[name][: self.size]

    @property
    def names(self) -> Iterable[str]:
        """Of the columns."""
        return (*self._arrays, *self._tokens)

    def extend(self, columns: Columns) -> None:
        """More rows; every call has the same columns."""
        rows = len(next(iter(columns.values())))
        for name, values in columns.items():
            if isinstance(values, Tokens):
                self._tokens.setdefault(name, _GrownTokens()).extend(values)
                continue
            array = self._arrays.get(name)
            if array is None or self.size + rows > len(array):
                grown = np.empty((max(1024, 2 * (self.size + rows)), *values.shape[1:]), dtype=values.dtype)
                if array is not None:
                    grown[: self.size] = array[: self.size]
                array = self._arrays[name] = grown
            array[self.size : self.size + rows] = values
        self.size += rows

    def take(self, rows: NDArray[Any] | slice) -> dict[str, Any]:
        """Copies of some rows."""
        own = {name: values[: self.size][rows].copy() for name, values in self._arrays.items()}
        return own | {name: values.all[rows].compact() for name, values in self._tokens.items()}


@dataclass
class _Page:
    """Events of one stretch of the log; `waits` alone changes."""

    columns: Arrays
    waits: NDArray[np.bool_]
    whole: bool = True  # those that wait no more were not dropped yet
    open: int = 0  # at the last epoch's end

    def readable(self) -> Mapping[str, NDArray[Any]]:
        """Its columns, with the one that changes."""
        return {**self.columns, "waits": self.waits}


@dataclass(frozen=True)
class Kept:
    """What was kept of n events; `p` is NaN where this version did not predict."""

    event_time: Ints
    p: NDArray[np.float64]
    memo: NDArray[np.float64]
    means: NDArray[np.float64]


class OpenEvents:
    """Events that wait for their label, in order of seq.

    Parameters
    ----------
    memo, means
        How many numbers the model and the target means want back for each event.
    """

    def __init__(self, memo: int, means: int) -> None:
        self._widths = (memo, means)
        self._have([])
        self._tail = _Grown()
        self._tail.extend(self._rows(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), None))
        self._tail_first = 0  # seq where its stretch begins
        self.count = 0

    def _rows(self, seqs: Ints, times: Ints, means: NDArray[np.float64] | None) -> Arrays:
        n, (memo, width) = len(seqs), self._widths
        return {
            "seq": seqs,
            "time": times,
            "p": np.full(n, np.nan),
            "memo": np.full((n, memo), np.nan),
            "means": np.empty((n, width)) if means is None else means,
            "waits": np.ones(n, dtype=np.bool_),
        }

    def add(self, seqs: Ints, times: Ints, means: NDArray[np.float64] | None) -> None:
        """Enter events; `answer` says what the model predicts for them."""
        self._tail.extend(self._rows(seqs, times, means))
        self.count += len(seqs)

    def turn(self, seq: int) -> None:
        """The log was read up to here: stretches of it that are past become pages."""
        if seq < self._tail_first + PAGE:
            return
        pages, taken = list(self._pages), 0
        while seq >= self._tail_first + PAGE:
            self._tail_first += PAGE
            past = int(np.searchsorted(self._tail["seq"], self._tail_first))
            if past > taken:
                pages.append(_page(self._tail.take(slice(taken, past))))
                taken = past
        later, self._tail = self._tail.take(slice(taken, None)), _Grown()
        self._tail.extend(later)
        self._have(pages)

    def answer(self, first: int, p: NDArray[np.float64], memo: NDArray[np.float64]) -> None:
        """What the model says of the events from the one with seq `first` on, which entered lately."""
        at = int(np.searchsorted(self._tail["seq"], first))
        self._tail["p"][at : at + len(p)] = p
        self._tail["memo"][at : at + len(p)] = memo

    def waits(self, seqs: Ints) -> NDArray[np.bool_]:
        """Which events are among them."""
        out = np.zeros(len(seqs), dtype=np.bool_)
        for page, index, rows in self._find(seqs):
            out[index] = page["waits"][rows]
        return out

    def take(self, seqs: Ints) -> Kept:
        """What was kept of some events, which must be among them."""
        out = self._rows(seqs, np.empty(len(seqs), dtype=np.int64), None)
        for page, index, rows in self._find(seqs):
            for name in ("time", "p", "memo", "means"):
                out[name][index] = page[name][rows]
        return Kept(out["time"], out["p"], out["memo"], out["means"])

    def close(self, seqs: Ints) -> None:
        """Their labels came."""
        for page, _, rows in self._find(seqs):
            page["waits"][rows] = False
        self.count -= len(seqs)

    def seal(self, seq: int) -> None:
        """At an epoch's end, where batches do not show: of new pages, and of those with few left, drop what waits no more."""
        self.turn(seq)
        for page in self._pages:
            page.open = int(np.count_nonzero(page.waits))
        self._have([page for page in self._pages if page.open])
        for number, page in enumerate(self._pages):  # one after the other: ten million events are not there twice
            if page.open == len(page.waits):
                page.whole = False
            elif page.whole or 4 * page.open < len(page.waits):
                self._pages[number] = _swept(page)
        self._have(self._pages)

    def seqs(self) -> Ints:
        """All of them, in order."""
        parts = [*(page.columns["seq"][page.waits] for page in self._pages), self._tail["seq"][self._tail["waits"]]]
        return np.concatenate(parts)

    def save(self) -> Arrays:
        """Everything as arrays; those of a page are the same objects every time."""
        arrays: Arrays = {"first": np.array([self._tail_first])}
        for number, page in enumerate(self._pages):
            arrays |= {f"{number}/{name}": values for name, values in page.columns.items() if values.size}
            arrays[f"{number}/waits"] = np.packbits(page.waits)
        tail = self._tail.take(self._tail["waits"])
        return arrays | {f"tail/{name}": values for name, values in tail.items() if name != "waits"}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `save` gave."""
        pages: list[_Page] = []
        self._tail_first = int(arrays["first"][0])
        while f"{len(pages)}/seq" in arrays:
            number = len(pages)
            seqs = arrays[f"{number}/seq"]
            columns = self._rows(seqs, arrays[f"{number}/time"], None)
            columns |= {name: arrays[f"{number}/{name}"] for name in columns if f"{number}/{name}" in arrays}
            columns["waits"] = np.unpackbits(arrays[f"{number}/waits"], count=len(seqs)).astype(np.bool_)
            pages.append(_page(columns, whole=False))
        self._have(pages)
        tail = self._rows(arrays["tail/seq"], arrays["tail/time"], None)
        self._tail = _Grown()
        self._tail.extend(tail | {name: arrays[f"tail/{name}"] for name in ("p", "memo", "means")})
        self.count = len(self.seqs())

    def _find(self, seqs: Ints) -> list[tuple[Mapping[str, NDArray[Any]], NDArray[np.intp], NDArray[np.intp]]]:
        """(columns of a page, which of the seqs, their rows in it), for those that are in a page."""
        if not len(seqs):
            return []
        number = np.searchsorted(self._firsts, seqs, side="right") - 1
        if self._tail.size:
            number[seqs >= self._tail["seq"][0]] = len(self._pages)
        found = []
        first, last = int(number.min()), int(number.max())
        for at in [last] if first == last else np.unique(number).tolist():
            if at < 0:
                continue
            page: Any = self._tail if at == len(self._pages) else self._pages[at].readable()
            index = np.arange(len(seqs)) if first == last else np.flatnonzero(number == at)
            rows = np.searchsorted(page["seq"], seqs[index])
            there = rows < len(page["seq"])
            index, rows = index[there], rows[there]
            same = page["seq"][rows] == seqs[index]
            found.append((page, index[same], rows[same]))
        return found

    def _have(self, pages: list[_Page]) -> None:
        self._pages = pages
        self._firsts = np.array([page.columns["seq"][0] for page in pages], dtype=np.int64)


def _page(columns: Arrays, *, whole: bool = True) -> _Page:
    waits = columns.pop("waits")
    for values in columns.values():
        values.setflags(write=False)
    return _Page(columns, waits, whole)


def _swept(page: _Page) -> _Page:
    """A page of the events that wait."""
    swept = _page({name: values[page.waits] for name, values in page.readable().items()}, whole=False)
    swept.open = page.open
    return swept


class Recent:
    """Columns of the newest events, in order of seq; older ones must be read from the log."""

    def __init__(self) -> None:
        self.first = 0  # events before this seq are not here
        self._rows = _Grown()

    def start(self, seqs: Ints, columns: Columns) -> None:
        """Begin with the newest of the events that wait already."""
        self.first = int(seqs[0]) if len(seqs) else 0
        self.add(seqs, columns)

    def add(self, seqs: Ints, columns: Columns) -> None:
        """The next events; every call has the same columns."""
        self._rows.extend({"": seqs, **columns})

    def columns(self) -> Columns:
        """The columns of all; they are what is kept, not copies, and valid until the next `add`."""
        return {name: self._rows[name] for name in self._rows.names if name}

    def where(self, seqs: Ints) -> NDArray[np.intp]:
        """Rows of some events, which must be here."""
        return np.searchsorted(self._rows[""], seqs)

    def take(self, seqs: Ints, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Copies of the columns of some events, which must be here; of all columns unless they are named."""
        rows, columns = self.where(seqs), self.columns()
        return {name: columns[name][rows] for name in (columns if names is None else names)}

    def trim(self, keep: int) -> None:
        """Forget all but the newest, when there are twice as many."""
        if self._rows.size > 2 * keep:
            newest, self._rows = self._rows.take(slice(self._rows.size - keep, None)), _Grown()
            self._rows.extend(newest)
            self.first = int(newest[""][0])


def saved_seqs(arrays: Mapping[str, NDArray[Any]]) -> Ints:
    """The events that `OpenEvents.save` saved, in order."""
    parts, number = [], 0
    while f"{number}/seq" in arrays:
        seqs = arrays[f"{number}/seq"]
        parts.append(seqs[np.unpackbits(arrays[f"{number}/waits"], count=len(seqs)).astype(np.bool_)])
        number += 1
    return np.concatenate([*parts, arrays["tail/seq"]])
