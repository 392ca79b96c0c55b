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

from headrace import category, cross, day_of_week, hour_of_day, number, target_mean
from headrace.definition.stream import Stream
from headrace.events import micros
from headrace.flow.features import Encoder, plain
from headrace.flow.pgtypes import Column


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
    X = {name: values.tolist() for name, values in encoder(log()).items()}
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
    """Also when a batch has no NULL at all, and so columns of another dtype."""
    encoder, whole = Encoder(stream), Encoder(stream)(log())
    for i in range(3):
        row = {name: values[i : i + 1] for name, values in log().items()}
        typed = {n: v if v.dtype != object or v[0] is None else plain(_column(v[0])) for n, v in row.items()}
        assert typed["day"].dtype == (object if i == 1 else np.int64)
        for name, values in encoder(typed).items():
            assert values.dtype == whole[name].dtype
            assert repr(values.tolist()) == repr(whole[name][i : i + 1].tolist())
    assert {len(v) for v in encoder({n: v[:0] for n, v in log().items()}).values()} == {0}


def _column(value: Any) -> Column:
    return Column(objects(value) if isinstance(value, str) else np.array([value]), np.array([False]))


@settings(deadline=None)
@given(st.datetimes())
def test_hours_and_weekdays_are_those_of_utc(small: Stream, naive: datetime) -> None:
    time = naive.replace(tzinfo=UTC)
    features = [hour_of_day("seen_at"), day_of_week("seen_at")]
    X = Encoder(replace(small, features=features))({"event_time": np.array([micros(time)])})
    assert X["seen_at_hour"].tolist() == [str(time.hour)]
    assert X["seen_at_weekday"].tolist() == [str(time.weekday())]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (Column(np.array([1, 2]), np.array([False, False])), "array([1, 2])"),
        (Column(np.array([True, False]), np.array([False, True])), "array([True, None], dtype=object)"),
        (Column(np.array([1.0, math.nan]), np.array([False, True])), "array([ 1., nan])"),
        (Column(objects("a", None), np.array([False, True])), "array(['a', None], dtype=object)"),
    ],
)
def test_plain(column: Column, expected: str) -> None:
    assert repr(plain(column)) == expected


def test_columns_of_the_small_stream(small: Stream) -> None:
    encoder = Encoder(small)
    columns: Mapping[str, NDArray[Any]] = {
        "event_time": np.array([0]), "colour": objects("a"), "place": objects("p"), "size": np.array([1.0])
    }  # fmt: skip
    assert encoder.log_columns == ("colour", "place", "size", "event_time")
    assert list(encoder(columns)) == ["colour", "place", "size", "seen_at_hour", "colour_x_place"]
