"""From log columns to model columns: names, numbers, and what is derived from them row by row.

Pure and row by row, so any batching gives the same columns. Names stay bytes (`headrace.models.text`): no Python object is
made for a row, unless a column comes as Python objects. Streaming target means are not made here: they depend on the log's
order (`headrace.models.target_mean`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.stream import Stream
from headrace.events import Columns
from headrace.flow.arrays import tokens
from headrace.flow.pgtypes import ELEMENTS, SUPPORTED, Column, decode
from headrace.flow.wire import Cells, without_value
from headrace.models.text import NULL, Text
from headrace.models.tokens import Tokens

_HOUR = 3_600 * 1_000_000
_DAY = 24 * _HOUR
_HOURS = Text.of([str(hour) for hour in range(24)])
_WEEKDAYS = Text.of([str(day) for day in range(7)])
_BOOLS = Text.of(["false", "true"])


class Encoder:
    """Turns a stream's log columns into its models' columns.

    Parameters
    ----------
    stream
        The definition whose features are encoded.
    """

    def __init__(self, stream: Stream) -> None:
        self._features = tuple(stream.features)
        self._log_column = stream.log_column
        self.mean_keys = stream.feature_columns("target_mean")
        self.log_columns = tuple(
            dict.fromkeys(stream.log_column(c) for f in stream.features if f.kind != "target_mean" for c in f.columns)
        )

    def __call__(self, log: Columns) -> dict[str, Any]:
        """Encode n rows.

        Parameters
        ----------
        log
            `log_columns` by their names in the log, as `series` makes them; times in microseconds.

        Returns
        -------
        dict
            Categories as `Text`, lists of tokens as `Tokens`, numbers as float64 with NaN for missing.
        """
        encoded: dict[str, Any] = {}
        for feature in self._features:
            columns = [log[self._log_column(c)] for c in feature.columns] if feature.kind != "target_mean" else []
            match feature.kind:
                case "category":
                    encoded.update(zip(feature.names(), map(_category, columns), strict=True))
                case "number":
                    encoded.update(zip(feature.names(), map(_number, columns), strict=True))
                case "tokens":
                    encoded.update(zip(feature.names(), map(_tokens, columns), strict=True))
                case "hour_of_day":
                    encoded[feature.names()[0]] = _named(columns[0], _HOURS, lambda time: time % _DAY // _HOUR)
                case "day_of_week":  # 1 January 1970 was a Thursday
                    encoded[feature.names()[0]] = _named(columns[0], _WEEKDAYS, lambda time: (time // _DAY + 3) % 7)
                case "cross":
                    encoded[feature.names()[0]] = Text.join([_category(c) for c in columns])
                case "target_mean":
                    pass
        return encoded


def series(cells: Cells, column: int, type_oid: int) -> Any:
    """One column of the log as `Encoder` takes it: `Text`, `Tokens`, or an array where nothing is NULL, or a `Column`."""
    if SUPPORTED[type_oid].kind == "text":
        fields = cells.column(column)
        if len(missing := np.flatnonzero(fields.length < NULL)):
            raise without_value(fields, int(missing[0]))
        return Text(fields.buffer, fields.start, fields.length)
    if type_oid in ELEMENTS:
        return tokens(cells.column(column), ELEMENTS[type_oid])
    decoded = decode(cells, column, type_oid)
    if decoded.values.dtype == np.float64 or not decoded.null.any():
        return decoded.values
    return decoded


def _category(values: Text | Column | NDArray[Any]) -> Text:
    if isinstance(values, Text):
        return values
    known = np.ones(len(values), dtype=np.bool_)
    if isinstance(values, Column):
        known = ~values.null
        values = values.values
    if values.dtype == np.bool_:
        return Text.choose(_BOOLS, np.where(known, values.astype(np.int64), -1))
    if values.dtype.kind == "i":
        return Text.integers(values.astype(np.int64), known)
    return Text.of([_name(v) for v in values.tolist()])


def _name(value: str | float | bool | None) -> str | None:
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value != value else str(value)


def _number(values: Column | NDArray[Any]) -> NDArray[np.float64]:
    if isinstance(values, Column):
        return values.to_float()
    if values.dtype == object:
        return np.array([np.nan if v is None else v for v in values.tolist()], dtype=np.float64)
    return values.astype(np.float64)


def _tokens(values: Tokens | NDArray[Any]) -> Tokens:
    return values if isinstance(values, Tokens) else Tokens.of(values.tolist())


def _named(times: Column | NDArray[Any], names: Text, which: Callable[[NDArray[np.int64]], Any]) -> Text:
    if isinstance(times, Column):
        return Text.choose(names, np.where(times.null, -1, which(times.values)))
    if times.dtype == object:
        known = np.array([t is not None for t in times], dtype=np.bool_)
        return Text.choose(names, np.where(known, which(np.where(known, times, 0).astype(np.int64)), -1))
    return Text.choose(names, which(times))
