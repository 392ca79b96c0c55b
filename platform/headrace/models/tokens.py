"""Columns of lists: any number of tokens a row, in one flat column with the place and the number of each row's.

`Tokens` holds texts as the log gave them, or numbers that stand for them: keys, or places of weights. Taking rows copies
none. Guarantees that tokens of texts are a set: no row has one twice, none is missing. `width` and `item` let one kernel
read a matrix, or lists, at the cost of what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from headrace.events import Columns
from headrace.models.text import NULL, Text, equal_bytes, is_category, kernel, keys_of


def width(lists: Any, i: Any) -> Any:
    """How many numbers row i has; compiled, it is `_width`."""
    return int(lists[2][i]) if isinstance(lists, tuple) else lists.shape[1]


def item(lists: Any, i: Any, k: Any) -> Any:
    """Number k of row i; compiled, it is `_item`."""
    return lists[0][lists[1][i] + k] if isinstance(lists, tuple) else lists[i, k]


@overload(width, strict=False, inline="always")
def _width(lists: Any, i: Any) -> Any:
    if isinstance(lists, types.BaseTuple):
        return lambda lists, i: np.int64(lists[2][i])
    return lambda lists, i: lists.shape[1]


@overload(item, strict=False, inline="always")
def _item(lists: Any, i: Any, k: Any) -> Any:
    if isinstance(lists, types.BaseTuple):
        return lambda lists, i, k: lists[0][lists[1][i] + k]
    return lambda lists, i, k: lists[i, k]


@kernel
def _distinct(buffer: Any, at: Any, length: Any, start: Any, count: Any, out: Any, firsts: Any, counts: Any) -> Any:
    """Fill `out` with the elements that stay: of equal ones in a row the first, and no missing one."""
    end = 0
    for i in range(count.size):
        first = firsts[i] = end
        for k in range(start[i], start[i] + count[i]):
            new = length[k] >= 0
            for known in range(first, end):
                other = out[known]
                if new and length[other] == length[k] and equal_bytes(buffer, at[other], at[k], length[k]):
                    new = False
                    break
            if new:
                out[end] = k
                end += 1
        counts[i] = end - first if count[i] >= 0 else NULL
    return end


@kernel
def _list_places(start: Any, count: Any, out: Any) -> None:
    at = 0
    for i in range(count.size):
        for k in range(count[i]):
            out[at] = start[i] + k
            at += 1


@kernel
def _put(matrix: Any, start: Any, out: Any) -> None:
    for i in range(matrix.shape[0]):
        for k in range(matrix.shape[1]):
            out[start[i] + k] = matrix[i, k]


@kernel
def _append(values: Any, start: Any, count: Any, at: Any, out: Any) -> None:
    for i in range(count.shape[0]):
        for k in range(count[i]):
            out[at[i]] = values[start[i] + k]
            at[i] += 1


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One column of lists.

    Attributes
    ----------
    values
        The tokens of all rows: `Text`, or an array of numbers that stand for them.
    start
        int64[rows], where each row's first one is; meaningless where there is none.
    count
        int32[rows], how many there are, or `NULL` for a missing list.

    Examples
    --------
    >>> genres = Tokens.of([["drama", "war", "drama"], None, []])
    >>> genres[1:].lists(), genres.lists()[0], len(genres)
    ([None, []], ['drama', 'war'], 3)
    """

    values: Any  # what is one: the two have their methods apart
    start: NDArray[np.int64]
    count: NDArray[np.int32]

    @classmethod
    def of(cls, rows: Iterable[Sequence[str | None] | None]) -> Tokens:
        """A column of Python lists."""
        lists = list(rows)
        count = np.array([NULL if row is None else len(row) for row in lists], dtype=np.int32)
        flat = Text.of(value for row in lists for value in row or ())
        return cls.distinct(flat, _starts(count), count)

    @classmethod
    def distinct(cls, elements: Text, start: NDArray[np.int64], count: NDArray[np.int32]) -> Tokens:
        """A column of lists as they came: missing elements are dropped, equal ones of a row count once, where they came first."""
        size = int(np.maximum(count, 0).sum(dtype=np.int64))
        out, firsts, counts = np.empty(size, dtype=np.int64), np.empty_like(start), np.empty_like(count)
        end = _distinct(elements.buffer, elements.start, elements.length, start, count, out, firsts, counts)
        return cls(elements[out[:end]], firsts, counts)

    @classmethod
    def missing(cls, rows: int) -> Tokens:
        """A column of missing lists, of keys."""
        return cls(np.empty(0, dtype=np.uint64), np.zeros(rows, dtype=np.int64), np.full(rows, NULL, dtype=np.int32))

    @classmethod
    def concat(cls, parts: Sequence[Tokens]) -> Tokens:
        """Columns of numbers one after the other."""
        values = [part.compact() for part in parts]
        flat, count = np.concatenate([v.values for v in values]), np.concatenate([v.count for v in values])
        return cls(flat, _starts(count), count)

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Tokens:
        return Tokens(self.values, self.start[rows], self.count[rows])

    @property
    def widest(self) -> int:
        """Tokens of the row with most of them."""
        return max(int(self.count.max()), 0) if len(self.count) else 0

    def keys(self, seed: np.uint64 | int = 0) -> Tokens:
        """The tokens' keys as `Text.keys` has them; keys without a seed may stand for the texts."""
        own = self.compact()
        return Tokens(keys_of(own.values, seed), own.start, own.count)

    def compact(self) -> Tokens:
        """The same without the tokens of other rows, row after row."""
        places = np.empty(int(np.maximum(self.count, 0).sum(dtype=np.int64)), dtype=np.int64)
        _list_places(self.start, self.count, places)
        return Tokens(self.values[places], _starts(self.count), self.count)

    def lists(self) -> list[list[Any] | None]:
        """The rows as Python lists."""
        own = self.compact()
        rows = zip(own.start.tolist(), own.count.tolist(), strict=True)
        flat = (own.values.names() if isinstance(own.values, Text) else own.values).tolist()
        return [None if n < 0 else flat[at : at + n] for at, n in rows]


def _starts(count: NDArray[np.int32]) -> NDArray[np.int64]:
    size = np.maximum(count, 0).astype(np.int64)
    return np.cumsum(size) - size


def readable(lists: NDArray[Any] | Tokens) -> Any:
    """A matrix, or lists of numbers, as `width` and `item` take it."""
    return (lists.values, lists.start, lists.count) if isinstance(lists, Tokens) else lists


def beside(matrix: NDArray[Any], lists: Sequence[Tokens]) -> Tokens:
    """Of each row the numbers of a matrix, and then those of its lists, one column after the other.

    >>> beside(np.array([[7], [8]]), [Tokens(np.array([1, 2]), np.array([0, 0]), np.array([2, -1]))]).lists()
    [[7, 1, 2], [8]]
    """
    count = np.full(len(matrix), matrix.shape[1], dtype=np.int32)
    for column in lists:
        count += np.maximum(column.count, 0, dtype=np.int32)
    start = _starts(count)
    out = np.empty(int(count.sum(dtype=np.int64)), dtype=matrix.dtype)
    _put(matrix, start, out)
    at = start + matrix.shape[1]
    for column in lists:
        _append(column.values, column.start, column.count, at, out)
    return Tokens(out, start, count)


def keyed(X: Columns) -> dict[str, Any]:
    """Columns with keys in place of names and tokens: what several models read is hashed once."""
    return {
        name: values.keys() if isinstance(values, Tokens) else keys_of(values) if is_category(values) else values
        for name, values in X.items()
    }
