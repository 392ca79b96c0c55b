"""Models of numbers: FTRL equals a plain reference row by row; all keep the contract and follow what moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.definition import recipes
from headrace.definition.loss import Loss
from headrace.errors import ModelError
from headrace.models.boosting import Ensemble, Trained, train
from headrace.models.build import fresh
from headrace.models.checks import check_model
from headrace.models.contract import Floats, Turns
from headrace.models.ftrl import Ftrl
from headrace.models.influence import pull, reach_of
from headrace.models.target_mean import TargetMeans
from headrace.models.trees import parse

ABSOLUTE, SQUARED = Loss("absolute"), Loss("squared", cap=1e6)
LOSSES = pytest.mark.parametrize("loss", [ABSOLUTE, SQUARED, Loss("squared", cap=100.0)])


def sample(n: int, seed: int = 0) -> tuple[dict[str, Any], Floats]:
    """Minutes that depend on a category and on a number, with skewed noise; some values are missing."""
    random = np.random.default_rng(seed)
    carrier = np.array([f"c{i}" if i else None for i in random.integers(0, 6, n)], dtype=object)
    wind = np.where(random.random(n) < 0.1, np.nan, random.gamma(2.0, 5.0, n))
    noise = random.exponential(10.0, n) - 10.0
    y = 40.0 + 15.0 * (carrier == "c1") + 2.0 * np.nan_to_num(wind, nan=10.0) + noise
    return {"carrier": carrier, "wind": wind}, y


def online(model: Any, X: dict[str, Any], y: Floats) -> Floats:
    """Predict each row, then learn it."""
    prepared, n = model.prepare(X), len(y)
    row = np.arange(n)
    order = np.stack([row, ~row], axis=1).ravel()
    if hasattr(model, "run"):
        p: Floats = model.run(order, prepared, prepared, y, np.ones(n), row)
        return p
    turns = Turns(order, np.zeros(n, dtype=np.int64), y, np.ones(n), row, row, np.empty((n, 0)), row)
    return model.follow(turns, prepared, prepared)[0]  # type: ignore[no-any-return]


def plainly(X: dict[str, Any], y: Floats, loss: Loss, *, alpha: float, beta: float, l1: float, l2: float) -> Floats:
    """The paper's Algorithm 1 in dictionaries on standardised labels, with the pull of each loss written out."""
    state: dict[str, tuple[float, float]] = {}
    scale: dict[str, tuple[int, float, float]] = {}
    seen, level, spread, p = 0, 0.0, 0.0, []

    def weight(name: str) -> float:
        z, n = state.get(name, (0.0, 0.0))
        return 0.0 if abs(z) <= l1 else -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2)

    def features(i: int) -> dict[str, float]:
        x = {"bias": 1.0}
        for name, values in X.items():
            value = values[i]
            if isinstance(value, str):
                x[f"{name}={value}"] = 1.0
            elif value is not None and value == value:
                count, mean, squares = scale.get(name, (0, 0.0, 0.0))
                x[name] = float(np.clip((value - mean) * np.sqrt(count / squares), -8, 8)) if squares > 0 else 0.0
        return x

    for i, label in enumerate(y.tolist()):
        p.append(level + spread * sum(weight(name) * value for name, value in features(i).items()))
        for name, values in X.items():
            if not isinstance(values[i], str) and values[i] is not None and values[i] == values[i]:
                count, mean, squares = scale.get(name, (0, 0.0, 0.0))
                middle = mean + (values[i] - mean) / (count + 1)
                scale[name] = count + 1, middle, squares + (values[i] - mean) * (values[i] - middle)
        seen += 1
        away = label - level if seen > 1 else 0.0
        level = label if seen == 1 else level + away / seen
        spread += (abs(away) - spread) / seen
        if spread == 0.0:
            continue
        x = features(i)
        error = label - (level + spread * sum(weight(name) * value for name, value in x.items()))
        if loss.kind == "absolute":
            pulled = float(np.clip(error / (0.1 * spread), -1.0, 1.0))
        else:
            pulled = float(np.clip(error, -np.sqrt(loss.cap), np.sqrt(loss.cap))) / spread
        changed = {}
        for name, value in x.items():
            z, n = state.get(name, (0.0, 0.0))
            g = -pulled * value
            changed[name] = z + g - (np.sqrt(n + g * g) - np.sqrt(n)) / alpha * weight(name), n + g * g
        state |= changed
    return np.array(p)


