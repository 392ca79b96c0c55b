"""Rebuilds across upgrades, and what they settle: chains of digests begin where their engine does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import ENGINE, Registered, SmallSource

from headrace.batch.rebuild import Rebuilt, rebuild
from headrace.errors import DivergedError
from headrace.events import Engine
from headrace.live.learner import Learner
from headrace.live.witness import Witness
from headrace.store import db, leases, registry
from headrace.store.state import open_version, read_on

KEY = b"k" * 32
NEWER = Engine("newer", "1" * 8, {"python": "any"})
WORDS = {"stream": "small", "role": "small-1", "version": "small-1", "message": "epoch 5 differs", "epoch": 5}


def learner_of(conn: Any, registered: Registered, engine: Engine) -> Learner:
    def opened() -> Any:
        known = registry.version(conn, "small", "small-1")
        return open_version(conn, registered.stream, known, registered.columns, KEY, engine)

    return Learner(conn, conn, registered.stream, registered.columns, opened)


@contextmanager
def learning(registered: Registered, engine: Engine) -> Iterator[Learner]:
    """A learner that holds the role."""
    with closing(db.connect(registered.dsn, role="headrace_learner")) as conn:
        learner = learner_of(conn, registered, engine)
        learner.begin(leases.take(conn, "small", "small-1", timedelta(seconds=5)))
        yield learner


def to_the_end(learner: Learner) -> None:
    while learner.step():
        pass


def live(registered: Registered, origin: SmallSource, first: int, engine: Engine) -> int:
    """200 events, learned on an engine; gives how many epochs are stored by now."""
    origin.add(*origin.rows(first, 200))
    registered.follow(origin)
    with learning(registered, engine) as learner:
        to_the_end(learner)
    return int(registered.query("SELECT count(*) FROM headrace.epoch_metrics")[0][0])


def again(registered: Registered, engine: Engine, **more: Any) -> Rebuilt:
    with closing(db.connect(registered.dsn, role="headrace_steer")) as conn:
        return rebuild(conn, registered.stream, registered.columns, "small-1", engine, KEY, **more)


def counts(done: Rebuilt) -> tuple[int, int, tuple[int, ...], int, int]:
    return done.epochs, done.equal, done.different, done.other_engine, done.gone


@pytest.fixture
def past(registered: Registered, origin: SmallSource) -> Registered:
    """A stream with some history."""
    origin.add(*origin.rows(0, 300))
    registered.import_history(origin)
    return registered


def test_an_upgrade_is_no_divergence(past: Registered, origin: SmallSource) -> None:
    old = live(past, origin, 300, ENGINE)
    new = live(past, origin, 500, NEWER) - old
    back = live(past, origin, 700, ENGINE) - old - new
    assert min(old, new, back) > 1
    done = again(past, ENGINE)
    assert counts(done) == (old + new + back, old + back, (), new, 0)
    assert (
        f"{old + back} of {old + new + back} epochs have equal digests, {new} of another engine left out."
        in done.sentence
    )
    assert counts(again(past, NEWER)) == (old + new + back, new, (), old + back, 0)
    ((since,),) = past.query("SELECT max(seq_last) FROM headrace.epoch_metrics WHERE engine = 'newer'")
    assert counts(again(past, ENGINE, since=since)) == (back, back, (), 0, 0)
    past.query("DELETE FROM headrace.checkpoints WHERE seq = %s", since)
    done = again(past, ENGINE)
    assert counts(done) == (old + new + back, old, (), new, back)
    assert f"{back} left out since the state they began with is not kept any more" in done.sentence
    done = again(past, Engine("third", "", {}))
    assert done.sentence.startswith(f"Nothing of small-1 could be compared: 0 of {done.epochs} epochs")
    past.query("UPDATE headrace.epoch_metrics SET digest = digest || '\\x00' WHERE epoch = %s", old + 2)
    assert again(past, NEWER).different == (old + 2,)


def test_a_standby_of_a_newer_engine_begins_a_chain_when_it_takes_over(past: Registered, origin: SmallSource) -> None:
    """However far it is: a replica and a rebuild begin theirs at the older engine's last checkpoint."""
    with ExitStack() as open_here, closing(db.connect(past.dsn, role="headrace_learner")) as conn:
        holder = open_here.enter_context(learning(past, ENGINE))
        holder.step()
        standby = learner_of(conn, past, NEWER)
        origin.add(*origin.rows(300, 300))
        past.follow(origin)
        standby.follow()
        to_the_end(holder)
        standby.follow()  # all that it learned is stored: nothing to learn again
        holder.conn.close()
        replica = open_version(
            conn, past.stream, registry.version(conn, "small", "small-1"), past.columns, KEY, NEWER
        ).progressive
        lease = leases.try_take(conn, "small", "small-1", timedelta(seconds=5))
        assert lease is not None
        standby.begin(lease)
        origin.add(*origin.rows(600, 200))
        past.follow(origin)
        to_the_end(standby)
        witness = Witness("small", "small-1", NEWER.id)
        ((seq,),) = past.query("SELECT max(seq_last) FROM headrace.epoch_metrics")
        witness.saw(read_on(conn, "small", past.columns, replica, seq)[1])
        witness.compare(conn)
        assert witness.comparable
        conn.rollback()
    done = again(past, NEWER)
    assert done.different == ()
    assert done.equal > 1
    assert done.equal + done.other_engine == done.epochs


