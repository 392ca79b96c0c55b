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