@LOSSES
@pytest.mark.parametrize("params", [{"alpha": 0.1}, {"alpha": 0.5, "beta": 0.3, "l1": 0.7, "l2": 0.2}])
def test_ftrl_equals_a_plain_reference(loss: Loss, params: dict[str, float]) -> None:
    X, y = sample(1_500)
    ours = online(Ftrl(**params, bins=False, loss=loss), X, y)  # type: ignore[arg-type]
    full = {"beta": 1.0, "l1": 0.0, "l2": 0.0} | params
    np.testing.assert_allclose(ours, plainly(X, y, loss, **full), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    factor=st.sampled_from([2.0**-20, 2.0**-3, 2.0**5, 2.0**30]),
    kind=st.sampled_from(["absolute", "squared"]),
    seed=st.integers(0, 100),
)
def test_ftrl_does_not_care_for_the_unit(factor: float, kind: Any, seed: int) -> None:
    """Minutes or microseconds: the same predictions to the bit, for factors that are powers of two."""
    X, y = sample(200, seed)
    cap = 400.0 if kind == "squared" else np.inf
    one, two = Ftrl(loss=Loss(kind, cap)), Ftrl(loss=Loss(kind, cap * factor**2))
    minutes, other = online(one, X, y), online(two, X, factor * y)
    assert np.array_equal(other, factor * minutes)
    unsure = one.uncertainty(one.prepare(X))
    assert np.array_equal(two.uncertainty(two.prepare(X)), factor * unsure) and (unsure > 0).all()


def test_ftrl_is_sensible_beside_river() -> None:
    from river import linear_model, preprocessing

    X, y = sample(6_000, seed=4)
    model, said = preprocessing.StandardScaler() | linear_model.LinearRegression(), []
    for carrier, wind, label in zip(X["carrier"], X["wind"].tolist(), y.tolist(), strict=True):
        row = {"wind": 10.0 if wind != wind else wind, f"is {carrier}": 1.0}
        said.append(model.predict_one(row))
        model.learn_one(row, label)
    ours, late = online(Ftrl(loss=SQUARED), X, y), slice(3_000, None)
    river_loss, our_loss = (float(((y - p)[late] ** 2).mean()) for p in (np.array(said), ours))
    assert our_loss < 1.05 * river_loss
    assert our_loss < 125.0, "the noise alone costs 100"


@LOSSES
def test_ftrl_finds_what_the_loss_is_least_at(loss: Loss) -> None:
    """Skewed labels without features: the median of absolute errors, the mean of squared ones, between them under a low cap."""
    y = np.random.default_rng(1).exponential(10.0, 60_000)
    X = {"nothing": np.full(len(y), np.nan)}
    found = float(online(Ftrl(alpha=0.3, bins=False, loss=loss), X, y)[-20_000:].mean())
    expected = {"absolute": 10.0 * np.log(2), "squared": 10.0}[loss.kind]
    if loss.cap == 100.0:
        assert 8.0 < found < 9.5
    else:
        assert found == pytest.approx(expected, rel=0.05)


def test_an_absurd_label_does_not_end_a_model() -> None:
    X, y = sample(6_000, seed=2)
    wild = y.copy()
    wild[3_000] = 1e99
    for loss in (ABSOLUTE, Loss("squared", cap=400.0)):
        calm, after = online(Ftrl(loss=loss), X, y), online(Ftrl(loss=loss), X, wild)
        assert np.abs(y - after)[3_500:].mean() < 1.3 * np.abs(y - calm)[3_500:].mean()


