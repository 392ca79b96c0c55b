"""Log columns to model columns: names, missing values, times, and batches of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.columns import listed

from headrace import category, cross, day_of_week, hour_of_day, number, target_mean
from headrace.definition.stream import Stream
from headrace.events import micros
from headrace.flow.copybinary import encode, pack, unpack
from headrace.flow.features import Encoder, series
from headrace.flow.pgtypes import INT8, TEXT, Column
from headrace.models.text import Text


@pytest.fixture
def stream(small: Stream) -> Stream:
    features = [
        category("colour", "flag", "code"),
        number("size", "count", "active"),
        hour_of_day("seen_at"),
        day_of_week("day"),
        cross("colour", "code"),
        target_mean("colour"),
    ]
    return replace(small, features=features, slices=[])


def objects(*values: Any) -> NDArray[Any]:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def log() -> dict[str, NDArray[Any]]:
    thursday, late_sunday = micros(datetime(1970, 1, 1, tzinfo=UTC)), micros(datetime(1969, 12, 28, 23, 59, tzinfo=UTC))
    return {
        "event_time": np.array([thursday, late_sunday, micros(datetime(2020, 2, 29, 13, 5, tzinfo=UTC))]),
        "colour": objects("a", None, "b|c"),
        "flag": objects(True, None, False),
        "code": np.array([7, -1, 0]),
        "size": np.array([1.5, math.nan, -0.0]),
        "count": objects(3, None, 2**62),
        "active": np.array([True, False, True]),
        "day": objects(late_sunday, None, thursday),
    }


def test_every_kind_of_feature(stream: Stream) -> None:
    encoder = Encoder(stream)
    assert encoder.log_columns == ("colour", "flag", "code", "size", "count", "active", "event_time", "day")
    assert encoder.mean_keys == ("colour",)
    X = {name: listed(values) for name, values in encoder(log()).items()}
    assert X["colour"] == ["a", None, "b|c"]
    assert X["flag"] == ["true", None, "false"]
    assert X["code"] == ["7", "-1", "0"]
    assert repr(X["size"]) == "[1.5, nan, -0.0]"
    assert repr(X["count"]) == f"[3.0, nan, {float(2**62)}]"
    assert X["active"] == [1.0, 0.0, 1.0]
    assert X["seen_at_hour"] == ["0", "23", "13"]
    assert X["day_weekday"] == ["6", None, "3"]
    assert X["colour_x_code"] == ["a|7", None, "b|c|0"]
    assert list(X) == [name for f in stream.features if f.kind != "target_mean" for name in f.names()]


def test_rows_do_not_see_each_other(stream: Stream) -> None:
    """Whatever form a column has: an array, a column with NULLs, text in one buffer, or Python objects."""
    encoder, whole = Encoder(stream), Encoder(stream)(log())
    for i in range(3):
        row = {name: values[i : i + 1] for name, values in log().items()}
        for name, values in encoder({n: _typed(v) for n, v in row.items()}).items():
            assert type(values) is type(whole[name])
            assert repr(listed(values)) == repr(listed(whole[name][i : i + 1]))
    assert {len(v) for v in encoder({n: v[:0] for n, v in log().items()}).values()} == {0}


def _typed(values: NDArray[Any]) -> Any:
    """One row as the log gives it."""
    if values.dtype != object:
        return values
    value = values[0]
    if isinstance(value, str):
        return Text.of([value])
    return Column(np.array([0 if value is None else value]), np.array([value is None]))


@settings(deadline=None)
@given(st.datetimes())
def test_hours_and_weekdays_are_those_of_utc(small: Stream, naive: datetime) -> None:
    time = naive.replace(tzinfo=UTC)
    features = [hour_of_day("seen_at"), day_of_week("seen_at")]
    X = Encoder(replace(small, features=features))({"event_time": np.array([micros(time)])})
    assert listed(X["seen_at_hour"]) == [str(time.hour)]
    assert listed(X["seen_at_weekday"]) == [str(time.weekday())]


def test_what_the_log_gives_is_encoded_without_python_objects() -> None:
    names, whole = ["é", None, "", "é"], np.array([7, 0, -1, 2**62])
    null = np.array([False, True, False, False])
    cells = unpack(pack([encode(names, TEXT), encode(whole, INT8, null), encode(whole, INT8)]))
    text, nullable, integers = (series(cells, i, oid) for i, oid in enumerate((TEXT, INT8, INT8)))
    assert isinstance(text, Text)
    assert text.names().tolist() == names
    assert isinstance(nullable, Column)
    assert nullable.null.tolist() == null.tolist()
    assert integers.tolist() == whole.tolist()


def test_columns_of_the_small_stream(small: Stream) -> None:
    encoder = Encoder(small)
    columns: Mapping[str, NDArray[Any]] = {
        "event_time": np.array([0]), "colour": objects("a"), "place": objects("p"), "size": np.array([1.0])
    }  # fmt: skip
    assert encoder.log_columns == ("colour", "place", "size", "event_time")
    assert list(encoder(columns)) == ["colour", "place", "size", "seen_at_hour", "colour_x_place"]