def diverged(registered: Registered) -> int:
    return int(
        registered.query("SELECT count(*) FROM metrics.incidents WHERE state = 'diverged' AND closed_at IS NULL")[0][0]
    )


def test_only_a_proof_closes_a_divergence(past: Registered, origin: SmallSource) -> None:
    assert live(past, origin, 300, ENGINE) > 6
    with closing(db.connect(past.dsn, role="headrace_learner", autocommit=True)) as conn:
        db.run(conn, "open_divergence", WORDS)
        db.run(conn, "open_divergence", WORDS)
    with closing(db.connect(past.dsn, role="headrace_reader", autocommit=True)) as conn:
        for host in ("one", "one", "other"):
            db.run(conn, "report_endpoint", {**WORDS, "host": host})
    assert diverged(past) == 3
    live(past, origin, 500, ENGINE)  # a new learner is no proof
    assert diverged(past) == 3
    assert again(past, NEWER).settled == 0
    past.query("UPDATE headrace.epoch_metrics SET digest = '\\xff' || digest WHERE epoch = 5")
    done = again(past, ENGINE)
    assert (done.different, done.settled) == ((5,), 0)
    past.query("UPDATE headrace.epoch_metrics SET digest = substr(digest, 2) WHERE epoch = 5")
    done = again(past, ENGINE)
    assert (done.different, done.settled, diverged(past)) == ((), 3, 0)
    assert done.sentence.endswith(" The replica that had another digest was the one that was wrong.")


def test_a_part_of_the_log_proves_nothing_about_what_came_before(past: Registered, origin: SmallSource) -> None:
    live(past, origin, 300, ENGINE)
    live(past, origin, 500, ENGINE)
    ((since,),) = past.query("SELECT min(seq) FROM headrace.checkpoints WHERE seq > 0")
    ((epoch,),) = past.query("SELECT max(epoch) FROM headrace.epoch_metrics")
    with closing(db.connect(past.dsn, role="headrace_learner", autocommit=True)) as conn:
        db.run(conn, "open_divergence", {**WORDS, "epoch": epoch})
    assert again(past, ENGINE, since=since).different == ()
    assert diverged(past) == 1


def test_without_its_base_only_retirement_ends_a_divergence(past: Registered, origin: SmallSource) -> None:
    """Where the state is shown it is said so: in SQL and in `headrace status`, which reads the same."""
    live(past, origin, 300, ENGINE)
    with closing(db.connect(past.dsn, role="headrace_learner", autocommit=True)) as conn:
        db.run(conn, "open_divergence", WORDS)
    said = "SELECT message FROM metrics.incidents WHERE state = 'diverged'"
    assert past.query(said) == [("epoch 5 differs",)]
    why = "retention dropped entries up to seq 64"
    past.query("UPDATE headrace.versions SET rebuildable = false, why_not_rebuildable = %s", why)
    message = (
        f"epoch 5 differs; the base of small-1 is gone ({why}), so no rebuild can tell: this state ends when the version is "
        "retired"
    )
    assert past.query(said) == [(message,)]
    with closing(db.connect(past.dsn, role="headrace_reader")) as conn:
        ((role, _, shown, _),) = db.rows(conn, "status_incidents", {"stream": "small"})
    assert (role, shown) == ("small-1", message)
    with closing(db.connect(past.dsn, role="headrace_steer")) as conn, db.transaction(conn):
        assert registry.set_status(conn, "small", "small-1", "retired", was=("champion",))
    assert past.query(said) == [("epoch 5 differs",)]
    assert diverged(past) == 0


def test_a_version_that_nobody_runs_is_no_incident(past: Registered) -> None:
    with closing(db.connect(past.dsn, role="headrace_learner", autocommit=True)) as conn:
        db.run(conn, "open_divergence", WORDS)
    with closing(db.connect(past.dsn, role="headrace_steer")) as conn, db.transaction(conn):
        assert registry.set_status(conn, "small", "small-1", "retired", was=("champion",))
    assert diverged(past) == 0


def test_a_divergence_names_its_version_and_epoch(past: Registered, origin: SmallSource) -> None:
    live(past, origin, 300, ENGINE)
    past.query("UPDATE headrace.epoch_metrics SET digest = '\\xff' || digest WHERE epoch = 2")
    with closing(db.connect(past.dsn, role="headrace_learner")) as conn:
        base = open_version(
            conn, past.stream, registry.version(conn, "small", "small-1"), past.columns, KEY, ENGINE, until=0
        ).progressive
        witness = Witness("small", "small-1", ENGINE.id)
        witness.saw(read_on(conn, "small", past.columns, base, 400)[1])
        with pytest.raises(DivergedError, match="epoch 2 of small-1 has digest ff") as caught:
            witness.compare(conn)
    assert (caught.value.version, caught.value.epoch) == ("small-1", 2)
