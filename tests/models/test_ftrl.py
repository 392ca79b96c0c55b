"""FTRL equals the paper's algorithm, row by row; and what keeps its memory bounded costs nothing that matters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.bench.oracles import Seen, Vw

from headrace.definition import recipes
from headrace.errors import ModelError
from headrace.flow.scores import log_loss
from headrace.models.build import fresh
from headrace.models.checks import check_model
from headrace.models.contract import Floats, Sequential, take
from headrace.models.ftrl import Ftrl
from headrace.models.snapshot import dump, parse
from headrace.models.table import EVICTED

Make = Callable[..., Any]
DAY = 86_400_000_000


def online(model: Ftrl, X: dict[str, Any], y: Floats, clock: NDArray[np.int64] | None = None) -> Floats:
    """Predict each row, then learn it."""
    prepared, n = model.prepare(X), len(y)
    clock = np.arange(n, dtype=np.int64) if clock is None else clock
    order = np.stack([np.arange(n), ~np.arange(n)], axis=1).ravel()
    return model.run(order, prepared, prepared, y, np.ones(n), clock)


def plainly(
    X: dict[str, Any], y: Floats, *, alpha: float, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0
) -> Floats:
    """The paper's Algorithm 1 in dictionaries, over river's scaler; river's own FTRL uses each weight a step late."""
    from river import preprocessing

    scaler, p = preprocessing.StandardScaler(), []
    state: dict[str, tuple[float, float]] = {}

    def weight(name: str) -> float:
        z, n = state.get(name, (0.0, 0.0))
        return 0.0 if abs(z) <= l1 else -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2)

    def features(i: int, *, learns: bool) -> dict[str, float]:
        row = {name: values[i] for name, values in X.items() if values[i] is not None and values[i] == values[i]}
        numbers = {name: float(v) for name, v in row.items() if not isinstance(v, str)}
        if learns:
            scaler.learn_one(numbers)
        one_hot = {f"{name}={v}": 1.0 for name, v in row.items() if isinstance(v, str)}
        scaled = {name: float(np.clip(v, -8.0, 8.0)) for name, v in scaler.transform_one(numbers).items()}
        return {"bias": 1.0, **one_hot, **scaled}

    def predict(x: dict[str, float]) -> float:
        return float(1 / (1 + np.exp(-sum(weight(name) * value for name, value in x.items()))))

    for i, label in enumerate(y.tolist()):
        p.append(predict(features(i, learns=False)))
        x = features(i, learns=True)
        error = predict(x) - label
        changed = {}
        for name, value in x.items():
            z, n = state.get(name, (0.0, 0.0))
            g = error * value
            changed[name] = (z + g - (np.sqrt(n + g * g) - np.sqrt(n)) / alpha * weight(name), n + g * g)
        state |= changed
    return np.array(p)


@pytest.mark.parametrize(
    "params", [{"alpha": 0.1}, {"alpha": 0.5, "beta": 0.3, "l1": 0.7, "l2": 0.2}, {"alpha": 2.0, "l1": 3.0}]
)
def test_equals_the_papers_algorithm(stream: Make, params: dict[str, float]) -> None:
    X, y, _, _ = stream(1_500)
    ours = online(Ftrl(**params, bins=False), X, y)  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, plainly(X, y, **params), rtol=0, atol=1e-9)


