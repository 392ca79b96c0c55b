"""A search for LightGBM's parameters: within its budget, never worse than no search, and blind to what judges candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from headrace.definition import recipes
from headrace.models.boosting import _NAMES, DEFAULTS, train
from headrace.models.search import SPACE, search

Make = Callable[..., Any]  # the fixture that makes a small stream
FEW = {"search": {"trials": 6, "seconds": None}, "max_trees": 30}


def bowl(params: Mapping[str, Any]) -> float:
    """Least at 20 leaves and a learning rate of a tenth."""
    return float(np.log(params["num_leaves"] / 20) ** 2 + np.log(params["learning_rate"] / 0.1) ** 2)


def test_it_finds_what_is_better_and_begins_with_the_usual() -> None:
    asked: list[Mapping[str, Any]] = []

    def evaluate(params: Mapping[str, Any]) -> float:
        asked.append(params)
        return bowl(params)

    usual = DEFAULTS | {"lambda_l2": 1e-3, "num_leaves": 100}
    found = search(evaluate, usual, {"feature_fraction": 0.7}, trials=40, seconds=None)
    assert found.trials == len(asked) == 40
    assert asked[0] == {name: usual[name] for name in SPACE if name != "feature_fraction"}
    assert found.usual == bowl(asked[0]) > 10 * found.loss
    assert found.loss == min(map(bowl, asked)) == bowl(found.params)
    assert "feature_fraction" not in found.params, "the recipe sets it"
    assert search(bowl, usual, {}, 10, None) == search(bowl, usual, {}, 10, None), "the same every time"


def test_seconds_are_a_budget_too() -> None:
    began = time.monotonic()

    def slow(params: Mapping[str, Any]) -> float:
        time.sleep(0.05)
        return bowl(params)

    found = search(slow, DEFAULTS | {"lambda_l2": 1e-3}, {}, trials=None, seconds=0.5)
    assert 1 <= found.trials <= 11 and time.monotonic() - began < 30
    assert search(bowl, DEFAULTS | {"lambda_l2": 1e-3}, {}, trials=None, seconds=1e-9).trials == 1


def test_training_takes_what_it_found(stream: Make) -> None:
    """The usual 200 rows of a leaf are too many for two thousand."""
    searched = train(*stream(2_000), FEW)
    assert searched.searched is not None
    assert searched.searched.trials == 6
    assert searched.searched.loss < searched.searched.usual
    leaves = searched.searched.params["num_leaves"]
    assert f"[num_leaves: {leaves}]" in searched.ensemble.text
    given = train(*stream(2_000), FEW | {"num_leaves": 9})
    assert given.searched is not None and "num_leaves" not in given.searched.params


def test_the_rows_that_judge_a_candidate_do_not_choose_its_parameters(stream: Make) -> None:
    """Nor do labels that came after those rows began."""
    X, y, event_time, label_time = stream(2_000)
    split = 1_600
    late = label_time >= event_time[split]
    late[1_000:1_100], label_time[1_000:1_100] = True, event_time[split]
    one, two = (train(X, labels, event_time, label_time, FEW).searched for labels in (y, np.where(late, 1.0 - y, y)))
    assert one is not None and one == two


def test_a_window_that_is_too_short_to_search_in_is_trained_on(stream: Make) -> None:
    """Early negatives are not known yet: what could be searched with has one class."""
    X, y, event_time, label_time = stream(2_000)
    label_time = np.where((y == 0.0) & (np.arange(2_000) < 1_400), event_time[1_500], event_time + 1)
    trained = train(X, y, event_time, label_time, FEW)
    assert trained.searched is None and trained.best_trees >= 1


def test_other_names_of_a_parameter_are_the_recipe_s_own(stream: Make) -> None:
    trained = train(*stream(1_000), FEW | {"eta": 0.07, "search": {"trials": 2, "seconds": None}})
    assert trained.searched is not None and "learning_rate" not in trained.searched.params
    assert "[learning_rate: 0.07]" in trained.ensemble.text


def test_all_of_lightgbms_other_names_are_known() -> None:
    """It keeps the list for itself; a release that adds a name must not be searched past what a recipe sets."""
    from lightgbm.basic import _ConfigAliases

    for name in {*DEFAULTS, *SPACE}:
        assert {alias for alias, meant in _NAMES.items() if meant == name} == _ConfigAliases.get(name) - {name}
    for name, ours in (("num_iterations", "max_trees"), ("early_stopping_round", "patience")):
        assert {alias for alias, meant in _NAMES.items() if meant == ours} == _ConfigAliases.get(name)


def test_a_number_of_trees_by_any_name_is_the_most_there_may_be(stream: Make) -> None:
    made = train(*stream(1_000), {"n_estimators": 200, "early_stopping_rounds": 3})
    assert made.best_trees < 200
    assert made.ensemble.text.count("\nTree=") == made.held_out.text.count("\nTree=") == made.best_trees


@pytest.mark.parametrize("make", [recipes.lightgbm, recipes.gbdt_lr, recipes.stack])
def test_a_budget_is_checked_at_load(make: Callable[..., recipes.Recipe]) -> None:
    assert make(search=recipes.Search(trials=20)).mistakes() == []
    for budget in (recipes.Search(), recipes.Search(trials=0), recipes.Search(trials=5, seconds=0.0)):
        (mistake,) = make(search=budget).mistakes()
        assert mistake.startswith("found search=") and mistake.endswith(
            "expected at least one trial, or seconds above 0"
        )
    assert make(search=recipes.Search(seconds=30)).config() != make().config()
