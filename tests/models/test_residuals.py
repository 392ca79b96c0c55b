"""The calibration layer is what its formulas say, goes on to the bit anywhere, and repairs what is wrong in places."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.definition.features import HALF_LIVES
from headrace.errors import ModelError
from headrace.flow.scores import log_loss
from headrace.models.contract import Floats, Turns
from headrace.models.residuals import ResidualMeans
from headrace.models.snapshot import dump
from headrace.models.text import Text

MINUTE = 60_000_000


class Log:
    """Events at one minute each, labels some minutes later, in order; a twentieth of the labels never comes."""

    def __init__(self, n: int, places: int, seed: int, delay: int = 90) -> None:
        random = np.random.default_rng(seed)
        self.n = n
        self.logit = random.normal(-1, 1, n)
        self.place = random.integers(0, places, n)
        self.bias = random.normal(0, 1, places)
        self.at = np.arange(n) * MINUTE
        self.known = self.at + random.integers(1, delay, n) * MINUTE
        self.y = (random.random(n) < 1 / (1 + np.exp(-self.logit - self.bias[self.place]))).astype(np.float64)
        order = np.argsort(np.concatenate([self.at, self.known]), kind="stable")
        order = order[(order < n) | (order % 20 != 0)]
        self.order = np.where(order < n, order, n - 1 - order)
        names = [None if random.random() < 0.05 else f"p{place}" for place in self.place]
        self.X = {"place": Text.of(names), "odd": Text.of([f"o{place % 2}" for place in self.place])}
        self.missing = np.array([name is None for name in names])

    @property
    def p(self) -> Floats:
        return 1 / (1 + np.exp(-self.logit))


def follow(layer: ResidualMeans, log: Log, p: Floats, memo: Floats, out: Floats, first: int, last: int) -> None:
    """Some entries, as a learner hands them over: earlier events' memos come back from where they were kept."""
    order = log.order[first:last]
    events, labels = order[order >= 0], -1 - order[order < 0]
    begin = int(events[0]) if len(events) else 0
    place = {int(label): i for i, label in enumerate(labels)}
    local = np.array([o - begin if o >= 0 else -1 - place[-1 - int(o)] for o in order], dtype=np.int64)
    here = np.isin(labels, events)
    turns = Turns(
        local, np.zeros(len(events), dtype=np.int64), log.y[labels], np.ones(len(labels)), log.known[labels],
        np.where(here, labels - begin, -1), memo[labels], labels,
    )  # fmt: skip
    kept = np.full((len(events), memo.shape[1]), np.nan)
    keys = layer.keys_of(log.X)
    out[events] = layer.follow(turns, p[events], kept, 2, keys[events], keys)
    memo[events] = kept


def whole(layer: ResidualMeans, log: Log, p: Floats, cuts: NDArray[np.int64] | None = None) -> Floats:
    memo, out = np.full((log.n, 2 + layer.width), np.nan), np.full(log.n, np.nan)
    bounds = [0, *([] if cuts is None else cuts.tolist()), len(log.order)]
    for first, last in pairwise(bounds):
        follow(layer, log, p, memo, out, first, last)
    return out


def plainly(log: Log, p: Floats, outstanding: float) -> Floats:
    """The formulas, one entry after the other, with dictionaries and numpy's matrices."""
    lives, sums = list(HALF_LIVES.values()), dict[Any, list[Any]]()
    size = 2 + 3 * len(lives)
    w, now = np.eye(size)[0], 0.0
    P = 3 / (size * math.sqrt(1 + outstanding)) * np.eye(size)
    out, kept = np.empty(log.n), {}

    def keys(i: int) -> list[Any]:
        return ["all", None if log.missing[i] else ("place", log.place[i]), ("odd", log.place[i] % 2)]

    for entry in log.order.tolist():
        if entry >= 0:
            x = [math.log(p[entry] / (1 - p[entry]))]
            for key in keys(entry):
                S, V, T = sums.get(key, ([0.0] * len(lives), [0.0] * len(lives), now))
                d = [2.0 ** (-(now - T) / h) for h in lives]
                x += [s * a / (v * a + 0.3) for s, v, a in zip(S, V, d, strict=True)]
            kept[entry] = np.array([*x, 1.0])
            out[entry] = 1 / (1 + math.exp(-float(w @ kept[entry])))
            continue
        i = -1 - entry
        x, now, y = kept.pop(i), float(log.known[i]), log.y[i]
        q = 1 / (1 + math.exp(-float(w @ x)))
        h, u = max(q * (1 - q), 1e-3), P @ x
        e = 1 + h * float(x @ u)
        w = w + u * (y - q) / e
        P = P - (h / e) * np.outer(u, u)
        for key in keys(i):
            if key is None:
                continue
            S, V, T = sums.get(key, ([0.0] * len(lives), [0.0] * len(lives), now))
            d = [2.0 ** (-(now - T) / life) for life in lives]
            S = [s * a + y - p[i] for s, a in zip(S, d, strict=True)]
            V = [v * a + p[i] * (1 - p[i]) for v, a in zip(V, d, strict=True)]
            sums[key] = [S, V, now]
    return out


