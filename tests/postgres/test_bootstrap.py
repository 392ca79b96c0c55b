"""A candidate keeps the model contract before it is registered."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import pytest
from tests.conftest import ENGINE
from tests.postgres.test_erasure import KEY

from headrace.batch.bootstrap import bootstrap
from headrace.definition import recipes
from headrace.errors import ModelError
from headrace.store import db, registry


def test_a_candidate_that_breaks_the_contract_is_not_registered(registered: Any, origin: Any) -> None:
    """Held-out labels teach nothing, so this one's loss is fine: its first labels online would end it."""
    origin.add(*origin.rows(0, 400, labelled=1.0))
    registered.import_history(origin)
    broken = recipes.lightgbm(target_means=False, scale=math.nan)
    with closing(db.connect(registered.dsn, role="headrace_steer")) as conn:
        with pytest.raises(ModelError, match=r"recipe 'lightgbm': found that LightGbmModel breaks .*: p is not within"):
            bootstrap(conn, registered.stream, broken, registered.columns, ENGINE, KEY)
        conn.rollback()
        assert [v.version for v in registry.versions(conn, "small")] == ["small-1"]


def test_a_search_is_kept_with_its_version(registered: Any, origin: Any) -> None:
    origin.add(*origin.rows(0, 600, labelled=1.0))
    registered.import_history(origin)
    recipe = recipes.lightgbm(target_means=False, search=recipes.Search(trials=3), max_trees=10)
    with closing(db.connect(registered.dsn, role="headrace_steer")) as conn:
        candidate = bootstrap(conn, registered.stream, recipe, registered.columns, ENGINE, KEY)
    found = registered.query("SELECT heldout -> 'search' FROM headrace.versions WHERE version = %s", candidate.version)[
        0
    ][0]
    assert found["trials"] == 3 and found["loss"] <= found["usual"]
    assert set(found["params"]) == {"num_leaves", "min_data_in_leaf", "learning_rate", "feature_fraction", "lambda_l2"}
