"""Target means equal a plain-Python reading of their formula, however the log is cut, saved and restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.definition.features import HALF_LIVES
from headrace.errors import ModelError
from headrace.models.snapshot import dump, parse
from headrace.models.target_mean import TargetMeans

KEYS = ("carrier", "origin")
PRIOR = 0.3

entries = st.lists(
    st.tuples(
        st.integers(0, 20 * 3_600_000_000),  # microseconds since the entry before
        st.booleans(),  # a label
        st.sampled_from(["AA", "B6", None]),
        st.sampled_from(["JFK", "LGA", "é", None]),
        st.sampled_from([0.0, 1.0]),
        st.sampled_from([1.0, 10.0]),
    ),
    max_size=40,
)
Entry = tuple[int, bool, str | None, str | None, float, float]


class Oracle:
    """The formula, one dictionary a key and half-life."""

    def __init__(self) -> None:
        self.state: dict[tuple[str, str | None, str], tuple[float, float, int]] = {}

    def at(self, key: str, value: str | None, half: str, now: int, towards: float) -> float:
        positive, total, last = self.state.get((key, value, half), (0.0, 0.0, 0))
        d = 2.0 ** (-(now - last) / HALF_LIVES[half])
        return (positive * d + 10 * towards) / (total * d + 10)

    def event(self, carrier: str | None, origin: str | None, now: int) -> dict[str, float]:
        out = {}
        for half in HALF_LIVES:
            g = out[f"mean_all_{half}"] = self.at("all", "", half, now, PRIOR)
            for key, value in zip(KEYS, (carrier, origin), strict=True):
                out[f"mean_{key}_{half}"] = g if value is None else self.at(key, value, half, now, g)
        return out

    def label(self, carrier: str | None, origin: str | None, now: int, y: float, weight: float) -> None:
        for half, h in HALF_LIVES.items():
            for key, value in (("all", ""), ("carrier", carrier), ("origin", origin)):
                if value is not None:
                    positive, total, last = self.state.get((key, value, half), (0.0, 0.0, now))
                    d = 2.0 ** (-(now - last) / h)
                    self.state[key, value, half] = (positive * d + weight * y, total * d + weight, now)


def arrays(log: list[Entry]) -> dict[str, Any]:
    def text(column: int) -> NDArray[Any]:
        values = np.empty(len(log), dtype=object)
        values[:] = [entry[column] for entry in log]
        return values

    return {
        "values": TargetMeans(KEYS, PRIOR).keys_of({"carrier": text(2), "origin": text(3)}),
        "is_label": np.array([entry[1] for entry in log], dtype=np.bool_),
        "y": np.array([entry[4] if entry[1] else np.nan for entry in log], dtype=np.float64),
        "weight": np.array([entry[5] for entry in log], dtype=np.float64),
        "clock": np.cumsum([entry[0] for entry in log], dtype=np.int64),
    }


def cut(log: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {name: part[rows] for name, part in log.items()}


@given(entries)
def test_equals_the_formula(log: list[Entry]) -> None:
    given_log = arrays(log)
    found = TargetMeans(KEYS, PRIOR).run(**given_log)
    oracle, expected = Oracle(), []
    for (_, is_label, carrier, origin, y, weight), now in zip(log, given_log["clock"].tolist(), strict=True):
        if is_label:
            oracle.label(carrier, origin, now, y, weight)
        else:
            expected.append(oracle.event(carrier, origin, now))
    assert set(found) == set(Oracle().event(None, None, 0))
    for name, values in found.items():
        np.testing.assert_allclose(values, [row[name] for row in expected], rtol=1e-12)


@settings(deadline=None)
@given(entries, st.integers(1, 7), st.integers(0, 40))
def test_batches_and_restores_give_the_same_bits(log: list[Entry], size: int, restore_at: int) -> None:
    given_log = arrays(log)
    whole = TargetMeans(KEYS, PRIOR)
    expected = whole.run(**given_log)
    means, pieces = TargetMeans(KEYS, PRIOR), []
    for at in range(0, len(log), size):
        if at <= restore_at < at + size:
            restored = TargetMeans(KEYS, 0.9)
            restored.load(*parse(dump(*means.save())))
            means = restored
        pieces.append(means.run(**cut(given_log, slice(at, at + size))))
    pieces.append(means.run(**cut(given_log, slice(0, 0))))  # a part of the log without entries
    for name, values in expected.items():
        assert b"".join(piece[name].tobytes() for piece in pieces) == values.tobytes()
    assert dump(*means.save()) == dump(*whole.save())


@given(entries.filter(bool))
def test_peek_reads_what_an_event_would_and_changes_nothing(log: list[Entry]) -> None:
    given_log = arrays([(gap, True, *rest) for gap, _, *rest in log])
    means = TargetMeans(KEYS, PRIOR)
    means.run(**given_log)
    before = dump(*means.save())
    names = {"carrier": np.array(["AA", "ZZ"], dtype=object), "origin": np.array([None, "JFK"], dtype=object)}
    event: dict[str, Any] = {
        "values": means.keys_of(names),
        "clock": np.full(2, given_log["clock"][-1] + 60_000_000),
    }
    peeked = means.peek(**event)
    assert dump(*means.save()) == before
    ran = means.run(**event, is_label=np.zeros(2, dtype=np.bool_), y=np.full(2, np.nan), weight=np.ones(2))
    for name, values in ran.items():
        assert peeked[name].tobytes() == values.tobytes()


def test_many_values_outgrow_the_first_table() -> None:
    n = 1000
    means = TargetMeans(("tail",), PRIOR)
    names = means.keys_of({"tail": np.array([f"N{i}" for i in range(n)], dtype=object)})
    clock = np.arange(n, dtype=np.int64)
    means.run(names, np.ones(n, dtype=np.bool_), np.ones(n), np.ones(n), clock)
    at = means.peek(names, np.full(n, n, dtype=np.int64))
    g = (n + 10 * PRIOR) / (n + 10)
    np.testing.assert_allclose(at["mean_tail_1d"], (1 + 10 * g) / 11, rtol=1e-6)


def test_a_table_may_have_to_grow_at_the_first_entry_of_a_batch() -> None:
    """A learner at the log's edge reads one label at a time."""
    n = 3_000
    whole, single = TargetMeans(("tail",), PRIOR), TargetMeans(("tail",), PRIOR)
    keys = whole.keys_of({"tail": np.array([f"N{i}" for i in range(n)], dtype=object)})
    is_label, ones, clock = np.ones(n, dtype=np.bool_), np.ones(n), np.arange(n, dtype=np.int64)
    whole.run(keys, is_label, ones, ones, clock)
    for i in range(n):
        single.run(keys[i : i + 1], is_label[:1], ones[:1], ones[:1], clock[i : i + 1])
    assert dump(*single.save()) == dump(*whole.save())


