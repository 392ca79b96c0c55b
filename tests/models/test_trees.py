"""The walker's leaves and scores equal LightGBM's own on every row, to the bit."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ModelError
from headrace.models import trees

FIXED = {
    "objective": "binary",
    "verbosity": -1,
    "num_threads": 1,
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,
}
FEATURES = 5  # the first two are categories


def booster(params: dict[str, Any], rounds: int, seed: int = 0) -> lightgbm.Booster:
    random = np.random.default_rng(seed)
    matrix = random.normal(0, 2, (1500, FEATURES))
    matrix[:, 0], matrix[:, 1] = random.integers(0, 5, 1500), random.integers(0, 90, 1500)
    y = (matrix[:, 2] + (matrix[:, 0] == 3) + (matrix[:, 1] % 7 == 0) + random.normal(0, 1, 1500) > 1).astype(float)
    matrix[random.random(matrix.shape) < 0.15] = np.nan if seed % 2 == 0 else 0.0
    data = lightgbm.Dataset(matrix, y, categorical_feature=[0, 1], params=FIXED | params)
    return lightgbm.train(FIXED | params, data, rounds)


BOOSTERS = {
    "missing": booster({"min_data_per_group": 5, "cat_smooth": 1}, 30),
    "no missing": booster({"min_data_per_group": 5, "cat_smooth": 1}, 10, seed=1),
    "zero as missing": booster({"zero_as_missing": True}, 10, seed=1),
    "missing unused": booster({"use_missing": False}, 10),
    "stumps": booster({"num_leaves": 2, "max_cat_to_onehot": 100}, 10),
    "single leaf": booster({"min_data_in_leaf": 2000}, 3),
}

values = st.one_of(
    st.sampled_from([np.nan, 0.0, -0.0, 1e-36, 1e-34, -1.0, 0.5, 31.0, 32.0, 1e9, 1e300, np.inf, -np.inf]),
    st.integers(-3, 120).map(float),
    st.floats(-6, 6),
)


@settings(deadline=None)
@pytest.mark.parametrize("name", BOOSTERS)
@given(rows=st.lists(st.lists(values, min_size=FEATURES, max_size=FEATURES), min_size=1, max_size=20))
def test_leaves_and_scores_equal_lightgbm(name: str, rows: list[list[float]]) -> None:
    matrix = np.array(rows)
    matrix[:, :2][~np.isfinite(matrix[:, :2]) | (np.abs(matrix[:, :2]) > 1e6)] = np.nan  # codes are small or missing
    ensemble = trees.parse(BOOSTERS[name].model_to_string())
    leaves, scores = ensemble.walk(matrix)
    expected = np.asarray(BOOSTERS[name].predict(matrix, pred_leaf=True)).reshape(len(matrix), -1)
    np.testing.assert_array_equal(leaves - ensemble.first_leaf[:-1], expected)
    assert scores.tobytes() == np.asarray(BOOSTERS[name].predict(matrix, raw_score=True)).tobytes()


def test_other_objectives_are_refused() -> None:
    matrix = np.random.default_rng(0).normal(size=(200, 2))
    data = lightgbm.Dataset(matrix, matrix[:, 0])
    text = lightgbm.train({"verbosity": -1, "num_threads": 1}, data, 2).model_to_string()
    with pytest.raises(ModelError, match="found boosted trees of objective 'regression'"):
        trees.parse(text)


def test_linear_trees_are_refused() -> None:
    with pytest.raises(ModelError, match="found linear trees"):
        trees.parse(booster({"linear_tree": True}, 2).model_to_string())
