"""Postgres's arrays of texts on the wire, as lists of tokens.

In binary format an array is its number of dimensions, whether it has NULLs, its elements' type, length and lower bound of
each dimension, and the elements with their lengths. Only arrays of one dimension are lists; where their numbering starts
does not matter. Guarantees that an array that is damaged, or no list, is told apart and never read. It knows of texts only.

Formats: PostgreSQL source, `array_send` in src/backend/utils/adt/arrayfuncs.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DecodeError
from headrace.flow.wire import Fields, int32, uint32
from headrace.models.text import NULL, Text, kernel
from headrace.models.tokens import Tokens

MOST_TOKENS = 1024
"""Elements that a list may have: what an event costs in memory while it waits for its label must have a bound."""

_HEAD, _DIMENSION = 12, 8  # bytes of the head, and of each dimension
_DAMAGED, _NO_LIST = -2, -3  # in place of a number of elements
_QUOTED = re.compile(r'[{}",\\\s]|^$|^null$', re.ASCII | re.IGNORECASE)


@kernel
def _count(buffer: Any, start: Any, length: Any, text: Any, element: Any, count: Any) -> None:
    """How many elements each array has: `NULL` for a missing one, `_DAMAGED` or `_NO_LIST` where it has none to read."""
    for row in range(length.size):
        n, at = np.int64(length[row]), start[row]
        if n == NULL:
            count[row] = NULL
            continue
        count[row] = _DAMAGED
        if n < _HEAD or text[row] or uint32(buffer, at + 8) != element:
            continue
        dimensions, end = int32(buffer, at), at + n
        if dimensions == 0:
            count[row] = 0 if n == _HEAD else _DAMAGED
            continue
        if dimensions != 1:
            count[row] = _NO_LIST if dimensions > 1 else _DAMAGED
            continue
        if n < _HEAD + _DIMENSION:
            continue
        elements = int32(buffer, at + _HEAD)
        at += _HEAD + _DIMENSION
        found = 0
        while found < elements and at + 4 <= end:
            size = int32(buffer, at)
            at += 4 + max(size, 0)
            if size < NULL or at > end:
                break
            found += 1
        if found == elements and at == end:
            count[row] = elements


@kernel
def _places(buffer: Any, start: Any, count: Any, places: Any, lengths: Any) -> None:
    """Where the elements of all lists are; `_count` has looked at them."""
    filled = 0
    for row in range(count.size):
        at = start[row] + _HEAD + _DIMENSION
        for _ in range(count[row]):
            places[filled], lengths[filled] = at + 4, int32(buffer, at)
            at += 4 + max(lengths[filled], 0)
            filled += 1


def counts(fields: Fields, element_oid: int) -> NDArray[np.int32]:
    """int32[rows]: elements of each list; `NULL` for a missing one, less for what is no list that can be read."""
    out = np.empty(fields.length.size, dtype=np.int32)
    _count(fields.buffer, fields.start, fields.length, fields.text, element_oid, out)
    return out


def tokens(fields: Fields, element_oid: int) -> Tokens:
    """A column of lists.

    Raises
    ------
    DecodeError
        One of them is damaged, or of more than one dimension.
    """
    count = counts(fields, element_oid)
    if len(bad := np.flatnonzero(count < NULL)):
        raise DecodeError(
            f'column "{fields.name}", row {bad[0]}: found an array that is no list of texts in binary format, expected one '
            "dimension; the gate refuses others, so run `headrace check`"
        )
    size = np.maximum(count, 0).astype(np.int64)
    places, lengths = np.empty(int(size.sum()), dtype=np.int64), np.empty(int(size.sum()), dtype=np.int32)
    _places(fields.buffer, fields.start, count, places, lengths)
    return Tokens.distinct(Text(fields.buffer, places, lengths), np.cumsum(size) - size, count)


def encode_list(values: Sequence[str | None], element_oid: int) -> bytes:
    """One list in binary format.

    >>> encode_list(["a", None], 25).hex(" ", -4)
    '00000001 00000001 00000019 00000002 00000001 00000001 61ffffff ff'
    """
    if not values:
        return struct.pack(">iiI", 0, 0, element_oid)
    parts = [None if value is None else value.encode() for value in values]
    head = struct.pack(">iiIii", 1, None in parts, element_oid, len(parts), 1)
    sized = (b"\xff\xff\xff\xff" if part is None else struct.pack(">i", len(part)) + part for part in parts)
    return head + b"".join(sized)


def array_text(raw: bytes) -> str:
    """An array of texts as Postgres writes it; bytes that are none as hexadecimal digits.

    >>> array_text(encode_list(["a", None, "b c", "null"], 25)), array_text(encode_list([], 25)), array_text(b"ab")
    ('{a,NULL,"b c","null"}', '{}', '\\\\x6162')
    """
    try:
        dimensions, _, _ = struct.unpack_from(">iiI", raw)
        bounds = [struct.unpack_from(">ii", raw, _HEAD + _DIMENSION * d) for d in range(dimensions)]
        if any(size < 1 for size, _ in bounds):
            raise ValueError("a dimension without elements")
        elements = _elements(raw, _HEAD + _DIMENSION * dimensions)
        text = _braces([size for size, _ in bounds], elements) if bounds else "{}"
        if next(elements, None) is not None:
            raise ValueError("more elements than the dimensions say")
    except (struct.error, StopIteration, ValueError, RuntimeError):
        return f"\\x{raw.hex()}"
    if any(low != 1 for _, low in bounds):
        text = "".join(f"[{low}:{low + size - 1}]" for size, low in bounds) + "=" + text
    return text


def _braces(sizes: Sequence[int], elements: Iterator[str]) -> str:
    inner = (_braces(sizes[1:], elements) if len(sizes) > 1 else next(elements) for _ in range(sizes[0]))
    return "{" + ",".join(list(inner)) + "}"


def _elements(raw: bytes, at: int) -> Iterator[str]:
    while at < len(raw):
        (size,) = struct.unpack_from(">i", raw, at)
        at += 4 + max(size, 0)
        if size < NULL or at > len(raw):
            raise ValueError("an element that goes beyond the array")
        text = "NULL" if size == NULL else raw[at - size : at].decode()
        quoted = size != NULL and _QUOTED.search(text)
        yield '"' + re.sub(r'(["\\])', r"\\\1", text) + '"' if quoted else text