def test_equal_labels_are_predicted_and_teach_nothing_else() -> None:
    X, _ = sample(50)
    p = online(Ftrl(loss=SQUARED), X, np.full(50, 7.5))
    assert p[0] == 0.0 and (p[1:] == 7.5).all()


@given(error=st.floats(-1e6, 1e6), unit=st.floats(1e-3, 1e3), cap=st.floats(1e-3, 1e6))
def test_pulls_are_odd_bounded_and_never_fall(error: float, unit: float, cap: float) -> None:
    for loss in (ABSOLUTE, Loss("squared", cap=cap)):
        reach = reach_of(loss)
        bound = 1.0 if loss is ABSOLUTE else reach / unit
        assert pull(-error, unit, reach) == -pull(error, unit, reach)
        assert abs(pull(error, unit, reach)) <= bound * (1 + 1e-12)
        assert pull(error, unit, reach) <= pull(error + abs(error) + 1.0, unit, reach)


@pytest.fixture(scope="module", params=["absolute", "squared"])
def trained(request: pytest.FixtureRequest) -> tuple[Loss, Trained]:
    loss = ABSOLUTE if request.param == "absolute" else Loss("squared", cap=2_500.0)
    X, y = sample(4_000, seed=3)
    times = np.arange(4_000) * 10
    return loss, train(X, y, times, times + 5, {"min_data_in_leaf": 20, "max_trees": 60}, loss=loss)


def test_trees_stop_by_the_streams_loss(trained: tuple[Loss, Trained]) -> None:
    loss, made = trained
    X, y = sample(4_000, seed=3)
    p = made.held_out.trees.walk(made.held_out.encoding.matrix(X))[1][made.valid_from :]
    error = y[made.valid_from :] - p
    losses = np.abs(error) if loss.kind == "absolute" else np.minimum(error**2, loss.cap)
    assert losses.mean() == pytest.approx(min(made.curve_valid), rel=1e-6)
    assert made.ensemble.target is not None
    noise = losses.mean() if loss.kind == "absolute" else losses.mean() ** 0.5
    assert made.ensemble.target.noise == pytest.approx(noise, rel=1e-6)
    constant = np.median(y) if loss.kind == "absolute" else y.mean()
    away = y[made.valid_from :] - constant
    assert losses.mean() < 0.8 * (np.abs(away) if loss.kind == "absolute" else np.minimum(away**2, loss.cap)).mean()


