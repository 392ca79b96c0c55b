"""The gate against a plain account of what a contract means, on edge values of every type; admission accounts for all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Label, Source, Stream, category, col, expect, number, recipes
from headrace.definition.columns import Expression
from headrace.definition.expect import Expectation
from headrace.events import LogColumn, micros
from headrace.flow.admit import Admission, Stretch
from headrace.flow.copybinary import encode, pack, unpack
from headrace.flow.gate import Gate, Rows, compile_expectation, event_gate, label_gate, label_values
from headrace.flow.pgtypes import (
    BOOL,
    FLOAT8,
    INT4,
    INT8,
    NEGATIVE_INFINITY,
    POSITIVE_INFINITY,
    TEXT,
    TIMESTAMPTZ,
)
from headrace.flow.steps import NO_TIME, Op

NOW = micros(datetime(2020, 5, 1, tzinfo=UTC))
HOUR = 3_600_000_000


def rows_of(columns: Mapping[str, tuple[int, Sequence[Any]]]) -> Rows:
    """Rows as they come from a server: values by column name, with the column's type."""
    fields = []
    for oid, values in columns.values():
        null = np.array([v is None for v in values])
        if oid == TEXT:
            fields.append(encode(list(values), oid))
            continue
        dtype = {FLOAT8: np.float64, BOOL: np.bool_, INT4: np.int32}.get(oid, np.int64)
        fields.append(encode(np.array([0 if v is None else v for v in values], dtype=dtype), oid, null))
    cells = unpack(pack(fields).tobytes(), tuple(columns))
    return Rows(cells, {name: (i, oid) for i, (name, (oid, _)) in enumerate(columns.items())})


floats = st.one_of(
    st.none(), st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 0.0, 10.0, 20.0, 5e-324]), st.floats(-100, 100)
)
ints = st.one_of(st.none(), st.sampled_from([0, 10, 20, -(2**63), 2**63 - 1]), st.integers(-30, 30))
texts = st.one_of(
    st.none(), st.sampled_from(["", "AA", "B6", "aa", "A", "naïve ☂", "x" * 300, "AA\n"]), st.text("AB6", max_size=4)
)


def keeps(kind: str, value: Any, params: Mapping[str, Any], other: Any = None) -> bool:
    """What SQL says of one value; NaN is greater than every number there."""
    if kind == "not_null":
        return value is not None
    if value is None:
        return True
    match kind:
        case "finite":
            return not isinstance(value, float) or math.isfinite(value)
        case "between":
            low, high = params["minimum"], params["maximum"]
            if isinstance(value, float) and math.isnan(value):
                return high is None
            return (low is None or value >= low) and (high is None or value <= high)
        case "in_set":
            return value in params["values"]
        case "not_in_set":
            return value not in params["values"]
        case "regex":
            return re.search(params["pattern"].replace("$", r"\Z"), value) is not None
        case "length":
            low, high = params["minimum"], params["maximum"]
            return (low is None or len(value) >= low) and (high is None or len(value) <= high)
        case "less_than":
            if other is None:
                return True
            if isinstance(value, float) and math.isnan(value):
                return False
            return bool(value < other) or (isinstance(other, float) and math.isnan(other))
    raise AssertionError(kind)