@pytest.mark.parametrize("l1", [0.0, 0.5])
def test_equals_vw(stream: Make, tmp_path: Path, l1: float) -> None:
    """Labels come late and in another order; VW computes in single precision."""
    X, y, _, _ = stream(3_000)
    delay = np.random.default_rng(3).integers(1, 200, 3_000)
    row = np.argsort(np.arange(3_000) + delay, kind="stable")
    times = np.concatenate([np.arange(3_000), np.sort(np.arange(3_000) + delay)])
    order = np.argsort(times, kind="stable")
    order = np.where(order < 3_000, order, 2_999 - order)
    params = {"alpha": 0.2, "beta": 1.0, "l1": l1, "l2": 0.1}
    model = Ftrl(**params, bins=False)  # type: ignore[arg-type]
    prepared = model.prepare(X)
    p = model.run(order, prepared, prepared, y[row], np.ones(3_000), np.arange(3_000), row)
    at_event, _ = Vw(Seen.of(prepared["keys"], prepared["numbers"], order, row, y[row]), params, tmp_path).predictions()
    np.testing.assert_allclose(p, at_event, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.ftrl(),
        recipes.ftrl(pairs=True, bins=False, l1=0.5),
        recipes.ftrl(admit_after=3, max_weights=40),
    ],
)
def test_keeps_the_contract(recipe: recipes.Recipe, stream: Make) -> None:
    X, y, _, _ = stream(300, seed=1)
    check_model(lambda: fresh(recipe, key=b""), X, y)


@pytest.mark.parametrize("seed", range(3))
def test_one_call_and_turns_give_the_same_bits(stream: Make, seed: int) -> None:
    """However a range is cut, and when a table is full of what expires."""
    X, y, _, _ = stream(600, seed)
    options: dict[str, Any] = {"pairs": True, "admit_after": 2, "max_weights": 300, "expire_after": 50}
    random = np.random.default_rng(seed)
    order = random.permutation(np.concatenate([np.arange(600), ~np.arange(600)]))
    clock = np.empty(600, dtype=np.int64)
    labels = ~order[order < 0]
    clock[labels] = np.arange(600)
    whole, turns = Ftrl(**options), Ftrl(**options)
    prepared = whole.prepare(X)
    p = whole.run(order, prepared, prepared, y, np.ones(600), clock)
    prepared = turns.prepare(X)
    again = np.empty(600)
    for first, last in pairwise([0, *np.sort(random.integers(0, 1200, 40)).tolist(), 1200]):
        for entry in order[first:last].tolist():
            row = entry if entry >= 0 else ~entry
            one = take(prepared, np.array([row]))
            if entry >= 0:
                again[row] = turns.ask(one, clock[:1], 0)[0][0]
            else:
                turns.learn(one, y[row : row + 1], np.empty((1, 0)), np.ones(1), clock[row : row + 1])
        state = dump(*turns.save())
        turns = Ftrl(**options)
        turns.load(*parse(state))
    assert p.tobytes() == again.tobytes()
    apart, row = Ftrl(**options), random.permutation(600)
    labels_only = take(apart.prepare(X), np.argsort(row))
    p = apart.run(order, apart.prepare(X), labels_only, y, np.ones(600), clock, row)
    assert p.tobytes() == again.tobytes()
    assert dump(*turns.save()) == dump(*whole.save())
    assert isinstance(whole, Sequential)


def test_values_that_are_seen_once_get_no_weight(stream: Make) -> None:
    X, y, _, _ = stream(2_000)
    X["once"] = np.array([f"x{i}" for i in range(2_000)], dtype=object)
    model, without = Ftrl(admit_after=3, bins=False), Ftrl(admit_after=3, bins=False)
    p = online(model, X, y)
    del X["once"]
    assert p.tobytes() == online(without, X, y).tobytes()
    assert len(model._table) == len(without._table) < 420


def test_memory_is_bounded(stream: Make) -> None:
    X, y, _, _ = stream(3_000)
    X["new"] = np.array([f"x{i}" for i in range(3_000)], dtype=object)
    model = Ftrl(max_weights=600, bins=False)
    p = online(model, X, y)
    assert len(model._table) == 600
    assert model._table.state[EVICTED] > 2_000
    free = online(Ftrl(bins=False), X, y)
    loss, unbounded = (float(-np.mean(np.log(np.where(y == 1, q, 1 - q)))) for q in (p, free))
    assert abs(loss - unbounded) < 0.01


