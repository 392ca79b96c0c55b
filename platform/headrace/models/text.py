"""Columns of text as bytes in one buffer, and what array models read of them: a 64-bit key for each value.

A `Text` says where each row's UTF-8 bytes lie; taking rows copies none of them, and neither hashing nor comparing makes
a Python string. Guarantees that a value's key is the same on every machine, in every process and for ever, since keys are
what states remember. It knows nothing of Postgres's formats (`headrace.flow.wire` does) nor of what a column means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

NULL = -1
"""Length of a missing value."""

GAMMA = np.uint64(0x9E3779B97F4A7C15)

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile with numba: cached on disk, without the GIL, without fastmath; a division by zero gives what IEEE 754 says.

    A kernel is compiled into the ones that call it: a call would take longer than most of them do.

    numba's cache looks at the file of the kernel only: after a change to a kernel that other files call, remove
    `__pycache__/*.nb?`.
    """
    return cast(F, njit(cache=True, nogil=True, error_model="numpy", forceinline=True)(function))


@kernel
def mix64(h: Any) -> Any:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64 bits."""
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@kernel
def uint32_little(buffer: Any, at: Any) -> Any:
    """Little-endian unsigned 32 bits."""
    low = np.uint64(buffer[at]) | (np.uint64(buffer[at + 1]) << np.uint64(8))
    return low | (np.uint64(buffer[at + 2]) << np.uint64(16)) | (np.uint64(buffer[at + 3]) << np.uint64(24))


@kernel
def hash_bytes(buffer: Any, start: Any, length: Any) -> Any:
    """A 64-bit hash of one run of bytes; never 0.

    With n bytes and their 8-byte little-endian words w (the last one padded with zeros): h = mix(n + g), then
    h = mix((h ^ w) + g) for each word, g = 0x9E3779B97F4A7C15, mix splitmix64's finaliser, all modulo 2^64; 0 becomes 1.
    """
    h = mix64(np.uint64(length) + GAMMA)
    at = start
    for _ in range(length >> 3):
        word = (uint32_little(buffer, at + 4) << np.uint64(32)) | uint32_little(buffer, at)
        h = mix64((h ^ word) + GAMMA)
        at += 8
    if length & 7:
        word = np.uint64(0)
        for k in range(length & 7):
            word |= np.uint64(buffer[at + k]) << np.uint64(8 * k)
        h = mix64((h ^ word) + GAMMA)
    return h if h != np.uint64(0) else np.uint64(1)


@kernel
def equal_bytes(buffer: Any, a: Any, b: Any, length: Any) -> Any:
    """Whether two runs of bytes of one length are the same."""
    k = 0
    while k < length and buffer[a + k] == buffer[b + k]:
        k += 1
    return k == length


@kernel
def number_distinct(buffer: Any, start: Any, length: Any, codes: Any) -> Any:
    """Number different runs of bytes in order of first appearance; compares bytes, not hashes alone.

    Fills `codes` (int32[rows], -1 where the length is `NULL`) and returns the first row of each code, and -1; or no rows,
    and the first row whose length is below `NULL`.
    """
    slots = np.full(1024, -1, dtype=np.int32)  # small as long as there are few values, so that it stays in cache
    first = np.empty(512, dtype=np.int64)
    hashes = np.empty(512, dtype=np.uint64)
    count = 0
    for row in range(length.size):
        n = np.int64(length[row])
        if n < 0:
            codes[row] = -1
            if n != NULL:
                return first[:0], row
            continue
        h = hash_bytes(buffer, start[row], n)
        slot = np.int64(h & np.uint64(slots.size - 1))
        code = slots[slot]
        while code >= 0:
            if (
                hashes[code] == h
                and length[first[code]] == n
                and equal_bytes(buffer, start[first[code]], start[row], n)
            ):
                break
            slot = (slot + 1) & (slots.size - 1)
            code = slots[slot]
        if code < 0:
            code = np.int32(count)
            slots[slot] = code
            first[count] = row
            hashes[count] = h
            count += 1
            if count == first.size:  # half full: double everything
                first = np.concatenate((first, np.empty_like(first)))
                hashes = np.concatenate((hashes, np.empty_like(hashes)))
                slots = np.full(2 * slots.size, -1, dtype=np.int32)
                for known in range(count):
                    slot = np.int64(hashes[known] & np.uint64(slots.size - 1))
                    while slots[slot] >= 0:
                        slot = (slot + 1) & (slots.size - 1)
                    slots[slot] = known
        codes[row] = code
    return first[:count], -1


@kernel
def salted(key: Any, seed: Any) -> Any:
    """Another key of the same value, for another seed; 0 stays 0, and a seed of 0 changes nothing."""
    if key == np.uint64(0) or seed == np.uint64(0):
        return key
    h = mix64(key ^ seed)
    return h if h != np.uint64(0) else np.uint64(1)


@kernel
def _keys(buffer: Any, start: Any, length: Any, seed: Any, out: Any) -> None:
    for row in range(length.size):
        n = np.int64(length[row])
        out[row] = salted(hash_bytes(buffer, start[row], n), seed) if n >= 0 else np.uint64(0)


@kernel
def _salt(keys: Any, seed: Any, out: Any) -> None:
    for row in range(keys.size):
        out[row] = salted(keys[row], seed)


@kernel
def _join_length(length: Any, total: Any) -> None:
    for row in range(length.size):
        total[row] = NULL if total[row] < 0 or length[row] < 0 else total[row] + length[row]


@kernel
def _join_bytes(buffer: Any, start: Any, length: Any, at: Any, end: Any, between: Any, out: Any) -> None:
    for row in range(length.size):
        if at[row] == end[row]:
            continue
        if between:
            out[at[row]] = 124
            at[row] += 1
        for k in range(length[row]):
            out[at[row] + k] = buffer[start[row] + k]
        at[row] += length[row]


@kernel
def _digits(values: Any, known: Any, start: Any, length: Any, out: Any) -> None:
    for row in range(values.size):
        end = start[row] + 20
        at = end
        if not known[row]:
            length[row] = NULL
            continue
        left = np.uint64(values[row]) if values[row] >= 0 else ~np.uint64(values[row]) + np.uint64(1)
        while left or at == end:
            at -= 1
            out[at] = np.uint8(48) + np.uint8(left % np.uint64(10))
            left //= np.uint64(10)
        if values[row] < 0:
            at -= 1
            out[at] = 45
        start[row], length[row] = at, end - at


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """One column of text.

    Attributes
    ----------
    buffer
        uint8[bytes], UTF-8.
    start
        int64[rows], where each row's bytes begin; meaningless where there is no value.
    length
        int32[rows], how many there are, or `NULL`.

    Examples
    --------
    >>> origin = Text.of(["JFK", None, "LGA"])
    >>> origin[1:].names().tolist(), len(origin)
    ([None, 'LGA'], 3)
    """

    buffer: NDArray[np.uint8]
    start: NDArray[np.int64]
    length: NDArray[np.int32]

    @classmethod
    def of(cls, values: Iterable[str | None]) -> Text:
        """A column of Python strings."""
        parts = [None if value is None else value.encode(errors="surrogatepass") for value in values]
        length = np.array([NULL if part is None else len(part) for part in parts], dtype=np.int32)
        size = np.maximum(length, 0, dtype=np.int64)
        return cls(np.frombuffer(b"".join(p or b"" for p in parts), dtype=np.uint8), np.cumsum(size) - size, length)

    @classmethod
    def choose(cls, values: Text, which: NDArray[Any]) -> Text:
        """Rows of a short list of values; a row below 0 is missing."""
        length = values.length[which]
        length[which < 0] = NULL
        return cls(values.buffer, values.start[which], length)

    @classmethod
    def integers(cls, values: NDArray[np.int64], known: NDArray[np.bool_]) -> Text:
        """Integers as people write them.

        >>> Text.integers(np.array([-12, 0, 7]), np.array([True, True, False])).names().tolist()
        ['-12', '0', None]
        """
        start, length = 20 * np.arange(len(values), dtype=np.int64), np.empty(len(values), dtype=np.int32)
        out = np.empty(20 * len(values), dtype=np.uint8)
        _digits(values, known, start, length, out)
        return cls(out, start, length)

    @classmethod
    def join(cls, columns: list[Text]) -> Text:
        """Each row's values with a bar between; missing where one is missing.

        >>> Text.join([Text.of(["AA", "B6"]), Text.of(["LAX", None])]).names().tolist()
        ['AA|LAX', None]
        """
        total = np.full(len(columns[0]), len(columns) - 1, dtype=np.int64)
        for column in columns:
            _join_length(column.length, total)
        end = np.cumsum(np.maximum(total, 0))
        at = end - np.maximum(total, 0)
        start, out = at.copy(), np.empty(int(end[-1]) if len(end) else 0, dtype=np.uint8)
        for number, column in enumerate(columns):
            _join_bytes(column.buffer, column.start, column.length, at, end, number > 0, out)
        return cls(out, start, total.astype(np.int32))

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Text:
        return Text(self.buffer, self.start[rows], self.length[rows])

    def keys(self, seed: np.uint64 | int = 0) -> NDArray[np.uint64]:
        """uint64[rows]: each value's key, other ones for another seed; 0 for a missing value and nothing else."""
        out = np.empty(len(self), dtype=np.uint64)
        _keys(self.buffer, self.start, self.length, np.uint64(seed), out)
        return out

    def names(self) -> NDArray[Any]:
        """object[rows] of `str`, None where missing; equal values are one object."""
        codes = np.empty(len(self), dtype=np.int32)
        first, _ = number_distinct(self.buffer, self.start, self.length, codes)
        pieces = zip(self.start[first].tolist(), self.length[first].tolist(), strict=True)
        raw = memoryview(self.buffer.data)
        names = np.empty(len(first) + 1, dtype=object)  # code -1, a missing value, takes the last one
        names[:-1] = [str(raw[at : at + n], "utf-8", "surrogatepass") for at, n in pieces]
        return names[codes]


def seed_of(name: str) -> np.uint64:
    """A seed for the keys of one feature, so that equal values of two features have different keys.

    >>> bool(seed_of("origin") == seed_of("origin") != seed_of("dest"))
    True
    """
    return np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


def as_text(values: Text | NDArray[Any]) -> Text:
    """A column of names, whichever way it came: as `Text`, or as an object array of `str` and None."""
    return values if isinstance(values, Text) else Text.of(values.tolist())


def as_names(values: Text | NDArray[Any]) -> NDArray[Any]:
    """The same, as an object array of `str` and None."""
    return values.names() if isinstance(values, Text) else values


def keys_of(values: Text | NDArray[Any], seed: np.uint64 | int = 0) -> NDArray[np.uint64]:
    """`Text.keys` of a column of names, whichever way it came; keys without a seed may stand for them."""
    if isinstance(values, np.ndarray) and values.dtype == np.uint64:
        out = np.empty_like(values)
        _salt(values, np.uint64(seed), out)
        return out
    return as_text(values).keys(seed)


def is_category(values: Text | NDArray[Any]) -> bool:
    """Whether a model's column holds names, or their keys; otherwise it holds numbers."""
    return isinstance(values, Text) or values.dtype == object or values.dtype == np.uint64