bounds = st.sampled_from([(None, None), (0, None), (None, 20), (0, 20), (10, 10), (-math.inf, math.inf)])
cases = st.one_of(
    st.tuples(
        st.one_of(
            st.just(expect.not_null("v")),
            st.just(expect.finite("v")),
            bounds.map(lambda b: expect.between("v", *b)),
            st.just(expect.less_than("v", "w")),
        ),
        st.just(FLOAT8),
        st.lists(st.tuples(floats, floats), min_size=1, max_size=30),
    ),
    st.tuples(
        st.one_of(
            st.just(expect.not_null("v")),
            st.just(expect.finite("v")),
            bounds.map(lambda b: expect.between("v", *b)),
            st.just(expect.in_set("v", {0, 10, 7})),
            st.just(expect.not_in_set("v", {0, 10, 7})),
            st.just(expect.less_than("v", "w")),
        ),
        st.just(INT8),
        st.lists(st.tuples(ints, ints), min_size=1, max_size=30),
    ),
    st.tuples(
        st.one_of(
            st.just(expect.not_null("v")),
            st.just(expect.in_set("v", {"AA", "B6"})),
            st.just(expect.not_in_set("v", {"AA", ""})),
            st.sampled_from(["^[A-Z0-9]{2}$", "A", "^$", "☂"]).map(lambda p: expect.regex("v", p)),
            st.sampled_from([(None, None), (2, None), (None, 2), (2, 2), (0, 0)]).map(lambda b: expect.length("v", *b)),
            st.just(expect.less_than("v", "w")),
        ),
        st.just(TEXT),
        st.lists(st.tuples(texts, texts), min_size=1, max_size=30),
    ),
)


@settings(max_examples=500, deadline=None)
@given(cases)
def test_the_compiled_gate_agrees_with_a_plain_one(case: tuple[Expectation, int, list[tuple[Any, Any]]]) -> None:
    expectation, oid, pairs = case
    n = len(pairs)
    rows = rows_of(
        {"v": (oid, [v for v, _ in pairs]), "w": (oid, [w for _, w in pairs]), "t": (TIMESTAMPTZ, [NOW] * n)}
    )
    verdict = Gate(compile_expectation(expectation), "t", 0).check(rows, np.full(n, NOW))
    expected = [0 if not keeps(expectation.kind, v, expectation.params, w) else -1 for v, w in pairs]
    assert verdict.tolist() == expected


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [("^AA$", ["AA"]), ("^A.A$", ["A\nA"]), (r"^\d$", ["7"]), ("[$]", ["$"]), (r"\$$", ["$"]), (r"^\w$", ["7"])],
)
def test_a_regular_expression_means_what_postgres_takes_it_for(pattern: str, kept: list[str]) -> None:
    values = ["AA", "AA\n", "A\nA", "7", "٣", "$", "é"]
    verdict = Gate(compile_expectation(expect.regex("v", pattern)), (), 0).check(rows_of({"v": (TEXT, values)}), NOW)
    assert [v for v, broken in zip(values, verdict.tolist(), strict=True) if broken < 0] == kept


@pytest.mark.parametrize("kind", [expect.label_rate(0.1, 0.2), expect.row_count(10), expect.unique("v")])
def test_window_level_kinds_are_not_the_gates_work(kind: Expectation) -> None:
    assert not kind.per_row
    with pytest.raises(ValueError, match="judges windows, not rows"):
        compile_expectation(replace(kind, columns=("v",)))


STREAM = Stream(
    name="visits",
    source=Source(conn_id="c", table="public.visits", key="id", event_time="seen_at"),
    label=Label(
        table="public.outcomes",
        key="id",
        value=col("score") > 15,
        label_time="known_at",
        window=timedelta(hours=8),
        if_missing="drop",
    ),
    features=[category("kind"), number("size")],
    contract=[expect.in_set("kind", {"a", "b"}), expect.between("size", 0, 10)],
    champion=recipes.river(dict),
)
COLUMNS = (
    LogColumn("key", "id", INT8, "bigint"),
    LogColumn("event_time", "seen_at", TIMESTAMPTZ, "timestamp with time zone"),
    LogColumn("kind", "kind", TEXT, "text"),
    LogColumn("size", "size", FLOAT8, "double precision"),
)