def test_what_is_old_is_forgotten_when_it_is_due_and_not_when_room_is_made() -> None:
    row = {"k": np.array(["a", "b"], dtype=object)}
    model = Ftrl(expire_after=DAY)
    X = model.prepare(row)

    def learn(which: int, at: int) -> None:
        model.learn(take(X, np.array([which])), np.ones(1), np.empty((1, 0)), np.ones(1), np.array([at]))

    learn(0, 0)
    learn(1, DAY)
    assert model.predict(X)[0] > 0.52
    learn(1, DAY + 1)
    bias = model._linear[2, -1]
    assert model.predict(X)[0] == pytest.approx(1 / (1 + np.exp(-bias)), abs=1e-12), "only the bias is left"


def test_rates_and_uncertainty_fall_as_labels_come(stream: Make) -> None:
    X, y, _, _ = stream(1_000)
    model = Ftrl(alpha=0.1, l1=1.0)
    online(model, take(X, slice(0, 200)), y[:200])
    before = model.uncertainty(model.prepare(X))
    online(model, take(X, slice(200, None)), y[200:])
    after = model.uncertainty(model.prepare(X))
    assert (after > 0).all()
    assert after.mean() < 0.7 * before.mean()
    rates = {rate.feature: rate for rate in model.rates()}
    assert list(rates) == ["carrier", "tail", "wind (bins)", "delay (bins)", "wind", "delay", "bias"]
    assert rates["carrier"].weights == 4
    assert rates["tail"].weights > 300
    assert rates["tail"].nonzero < rates["tail"].weights
    plain = Ftrl()
    online(plain, {"carrier": X["carrier"]}, y)
    assert [rate.feature for rate in plain.rates()] == ["carrier", "bias"]
    assert 0 < rates["bias"].p50 < rates["carrier"].p50 < rates["tail"].p50 <= rates["tail"].p90 <= 0.1


