"""Learning rates in SQL: at every checkpoint, of models that have such rates."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import ENGINE, Registered, SmallSource

from headrace.definition import recipes
from headrace.live.learner import Learner
from headrace.store import db, leases, registry
from headrace.store.state import open_version


@pytest.mark.parametrize("rated", [True, False])
def test_they_fall_as_labels_come(registered: Registered, origin: SmallSource, rated: bool) -> None:
    origin.add(*origin.rows(0, 300))
    registered.import_history(origin)
    stream = replace(registered.stream, champion=recipes.ftrl()) if rated else registered.stream
    with closing(db.connect(registered.dsn)) as conn, db.transaction(conn):
        name = registry.add_version(
            conn, stream, stream.champion, ENGINE, first_seq=1, evidence_seq=1, status="catching_up"
        )
    with closing(db.connect(registered.dsn, role="headrace_learner")) as conn:

        def opened() -> Any:
            known = registry.version(conn, "small", name)
            return open_version(conn, stream, known, registered.columns, b"k" * 32, ENGINE)

        learner = Learner(conn, conn, stream, registered.columns, opened, batch=100)
        learner.begin(leases.take(conn, "small", name, timedelta(seconds=5)))
        while learner.step():  # a checkpoint after the first batch with an epoch's end, and at the log's edge
            pass
    rows = registered.query(
        "SELECT feature, array_agg(p50 ORDER BY seq), max(weights), bool_and(p50 <= p90 AND nonzero <= weights) "
        "FROM metrics.learning_rates WHERE version = %s GROUP BY feature",
        name,
    )
    assert bool(rows) == rated
    for feature, p50, weights, sound in rows:
        assert sound
        assert weights >= 1
        if feature == "bias":
            assert len(p50) > 1
            assert p50 == sorted(p50, reverse=True)
            assert p50[0] > 1.5 * p50[-1]
