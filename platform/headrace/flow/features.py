"""From log columns to model columns: names, numbers, and what is derived from them row by row.

Pure and row by row, so any batching gives the same columns. Streaming target means are not made here: they depend on the
log's order (`headrace.models.target_mean`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.stream import Stream
from headrace.events import Columns
from headrace.flow.pgtypes import Column

_HOUR = 3_600 * 1_000_000
_DAY = 24 * _HOUR
_HOURS = np.array([str(hour) for hour in range(24)], dtype=object)
_WEEKDAYS = np.array([str(day) for day in range(7)], dtype=object)


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

    def __call__(self, log: Columns) -> dict[str, NDArray[Any]]:
        """Encode n rows.

        Parameters
        ----------
        log
            `log_columns` by their names in the log, as `plain` makes them; times in microseconds.

        Returns
        -------
        dict
            Categories as object arrays of `str` or None, numbers as float64 with NaN for missing.
        """
        encoded: dict[str, NDArray[Any]] = {}
        for feature in self._features:
            columns = [log[self._log_column(c)] for c in feature.columns] if feature.kind != "target_mean" else []
            match feature.kind:
                case "category":
                    encoded.update(zip(feature.names(), map(_category, columns), strict=True))
                case "number":
                    encoded.update(zip(feature.names(), map(_number, columns), strict=True))
                case "hour_of_day":
                    encoded[feature.names()[0]] = _named(columns[0], _HOURS, lambda time: time % _DAY // _HOUR)
                case "day_of_week":  # 1 January 1970 was a Thursday
                    encoded[feature.names()[0]] = _named(columns[0], _WEEKDAYS, lambda time: (time // _DAY + 3) % 7)
                case "cross":
                    encoded[feature.names()[0]] = _cross([_category(c) for c in columns])
                case "target_mean":
                    pass
        return encoded


def plain(column: Column) -> NDArray[Any]:
    """Decoded values as one array: integers, times and booleans with NULLs become objects, a float's NULL NaN.

    >>> plain(Column(np.array([7, 0]), np.array([False, True])))
    array([7, None], dtype=object)
    """
    if column.values.dtype in (np.object_, np.float64) or not column.null.any():
        return column.values
    values = column.values.astype(object)
    values[column.null] = None
    return values


def _category(values: NDArray[Any]) -> NDArray[Any]:
    names = np.empty(len(values), dtype=object)
    names[:] = [None if v is None else v if isinstance(v, str) else _name(v) for v in values.tolist()]
    return names


def _name(value: float | bool) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value != value else str(value)


def _number(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype == object:
        return np.array([np.nan if v is None else v for v in values.tolist()], dtype=np.float64)
    return values.astype(np.float64)


def _named(times: NDArray[Any], names: NDArray[Any], which: Callable[[NDArray[np.int64]], Any]) -> NDArray[Any]:
    if times.dtype != object:
        named: NDArray[Any] = names[which(times)]
        return named
    known = np.array([t is not None for t in times], dtype=np.bool_)
    named = np.full(len(times), None, dtype=object)
    named[known] = names[which(times[known].astype(np.int64))]
    return named


def _cross(columns: list[NDArray[Any]]) -> NDArray[Any]:
    crossed = np.empty(len(columns[0]), dtype=object)
    crossed[:] = [
        None if None in parts else "|".join(parts) for parts in zip(*(c.tolist() for c in columns), strict=True)
    ]
    return crossed