def test_rates_of_a_large_table_are_those_of_a_part(stream: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _, _ = stream(3_000)
    X["new"] = np.array([f"x{i % 1_500}" for i in range(3_000)], dtype=object)
    model = Ftrl(bins=False, l1=0.3)
    online(model, X, y)
    whole = {rate.feature: rate for rate in model.rates()}
    monkeypatch.setattr("headrace.models.ftrl._LOOKED_AT", len(model._table.cells) // 4)
    part = {rate.feature: rate for rate in model.rates()}
    assert whole["new"].weights == 1_500
    assert part["new"] != whole["new"]
    for name in ("weights", "nonzero", "p50", "p90"):
        assert getattr(part["new"], name) == pytest.approx(getattr(whole["new"], name), rel=0.2)
    assert part["wind"] == whole["wind"]


@pytest.mark.parametrize("pairs", [False, True])
def test_columns_that_come_later_begin_where_they_come(stream: Make, pairs: bool) -> None:
    """As if they had been there from the start, without a value."""
    X, y, _, _ = stream(600)
    late = {"tail": X["tail"].copy(), "delay": X["delay"].copy()}
    late["tail"][:300], late["delay"][:300] = None, np.nan
    early = {name: X[name] for name in ("carrier", "wind")}
    whole, widened = Ftrl(bins=False, pairs=pairs), Ftrl(bins=False, pairs=pairs)
    p = online(whole, early | late, y)
    first = online(widened, take(early, slice(0, 300)), y[:300])
    widened.widen(take(late, slice(0, 0)))
    rest = online(widened, take(early | late, slice(300, 600)), y[300:], np.arange(300, 600))
    np.testing.assert_allclose(np.concatenate([first, rest]), p, rtol=0, atol=1e-12)
    assert widened.columns == (("carrier", "tail"), ("wind", "delay"), ())
    assert [(r.feature, r.weights, r.nonzero) for r in widened.rates()] == [
        (r.feature, r.weights, r.nonzero) for r in whole.rates()
    ]
    again = Ftrl(bins=False, pairs=pairs)
    again.load(*parse(dump(*widened.save())))
    assert online(again, early | late, y).tobytes() == online(widened, early | late, y).tobytes()


def test_bins_stay_when_columns_come(stream: Make) -> None:
    X, y, _, _ = stream(600)
    model, same = Ftrl(), Ftrl()
    online(model, {"wind": X["wind"]}, y)
    online(same, {"wind": X["wind"]}, y)
    model.widen({"delay": X["delay"][:0]})
    unknown = {"wind": X["wind"], "delay": np.full(600, np.nan)}
    np.testing.assert_allclose(
        model.predict(model.prepare(unknown)), same.predict(same.prepare({"wind": X["wind"]})), rtol=0, atol=1e-12
    )


def test_no_name_of_a_column_is_special(stream: Make) -> None:
    X, y, _, _ = stream(300)
    renamed = {{"wind": "offset", "tail": "keys"}.get(name, name): values for name, values in X.items()}
    model = Ftrl(bins=False)
    p = online(model, renamed, y)
    np.testing.assert_allclose(p, online(Ftrl(bins=False), X, y), rtol=1e-12)
    assert [rate.feature for rate in model.rates()] == ["carrier", "keys", "offset", "delay", "bias"]


def test_mistakes_are_named(stream: Make) -> None:
    X, *_ = stream(60)
    with pytest.raises(ModelError, match=r"FTRL: found alpha=0, expected a positive number; found l1=-1, expected 0"):
        Ftrl(alpha=0, l1=-1)
    model = Ftrl()
    model.prepare(X)
    with pytest.raises(
        ModelError, match="found columns carrier, expected those that the model began with: carrier, ta"
    ):
        model.prepare({"carrier": X["carrier"]})
    with pytest.raises(ModelError, match="found 300 categories and 0 numbers for FTRL, expected at most 250 and 4096"):
        Ftrl().prepare({f"c{i}": X["carrier"] for i in range(300)})


def noisy(n: int, seed: int) -> tuple[Floats, Floats]:
    """A number, and labels whose logit is twice it."""
    random = np.random.default_rng(seed)
    x = random.normal(size=n)
    return x, (random.random(n) < 1 / (1 + np.exp(-2 * x))).astype(np.float64)


def learned(x: Floats, y: Floats) -> Floats:
    """What is predicted of each row before it is learned."""
    model = Ftrl()
    rows = model.prepare({"x": x})
    n = len(y)
    order = np.stack([np.arange(n), ~np.arange(n)], axis=1).ravel()
    return model.run(order, rows, rows, y, np.ones(n), np.arange(n))


def test_one_absurd_number_does_not_spoil_a_feature_for_ever() -> None:
    x, y = noisy(30_000, seed=1)
    clean, late = learned(x, y), slice(15_000, None)
    x[5_000] = 1e9
    losses = [float(log_loss(y[late], p[late])[0].mean()) for p in (clean, learned(x, y))]
    assert losses[0] < 0.5
    assert losses[1] < 1.01 * losses[0]


@pytest.mark.parametrize("strange", [1.7e308, np.inf, 1e160])
def test_numbers_beyond_measure_count_as_missing(strange: float) -> None:
    x, y = noisy(2_000, seed=2)
    x[[500, 600]] = strange, -strange
    without = x.copy()
    without[[500, 600]] = np.nan
    assert learned(x, y).tobytes() == learned(without, y).tobytes()


def test_a_weight_that_has_expired_is_as_unknown_as_one_never_seen() -> None:
    model = Ftrl(expire_after=10, bins=False)
    a, b, new = (model.prepare({"c": np.array([value], dtype=object)}) for value in "abz")
    for clock, row in ((0, a), (0, a), (1_000, b)):
        model.learn(row, np.ones(1), np.empty((1, 0)), np.ones(1), np.array([clock]))
    assert model.uncertainty(a) == model.uncertainty(new) > model.uncertainty(b)
