"""A stack from the log to SQL: its walk-forward start, its members' metrics, and a rebuild to the bit."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.conftest import ENGINE, Registered, SmallSource
from tests.postgres.test_erasure import KEY, learn

from headrace.batch.bootstrap import Candidate, bootstrap
from headrace.batch.rebuild import rebuild
from headrace.definition import recipes
from headrace.models import boosting
from headrace.store import checkpoints, db, registry
from headrace.store.state import ARTIFACT

RECIPE = recipes.stack(calibrate_by=["colour"], min_data_in_leaf=20, max_trees=20)
Bootstrapped = tuple[Registered, Candidate, Any]


@pytest.fixture
def bootstrapped(registered: Registered, origin: SmallSource) -> Any:
    """A stack that was trained on 1,500 events, and a connection."""
    origin.add(*origin.rows(0, 1500))
    registered.import_history(origin)
    learn(registered)
    running = replace(registered, stream=replace(registered.stream, challengers=[RECIPE]))
    with closing(db.connect(running.dsn, role="headrace_steer")) as conn:
        yield running, bootstrap(conn, running.stream, RECIPE, running.columns, ENGINE, KEY), conn


def test_it_starts_at_half_of_the_window_and_has_all_its_trees_at_the_end(bootstrapped: Bootstrapped) -> None:
    running, made, conn = bootstrapped
    heldout = made.heldout
    labels = [seq for (seq,) in running.query("SELECT seq FROM small.labels WHERE y IS NOT NULL ORDER BY seq")]
    labels = [seq for seq in labels if seq < made.first_seq]
    assert heldout["stack_seq"] == labels[len(labels) // 2] + 1
    assert heldout["refit_seq"] == made.first_seq - 1
    assert 0.2 < heldout["loss"] < 0.7
    champion = heldout["champion_loss"]
    assert champion is not None
    assert heldout["loss"] < champion, "river's logistic regression with a learning rate of .01"
    base = checkpoints.last(conn, "small", made.version)
    assert base is not None
    assert base.seq == made.first_seq - 1
    assert ARTIFACT in base.arrays
    weights = base.arrays["model/w"]
    assert weights.shape == (4, len(RECIPE.members) + 1)
    assert np.abs(weights - weights[0, 0]).max() > 0.01, "the stackers have learned on the way"


def test_it_goes_on_and_is_rebuilt_to_the_bit(bootstrapped: Bootstrapped, origin: SmallSource) -> None:
    running, made, conn = bootstrapped
    with db.transaction(conn):
        registry.set_status(conn, "small", made.version, "catching_up", was=("candidate",))
    origin.add(*origin.rows(1500, 400))
    running.follow(origin)
    learn(running, made.version)
    done = rebuild(conn, running.stream, running.columns, made.version, ENGINE, KEY)
    assert done.equal == done.epochs >= 5
    assert done.different == ()

    own = "SELECT epoch, labels, loss_sum FROM headrace.epoch_metrics WHERE version = %s ORDER BY epoch"
    epochs = running.query(own, made.version)
    rows = running.query(
        "SELECT epoch, member, labels, log_loss, weight, top_weights FROM metrics.members WHERE version = %s",
        made.version,
    )
    assert {row[0] for row in rows} == {epoch for epoch, _, _ in epochs}
    assert {row[1] for row in rows} == {member.name for member in RECIPE.members}
    last, labels, _ = epochs[-1]
    of_last = [row for row in rows if row[0] == last]
    assert {row[2] for row in of_last} == {labels}
    assert all(0.1 < row[3] < 3 and sum(row[5]) == pytest.approx(1) for row in of_last)
    assert 0.5 < sum(row[4] for row in of_last) < 2
    loss = sum(loss for _, _, loss in epochs) / sum(labels for _, labels, _ in epochs)
    of_members = {m: [r for r in rows if r[1] == m] for m in {r[1] for r in rows}}
    best = min(sum(r[2] * r[3] for r in mine) / sum(r[2] for r in mine) for mine in of_members.values())
    assert loss < 1.1 * best


def test_its_search_runs_once_on_the_half_that_the_stack_does_not_follow(
    registered: Registered, origin: SmallSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = boosting.search

    def counted(evaluate: Any, *rest: Any) -> Any:
        asked.append(1)
        return real(evaluate, *rest)

    monkeypatch.setattr(boosting, "search", counted)
    origin.add(*origin.rows(0, 1500))
    registered.import_history(origin)
    recipe = recipes.stack(search=recipes.Search(trials=4), max_trees=20)
    with closing(db.connect(registered.dsn, role="headrace_steer")) as conn:
        made = bootstrap(conn, registered.stream, recipe, registered.columns, ENGINE, KEY)
        base = checkpoints.last(conn, "small", made.version)
    assert len(asked) == 1
    found = made.heldout["search"]
    assert found["trials"] == 4
    assert base is not None
    trees = boosting.Ensemble.parse(base.arrays[ARTIFACT].tobytes())
    for name in ("num_leaves", "min_data_in_leaf"):
        assert f"[{name}: {found['params'][name]}]" in trees.text, "trees of the whole window have what was found"
