"""metrics.learned_from: every version that learned from a row, offline or online, and none that did not."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from tests.conftest import ENGINE, Registered, SmallSource
from tests.postgres.test_erasure import KEY, learn

from headrace.batch.bootstrap import bootstrap
from headrace.store import db, registry


def versions(registered: Registered, key: int) -> list[tuple[Any, ...]]:
    """(version, kind, served) of each time that a row was learned."""
    rows: list[tuple[Any, ...]] = registered.query(
        "SELECT version, kind, served FROM metrics.learned_from WHERE stream = 'small' AND key = %s ORDER BY seq, version",
        str(key),
    )
    return rows


def test_who_learned_from_a_row(registered: Registered, origin: SmallSource) -> None:
    origin.add(*origin.rows(0, 400, labelled=1.0))
    registered.import_history(origin)
    learn(registered)
    stream = registered.stream
    with closing(db.connect(registered.dsn, role="headrace_steer")) as conn:
        recipe = stream.recipe("lightgbm")
        assert recipe is not None
        candidate = bootstrap(conn, stream, recipe, registered.columns, ENGINE, KEY)
        with db.transaction(conn):
            late = registry.add_version(
                conn, stream, stream.recipe("slow"), ENGINE, first_seq=500, evidence_seq=500, status="shadow"
            )
    trained = [("small-1", "observed", True), (candidate.version, "observed", False)]
    assert versions(registered, 7) == trained, "a candidate that was not admitted has learned it, too"
    origin.add(*origin.rows(400, 100, labelled=1.0))
    registered.follow(origin)
    learn(registered)
    learn(registered, late)
    assert versions(registered, 7) == trained
    # The candidate does not run. What began later learned no label of an event that came before it.
    assert versions(registered, 401) == [("small-1", "observed", True), (late, "observed", False)]
    origin.execute("UPDATE outcomes SET score = 40 - score WHERE visit_id = 7")
    registered.follow(origin)
    learn(registered)
    assert versions(registered, 7) == trained, "the stream ignores late labels"
    assert versions(registered, 100_000) == []
