"""Fields of Postgres's binary wire formats as columns, without copying.

The base that `pgoutput` (the change stream) and `copybinary` (COPY) share: `Cells` says where in a buffer each field
of a block of rows lies, `Fields` is one of its columns, and `distinct` gives equal fields equal codes. Guarantees:
nothing is copied and every position stored in a `Cells` made by this package lies inside its buffer. It does not know
types: `pgtypes` turns fields into values. Kernels are exactly sequential, release the GIL, and check bounds themselves,
since numba does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DecodeError
from headrace.models.text import kernel, number_distinct

UNCHANGED = -2  # length of a field the server left out: a TOASTed value that the UPDATE did not touch
ABSENT = -3  # length of a field whose row the message does not carry, such as the new row of a DELETE


@kernel
def uint16(buffer: Any, at: Any) -> Any:
    """Big-endian unsigned 16 bits at `at`; the caller has checked the bounds, as for its siblings below."""
    return (np.int64(buffer[at]) << 8) | np.int64(buffer[at + 1])


@kernel
def int16(buffer: Any, at: Any) -> Any:
    """Big-endian signed 16 bits."""
    return (uint16(buffer, at) ^ 0x8000) - 0x8000


@kernel
def uint32(buffer: Any, at: Any) -> Any:
    """Big-endian unsigned 32 bits, as object identifiers are."""
    high = (np.int64(buffer[at]) << 24) | (np.int64(buffer[at + 1]) << 16)
    return high | (np.int64(buffer[at + 2]) << 8) | np.int64(buffer[at + 3])


@kernel
def int32(buffer: Any, at: Any) -> Any:
    """Big-endian signed 32 bits."""
    return (uint32(buffer, at) ^ 0x80000000) - 0x80000000


@kernel
def int64(buffer: Any, at: Any) -> Any:
    """Big-endian signed 64 bits."""
    return (uint32(buffer, at) << 32) | uint32(buffer, at + 4)


def as_bytes(data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A read-only uint8 view of `data`: one array type, so that every kernel is compiled once.

    Examples
    --------
    >>> as_bytes(b"ab")
    array([97, 98], dtype=uint8)
    """
    if type(data) is np.ndarray and data.dtype == np.uint8 and data.ndim == 1:
        flags = data.flags
        if flags.c_contiguous and not flags.writeable:
            return data
    view = data.view(np.ndarray) if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    if view.dtype != np.uint8 or view.ndim != 1 or not view.flags.c_contiguous:
        raise TypeError(f"a buffer must be contiguous, one-dimensional uint8; got {view.dtype}, shape {view.shape}")
    view = view.view()
    view.setflags(write=False)
    return view


@dataclass(frozen=True, slots=True)
class Fields:
    """One column: where the field of each row lies in a buffer.

    Attributes
    ----------
    buffer : uint8[bytes], read-only
    start : int64[rows]
        Position of the field's first byte; meaningless where `length` is negative.
    length : int32[rows]
        Bytes in the field, or `NULL`, `UNCHANGED`, `ABSENT`.
    text : bool[rows]
        True where the field is in text format, False in binary format.
    name : str
        For messages only.
    """

    buffer: NDArray[np.uint8]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    text: NDArray[np.bool_]
    name: str

    def bytes_at(self, row: int) -> bytes:
        """The field of one row; its length must not be negative."""
        start = int(self.start[row])
        return self.buffer[start : start + int(self.length[row])].tobytes()

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Fields:
        """The fields of some rows, by mask or by index; the buffer is shared."""
        return Fields(self.buffer, self.start[rows], self.length[rows], self.text[rows], self.name)


@dataclass(frozen=True, slots=True)
class Cells:
    """A rectangular block of fields, column by column: arrays of `Fields` with a leading axis of columns.

    Attributes
    ----------
    buffer : uint8[bytes], read-only
    start : int64[columns, rows]
    length : int32[columns, rows]
    text : bool[columns, rows]
    names : tuple of str
        One name for each column, for messages.
    """

    buffer: NDArray[np.uint8]
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    text: NDArray[np.bool_]
    names: tuple[str, ...]

    @property
    def columns(self) -> int:
        """How many columns."""
        return int(self.start.shape[0])

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.start.shape[1])

    def column(self, column: int) -> Fields:
        """One column, as views."""
        return Fields(self.buffer, self.start[column], self.length[column], self.text[column], self.names[column])

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Cells:
        """The given rows only, by mask or by index; the buffer is shared."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        # np.take keeps columns contiguous; indexing with [:, index] would not.
        return Cells(
            self.buffer,
            np.take(self.start, index, axis=1),
            np.take(self.length, index, axis=1),
            np.take(self.text, index, axis=1),
            self.names,
        )


def without_value(fields: Fields, row: int) -> DecodeError:
    """The error for a field that is not in the message (`UNCHANGED` or `ABSENT`)."""
    if fields.length[row] == UNCHANGED:
        return DecodeError(
            f'column "{fields.name}", row {row}: an unchanged TOASTed value was left out of the change stream; expected'
            " a value; set REPLICA IDENTITY FULL on the table, or store the column without TOAST"
        )
    return DecodeError(
        f'column "{fields.name}", row {row}: the message carries no such row (the new row of a DELETE, or the old row'
        " of an INSERT); expected one; take the other rows first"
    )


def distinct(fields: Fields) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the different fields of a column in order of first appearance; compares bytes, not hashes alone.

    Returns
    -------
    codes : int32[rows]
        Which distinct field a row has; -1 for NULL.
    first : int64[distinct]
        The first row that holds each.

    Raises
    ------
    DecodeError
        A field is not in the message: an unchanged TOASTed value, or a row it does not carry.
    """
    codes = np.empty(fields.length.size, dtype=np.int32)
    first, bad = number_distinct(fields.buffer, fields.start, fields.length, codes)
    if bad >= 0:
        raise without_value(fields, bad)
    return codes, first
