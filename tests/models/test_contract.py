"""Every model keeps the contract, and the contract's checks catch those that do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.definition import recipes
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.boosting import Trained
from headrace.models.build import fresh
from headrace.models.checks import check_model
from headrace.models.contract import Arrays, Clock, Floats, Model

KEY = b"0123456789abcdef"
Make = Callable[..., Any]  # the fixture that makes a small stream


def river_ftrl() -> Any:
    from river import compose, linear_model, optim, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True)
    return (numbers + categories) | linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1))


def river_tree() -> Any:
    from river import compose, tree

    # Nominal splits and a leaf that learns: the states with the most kinds of objects in them.
    return compose.Discard("tail") | tree.HoeffdingTreeClassifier(grace_period=20)


def river_forest() -> Any:
    from river import compose, forest

    return compose.Discard("tail") | forest.ARFClassifier(n_models=2, seed=1, grace_period=20)


@pytest.mark.parametrize("build", [river_ftrl, river_tree, river_forest])
def test_river_keeps_the_contract(build: Callable[[], Any], stream: Make) -> None:
    X, y, _, _ = stream(300)
    check_model(lambda: fresh(recipes.river(build), key=KEY), X, y)


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.lightgbm(),
        recipes.gbdt_lr(),
        recipes.gbdt_lr(table_bits=4, leaf_alpha=0.1),
        recipes.gbdt_lr(offset=False, leaf_alpha=0.1),
        recipes.label_mean(labels=8),
        recipes.stack(),
    ],
)
def test_trained_models_keep_the_contract(recipe: recipes.Recipe, trained: Trained, stream: Make) -> None:
    X, y, _, _ = stream(300, seed=1)
    artifact = trained.ensemble.dump()
    check_model(lambda: fresh(recipe, key=KEY, artifact=artifact), X, y)


def test_a_recipe_that_bootstraps_needs_its_trees() -> None:
    with pytest.raises(ModelError, match=r"found no trained trees for recipe 'lightgbm'"):
        fresh(recipes.lightgbm(), key=KEY)


class Counting:
    """Predicts the share of positive labels so far; right as it stands, broken by the classes below."""

    memo_width = 1

    def __init__(self) -> None:
        self.counts = np.array([1.0, 2.0])

    def prepare(self, X: Columns) -> Columns:
        return {"wind": X["wind"]}

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        p = self.predict(X)
        return p, p[:, None].copy()

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        for label, asked in zip(y, memo[:, 0], strict=True):
            self.counts += [label + 0.01 * asked, 1.0]

    def predict(self, X: Columns) -> Floats:
        return np.full(len(X["wind"]), self.counts[0] / self.counts[1])

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        return {"counts": self.counts.copy()}, {}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        self.counts = arrays["counts"].copy()


class PreparesByBatch(Counting):
    def prepare(self, X: Columns) -> Columns:
        return {"wind": X["wind"] - np.nansum(X["wind"])}


class LearnsWhenAsked(Counting):
    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        p, memo = super().ask(X, clock, outstanding)
        self.counts[1] += 1e-9
        return p, memo


class PredictsByBatch(Counting):
    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        self.counts += [y.mean(), 1.0]


class ForgetsOnSave(Counting):
    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        self.counts = np.round(arrays["counts"])


class SharesItsState(Counting):
    def save(self) -> tuple[Arrays, dict[str, Any]]:
        return {"counts": self.counts}, {}


class DiesOfNaN(Counting):
    def predict(self, X: Columns) -> Floats:
        return super().predict(X) + 0.0 * X["wind"]


class IgnoresTheMemo(Counting):
    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        return self.predict(X), np.empty((len(clock), 0))


class CountsOutstandingByBatch(Counting):
    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        p = self.predict(X)
        return p, np.full((len(p), 1), float(outstanding))


def test_a_right_model_passes(stream: Make) -> None:
    X, y, _, _ = stream(200)
    check_model(Counting, X, y)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (PreparesByBatch, "prepare in batches of 1 gives another 'wind'"),
        (LearnsWhenAsked, "ask changed the weights"),
        (PredictsByBatch, "batches of 1 predict differently"),
        (ForgetsOnSave, "a restored state goes on differently"),
        (SharesItsState, "learning changed a state that was saved before"),
        (DiesOfNaN, r"p is not within \[0, 1\]"),
        (IgnoresTheMemo, "ask returned a memo of shape"),
        (CountsOutstandingByBatch, "batches of 1 predict differently"),
    ],
)
def test_a_broken_promise_is_named(broken: Callable[[], Model], promise: str, stream: Make) -> None:
    X, y, _, _ = stream(200)
    with pytest.raises(ModelError, match=promise):
        check_model(broken, X, y)