GOOD = (1, NOW, "a", 3.0)
EVENTS = [
    (GOOD, None, None),
    ((None, NOW, "a", 3.0), "not_null(id)", "id is NULL, expected a value"),
    ((1, None, "a", 3.0), "not_null(seen_at)", "seen_at is NULL, expected a value"),
    (
        (1, POSITIVE_INFINITY, "a", 3.0),
        "finite(seen_at)",
        "seen_at is 'infinity', expected a time between the years 1 and 9999",
    ),
    (
        (1, NEGATIVE_INFINITY, "a", 3.0),
        "finite(seen_at)",
        "seen_at is '-infinity', expected a time between the years 1 and 9999",
    ),
    (
        (1, 253_402_300_800_000_000, "a", 3.0),
        "finite(seen_at)",
        "seen_at is '10000-01-01T00:00:00.000000+00:00', expected a time between the years 1 and 9999",
    ),
    (
        (1, -62_135_596_800_000_001, "a", 3.0),
        "finite(seen_at)",
        "seen_at is '0000-12-31T23:59:59.999999+00:00', expected a time between the years 1 and 9999",
    ),
    ((1, NOW, "a", math.nan), "finite(size)", "size is 'nan', expected a finite number"),
    ((1, NOW, "a", -math.inf), "finite(size)", "size is '-inf', expected a finite number"),
    ((1, NOW, None, None), None, None),
    ((1, NOW, "c", 3.0), "in_set(kind, {a, b})", "kind is 'c', expected one of a, b"),
    ((1, NOW, "c" * 100, 3.0), "in_set(kind, {a, b})", f"kind is '{'c' * 80}'..., expected one of a, b"),
    ((1, NOW, "a", 10.5), "between(size, 0, 10)", "size is '10.5', expected between 0 and 10"),
    ((1, NOW + 2 * HOUR, "a", 10.0), None, None),
    (
        (1, NOW + 2 * HOUR + 1, "a", 1.0),
        "not_ahead",
        "seen_at is 2020-05-01T02:00:00.000001+00:00, expected at most 2 h after its commit (source.max_ahead)",
    ),
    ((1, NOW - 10**15, "a", 1.0), None, None),
]


def events(rows: Sequence[tuple[Any, ...]]) -> Rows:
    columns = list(zip(*rows, strict=True))
    names = (("id", INT8), ("seen_at", TIMESTAMPTZ), ("kind", TEXT), ("size", FLOAT8))
    return rows_of({name: (oid, column) for (name, oid), column in zip(names, columns, strict=True)})


@pytest.mark.parametrize(("row", "name", "reason"), EVENTS)
def test_an_event_is_refused_with_a_reason(row: tuple[Any, ...], name: str | None, reason: str | None) -> None:
    rows, gate = events([GOOD, row]), event_gate(STREAM)
    first, verdict = gate.check(rows, np.full(2, NOW)).tolist()
    assert first == -1
    if name is None:
        assert verdict == -1
    else:
        found = gate.explain(rows.contents(np.array([1]))[0], verdict)
        assert (found[0], found[2]) == (name, reason)


def outcomes(rows: Sequence[tuple[Any, ...]], oid: int = INT4) -> Rows:
    columns = list(zip(*rows, strict=True))
    names = (("id", INT8), ("score", oid), ("known_at", TIMESTAMPTZ))
    return rows_of({name: (oid, column) for (name, oid), column in zip(names, columns, strict=True)})


VALUES: list[tuple[Expression, int, list[Any], list[float | str]]] = [
    (col("score") > 15, INT4, [20, 15, None], [1.0, 0.0, math.nan]),
    (col("score") >= 15, FLOAT8, [15.0, math.nan, math.inf, None], [1.0, "refused", "refused", math.nan]),
    (col("score") < 0, INT8, [-1, 0], [1.0, 0.0]),
    (col("score") == "won", TEXT, ["won", "lost", None], [1.0, 0.0, math.nan]),
    (col("score") != 3, INT4, [3, 4, None], [0.0, 1.0, math.nan]),
    (col("score"), BOOL, [True, False, None], [1.0, 0.0, math.nan]),
    (col("score"), INT4, [1, 0, 2, -1, None], [1.0, 0.0, "refused", "refused", math.nan]),
    (col("score"), FLOAT8, [1.0, 0.5, math.nan, None], [1.0, "refused", "refused", math.nan]),
    (col("score").is_present(), TEXT, ["x", None], [1.0, 0.0]),
]