def test_memory_is_bounded_and_what_had_no_label_for_longest_goes() -> None:
    n = 2_000
    bounded, free = TargetMeans(("tail",), PRIOR, max_values=100), TargetMeans(("tail",), PRIOR)
    clock = np.arange(2 * n, dtype=np.int64) * 1_000_000
    tails = np.array([name for i in range(n) for name in ("often", f"N{i}")], dtype=object)
    for means in (bounded, free):
        ones = np.ones(2 * n)
        means.run(means.keys_of({"tail": tails}), ones == 1, (tails == "often").astype(float), ones, clock)
    assert (len(bounded), len(free)) == (100, n + 1)
    now = np.full(1, clock[-1])
    often = np.array(["often"], dtype=object)
    at, without = (m.peek(m.keys_of({"tail": often}), now) for m in (bounded, free))
    assert {name: values.tolist() for name, values in at.items()} == {k: v.tolist() for k, v in without.items()}
    restored = TargetMeans(("tail",), PRIOR, max_values=100)
    restored.load(*parse(dump(*bounded.save())))
    more = np.array([f"M{i}" for i in range(50)], dtype=object)
    for means in (bounded, restored):
        means.run(means.keys_of({"tail": more}), np.ones(50) == 1, np.ones(50), np.ones(50), now.repeat(50))
    assert dump(*restored.save()) == dump(*bounded.save())


def test_a_falling_clock_is_refused() -> None:
    means = TargetMeans((), PRIOR)
    log: dict[str, Any] = {
        "values": np.empty((1, 0), dtype=np.uint64),
        "is_label": np.array([True]),
        "y": np.ones(1),
        "weight": np.ones(1),
    }
    means.run(**log, clock=np.array([5]))
    with pytest.raises(ModelError, match="found a clock that falls"):
        means.run(**log, clock=np.array([4]))


def test_a_state_of_other_keys_is_refused() -> None:
    state = TargetMeans(("carrier",), PRIOR).save()
    with pytest.raises(ModelError, match=r"over \['carrier'\], expected \['origin'\]"):
        TargetMeans(("origin",), PRIOR).load(*state)


def test_clocks_before_1970_are_clocks() -> None:
    """A row that has no label yet has no time either: what lies long before the epoch must not decay it backwards."""
    read = []
    for start in (-(10**17), 10**15):
        means = TargetMeans(KEYS, PRIOR)
        values = means.keys_of(
            {"carrier": np.array(["AA"] * 4, dtype=object), "origin": np.array([None] * 4, dtype=object)}
        )
        clock = start + np.arange(4, dtype=np.int64) * 3_600_000_000
        is_label, ones = np.array([False, True, False, False]), np.ones(4)
        read.append(means.run(values, is_label, ones, ones, clock))
    for name in read[0]:
        assert read[0][name].tolist() == read[1][name].tolist()
        assert np.isfinite(read[0][name]).all()
