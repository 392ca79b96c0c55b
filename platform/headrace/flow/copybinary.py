"""COPY BINARY, both ways, in columns.

`unpack` and `unpack_chunk` find the fields in what COPY TO gave; `encode` and `pack` make what COPY FROM takes, from
numpy arrays and from fields of any other buffer, copied as they are (a binary field of the change stream is a COPY
BINARY field of the same type). Guarantees: a damaged payload raises `DecodeError`, and nothing outside the buffer is
read or written. It does not talk to a server.

Format: PostgreSQL documentation, COPY, "Binary Format".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DecodeError
from headrace.flow.pgtypes import (
    BOOL,
    FLOAT4,
    FLOAT8,
    INT2,
    INT4,
    INT8,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    POSTGRES_EPOCH,
    SUPPORTED,
    TIMESTAMP,
    TIMESTAMPTZ,
    since_1970,
)
from headrace.flow.wire import Cells, Fields, as_bytes, int16, int32, int64, without_value
from headrace.models.text import NULL, kernel

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
HEADER = SIGNATURE + bytes(8)  # no flags, no extension
TRAILER = b"\xff\xff"
_NAN = int(np.array(np.nan).view(np.int64))
_EXPONENT, _FRACTION = 0x7FF0000000000000, 0x000FFFFFFFFFFFFF  # of a double precision's bits

_END, _MORE, _SHORT, _WIDTH, _LONG = range(5)
_REASONS = {
    _SHORT: "the data ends in the middle of a row",
    _WIDTH: "a row with another number of columns",
    _LONG: "bytes left over after the trailer",
}


@kernel
def _walk(buffer: Any, at: int, rows: int, start: Any, length: Any) -> tuple[int, int, int]:
    """Find the fields of at most `rows` rows from `at` on; returns rows found, position, and how it ended."""
    columns, size = start.shape[0], buffer.size
    for row in range(rows):
        if size - at < 2:
            return row, at, _SHORT
        count = int16(buffer, at)
        if count == -1:
            return row, at + 2, _END if at + 2 == size else _LONG
        if count != columns:
            return row, at, _WIDTH
        at += 2
        for c in range(columns):
            if size - at < 4:
                return row, at, _SHORT
            n = int32(buffer, at)
            at += 4
            if n < NULL or n > size - at:
                return row, at - 4, _SHORT
            start[c, row] = at
            length[c, row] = n
            if n > 0:
                at += n
    return rows, at, _MORE


def _after_header(buffer: NDArray[np.uint8]) -> int:
    head = buffer[:19].tobytes()
    if len(head) < 19 or not head.startswith(SIGNATURE):
        raise DecodeError(
            f"COPY data starts with {head!r}; expected the signature {SIGNATURE!r} and 8 bytes of flags and extension"
            " length; was it written with FORMAT binary?"
        )
    flags, extension = (int.from_bytes(head[11:15], "big"), int.from_bytes(head[15:19], "big"))
    if flags:
        raise DecodeError(f"COPY data has the flags 0x{flags:08x}; expected none; write it without OIDs")
    if extension > buffer.size - 19:
        raise DecodeError(f"COPY data has a header extension of {extension} bytes; expected at most {buffer.size - 19}")
    return 19 + extension


def unpack_chunk(
    buffer: bytes | bytearray | memoryview | NDArray[np.uint8],
    columns: int | Sequence[str],
    offset: int = 0,
    max_rows: int = 65536,
) -> tuple[Cells, int]:
    """Find the fields of the next rows of a COPY BINARY payload, such as a memory-mapped file.

    Parameters
    ----------
    buffer : uint8[bytes]
        The whole payload; what lies behind `offset` and the rows asked for is not touched.
    columns : int or sequence of str
        How many columns a row has, or their names (for messages).
    offset : int
        0 for the first chunk, then the offset that the call before returned.
    max_rows : int
        At most so many rows.

    Returns
    -------
    cells : Cells
    offset : int
        Where the next chunk starts; the buffer's size when the payload has ended.

    Raises
    ------
    DecodeError
        A damaged payload or another number of columns.
    """
    data = as_bytes(buffer)
    names = tuple(map(str, range(columns))) if isinstance(columns, int) else tuple(columns)
    if not 0 <= offset <= data.size or max_rows < 1:
        raise ValueError(f"offset {offset} is outside a buffer of {data.size} bytes, or max_rows {max_rows} below 1")
    at = offset or _after_header(data)
    # A row takes 2 bytes and 4 for each field: no need for room for more than could be there.
    room = max(1, min(max_rows, (data.size - at) // (2 + 4 * len(names)) + 1))
    start = np.empty((len(names), room), dtype=np.int64)
    length = np.empty((len(names), room), dtype=np.int32)
    rows, end, state = _walk(data, at, room, start, length)
    if state == _MORE and end == data.size:
        state = _SHORT  # there is no trailer
    if state in _REASONS:
        raise DecodeError(
            f"COPY data, row {rows} of the chunk from position {at}: {_REASONS[state]}, at position {end}"
            f" of {data.size}; expected rows of {len(names)} columns up to the trailer; was it cut off?"
        )
    text = np.zeros((len(names), rows), dtype=np.bool_)
    return Cells(data, start[:, :rows], length[:, :rows], text, names), end


def unpack(
    buffer: bytes | bytearray | memoryview | NDArray[np.uint8], columns: int | Sequence[str] | None = None
) -> Cells:
    """Find the fields of a whole COPY BINARY payload.

    Parameters
    ----------
    buffer : uint8[bytes]
    columns : int, sequence of str or None
        As `unpack_chunk`; None takes what the first row has (no columns when there is no row).

    Raises
    ------
    DecodeError
        As `unpack_chunk`.

    Examples
    --------
    >>> payload = pack([encode(np.array([5, 6]), INT8)])
    >>> cells = unpack(payload)
    >>> cells.rows, cells.columns, cells.column(0).bytes_at(1)
    (2, 1, b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x06')
    """
    data = as_bytes(buffer)
    if columns is None:
        at = _after_header(data)
        columns = max(0, int.from_bytes(data[at : at + 2].tobytes(), "big", signed=True))
    cells, _ = unpack_chunk(data, columns, max_rows=max(1, data.size))
    return cells


_DTYPES = {BOOL: "?", INT2: ">i2", INT4: ">i4", INT8: ">i8", FLOAT4: ">f4", FLOAT8: ">f8", TIMESTAMP: ">i8"}
_DTYPES[TIMESTAMPTZ] = _DTYPES[TIMESTAMP]


def _encode_strings(values: Sequence[str | bytes | None] | NDArray[Any]) -> tuple[Any, Any, Any]:
    """Each different string is encoded once; returns buffer, start, length."""
    items: list[str | bytes | None] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    code = {value: k for k, value in enumerate(dict.fromkeys(items))}
    parts = [b"" if v is None else v.encode() if isinstance(v, str) else v for v in code]
    if any(0 in part for part in parts):
        raise ValueError(f"{next(p for p in parts if 0 in p)!r} holds a zero byte, which Postgres text cannot")
    codes = np.fromiter(map(code.__getitem__, items), dtype=np.int64, count=len(items))
    length = np.fromiter(map(len, parts), dtype=np.int32, count=len(parts))
    start = np.cumsum(length, dtype=np.int64) - length
    if None in code:
        length[code[None]] = NULL
    return b"".join(parts), start[codes], length[codes]


def packed_row(fields: Sequence[bytes]) -> bytes:
    """One row of text and bytea for COPY FROM.

    >>> packed_row([b"ab"])[len(HEADER):]
    b'\\x00\\x01\\x00\\x00\\x00\\x02ab\\xff\\xff'
    """
    sized = (part for field in fields for part in (struct.pack(">i", len(field)), field))
    return b"".join((HEADER, struct.pack(">h", len(fields)), *sized, TRAILER))


def encode(
    values: NDArray[Any] | Sequence[str | bytes | None],
    type_oid: int,
    null: NDArray[np.bool_] | None = None,
    name: str = "",
) -> Fields:
    """Make the binary fields of one column.

    Parameters
    ----------
    values : array or sequence [rows]
        bool for boolean, integers for smallint, integer and bigint, floats for real and double precision, int64
        microseconds since the Unix epoch for the timestamps (as `pgtypes.decode` gives them), str, UTF-8 bytes or None
        for the text types. An array must fit without loss: int64 values are not narrowed to integer.
    type_oid : int
        The column's type.
    null : bool[rows], optional
        Where the value is NULL.

    Raises
    ------
    TypeError
        The array's dtype does not fit the type, or the type has no encoder.
    ValueError
        A string with a zero byte, or a time before what Postgres can hold.
    """
    pg = SUPPORTED.get(type_oid)
    if pg is not None and pg.kind == "text":
        raw, start, length = _encode_strings(values)
        buffer = as_bytes(raw)
    elif pg is not None and type_oid in _DTYPES:
        array, dtype = np.asarray(values), np.dtype(_DTYPES[type_oid])
        if array.dtype.kind != dtype.kind or not np.can_cast(array.dtype, dtype, "safe"):
            raise TypeError(f"an array of {array.dtype} does not fit {pg.name}; expected {dtype.newbyteorder('=')}")
        if pg.kind == "timestamp":
            array = _to_postgres_time(array)
        buffer = as_bytes(array.astype(dtype).view(np.uint8))
        start = np.arange(array.size, dtype=np.int64) * dtype.itemsize
        length = np.full(array.size, dtype.itemsize, dtype=np.int32)
    else:
        raise TypeError(f"no encoder for the type with oid {type_oid}; copy its fields from another buffer instead")
    if null is not None:
        length[null] = NULL
    return Fields(buffer, start, length, np.zeros(length.size, dtype=np.bool_), name)


def _to_postgres_time(micros: NDArray[np.int64]) -> NDArray[np.int64]:
    infinite = (micros == POSITIVE_INFINITY) | (micros == NEGATIVE_INFINITY)
    if np.any((micros < NEGATIVE_INFINITY + POSTGRES_EPOCH) & ~infinite):
        raise ValueError(f"{int(micros.min())} microseconds since 1970 is before the first time Postgres can hold")
    return np.where(infinite, micros, micros - POSTGRES_EPOCH)


@kernel
def _write_int(out: Any, at: Any, value: Any, width: Any) -> Any:
    for k in range(width):
        out[at + k] = (value >> (8 * (width - 1 - k))) & 255
    return at + width


@kernel
def _measure(first: Any, start: Any, length: Any, text: Any, bounds: Any, rows: Any) -> tuple[int, int]:
    """Bytes of all rows, each with `first` of them before its fields, and -1; or a row whose field cannot be copied, and that."""
    size = 0
    for row in rows:
        size += first
        for c in range(start.shape[0]):
            n, at = length[c, row], start[c, row]
            if n < NULL or (n >= 0 and (text[c, row] or at < bounds[c, 0] or at > bounds[c, 1] - n)):
                return row, c
            size += 4 + max(0, n)
    return size, -1


@kernel
def _write_rows(seqs: Any, buffer: Any, start: Any, length: Any, rows: Any, out: Any, at: Any) -> None:
    """Rows of a seq, where there are any, and of fields; `_measure` has checked that they fit."""
    columns = start.shape[0]
    for i in range(rows.size):
        row = rows[i]
        if seqs.size:
            at = _write_int(out, at, columns + 1, 2)
            at = _write_int(out, _write_int(out, at, 8, 4), seqs[i], 8)
        else:
            at = _write_int(out, at, columns, 2)
        for c in range(columns):
            n, source = length[c, row], start[c, row]
            at = _write_int(out, at, n, 4)
            if n == 8:
                for k in range(8):
                    out[at + k] = buffer[source + k]
            elif n > 0:
                for k in range(n):
                    out[at + k] = buffer[source + k]
            at += max(0, n)


_NO_SEQS = np.empty(0, dtype=np.int64)


def pack(columns: Sequence[Fields]) -> NDArray[np.uint8]:
    """A whole COPY BINARY payload: header, one row for each row of the columns, trailer.

    Parameters
    ----------
    columns : sequence of Fields
        From `Cells.column` (copied as they are) or `encode`; all of the same number of rows.

    Returns
    -------
    uint8[bytes]

    Raises
    ------
    DecodeError
        A field in text format, unchanged or absent: there are no binary bytes to copy.
    ValueError
        The columns differ in rows, there is none or too many, or a field lies outside its buffer.
    """
    return _packed(_NO_SEQS, columns, None)


def pack_events(seqs: NDArray[np.int64], columns: Sequence[Fields], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """As `pack`, of some rows of the columns, which must have them, each after its seq as a bigint."""
    return _packed(seqs, columns, rows)


def _packed(seqs: NDArray[np.int64], columns: Sequence[Fields], rows: NDArray[np.int64] | None) -> NDArray[np.uint8]:
    if not 0 < len(columns) < 2**15 or len({c.length.size for c in columns}) != 1:
        raise ValueError(f"expected 1 to 32767 columns of equal size, got {[c.length.size for c in columns][:20]}")
    if rows is None:
        rows = np.arange(columns[0].length.size)
    length, text = np.array([c.length for c in columns]), np.array([c.text for c in columns])
    buffer, start, bounds = _in_one_buffer(columns, length, rows)
    size, bad = _measure(14 if len(seqs) else 2, start, length, text, bounds, rows)
    if bad >= 0:
        raise _cannot_copy(columns[bad], size)
    out = np.empty(len(HEADER) + size + len(TRAILER), dtype=np.uint8)
    out[: len(HEADER)] = np.frombuffer(HEADER, dtype=np.uint8)
    out[len(out) - len(TRAILER) :] = np.frombuffer(TRAILER, dtype=np.uint8)
    _write_rows(seqs, buffer, start, length, rows, out, len(HEADER))
    return out


def _in_one_buffer(
    columns: Sequence[Fields], length: NDArray[np.int32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """A buffer with the fields of some rows, int64[columns, rows] where they begin in it, and int64[columns, 2] between what."""
    start, buffer = np.array([c.start for c in columns]), columns[0].buffer
    bounds = np.zeros((len(columns), 2), dtype=np.int64)
    if all(c.buffer is buffer for c in columns):
        bounds[:, 1] = buffer.size
        return buffer, start, bounds
    parts, size = [], 0
    for own in {id(c.buffer): c.buffer for c in columns}.values():
        # Only what is needed of it: it may be a file of many gigabytes.
        mine = np.array([c.buffer is own for c in columns])
        there, begins = length[mine][:, rows] >= 0, start[mine][:, rows]
        ends = begins + length[mine][:, rows]
        first, last = int(begins.min(initial=own.size, where=there)), int(ends.max(initial=0, where=there))
        first = min(max(first, 0), own.size)
        last = min(max(last, first), own.size)
        parts.append(own[first:last])
        start[mine] += size - first
        bounds[mine] = size, size + last - first
        size += last - first
    return as_bytes(np.concatenate(parts)), start, bounds


WHOLE, TIME, NUMBER, REFERENCE, CODE = range(5)
"""What a column of `pack_table` is."""


@kernel
def _is_null(value: Any, kind: Any) -> Any:
    return (kind == NUMBER and (value & _EXPONENT) == _EXPONENT and (value & _FRACTION) != 0) or (
        kind == REFERENCE and value == 0
    )


@kernel
def _table_size(values: Any, kinds: Any, length: Any) -> Any:
    size = values.shape[0] * (2 + 4 * kinds.size)
    for row in range(values.shape[0]):
        for c in range(kinds.size):
            if kinds[c] == CODE:
                size += length[values[row, c]]
            elif not _is_null(values[row, c], kinds[c]):
                size += 8
    return size


@kernel
def _write_table(values: Any, kinds: Any, texts: Any, start: Any, length: Any, out: Any, at: Any) -> None:
    for row in range(values.shape[0]):
        at = _write_int(out, at, kinds.size, 2)
        for c in range(kinds.size):
            value, kind = values[row, c], kinds[c]
            if kind == CODE:
                at = _write_int(out, at, length[value], 4)
                for k in range(length[value]):
                    out[at + k] = texts[start[value] + k]
                at += length[value]
            elif _is_null(value, kind):
                at = _write_int(out, at, -1, 4)
            else:
                if kind == TIME and value != POSITIVE_INFINITY and value != NEGATIVE_INFINITY:
                    value -= POSTGRES_EPOCH
                at = _write_int(out, _write_int(out, at, 8, 4), value, 8)


def pack_table(values: NDArray[np.int64], kinds: Sequence[int], texts: Sequence[bytes] = ()) -> NDArray[np.uint8]:
    """A whole COPY BINARY payload of columns that are eight bytes wide, or texts of which there are few.

    Parameters
    ----------
    values
        int64[rows, columns].
    kinds
        Of each column: `WHOLE` bigint (or any other eight bytes); `TIME` timestamptz, in microseconds since 1970; `NUMBER` the
        bits of a double precision, NULL where it is NaN; `REFERENCE` bigint, NULL where it is 0; `CODE` a text by its place
        in `texts`.

    Examples
    --------
    >>> rows = unpack(pack_table(np.array([[7, 1], [8, 0]]), (WHOLE, CODE), [b"no", b"yes"]))
    >>> rows.column(0).bytes_at(1)[-1], rows.column(1).bytes_at(0)
    (8, b'yes')
    """
    length = np.array([len(text) for text in texts], dtype=np.int64)
    tables = np.array(kinds, dtype=np.int64), as_bytes(b"".join(texts)), np.cumsum(length) - length, length
    size = len(HEADER) + int(_table_size(values, tables[0], length))
    out = np.empty(size + len(TRAILER), dtype=np.uint8)
    out[: len(HEADER)] = np.frombuffer(HEADER, dtype=np.uint8)
    out[size:] = np.frombuffer(TRAILER, dtype=np.uint8)
    _write_table(values, *tables, out, len(HEADER))
    return out


@kernel
def _values(buffer: Any, start: Any, length: Any, kinds: Any, values: Any) -> tuple[int, int]:
    """The fields of a table as numbers; gives a row and a column whose field is none, or -1."""
    for c in range(kinds.size):
        for row in range(length.shape[1]):
            n, at = length[c, row], start[c, row]
            if n == 8:
                value = int64(buffer, at)
                values[c, row] = since_1970(value) if kinds[c] == TIME else value
            elif n == 4:
                values[c, row] = int32(buffer, at)
            elif n == NULL:
                values[c, row] = _NAN if kinds[c] == NUMBER else 0
            else:
                return row, c
    return -1, -1


def unpack_table(buffer: NDArray[np.uint8], kinds: Sequence[int]) -> NDArray[np.int64]:
    """Read a whole COPY BINARY payload of columns that are four or eight bytes wide; the inverse of `pack_table`.

    Parameters
    ----------
    buffer
        uint8[bytes].
    kinds
        As `pack_table`, but for texts; integers may have four bytes, and all but `NUMBER` are 0 where they are NULL.

    Returns
    -------
    int64[columns, rows]

    Raises
    ------
    DecodeError
        A damaged payload, or one with other columns.

    Examples
    --------
    >>> unpack_table(pack_table(np.array([[7, 0], [8, 6]]), (WHOLE, REFERENCE)), (WHOLE, REFERENCE)).tolist()
    [[7, 8], [0, 6]]
    """
    cells = unpack(buffer, len(kinds))
    values = np.empty(cells.length.shape, dtype=np.int64)
    row, column = _values(cells.buffer, cells.start, cells.length, np.array(kinds, dtype=np.int64), values)
    if row >= 0:
        found = cells.column(column).bytes_at(row)
        raise DecodeError(f"COPY data, row {row}, column {column}: found {found[:40]!r}, expected four or eight bytes")
    return values


def _cannot_copy(fields: Fields, row: int) -> Exception:
    if fields.length[row] < NULL:
        return without_value(fields, row)
    if fields.text[row]:
        return DecodeError(
            f'column "{fields.name}", row {row}: the field came in text format; expected binary to copy it into a COPY'
            " BINARY row; start the stream with binary 'true', or decode and encode the column"
        )
    return ValueError(f'column "{fields.name}", row {row}: the field lies outside its buffer')