def test_trees_walk_as_lightgbm_predicts(trained: tuple[Loss, Trained]) -> None:
    import lightgbm

    _, made = trained
    X, _ = sample(500, seed=9)
    matrix = made.ensemble.encoding.matrix(X)
    booster = lightgbm.Booster(model_str=made.ensemble.text)
    assert np.array_equal(made.ensemble.trees.walk(matrix)[1], booster.predict(matrix))
    again = Ensemble.parse(made.ensemble.dump())
    assert again.target == made.ensemble.target
    with pytest.raises(ModelError, match="expected 'binary sigmoid:1', huber or regression_l1"):
        parse(made.ensemble.text.replace("objective=huber", "objective=poisson").replace("regression_l1", "poisson"))


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.ftrl(), recipes.ftrl(pairs=True, bins=False, l1=0.5), recipes.ftrl(admit_after=3, max_weights=40),
        recipes.lightgbm(), recipes.gbdt_lr(), recipes.gbdt_lr(table_bits=4, leaf_alpha=0.1), recipes.label_mean(labels=8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("weighted", [False, True])
def test_keeps_the_contract(recipe: recipes.Recipe, weighted: bool, trained: tuple[Loss, Trained]) -> None:
    loss, made = trained
    X, y = sample(300, seed=1)
    artifact = made.ensemble.dump() if recipe.bootstraps else None
    check_model(lambda: fresh(recipe, key=b"", artifact=artifact, loss=loss), X, y, weighted=weighted, numbers=True)


def test_a_recalibration_follows_a_level_that_moved(trained: tuple[Loss, Trained]) -> None:
    loss, made = trained
    X, y = sample(6_000, seed=5)
    moved = y + 25.0
    late = slice(3_000, None)
    for recipe in (recipes.lightgbm(), recipes.gbdt_lr()):
        model = fresh(recipe, key=b"", artifact=made.ensemble.dump(), loss=loss)
        frozen = fresh(recipes.lightgbm(scale=0.0), key=b"", artifact=made.ensemble.dump(), loss=loss)
        before = np.abs(moved - online(frozen, X, moved))[late].mean()
        after = np.abs(moved - online(model, X, moved))[late].mean()
        assert after < 0.6 * before, recipe.name


def test_trees_of_the_other_task_are_refused(trained: tuple[Loss, Trained]) -> None:
    _, made = trained
    for recipe in (recipes.lightgbm(), recipes.gbdt_lr()):
        with pytest.raises(ModelError, match=r"found trees of the other task for recipe .*, whose stream has log loss"):
            fresh(recipe, key=b"", artifact=made.ensemble.dump())


def test_equal_labels_cannot_be_trained_on() -> None:
    X, _ = sample(200)
    times = np.arange(200)
    with pytest.raises(
        ModelError, match=r"found \d+ labels of 1 value\(s\) in the training part .*, expected different ones"
    ):
        train(X, np.full(200, 3.0), times, times, loss=ABSOLUTE)


def reference_means(y: Floats, clock: Any, half_life: float) -> list[float]:
    """The overall mean before each label, drawn to the mean of all labels so far."""
    found = []
    for i in range(len(y)):
        prior = float(y[:i].mean()) if i else 0.0
        share = 2.0 ** (-(clock[i] - clock[:i]) / half_life)
        found.append((float((share * y[:i]).sum()) + 10.0 * prior) / (float(share.sum()) + 10.0))
    return found


def test_target_means_of_numbers_are_drawn_to_the_mean_so_far() -> None:
    n, hour = 300, 3_600_000_000
    y = np.random.default_rng(0).normal(500.0, 50.0, n)
    clock = np.sort(np.random.default_rng(1).integers(0, 50 * hour, n))
    keys = np.zeros((2 * n, 0), dtype=np.uint64)
    is_label = np.tile([False, True], n)

    def run(means: TargetMeans, rows: slice) -> dict[str, Floats]:
        again, times = np.repeat(y, 2)[rows], np.repeat(clock, 2)[rows]
        return means.run(keys[rows], is_label[rows], again, np.ones(len(again)), times)

    whole = run(TargetMeans((), None), slice(None))
    np.testing.assert_allclose(whole["mean_all_1h"], reference_means(y, clock, hour), rtol=1e-9)
    first, second = TargetMeans((), None), TargetMeans((), None)
    parts = [run(first, slice(0, 201))]
    second.load(*first.save())
    parts.append(run(second, slice(201, None)))
    assert np.array_equal(np.concatenate([part["mean_all_6h"] for part in parts]), whole["mean_all_6h"])


def test_a_corrected_number_moves_the_mean_by_what_it_was_wrong() -> None:
    def level(*labels: tuple[float, float]) -> float:
        means = TargetMeans((), None)
        y, before = (np.array(values) for values in zip(*labels, strict=True))
        n = len(y)
        means.run(
            np.zeros((n, 0), dtype=np.uint64), np.ones(n, dtype=np.bool_), y, np.ones(n), np.zeros(n, np.int64), before
        )
        return means.prior

    nothing = float("nan")
    assert level((4.0, nothing), (10.0, nothing), (16.0, 10.0)) == pytest.approx(level((4.0, nothing), (16.0, nothing)))