@pytest.mark.parametrize(("expression", "oid", "values", "expected"), VALUES)
def test_label_values(expression: Expression, oid: int, values: list[Any], expected: list[float | str]) -> None:
    stream = replace(STREAM, label=replace(STREAM.label, value=expression))
    rows = outcomes([(i, v, NOW) for i, v in enumerate(values)], oid)
    verdict = label_gate(stream).check(rows, np.full(len(values), NOW))
    y = label_values(expression, rows["score"])
    assert repr([float(v) if ok < 0 else "refused" for v, ok in zip(y, verdict, strict=True)]) == repr(expected)


def stretch(rows: Rows, order: Sequence[int], commit: Sequence[int] | None = None, old: Rows | None = None) -> Stretch:
    commits = np.array(commit or [0] * len(order), dtype=np.int64)
    return Stretch(rows, np.array(order, dtype=np.int64), commits, np.full(len(order), NOW), old)


def admission(rows: Rows) -> Admission:
    made = Admission(STREAM, COLUMNS)
    made.events(stretch(rows, range(len(rows))))
    return made


def test_every_row_is_let_in_or_refused_whole() -> None:
    made = admission(events([row for row, _, _ in EVENTS]))
    refused = [name for _, name, _ in EVENTS if name]
    assert made.received == len(EVENTS)
    assert [r.expectation for r in made.refusals] == refused
    assert len(made.chunk(np.zeros(1, dtype=np.int64)).key) == len(EVENTS) - len(refused)
    assert made.refusals[0].content == {"id": None, "seen_at": "2020-05-01T00:00:00+00:00", "kind": "a", "size": "3.0"}
    assert made.refusals[-1].key == "1"


def test_changes_come_out_in_the_order_of_the_stream() -> None:
    made = Admission(STREAM, COLUMNS)
    made.labels(stretch(outcomes([(1, 20, NOW + 5), (2, None, NOW + 6)]), [1, 3], [0, 1]))
    made.events(stretch(events([GOOD, (2, NOW, "b", 1.0)]), [0, 2], [0, 1]))
    made.unlabels(stretch(outcomes([(1, None, None)]), [4], [1]))
    chunk = made.chunk(np.zeros(2, dtype=np.int64))
    assert chunk.op.tolist() == [Op.EVENT, Op.LABEL, Op.EVENT, Op.UNLABEL, Op.UNLABEL]
    assert [int.from_bytes(key, "big") for key in chunk.key] == [1, 1, 2, 2, 1]
    assert chunk.time.tolist() == [NOW, NOW + 5, NOW, NOW + 6, NO_TIME]
    assert chunk.commit.tolist() == [0, 0, 1, 1, 1]
    assert made.received == 5
    first, fields = made.groups[0]
    at = np.array(chunk.row)[chunk.op == Op.EVENT] - first
    assert [int.from_bytes(fields[0].bytes_at(i), "big") for i in at.tolist()] == [1, 2]


def test_a_deleted_label_that_does_not_name_its_event_is_refused() -> None:
    made = Admission(STREAM, COLUMNS)
    made.unlabels(stretch(outcomes([(None, 20, None), (7, None, None)]), [0, 1]))
    chunk = made.chunk(np.zeros(1, dtype=np.int64))
    assert (made.received, len(chunk.key), len(made.refusals)) == (2, 1, 1)
    assert int.from_bytes(chunk.key[0], "big") == 7
    assert made.refusals[0].reason == (
        "the deleted row does not say its id, expected it in the replica identity of public.outcomes: ALTER TABLE "
        "public.outcomes REPLICA IDENTITY FULL"
    )


def test_the_refusal_of_a_duplicate_shows_its_row() -> None:
    made = Admission(STREAM, COLUMNS)
    made.labels(stretch(outcomes([(9, 1, NOW)]), [0]))
    made.events(stretch(events([GOOD, (5, NOW, "b", 2.0)]), [1, 2]))
    refusal = made.duplicate(1, 0)
    assert refusal.reason == "id is '5', which an event that waits for its label has already"
    assert refusal.content["kind"] == "b"
