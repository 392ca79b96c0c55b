"""Hot standbys: real processes that take over from one that is killed, stopped or cut off, and go on to the bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.system.workers import LEASE, Worker, wait_until
from tests.system.wrong import FLIPS_A_BIT, LEARNS_THE_OPPOSITE

from headrace.models.engine import engine
from headrace.store import db, log, registry
from headrace.store.state import open_version

OPEN = "SELECT state, message FROM metrics.incidents WHERE closed_at IS NULL"


def rebuild(environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What `headrace rebuild` says of the champion."""
    words = [sys.executable, "-P", "-m", "headrace", "rebuild", "small", "small-1"]
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def held_by(registered: Any, role: str) -> int:
    """Pid of a role's holder that is at work; 0 when there is none."""
    rows = registered.query(
        "SELECT split_part(l.holder, ':', 2)::int FROM headrace.leases AS l LEFT JOIN headrace.failovers AS f "
        "USING (stream, role, token) WHERE l.role = %s AND NOT l.released AND (f.token IS NULL OR f.ready_at IS NOT NULL)",
        role,
    )
    return int(rows[0][0]) if rows else 0


def stands_by(registered: Any, role: str, worker: Worker) -> bool:
    rows = registered.query(
        "SELECT 1 FROM metrics.standbys WHERE role = %s AND holder LIKE %s", role, f"%:{worker.pid}"
    )
    return bool(rows)


@contextmanager
def pair(registered: Any, start: Callable[..., Worker], role: str, *words: str) -> Iterator[list[Worker]]:
    """A holder and its standby."""
    workers = [start(*words)]
    wait_until(lambda: held_by(registered, role) == workers[0].pid, 30, "the first one works")
    workers.append(start(*words))
    wait_until(lambda: stands_by(registered, role, workers[1]), 30, "the second one stands by")
    yield workers


def replace_killed(
    registered: Any, start: Callable[..., Worker], workers: list[Worker], role: str, *words: str
) -> float:
    """kill -9 of the holder: the standby works; then a new one stands by. Gives the seconds without a holder."""
    holder = next(w for w in workers if w.pid == held_by(registered, role))
    workers.remove(holder)
    holder.process.kill()
    took = wait_until(lambda: held_by(registered, role) == workers[0].pid, 10, "the standby took over")
    workers.append(start(*words))
    wait_until(lambda: stands_by(registered, role, workers[-1]), 30, "another one stands by")
    return took


def test_the_intake_goes_on_whoever_is_killed(registered: Any, origin: Any, start: Callable[..., Worker]) -> None:
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    with pair(registered, start, "intake", "intake", "small") as workers:
        took = []
        for n in range(4):
            origin.add(*origin.rows(100 + 20 * n, 10))
            took.append(replace_killed(registered, start, workers, "intake", "intake", "small"))
            origin.add(*origin.rows(110 + 20 * n, 10))
        arrived = "SELECT count(*) = 130 FROM small.events"
        wait_until(lambda: registered.query(arrived) == [(True,)], 10, "every event is in the log, once")
    print("takeovers in s:", [round(t, 3) for t in took])
    assert max(took) < 5  # the rig measures; here it must only not wait for the lease's end and a new process
    failovers = registered.query("SELECT why, ready_ms IS NOT NULL FROM metrics.failovers WHERE role = 'intake'")
    assert failovers == [("ended", True)] * 4
    for counts in registered.accounting().values():
        outcomes = ("events", "labels", "corrections", "held", "quarantined", "ignored")
        assert counts["received"] == sum(counts[n] for n in outcomes)


