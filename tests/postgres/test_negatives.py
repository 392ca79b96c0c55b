"""Negative subsampling through the real thing: versions learn a share, SQL says which, nothing is lost or learned twice."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import pytest
from tests.conftest import ENGINE, Registered, SmallSource
from tests.postgres.test_erasure import KEY, learn

from headrace.batch.audit import audit
from headrace.batch.bootstrap import bootstrap
from headrace.batch.compare import compare
from headrace.batch.rebuild import rebuild
from headrace.definition import recipes
from headrace.definition.stream import Policy, Stream
from headrace.flow.negatives import Negatives
from headrace.store import db, registry, source
from headrace.store.migrate import migrate

RATE = 0.3
TREES = {"min_data_in_leaf": 20, "max_trees": 30}
BOOTSTRAPPED = [
    recipes.lightgbm(**TREES),
    recipes.stack(**TREES, members=recipes.lean_members()),
    recipes.ftrl(name="passes", target_means=True, batch=recipes.Batch(passes=3)),
]


@pytest.fixture(params=["weight", "calibrate"])
def sampled(platform: str, origin: SmallSource, small: Stream, request: pytest.FixtureRequest) -> Registered:
    """The small stream, of whose negatives a share teaches, on a platform of its own."""
    by: Literal["weight", "calibrate"] = request.param
    stream = replace(
        small,
        label=replace(small.label, if_missing="negative", on_late="learn"),
        champion=recipes.ftrl(target_means=True),
        challengers=BOOTSTRAPPED,
        negative_rate=RATE,
        negatives=by,
    )
    assert stream.problems() == []
    with closing(db.connect(origin.dsn)) as conn:
        columns = source.log_columns(conn, stream)
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, stream, columns, ENGINE)
    migrate(platform)
    return Registered(platform, stream, columns)


def sums(running: Registered, version: str) -> tuple[Any, ...]:
    """(labels, positives, p_sum, loss_sum, learned, left_out) over all epochs of a version."""
    row: tuple[Any, ...] = running.query(
        "SELECT sum(labels), sum(positives), sum(p_sum), sum(loss_sum), sum(learned), sum(left_out) FROM metrics.progressive "
        "WHERE version = %s",
        version,
    )[0]
    return row


def test_from_the_log_to_a_rebuild(sampled: Registered, origin: SmallSource) -> None:
    origin.add(*origin.rows(0, 3000))
    sampled.import_history(origin)
    learn(sampled)
    by_epoch = sampled.query(
        "SELECT p_sum, positives FROM metrics.progressive WHERE version = 'small-1' ORDER BY epoch"
    )
    p, positives = np.array(by_epoch[len(by_epoch) // 3 :]).sum(axis=0)
    assert p / positives == pytest.approx(1.0, abs=0.1), "before late labels change what is learned"
    with closing(db.connect(sampled.dsn, role="headrace_steer")) as conn:
        made = [bootstrap(conn, sampled.stream, r, sampled.columns, ENGINE, KEY) for r in BOOTSTRAPPED]
        for candidate in made:
            held = candidate.heldout
            there = sampled.query(
                "SELECT sum(labels) FROM headrace.epochs WHERE epoch BETWEEN %s AND %s",
                held["epoch_first"],
                held["epoch_last"],
            )
            assert held["labels"] == there[0][0], "every label judges a candidate"
            assert held["loss"] < 1.3 * held["champion_loss"]
            with db.transaction(conn):
                registry.set_status(conn, "small", candidate.version, "catching_up", was=("candidate",))
    for first in range(3000, 4500, 50):  # the clock ticks at each commit
        origin.add(*origin.rows(first, 50))
    origin.execute("UPDATE outcomes SET score = 40 - score WHERE visit_id % 9 = 0")
    sampled.follow(origin)
    names = ["small-1", *(candidate.version for candidate in made)]
    for name in names:
        learn(sampled, name)
    with closing(db.connect(sampled.dsn, role="headrace_reader")) as conn:
        found = audit(conn, sampled.stream, None)
        assert [i.breaches for i in found if not i.ok] == []
        (learned_once,) = (i for i in found if i.name == "learned_once")
        assert learned_once.promise.endswith("exactly once, or left it out as a negative")
        assert all(learned_once.counts[name]["left_out"] > 0 for name in names)
    with closing(db.connect(sampled.dsn, role="headrace_steer")) as conn:
        for name in names:
            done = rebuild(conn, sampled.stream, sampled.columns, name, ENGINE, KEY)
            assert done.equal == done.epochs > 5, name
    kinds = dict(sampled.query("SELECT kind::text, count(*) FROM small.labels GROUP BY kind"))
    assert min(kinds["timeout"], kinds["correction"]) > 100
    for name in names:
        labels, positives, _, loss, learned, left_out = sums(sampled, name)
        negatives = labels - positives
        assert learned + left_out >= labels
        assert left_out == pytest.approx((1 - RATE) * negatives, rel=0.1)
        assert loss / labels < 0.6, name
    _guarded(sampled, names)


def _guarded(sampled: Registered, names: list[str]) -> None:
    """Of three challengers that win by their losses the guard keeps the two whose predictions are said to be off."""
    watched = replace(
        sampled.stream,
        policy=Policy(
            epoch_labels=50, challenger_slots=3, season=timedelta(hours=1), min_gain=0.0, guards=["calibration"]
        ),
    )
    sampled.query("UPDATE headrace.versions SET status = 'shadow' WHERE version <> 'small-1'")
    both = (
        "SELECT sum(a.p_sum) / sum(a.positives), sum(b.p_sum) / sum(b.positives) FROM headrace.epoch_metrics AS a "
        "JOIN headrace.epoch_metrics AS b USING (stream, epoch) WHERE a.version = 'small-1' AND b.version = %s "
        "AND a.unscored = 0 AND b.unscored = 0 AND a.labels = b.labels"
    )
    won = "UPDATE headrace.epoch_metrics SET loss_sum = loss_sum / 2, p_sum = %s * positives WHERE version = %s"
    for name, share in zip(names[1:], (1.0, 3.0, 3.0), strict=True):
        sampled.query(won, share, name)
    expected = {name: sampled.query(both, name)[0] for name in names[1:]}
    with closing(db.connect(sampled.dsn, role="headrace_steer")) as conn:
        outcomes, promoted = compare(conn, watched)
        conn.commit()
    assert promoted == names[1], [outcome.reason for outcome in outcomes]
    kept = [outcome.reason for outcome in outcomes if outcome.challenger in names[2:]]
    assert len(kept) == 2 and all(", but stays in shadow: it predicts " in reason for reason in kept), kept
    shown = sampled.query("SELECT challenger, calibration_champion, calibration_challenger FROM metrics.comparisons")
    for challenger, *calibrations in shown:
        assert calibrations == pytest.approx(expected[challenger])
    assert sampled.query("SELECT count(calibration_champion), count(calibration_challenger) FROM metrics.slices") != [
        (0, 0)
    ]


def test_sql_says_who_learned_from_what(sampled: Registered, origin: SmallSource) -> None:
    origin.add(*origin.rows(0, 600))
    sampled.import_history(origin)
    learn(sampled)
    rows = sampled.query(
        "SELECT event_seq, y FROM small.labels WHERE kind <> 'correction' AND y IS NOT NULL AND seq <= "
        "(SELECT max(seq) FROM headrace.checkpoints)"
    )
    events, y = (np.array(values) for values in zip(*rows, strict=True))
    taught = events[Negatives(RATE).importance(events, y.astype(np.float64)) > 0]
    said = [seq for (seq,) in sampled.query("SELECT event_seq FROM metrics.learned_from WHERE kind <> 'correction'")]
    assert sorted(said) == sorted(taught.tolist())
    assert sums(sampled, "small-1")[4] == len(taught) < len(events)
    assert sampled.query("SELECT negative_rate FROM metrics.versions") == [(RATE,)]


def test_sql_draws_as_the_kernel_does(sampled: Registered) -> None:
    events = np.concatenate([np.arange(1, 2000), np.random.default_rng(0).integers(1, 2**62, 500)])
    for rate in (0.01, 0.3, 0.999):
        drawn = Negatives(rate).importance(events, np.zeros(len(events))) > 0
        rows = sampled.query(
            "SELECT headrace.negative_teaches(seq, %s) FROM unnest(%s) WITH ORDINALITY AS s(seq, place) ORDER BY place",
            rate,
            events.tolist(),
        )
        assert [teaches for (teaches,) in rows] == drawn.tolist()


def test_a_version_keeps_the_rate_that_it_was_registered_with(sampled: Registered, origin: SmallSource) -> None:
    origin.add(*origin.rows(0, 600))
    sampled.import_history(origin)
    learn(sampled)
    before = sums(sampled, "small-1")
    kept = json.dumps({"negatives": {"rate": RATE, "by": sampled.stream.negatives}})
    changed = replace(sampled, stream=replace(sampled.stream, negative_rate=1.0))
    with closing(db.connect(changed.dsn)) as conn, db.transaction(conn):
        assert registry.register(conn, changed.stream, changed.columns, ENGINE) is False
    origin.add(*origin.rows(600, 300))
    changed.follow(origin)
    learn(changed)
    left_out = sums(changed, "small-1")[5]
    assert left_out > before[5]
    with closing(db.connect(changed.dsn, role="headrace_steer")) as conn:
        assert rebuild(conn, changed.stream, changed.columns, "small-1", ENGINE, KEY).different == ()
        fresh = bootstrap(conn, changed.stream, BOOTSTRAPPED[0], changed.columns, ENGINE, KEY)
    changed.query("UPDATE headrace.versions SET config = config - 'negatives' WHERE version = 'small-1'")
    with closing(db.connect(changed.dsn, role="headrace_reader")) as conn:
        (learned_once,) = (i for i in audit(conn, changed.stream, None) if i.name == "learned_once")
    assert "small-1 learned, or left out, another number of labels" in learned_once.breaches[0], (
        "who may leave out nothing"
    )
    changed.query("UPDATE headrace.versions SET config = config || %s WHERE version = 'small-1'", kept)
    rates = dict(changed.query("SELECT version, negative_rate FROM metrics.versions"))
    assert rates == {"small-1": RATE, fresh.version: 1.0}
