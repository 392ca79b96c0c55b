"""The Postgres types that headrace understands, and their fields as numpy columns.

`decode` turns one column of a `Cells` into values, from binary format in a kernel and from text format one by one, to
equal results. Guarantees: a field that is not exactly a value of its type raises `DecodeError` with column and row; no
type is guessed. It does not know enums and domains (user-defined, so without fixed oids): an enum's fields are its
labels' text, so decode them as `TEXT`; a domain is sent as its base type. Arrays of texts come out as people read them;
`headrace.flow.arrays` makes lists of them.

Formats: PostgreSQL source, the `*send` functions in src/backend/utils/adt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DecodeError
from headrace.flow.arrays import array_text
from headrace.flow.wire import Cells, Fields, distinct, int16, int32, int64, uint16, without_value
from headrace.models.text import NULL, kernel

POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in microseconds since the Unix epoch
POSITIVE_INFINITY = 2**63 - 1  # 'infinity' as a time; also any time after the year 294246, which int64 cannot hold
NEGATIVE_INFINITY = -(2**63)  # '-infinity' as a time; also any date before the year -290307
DAY = 86_400_000_000  # microseconds
_LAST_DAY = POSITIVE_INFINITY // DAY

Kind = Literal["int", "float", "numeric", "bool", "timestamp", "date", "char", "text", "uuid", "texts"]


@dataclass(frozen=True, slots=True)
class PgType:
    """A built-in type."""

    oid: int
    name: str
    width: int | None  # bytes of a binary field; None when it varies
    kind: Kind  # how its fields are decoded


BOOL, CHAR, NAME, INT8, INT2, INT4, TEXT = 16, 18, 19, 20, 21, 23, 25
FLOAT4, FLOAT8, BPCHAR, VARCHAR, DATE, TIMESTAMP, TIMESTAMPTZ = (700, 701, 1042, 1043, 1082, 1114, 1184)
NUMERIC, UUID = 1700, 2950
TEXT_ARRAY, VARCHAR_ARRAY = 1009, 1015

ELEMENTS = {TEXT_ARRAY: TEXT, VARCHAR_ARRAY: VARCHAR}
"""The elements' types of the arrays that are lists of tokens."""

SUPPORTED: dict[int, PgType] = {
    t.oid: t
    for t in (
        PgType(BOOL, "boolean", 1, "bool"),
        PgType(CHAR, '"char"', 1, "char"),
        PgType(NAME, "name", None, "text"),
        PgType(INT8, "bigint", 8, "int"),
        PgType(INT2, "smallint", 2, "int"),
        PgType(INT4, "integer", 4, "int"),
        PgType(TEXT, "text", None, "text"),
        PgType(FLOAT4, "real", 4, "float"),
        PgType(FLOAT8, "double precision", 8, "float"),
        PgType(BPCHAR, "character", None, "text"),
        PgType(VARCHAR, "character varying", None, "text"),
        PgType(DATE, "date", 4, "date"),
        PgType(TIMESTAMP, "timestamp without time zone", 8, "timestamp"),
        PgType(TIMESTAMPTZ, "timestamp with time zone", 8, "timestamp"),
        PgType(NUMERIC, "numeric", None, "numeric"),
        PgType(UUID, "uuid", 16, "uuid"),
        PgType(TEXT_ARRAY, "text[]", None, "texts"),
        PgType(VARCHAR_ARRAY, "character varying[]", None, "texts"),
    )
}


@dataclass(frozen=True, slots=True)
class Column:
    """Decoded values.

    Attributes
    ----------
    values : int64, float64, bool or object [rows]
        Where `null`: 0, NaN, False or None.
    null : bool[rows]
    """

    values: NDArray[Any]
    null: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.null)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Column:
        return Column(self.values[rows], self.null[rows])

    def to_float(self) -> NDArray[np.float64]:
        """The values as float64, NULL as NaN; integers beyond 2^53 are rounded.

        Raises
        ------
        TypeError
            The values are strings.

        Examples
        --------
        >>> Column(np.array([7, 0]), np.array([False, True])).to_float()
        array([ 7., nan])
        """
        if self.values.dtype == np.object_:
            raise TypeError("a column of strings has no float values")
        values: NDArray[np.float64] = self.values.astype(np.float64)
        values[self.null] = np.nan
        return values


_INT, _BYTE, _DOUBLE, _TIMESTAMP, _DATE = range(5)
_HOWS: dict[Kind, int] = {"bool": _BYTE, "char": _BYTE, "timestamp": _TIMESTAMP, "date": _DATE}
_NAN = int(np.array(np.nan).view(np.int64))


