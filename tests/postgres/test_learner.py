"""A learner that writes its checkpoints aside: it goes on meanwhile, and hears of what went wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from tests.conftest import ENGINE, Registered, SmallSource

from headrace.batch.rebuild import rebuild
from headrace.errors import LeaseError, ModelError
from headrace.flow.progressive import Progressive
from headrace.live import learner as live
from headrace.live.learner import Learner
from headrace.store import db, leases, registry
from headrace.store.state import open_version

KEY = b"k" * 32
STORED = "SELECT coalesce(max(seq), 0) FROM headrace.checkpoints"


@contextmanager
def learning(registered: Registered, batch: int) -> Iterator[Learner]:
    """A learner that does not hold its role."""
    with (
        closing(db.connect(registered.dsn, role="headrace_learner")) as conn,
        closing(db.connect(registered.dsn, role="headrace_learner")) as reads,
    ):

        def opened() -> Any:
            version = registry.version(conn, "small", "small-1")
            return open_version(conn, registered.stream, version, registered.columns, KEY, ENGINE)

        yield Learner(conn, reads, registered.stream, registered.columns, opened, batch)


def take(learner: Learner) -> leases.Lease:
    return leases.take(learner.conn, "small", "small-1", timedelta(seconds=5), patience=timedelta(seconds=5))


@pytest.fixture
def learner(registered: Registered, origin: SmallSource) -> Iterator[Learner]:
    """The holder of a version's role, before it has read anything."""
    origin.add(*origin.rows(0, 300))
    registered.import_history(origin)
    with learning(registered, batch=50) as learner:
        learner.begin(take(learner))
        yield learner


def stored(registered: Registered) -> int:
    return int(registered.query(STORED)[0][0])


def test_it_learns_while_a_checkpoint_waits(
    learner: Learner, registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_CHECKPOINT_SECONDS", 0.0)
    with closing(db.connect(registered.dsn)) as other:
        with other.cursor() as cursor:
            cursor.execute("LOCK TABLE headrace.checkpoints IN SHARE MODE")
        with learner.aside() as aside:
            while not aside.busy:
                assert learner.step()
            first = learner.live.progressive.seq
            for _ in range(3):
                assert learner.step()
            assert learner.live.progressive.seq == first + 150
            assert aside.busy
            assert stored(registered) == 0
            other.rollback()
            while learner.step():
                pass
    ((last,),) = registered.query("SELECT max(seq_last) FROM headrace.epochs")
    assert stored(registered) == last, "what was given is written when the block ends"
    ((missing,),) = registered.query(
        "SELECT count(*) FROM headrace.epochs WHERE epoch NOT IN (SELECT epoch FROM headrace.epoch_metrics)"
    )
    assert missing == 0


def test_a_checkpoint_does_not_wait_for_the_next_epochs_end(
    learner: Learner, registered: Registered, origin: SmallSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_CHECKPOINT_SECONDS", float("inf"))
    learner.batch = 10_000
    with learner.aside() as aside:
        assert learner.step()
        assert learner.kept is not None
        assert stored(registered) == 0
        taken = learner.kept.seq
        origin.add(*origin.rows(400, 1, labelled=0.0))
        registered.follow(origin)
        monkeypatch.setattr(live, "_CHECKPOINT_SECONDS", 0.0)
        assert learner.step()
        aside.settle()
        assert stored(registered) == taken


def test_a_standby_stores_what_its_holder_did_not(
    learner: Learner, registered: Registered, origin: SmallSource
) -> None:
    with learning(registered, batch=10_000) as standby:
        standby.follow()
        state = standby.live
        learner.conn.close()
        standby.begin(take(standby))
        assert standby.live is state, "it goes on with the state that it has"
        ((last,),) = registered.query("SELECT max(seq_last) FROM headrace.epochs")
        assert stored(registered) == last
        origin.add(*origin.rows(300, 200))
        registered.follow(origin)
        while standby.step():
            pass
    missing = "SELECT count(*) FROM headrace.epochs WHERE epoch NOT IN (SELECT epoch FROM headrace.epoch_metrics)"
    assert registered.query(missing) == [(0,)]
    with closing(db.connect(registered.dsn, role="headrace_steer")) as conn:
        done = rebuild(conn, registered.stream, registered.columns, "small-1", ENGINE, KEY)
    assert (done.different, done.equal) == ((), done.epochs)


def test_what_was_learned_before_an_entry_that_cannot_be_is_stored(
    learner: Learner, registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Progressive.apply

    def poisoned(self: Progressive, *arguments: Any, **named: Any) -> Iterator[Any]:
        yield from apply(self, *arguments, **named)
        raise ModelError("NaN")

    monkeypatch.setattr(Progressive, "apply", poisoned)
    learner.batch = 10_000
    with pytest.raises(ModelError, match="NaN"), learner.aside():
        learner.step()
    ((last,),) = registered.query("SELECT max(seq_last) FROM headrace.epochs")
    assert stored(registered) == last


def reported_aside(learner: Learner) -> None:
    """Report, and look whether that is done."""
    deadline = time.monotonic() + 10
    with learner.aside() as aside:
        learner.report()
        while aside.busy:
            assert time.monotonic() < deadline


def test_a_role_that_was_lost_is_heard_of(learner: Learner, registered: Registered) -> None:
    reported_aside(learner)
    assert learner.status == "champion"
    registered.query("UPDATE headrace.leases SET token = token + 1 WHERE role = 'small-1'")
    with pytest.raises(LeaseError, match="lost the role 'small-1'"):
        reported_aside(learner)


def test_a_version_in_shadow_is_reported_by_the_loop(learner: Learner, registered: Registered) -> None:
    registered.query("UPDATE headrace.versions SET status = 'catching_up' WHERE version = 'small-1'")
    deadline = time.monotonic() + 20

    def in_shadow() -> bool:
        assert time.monotonic() < deadline
        return learner.status == "shadow"

    live.run(learner, in_shadow)
    assert registered.query("SELECT status FROM headrace.versions WHERE version = 'small-1'") == [("shadow",)]
    assert stored(registered) > 0