def test_a_holder_that_hangs_is_replaced_and_writes_nothing_any_more(
    registered: Any, origin: Any, start: Callable[..., Worker]
) -> None:
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    with pair(registered, start, "intake", "intake", "small") as (hanging, standby):
        hanging.process.send_signal(signal.SIGSTOP)
        took = wait_until(lambda: held_by(registered, "intake") == standby.pid, 10, "the standby took over")
        assert took < LEASE + 1
        origin.add(*origin.rows(100, 30))
        wait_until(
            lambda: registered.query("SELECT count(*) FROM small.events WHERE key >= 100") == [(30,)], 10, "it works"
        )
        hanging.process.send_signal(signal.SIGCONT)
        assert hanging.process.wait(10) == 4
        assert hanging.says("lost the role 'intake' of stream 'small' to ")
        assert not hanging.says("Traceback")
    assert registered.query("SELECT why FROM metrics.failovers") == [("silent",)]
    assert registered.query("SELECT count(*), count(DISTINCT key) FROM small.events") == [(80, 80)]


@pytest.mark.parametrize("step", ["1 hour", "-1 hour"])
def test_clocks_that_step_decide_nothing(registered: Any, origin: Any, start: Callable[..., Worker], step: str) -> None:
    """The platform's clock is an hour off when the lease was renewed last: who lives keeps its role, who hangs loses it."""
    registered.import_history(origin)
    renewed = f"UPDATE headrace.leases SET renewed_at = renewed_at + '{step}', expires_at = expires_at + '{step}'"
    with pair(registered, start, "intake", "intake", "small") as (first, second):
        for n in range(20):
            registered.query(renewed)
            origin.add(*origin.rows(10 * n, 1))
            time.sleep(LEASE / 10)
        assert held_by(registered, "intake") == first.pid
        first.process.send_signal(signal.SIGSTOP)
        registered.query(renewed)
        took = wait_until(lambda: held_by(registered, "intake") == second.pid, 10, "the standby took over")
        assert took < LEASE + 1
    assert registered.query("SELECT why FROM metrics.failovers") == [("silent",)]


def test_a_clean_end_is_no_failover(registered: Any, origin: Any, start: Callable[..., Worker]) -> None:
    registered.import_history(origin)
    with pair(registered, start, "intake", "intake", "small") as (first, second):
        assert first.end() == 0
        wait_until(lambda: held_by(registered, "intake") == second.pid, 10, "the standby works")
    assert registered.query("SELECT count(*) FROM metrics.failovers") == [(0,)]