@kernel
def since_1970(value: Any) -> Any:
    """A timestamp on the wire in microseconds of the Unix epoch; infinite ones stay so, and what int64 cannot hold becomes so."""
    if value == NEGATIVE_INFINITY:
        return value
    return value + POSTGRES_EPOCH if value <= POSITIVE_INFINITY - POSTGRES_EPOCH else POSITIVE_INFINITY


@kernel
def _fixed(buffer: Any, start: Any, length: Any, text: Any, width: Any, how: Any, values: Any, null: Any) -> int:
    """Big-endian fields of 1, 2, 4 or 8 bytes as int64, doubles as their bits; skips text fields; returns a bad row or -1."""
    nothing = _NAN if how == _DOUBLE else 0
    for row in range(length.size):
        n, at = length[row], start[row]
        null[row] = n == NULL
        if n == NULL or text[row]:
            values[row] = nothing
        elif n != width:
            return row
        elif width == 8:
            value = int64(buffer, at)
            values[row] = since_1970(value) if how == _TIMESTAMP else value
        elif width == 4:
            value = int32(buffer, at)
            if how == _DATE:
                if value > _LAST_DAY:
                    value = POSITIVE_INFINITY
                elif value < -_LAST_DAY:
                    value = NEGATIVE_INFINITY
                else:
                    value = since_1970(value * DAY)
            values[row] = value
        elif width == 2:
            values[row] = int16(buffer, at)
        else:
            values[row] = buffer[at]
    return -1


_HARD = -2  # numeric: too many digits for exact arithmetic in float64


