"""Values without rounding, for where their numpy columns cannot tell two of them apart.

`pgtypes.decode` rounds a numeric to float64 and ends all times in int64 microseconds. Rounding keeps order, so a
comparison on columns can be wrong only where two sides are equal: `coarse` says in which rows that may be, `exact` gives
such a value whole. Slow, row by row; meant for the few rows that need it.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.flow.pgtypes import DAY, POSITIVE_INFINITY, POSTGRES_EPOCH, SUPPORTED, Column, time_from_text
from headrace.flow.wire import Fields

DIGITS = 15  # decimal digits that float64 keeps: no two numbers of so many round to the same one
_ZERO, _FEW = 8, 14  # bytes of a binary numeric without digits, and with 3 groups of 4
_TINY = 1e-290  # float64 keeps fewer digits of numbers near its smallest


def coarse(fields: Fields, column: Column, type_oid: int) -> NDArray[np.bool_]:
    """Where another value of the type, or of one that it compares with, may have the same decoded value."""
    match SUPPORTED[type_oid].kind:
        case "numeric":
            size = np.abs(column.values)
            found: NDArray[np.bool_] = (fields.length > _FEW) | fields.text | np.isinf(size)
            found |= (fields.length > _ZERO) & (size < _TINY)
        case "int":
            found = (column.values >= 10**DIGITS) | (column.values <= -(10**DIGITS))
        case "timestamp" | "date":
            found = column.values == POSITIVE_INFINITY
        case _:
            found = np.zeros(len(column.null), dtype=np.bool_)
    return found


def exact(fields: Fields, row: int, type_oid: int) -> Any:
    """One value, not NULL, of a type of numbers or times; times in microseconds, infinite ones as floats."""
    pg = SUPPORTED[type_oid]
    if pg.kind == "numeric":
        return Decimal(numeric_text(fields, row))
    raw = fields.bytes_at(row)
    if fields.text[row]:
        return int(raw) if pg.kind == "int" else time_from_text(raw.decode())
    number = int.from_bytes(raw, "big", signed=True)
    if pg.kind == "int":
        return number
    limit = 1 << (8 * len(raw) - 1)
    if number in (limit - 1, -limit):
        return math.inf if number > 0 else -math.inf
    return number * (DAY if pg.kind == "date" else 1) + POSTGRES_EPOCH


def numeric_text(fields: Fields, row: int) -> str:
    """A numeric, not NULL, as Postgres writes it.

    >>> raw = np.frombuffer(bytes.fromhex("0002 0000 4000 0003 0001 1388"), dtype=np.uint8)
    >>> numeric_text(Fields(raw, np.array([0]), np.array([12], np.int32), np.array([False]), ""), 0)
    '-1.500'
    """
    raw = fields.bytes_at(row)
    if fields.text[row]:
        return raw.decode()
    head, groups = np.frombuffer(raw, dtype=">i2", count=4), np.frombuffer(raw, dtype=">u2", offset=8)
    weight, sign, scale = int(head[1]), int(head[2]) & 0xFFFF, int(head[3])
    if sign >= 0xC000:
        return {0xC000: "NaN", 0xD000: "Infinity"}.get(sign, "-Infinity")
    digits, point = "".join(f"{group:04d}" for group in groups.tolist()), 4 * (weight + 1)
    digits, point = ("0" * -point + digits, 0) if point < 0 else (digits.ljust(point, "0"), point)
    whole, fraction = digits[:point].lstrip("0") or "0", digits[point:][:scale].ljust(scale, "0")
    return f"{'-' if sign else ''}{whole}{'.' if scale else ''}{fraction}"