def test_a_learner_goes_on_to_the_bit(
    registered: Any, origin: Any, start: Callable[..., Worker], environment: dict[str, str], tmp_path: Path
) -> None:
    origin.add(*origin.rows(0, 400))
    registered.import_history(origin)
    words = ("learn", "small", "small-1")
    with pair(registered, start, "small-1", *words) as workers:
        for n in range(3):
            origin.add(*origin.rows(400 + 200 * n, 200))
            registered.follow(origin)
            replace_killed(registered, start, workers, "small-1", *words)
        ((last,),) = registered.query("SELECT max(epoch) FROM headrace.epochs")
        scored = "SELECT max(epoch) FROM headrace.epoch_metrics WHERE version = 'small-1'"
        wait_until(lambda: registered.query(scored) == [(last,)], 20, "every epoch is scored")
    rebuilt = rebuild(environment, tmp_path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert f"{last} of {last} epochs have equal digests" in rebuilt.stdout
    twice = "SELECT count(*) FROM headrace.epoch_metrics AS m JOIN headrace.epochs AS e USING (stream, epoch)"
    assert registered.query(twice + " WHERE m.learned <> e.labels") == [(0,)]


def test_a_standby_that_computes_otherwise_says_so_and_stops(
    registered: Any, origin: Any, start: Callable[..., Worker], environment: dict[str, str], tmp_path: Path
) -> None:
    origin.add(*origin.rows(0, 200))
    registered.import_history(origin)
    words = ("learn", "small", "small-1")
    with pair(registered, start, "small-1", *words) as (good, standby):
        standby.end()
        wrong = start(*words, program=LEARNS_THE_OPPOSITE)
        wait_until(lambda: stands_by(registered, "small-1", wrong), 30, "it stands by")
        origin.add(*origin.rows(200, 300))
        registered.follow(origin)
        assert wrong.process.wait(20) == 1
        assert wrong.says(
            "one of the two computed wrongly, `headrace rebuild small small-1` tells which; this one stops"
        )
        assert good.process.poll() is None
    ((state, message),) = registered.query(OPEN)
    assert state == "diverged"
    assert message.startswith("epoch ")
    rebuilt = rebuild(environment, tmp_path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "The replica that had another digest was the one that was wrong." in rebuilt.stdout
    assert registered.query(OPEN) == []


def test_a_wrong_writer_stays_a_divergence_whoever_starts_again(
    registered: Any, origin: Any, start: Callable[..., Worker], environment: dict[str, str], tmp_path: Path
) -> None:
    """One bit of a weight flips in the holder; what begins at its checkpoints agrees with it and proves nothing."""
    origin.add(*origin.rows(0, 200))
    registered.import_history(origin)
    words, number = ("learn", "small", "small-1"), 200

    def more() -> int:
        """Several epochs; gives the log's end."""
        nonlocal number
        origin.add(*origin.rows(number, 300))
        number += 300
        registered.follow(origin)
        return int(registered.query("SELECT seq FROM headrace.intake_positions")[0][0])

    def learned(seq: int) -> bool:
        return bool(
            registered.query("SELECT 1 FROM headrace.worker_progress WHERE role = 'small-1' AND done >= %s", seq)
        )

    def followed(worker: Worker, seq: int) -> bool:
        stood = "SELECT 1 FROM metrics.standbys WHERE holder LIKE %s AND seq >= %s"
        return bool(registered.query(stood, f"%:{worker.pid}", seq))

    wrong = start(*words, program=FLIPS_A_BIT)
    wait_until(lambda: held_by(registered, "small-1") == wrong.pid, 30, "the wrong one works")
    good = start(*words)
    wait_until(lambda: stands_by(registered, "small-1", good), 30, "the good one stands by")
    trigger = tmp_path / "sabotage"
    trigger.touch()
    more()
    wait_until(lambda: not trigger.exists(), 20, "the bit is flipped")
    more()
    assert good.process.wait(20) == 1
    assert good.says("one of the two computed wrongly")
    assert [state for state, _ in registered.query(OPEN)] == ["diverged"]

    again = start(*words)  # as the supervisor does: from the wrong checkpoint
    wait_until(lambda: stands_by(registered, "small-1", again), 30, "it stands by again")
    end = more()
    wait_until(lambda: learned(end) and followed(again, end), 20, "both learned the same")
    wrong.process.kill()
    wait_until(lambda: held_by(registered, "small-1") == again.pid, 10, "it took over")
    end = more()
    wait_until(lambda: learned(end), 20, "it works")
    assert [state for state, _ in registered.query(OPEN)] == ["diverged"]
    rebuilt = rebuild(environment, tmp_path)
    assert rebuilt.returncode == 5, rebuilt.stdout
    assert [state for state, _ in registered.query(OPEN)] == ["diverged"]


def test_what_a_standby_knows_is_what_a_new_process_reads(
    registered: Any, origin: Any, start: Callable[..., Worker]
) -> None:
    """The join that followed the log and the one that starts from it are the same."""
    from headrace.live import intake

    origin.add(*origin.rows(0, 60, labelled=0.5))
    registered.import_history(origin)
    with closing(db.connect(registered.dsn, role="headrace_intake")) as conn:
        followed = intake.standing(conn, registered.stream, registered.columns)
        for n in range(5):
            followed.follow(conn)
            origin.add(*origin.rows(60 + 40 * n, 40, labelled=0.5))
            registered.follow(origin)
        followed.follow(conn)
        fresh = intake.standing(conn, registered.stream, registered.columns)
        fresh.follow(conn)
        assert (followed.join.seq, followed.join.open_events) == (fresh.join.seq, fresh.join.open_events)
        assert followed.join.epoch == fresh.join.epoch
        assert followed.join._waiting.oldest() == fresh.join._waiting.oldest()
        at = log.position(conn, "small")
        version = registry.version(conn, "small", "small-1")
        assert at is not None
        assert (
            open_version(conn, registered.stream, version, registered.columns, b"k" * 32, engine()).progressive.seq == 0
        )