def test_it_is_what_the_formulas_say() -> None:
    log = Log(1500, 7, seed=1)
    found = whole(ResidualMeans(("place", "odd"), 30.0), log, log.p)
    np.testing.assert_allclose(found, plainly(log, log.p, 30.0), rtol=1e-8)
    assert np.abs(found - log.p).max() > 0.1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3_000), max_size=6).map(sorted), st.integers(0, 3))
def test_cuts_change_nothing(cuts: list[int], seed: int) -> None:
    """Also while the table grows: two thousand places."""
    log = Log(1_600, 2_000, seed=seed)
    one, other = ResidualMeans(("place", "odd"), 5.0), ResidualMeans(("place", "odd"), 5.0)
    p = whole(one, log, log.p)
    assert whole(other, log, log.p, np.array(cuts, dtype=np.int64)).tobytes() == p.tobytes()
    assert dump(*other.save()) == dump(*one.save())


def test_a_restored_layer_goes_on_to_the_bit() -> None:
    log = Log(2_000, 300, seed=3)
    one, memo, out = ResidualMeans(("place",), 5.0), np.full((2_000, 11), np.nan), np.full(2_000, np.nan)
    follow(one, log, log.p, memo, out, 0, 1_500)
    other, kept, again = ResidualMeans(("place",), 5.0), memo.copy(), out.copy()
    other.load(*one.save())
    follow(one, log, log.p, memo, out, 1_500, len(log.order))
    follow(other, log, log.p, kept, again, 1_500, len(log.order))
    assert again.tobytes() == out.tobytes()
    assert dump(*other.save()) == dump(*one.save())


def test_values_are_bounded() -> None:
    log = Log(6_000, 5_000, seed=4)
    layer = ResidualMeans(("place",), 5.0, max_values=100)
    assert np.isfinite(whole(layer, log, log.p)).all()
    assert len(layer.save()[0]["residuals_row"]) == 100


def test_a_state_of_other_bounds_is_refused() -> None:
    with pytest.raises(ModelError, match="at most 5 keys, expected"):
        ResidualMeans(("place",), 5.0).load(*ResidualMeans(("place",), 5.0, max_values=5).save())


def losses(log: Log, p: Floats) -> float:
    late = slice(log.n // 2, None)
    return float(log_loss(log.y[late], p[late])[0].mean())


def test_it_repairs_a_model_that_is_wrong_in_places() -> None:
    """The model knows nothing of places, each of which moves the logit by about one: a day of labels of each tells."""
    log = Log(60_000, 20, seed=5)
    truth = 1 / (1 + np.exp(-log.logit - log.bias[log.place]))
    mine, best, blind = (losses(log, p) for p in (whole(ResidualMeans(("place",), 60.0), log, log.p), truth, log.p))
    assert blind > 1.15 * best
    assert mine - best < 0.12 * (blind - best)


def test_it_costs_little_where_there_is_nothing_to_repair() -> None:
    log = Log(40_000, 20, seed=6)
    truth = 1 / (1 + np.exp(-log.logit - log.bias[log.place]))
    found = whole(ResidualMeans(("place", "odd"), 60.0), log, truth)
    assert losses(log, found) < 1.002 * losses(log, truth)


def test_it_knows_no_label_before_it_comes() -> None:
    log, other = Log(1_000, 10, seed=7), Log(1_000, 10, seed=7)
    late = log.known > 500 * MINUTE
    other.y[late] = 1 - other.y[late]
    mine, theirs = (whole(ResidualMeans(("place",), 5.0), one, one.p) for one in (log, other))
    assert mine[:501].tobytes() == theirs[:501].tobytes()
    assert np.abs(mine[520:] - theirs[520:]).max() > 0.1


def test_a_broken_model_stays_visible() -> None:
    log = Log(50, 3, seed=8)
    p = log.p
    p[7] = np.nan
    assert np.flatnonzero(np.isnan(whole(ResidualMeans(("place",), 5.0), log, p))).tolist() == [7]