@kernel
def _numeric(buffer: Any, at: Any, n: Any) -> Any:
    """One numeric: its value and 0, or `_HARD`, or -1 when it is damaged."""
    if n < 8:
        return 0.0, -1
    digits, weight, sign = (uint16(buffer, at), int16(buffer, at + 2), uint16(buffer, at + 4))
    if n != 8 + 2 * digits:
        return 0.0, -1
    if sign == 0xC000:
        return np.nan, 0
    if sign == 0xD000:
        return np.inf, 0
    if sign == 0xF000:
        return -np.inf, 0
    if sign != 0x0000 and sign != 0x4000:
        return 0.0, -1
    mantissa = np.int64(0)
    hard = False
    for k in range(digits):
        digit = uint16(buffer, at + 8 + 2 * k)
        if digit > 9999:
            return 0.0, -1
        if mantissa > (2**53 - 9999) // 10000:
            hard = True
        else:
            mantissa = mantissa * 10000 + digit
    exponent = 4 * (weight - digits + 1)
    if mantissa == 0 and not hard:
        return 0.0, 0
    if hard or exponent > 20 or exponent < -20:
        return 0.0, _HARD
    # Both operands are exact in float64, so the one operation rounds correctly (Clinger 1990, the fast path).
    power = 1.0
    for _ in range(abs(exponent) // 4):
        power *= 10000.0
    value = mantissa * power if exponent >= 0 else mantissa / power
    return (-value if sign == 0x4000 else value), 0


@kernel
def _numerics(buffer: Any, start: Any, length: Any, text: Any, values: Any, hard: Any, null: Any) -> int:
    for row in range(length.size):
        n = length[row]
        null[row] = n == NULL
        hard[row] = False
        if n == NULL or text[row]:
            values[row] = 0.0
        elif n < 0:
            return row
        else:
            value, code = _numeric(buffer, start[row], np.int64(n))
            if code == -1:
                return row
            values[row] = value
            hard[row] = code == _HARD
    return -1


@kernel
def _gather(buffer: Any, start: Any, length: Any, rows: Any, out: Any) -> Any:
    """Copy the fields of `rows` to `out`, each followed by a zero byte; returns a row that holds one itself, or -1."""
    at = 0
    for row in rows:
        for k in range(start[row], start[row] + length[row]):
            if buffer[k] == 0:
                return row
            out[at] = buffer[k]
            at += 1
        out[at] = 0
        at += 1
    return -1


_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


@kernel
def _render_uuids(buffer: Any, start: Any, length: Any, text: Any, null: Any, out: Any) -> int:
    """Write each uuid as 36 characters and a zero byte; returns a bad row or -1. NULL and text rows stay empty."""
    at = 0
    for row in range(length.size):
        null[row] = length[row] == NULL
        if not null[row] and not text[row]:
            if length[row] != 16:
                return row
            for k in range(16):
                if k == 4 or k == 6 or k == 8 or k == 10:
                    out[at] = 45
                    at += 1
                byte = buffer[start[row] + k]
                out[at] = _HEX[byte >> 4]
                out[at + 1] = _HEX[byte & 15]
                at += 2
        out[at] = 0
        at += 1
    out[at:] = 0
    return -1


def _bad(fields: Fields, row: int, pg: PgType) -> DecodeError:
    if fields.length[row] < NULL:
        return without_value(fields, row)
    found = fields.bytes_at(row)
    shown = f"{found[:40]!r}" + (f" and {len(found) - 40} bytes more" if len(found) > 40 else "")
    form = "text" if fields.text[row] else "binary"
    return DecodeError(
        f'column "{fields.name}", row {row}: {shown} is not a {pg.name} in {form} format; expected one (dates in ISO'
        " style, text in UTF-8); look at the type of the column and the settings of the connection"
    )


def _days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01, proleptic Gregorian (Hinnant, "chrono-Compatible Low-Level Date Algorithms").

    Examples
    --------
    >>> _days_from_civil(2000, 3, 1), _days_from_civil(0, 3, 1)
    (11017, -719468)
    """
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


_TIME = re.compile(
    r"(\d{4,7})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"(?: (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?)?( BC)?",
    re.ASCII,
)
_NUMBER = re.compile(rb"-?[0-9.]+(?:e[+-][0-9]+)?|NaN|-?Infinity")
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHAPES: dict[Kind, re.Pattern[bytes]] = {"int": _NUMBER, "float": _NUMBER, "numeric": _NUMBER, "uuid": _UUID}


def time_from_text(text: str) -> float:
    """Microseconds since the Unix epoch from a time in ISO DateStyle; without an offset it counts as UTC.

    Examples
    --------
    >>> time_from_text("1970-01-01 01:00:00.5+01"), time_from_text("infinity")
    (500000, inf)
    """
    if text in ("infinity", "-infinity"):
        return float(text)
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    year, month, day, hour, minute, second, fraction, sign, *offset, bc = match.groups()
    days = _days_from_civil(1 - int(year) if bc else int(year), int(month), int(day))
    seconds = int(hour or 0) * 3600 + int(minute or 0) * 60 + int(second or 0)
    ahead = sum(int(part or 0) * unit for part, unit in zip(offset, (3600, 60, 1), strict=True))
    seconds -= -ahead if sign == "-" else ahead
    return days * DAY + seconds * 1_000_000 + int((fraction or "").ljust(6, "0"))


def _bounded_time(text: str) -> int:
    found = time_from_text(text)
    return (
        int(found)
        if NEGATIVE_INFINITY < found < POSITIVE_INFINITY
        else POSITIVE_INFINITY
        if found > 0
        else NEGATIVE_INFINITY
    )


def _bool_from_text(text: str) -> bool:
    return {"t": True, "f": False}[text]


def _real_from_text(text: str) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(text))


def _from_text(pg: PgType) -> Callable[[str], Any]:
    """The parser of a type's text format; raises ValueError, KeyError or OverflowError."""
    parsers: dict[Kind, Callable[[str], Any]] = {
        "int": lambda text: np.dtype(f"i{pg.width}").type(int(text)),  # raises OverflowError beyond the type's range
        "float": _real_from_text if pg.oid == FLOAT4 else float,
        "numeric": float,
        "bool": _bool_from_text,
        "timestamp": _bounded_time,
        "date": _bounded_time,
    }
    return parsers.get(pg.kind, str)


def _fill_text(fields: Fields, pg: PgType, values: NDArray[Any]) -> None:
    parse, shape = _from_text(pg), _SHAPES.get(pg.kind)
    for row in np.flatnonzero(fields.text & (fields.length >= 0)).tolist():
        raw = fields.bytes_at(row)
        if shape and not shape.fullmatch(raw):
            raise _bad(fields, row, pg)
        try:
            values[row] = parse(raw.decode())
        except (ValueError, KeyError, OverflowError) as error:
            raise _bad(fields, row, pg) from error


def _hard_numeric(raw: bytes) -> float:
    """A numeric of any size, rounded correctly: Python's float() does that for decimal strings."""
    head, digits = (np.frombuffer(raw, dtype=">i2", count=4), np.frombuffer(raw, dtype=">u2", offset=8))
    text = "".join(f"{d:04d}" for d in digits.tolist())
    return float(f"{'-' if head[2] else ''}{text}e{4 * (int(head[1]) - digits.size + 1)}")


def _decode_numeric(fields: Fields, pg: PgType) -> Column:
    rows = fields.length.size
    values, hard, null = (np.empty(rows), np.empty(rows, np.bool_), np.empty(rows, np.bool_))
    bad = _numerics(fields.buffer, fields.start, fields.length, fields.text, values, hard, null)
    if bad >= 0:
        raise _bad(fields, bad, pg)
    for row in np.flatnonzero(hard).tolist():
        values[row] = _hard_numeric(fields.bytes_at(row))
    values[null] = np.nan
    return Column(values, null)


def _decode_fixed(fields: Fields, pg: PgType) -> Column:
    rows, wide = fields.length.size, pg.kind == "float" and pg.width == 8
    values, null = np.empty(rows, np.int64), np.empty(rows, np.bool_)
    how = _DOUBLE if wide else _HOWS.get(pg.kind, _INT)
    bad = _fixed(fields.buffer, fields.start, fields.length, fields.text, pg.width, how, values, null)
    if bad >= 0:
        raise _bad(fields, bad, pg)
    out: NDArray[Any] = values
    if wide:
        out = values.view(np.float64)
    elif pg.kind == "float":
        with np.errstate(invalid="ignore"):  # a signaling NaN is a NaN
            out = values.astype(np.uint32).view(np.float32).astype(np.float64)
        out[null] = np.nan
    elif pg.kind == "bool":
        out = values != 0
    return Column(out, null)


def _decode_char(fields: Fields, pg: PgType) -> Column:
    column = _decode_fixed(fields, pg)
    # As charout writes them: the zero byte is the empty string, bytes beyond ASCII are octal escapes.
    table = np.array(["", *(chr(b) for b in range(1, 128)), *(f"\\{b:03o}" for b in range(128, 256)), None], object)
    return Column(table[np.where(column.null, 256, column.values)], column.null)


def _split(blob: NDArray[np.uint8], count: int, what: str) -> list[str]:
    """Zero-terminated strings: Postgres text never holds a zero byte, and one decode and one split beat many."""
    return blob.tobytes().decode(what).split("\0", count)[:count]


def _decode_uuid(fields: Fields, pg: PgType) -> Column:
    rows = fields.length.size
    null, out = np.empty(rows, np.bool_), np.empty(37 * rows, np.uint8)
    bad = _render_uuids(fields.buffer, fields.start, fields.length, fields.text, null, out)
    if bad >= 0:
        raise _bad(fields, bad, pg)
    values = np.array([*_split(out, rows, "ascii"), None], dtype=object)[:-1]
    values[null] = None
    return Column(values, null)


def _decode_text(fields: Fields, pg: PgType) -> Column:
    codes, first = distinct(fields)
    blob = np.empty(int(fields.length[first].sum(dtype=np.int64)) + first.size, np.uint8)
    bad = _gather(fields.buffer, fields.start, fields.length, first, blob)
    if bad >= 0:
        raise _bad(fields, bad, pg)
    try:
        strings = _split(blob, first.size, "utf-8")
    except UnicodeDecodeError as error:
        ends = np.cumsum(fields.length[first] + 1)
        raise _bad(fields, int(first[np.searchsorted(ends, error.start, side="right")]), pg) from error
    values = np.array([*strings, None], dtype=object)  # code -1, NULL, takes the last one
    return Column(values[codes], codes < 0)


def _decode_texts(fields: Fields, pg: PgType) -> Column:
    if len(missing := np.flatnonzero(fields.length < NULL)):
        raise without_value(fields, int(missing[0]))
    null = fields.length == NULL
    values = np.full(len(null), None, dtype=object)
    for row in np.flatnonzero(~null & ~fields.text).tolist():
        values[row] = array_text(fields.bytes_at(row))
    return Column(values, null)


_DECODERS: dict[Kind, Callable[[Fields, PgType], Column]] = {
    "numeric": _decode_numeric,
    "char": _decode_char,
    "uuid": _decode_uuid,
    "text": _decode_text,
    "texts": _decode_texts,
}


def decode(cells: Cells, column: int, type_oid: int) -> Column:
    """Turn one column of wire fields into values.

    Integers and times become int64, real, double and numeric float64 (correctly rounded), boolean bool, everything else
    an object array of str in which equal strings are one object. Times are microseconds since the Unix epoch (UTC; a
    timestamp without time zone is taken as UTC, a date as its midnight), with `POSITIVE_INFINITY` and
    `NEGATIVE_INFINITY` for the infinite ones and those beyond int64.

    Raises
    ------
    DecodeError
        The type is not in `SUPPORTED`, a field is not a value of it, or a field is not in the message at all.
    """
    fields = cells.column(column)
    pg = SUPPORTED.get(type_oid)
    if pg is None:
        names = ", ".join(t.name for t in SUPPORTED.values())
        raise DecodeError(
            f'column "{fields.name}" has the type with oid {type_oid}; expected one of {names}; leave the column out of'
            " the publication, or cast it in a generated column (an enum is decoded as text)"
        )
    decoded = _DECODERS.get(pg.kind, _decode_fixed)(fields, pg)
    if pg.kind != "text" and np.count_nonzero(fields.text):  # text and varchar have the same bytes in both formats
        _fill_text(fields, pg, decoded.values)
    return decoded
