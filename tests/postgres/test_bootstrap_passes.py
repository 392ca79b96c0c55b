"""Batch training from the log to SQL: its curve, its checkpoint, a learner that goes on, and a rebuild to the bit."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from tests.conftest import ENGINE, Registered, SmallSource
from tests.postgres.test_erasure import KEY, learn, sound

from headrace.batch.bootstrap import Candidate, bootstrap
from headrace.batch.rebuild import rebuild
from headrace.definition import recipes
from headrace.store import checkpoints, db, registry
from headrace.store.state import ARTIFACT, open_version

RECIPE = recipes.ftrl(name="passes", target_means=True, alpha=0.003, batch=recipes.Batch(passes=6))
REPLAY = recipes.ftrl(name="replay")
ONCE = recipes.ftrl(name="once", batch=recipes.Batch(passes=1))
Bootstrapped = tuple[Registered, Candidate, Any]


@pytest.fixture
def bootstrapped(registered: Registered, origin: SmallSource) -> Any:
    """A linear model that passed over 1,500 events, and a connection."""
    origin.add(*origin.rows(0, 1500))
    registered.import_history(origin)
    learn(registered)
    running = replace(registered, stream=replace(registered.stream, challengers=[RECIPE, REPLAY, ONCE]))
    with closing(db.connect(running.dsn, role="headrace_steer")) as conn:
        yield running, bootstrap(conn, running.stream, RECIPE, running.columns, ENGINE, KEY), conn


def test_its_curve_is_in_sql_and_the_best_pass_was_chosen(bootstrapped: Bootstrapped) -> None:
    running, made, _ = bootstrapped
    rows = running.query(
        "SELECT iteration, learning_rate, loss_train, loss_heldout FROM metrics.training_curves WHERE version = %s "
        "AND recipe = 'passes' ORDER BY iteration",
        made.version,
    )
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    best = min(rows, key=lambda row: float(row[3]))
    assert best[0] == made.iterations == made.heldout["passes"] > 1, "so low a rate needs several"
    assert best[3] < rows[0][3]
    # The curve leaves out events that waited when the held-out end began; the loss of the candidate has them.
    assert best[3] == pytest.approx(made.heldout["loss"], rel=0.02)
    assert [row[1] for row in rows] == pytest.approx([0.003, *(0.003 * 0.7**n for n in range(len(rows) - 1))])
    assert rows[1][2] < rows[0][2]


def test_the_same_window_gives_the_same_model(bootstrapped: Bootstrapped) -> None:
    running, made, conn = bootstrapped
    again = bootstrap(conn, running.stream, RECIPE, running.columns, ENGINE, KEY, seq_last=made.first_seq - 1)
    one, two = (checkpoints.last(conn, "small", version) for version in (made.version, again.version))
    assert one is not None and two is not None
    assert again.version != made.version and again.heldout == made.heldout
    assert one.seq == two.seq == made.first_seq - 1
    assert ARTIFACT not in one.arrays and one.arrays.keys() == two.arrays.keys()
    assert all(one.arrays[name].tobytes() == two.arrays[name].tobytes() for name in one.arrays)


def test_it_goes_on_and_is_rebuilt_to_the_bit(bootstrapped: Bootstrapped, origin: SmallSource) -> None:
    running, made, conn = bootstrapped
    with db.transaction(conn):
        registry.set_status(conn, "small", made.version, "catching_up", was=("candidate",))
    origin.add(*origin.rows(1500, 400))
    running.follow(origin)
    learn(running)
    learn(running, made.version)
    done = rebuild(conn, running.stream, running.columns, made.version, ENGINE, KEY)
    assert done.equal == done.epochs >= 5
    assert done.different == ()
    conn.commit()
    sound(running)
    first = running.query(
        "SELECT epoch, unscored, labels FROM headrace.epoch_metrics WHERE version = %s ORDER BY epoch LIMIT 1",
        made.version,
    )
    assert first[0][1] > 0, "labels of events that were open at the window's end teach, and are not scored"


def test_one_pass_is_the_version_that_replays_the_log(bootstrapped: Bootstrapped) -> None:
    """The weights are those of a learner that read the log from its first entry on."""
    running, made, conn = bootstrapped
    candidate = bootstrap(conn, running.stream, ONCE, running.columns, ENGINE, KEY)
    with db.transaction(conn):
        how: dict[str, Any] = {"first_seq": 1, "evidence_seq": 1, "status": "catching_up"}
        version = registry.add_version(conn, running.stream, REPLAY, ENGINE, **how)
    learn(running, version)
    trained = checkpoints.last(conn, "small", candidate.version)
    known = registry.version(conn, "small", version)
    replayed = open_version(conn, running.stream, known, running.columns, KEY, ENGINE, until=made.first_seq - 1)
    arrays, _ = replayed.progressive.state()
    assert trained is not None and trained.seq == replayed.progressive.seq
    weights = [name for name in arrays if name.startswith("model/")]
    assert len(weights) >= 6
    assert all(arrays[name].tobytes() == trained.arrays[name].tobytes() for name in weights)
