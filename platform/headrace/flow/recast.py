"""A source column whose type was changed, brought back to the log's type where no value can be harmed by it.

Integers of another width, as far as they fit; single to double precision; the kinds of text, which look the same on the
wire. Anything else is another column and needs another stream.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.flow.copybinary import encode
from headrace.flow.pgtypes import BPCHAR, FLOAT4, FLOAT8, INT2, INT4, INT8, NAME, TEXT, VARCHAR, Column
from headrace.flow.wire import Fields

_INTEGERS: dict[int, type[np.signedinteger[Any]]] = {INT2: np.int16, INT4: np.int32, INT8: np.int64}
_TEXTS = (TEXT, VARCHAR, NAME)


def can_recast(type_oid: int, wanted_oid: int) -> bool:
    """Whether `recast` knows the way from one type to another.

    >>> can_recast(INT8, INT4), can_recast(INT4, TEXT)
    (True, False)
    """
    same_kind = any(type_oid in kinds and wanted_oid in kinds for kinds in (_INTEGERS, _TEXTS))
    return type_oid == wanted_oid or same_kind or (type_oid, wanted_oid) == (FLOAT4, FLOAT8)


def recast(fields: Fields, column: Column, type_oid: int, wanted_oid: int) -> tuple[Fields, NDArray[np.bool_]]:
    """Fields of a wanted type that `can_recast` allows, and where a value does not fit it (NULL stands there).

    Parameters
    ----------
    fields, column
        n values, on the wire and decoded.
    """
    nothing = np.zeros(len(column.null), dtype=np.bool_)
    if type_oid in _INTEGERS and type_oid != wanted_oid:
        dtype = _INTEGERS[wanted_oid]
        bounds = np.iinfo(dtype)
        misfit: NDArray[np.bool_] = ~column.null & ((column.values < bounds.min) | (column.values > bounds.max))
        narrow = np.where(misfit, 0, column.values).astype(dtype)
        return encode(narrow, wanted_oid, column.null | misfit, fields.name), misfit
    if (type_oid, wanted_oid) == (FLOAT4, FLOAT8):
        return encode(column.values, wanted_oid, column.null, fields.name), nothing
    return fields, nothing


def as_keys(fields: Fields, type_oid: int) -> Fields:
    """Fields of a key column as the log finds events by them: equal keys have equal bytes.

    Postgres pads a character(n), and compares it without the padding; so a character(5) meets a character(8).
    """
    if type_oid != BPCHAR:
        return fields
    sent = zip(fields.start.tolist(), fields.length.tolist(), strict=True)
    length = [n if n <= 0 else len(fields.buffer[start : start + n].tobytes().rstrip(b" ")) for start, n in sent]
    return replace(fields, length=np.array(length, dtype=np.int32))
