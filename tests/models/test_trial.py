"""A recipe is tried on what its stream's contract allows, and only on that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import Label, Source, Stream, category, col, cross, expect, hour_of_day, number, recipes, target_mean
from headrace.errors import ModelError
from headrace.models.trial import _rows, try_recipe


def linear() -> Any:
    from river import compose, linear_model, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True)
    return (numbers + categories) | linear_model.LogisticRegression()


def bayes() -> Any:
    from river import compose, naive_bayes

    return compose.SelectType(int, float) | naive_bayes.GaussianNB()


def unseeded() -> Any:
    from river import forest

    return forest.ARFClassifier(n_models=2)


class Needy:
    """Takes a logarithm of what must be there, and positive."""

    def predict_proba_one(self, x: dict[str, Any]) -> dict[bool, float]:
        return {True: 1 / (1 + np.log(x["amount"]) ** 2)}

    def learn_one(self, x: dict[str, Any], y: bool, w: float = 1.0) -> None:
        assert x["country"] in ("at", "ch")


stream = Stream(
    name="orders",
    source=Source(conn_id="shop", table="public.orders", key="order_id", event_time="placed_at"),
    label=Label(
        table="public.returns",
        key="order_id",
        value=col("returned"),
        label_time="decided_at",
        window=timedelta(days=30),
        if_missing="negative",
    ),
    features=[
        category("country", "channel"),
        number("amount", "items"),
        hour_of_day("placed_at"),
        cross("country", "channel"),
        target_mean("country"),
    ],
    contract=[expect.not_null("country"), expect.in_set("country", {"at", "ch"}), expect.less_than("items", "amount")],
    champion=recipes.river(linear),
)


def with_contract(*contract: expect.Expectation) -> Stream:
    return replace(stream, contract=contract)


def late(on_late: Any) -> Stream:
    return replace(stream, label=replace(stream.label, on_late=on_late))


@pytest.mark.parametrize("recipe", [stream.champion, recipes.river(bayes), recipes.ftrl(target_means=True)])
def test_a_good_recipe_passes(recipe: recipes.Recipe) -> None:
    assert try_recipe(stream, recipe) == f"Recipe {recipe.name!r} keeps the model contract on 60 rows."


def prior() -> Any:
    from river import dummy

    return dummy.PriorClassifier()


def tree() -> Any:
    from river import tree

    return tree.HoeffdingTreeClassifier()


@pytest.mark.parametrize("build", [bayes, prior])
def test_who_takes_no_weights_is_refused_where_labels_have_some(build: Callable[[], Any]) -> None:
    """On its own such a classifier fails, within a pipeline the weight is lost without a word."""
    recipe = recipes.river(build, name="bayes")
    if build is bayes:
        for other in ("ignore", "learn"):
            try_recipe(late(other), recipe)
    with pytest.raises(ModelError) as refused:
        try_recipe(late("reweight"), recipe)
    assert "recipe 'bayes': found a classifier that learns the same whatever a label weighs" in str(refused.value)
    assert "take such a one, or on_late='learn' or 'ignore'" in str(refused.value)
    some = replace(stream, negative_rate=0.1)
    with pytest.raises(ModelError, match=r"a label weighs: negative_rate=0\.1 expects .* or negatives='calibrate'$"):
        try_recipe(some, recipe)
    if build is bayes:
        try_recipe(replace(some, negatives="calibrate"), recipe)
    both = replace(late("reweight"), negative_rate=0.1)
    with pytest.raises(ModelError, match=r"on_late='reweight' and negative_rate=0\.1 expects"):
        try_recipe(both, recipe)


@pytest.mark.parametrize("recipe", [recipes.river(linear), recipes.river(tree), recipes.ftrl(admit_after=255)])
def test_who_takes_weights_passes_where_labels_have_some(recipe: recipes.Recipe) -> None:
    try_recipe(late("reweight"), recipe)


def test_a_model_that_draws_other_numbers_each_time_is_refused() -> None:
    with pytest.raises(ModelError, match="recipe 'river': found that RiverModel breaks the model contract: "):
        try_recipe(stream, recipes.river(unseeded))


def test_what_the_contract_allows_may_come() -> None:
    """The pipeline's own needs are those of the contract, or it fails on the first row that has them not."""
    known, there = expect.in_set("country", {"at", "ch"}), expect.not_null("country", "amount")
    fine = with_contract(known, there, expect.between("amount", 0.01))
    for lacking, failure in (
        (with_contract(known, expect.not_null("country"), expect.between("amount", 0.01)), "KeyError: 'amount'"),
        (with_contract(there, expect.between("amount", 0.01)), "AssertionError"),
        (with_contract(known, there), "p is not within|RuntimeWarning"),
    ):
        with pytest.raises(ModelError, match=failure):
            try_recipe(lacking, recipes.river(Needy))
    with pytest.raises(
        ModelError, match=r"tests\.models\.test_trial"
    ):  # of all it needs it only lacks to be restorable
        try_recipe(fine, recipes.river(Needy))


def test_rows_are_drawn_from_the_contract() -> None:
    contract = [
        expect.regex("country", "^[A-Z]{2}$"),
        expect.length("channel", 3),
        expect.not_in_set("channel", {"ABC"}),
        expect.not_null("channel", "items"),
        expect.in_set("items", {1, 2, 3}),
        expect.between("amount", 0, 5),
        expect.less_than("items", "amount"),
    ]
    X: Any = _rows(with_contract(*contract), recipes.ftrl(target_means=True), np.random.default_rng(1))
    assert set(X["country"]) == {"AB", None}
    assert {len(name) for name in X["channel"]} <= set(range(3, 20))
    assert "ABC" not in X["channel"]
    assert set(X["items"]) == {1.0, 2.0, 3.0}
    assert np.nanmin(X["amount"]) > 1.0
    assert np.nanmax(X["amount"]) <= 5.0
    assert np.isnan(X["amount"]).any()
    assert None in X["country_x_channel"]
    assert "mean_country_1d" in X
    assert {len(values) for values in X.values()} == {60}
    bounded: Any = _rows(with_contract(expect.between("channel", 1, 3)), recipes.ftrl(), np.random.default_rng(1))
    assert set(bounded["channel"]) == {"1", "2", "3", None}
    assert "mean_country_1d" not in bounded


def test_a_contract_that_nothing_drawn_satisfies_is_said() -> None:
    odd = with_contract(expect.regex("country", "^Liechtenstein$"))
    assert try_recipe(odd, recipes.river(linear)) == (
        "Recipe 'river' was built, not tried: no rows are known that satisfy all of the contract."
    )


def test_the_command_needs_no_database() -> None:
    streams = Path(__file__).parents[2] / "dags" / "streams"
    argv = [sys.executable, "-P", "-m", "headrace", "try", "flights"]
    done = subprocess.run(
        argv, env=os.environ | {"HEADRACE_STREAMS": str(streams)}, capture_output=True, text=True, check=True
    )
    first, *others = done.stdout.splitlines()
    assert first == "Recipe 'river' keeps the model contract on 60 rows."
    assert others == [f"Recipe {name!r} is tried once a bootstrap has trained it." for name in ("gbdt_lr", "stack")]
