"""`headrace up` as a parent: it ends and replaces what hangs, stops what should not run, and waits before a seam."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.system.workers import LEASE, Worker, wait_until

from headrace.events import Engine
from headrace.store import db, registry

Start = Callable[..., Worker]


@pytest.fixture
def challenged(registered: Any, origin: Any) -> Any:
    """The small stream with some history, and a challenger of its champion."""
    slow = registered.stream.recipe("slow")
    with closing(db.connect(registered.dsn)) as conn, db.transaction(conn):
        engine = Engine("any", "", {})
        registry.add_version(conn, registered.stream, slow, engine, first_seq=1, evidence_seq=1, status="catching_up")
    origin.add(*origin.rows(0, 100))
    registered.import_history(origin)
    return registered


def holder(registered: Any, role: str) -> int:
    """Pid of who is at work for a role: its lease was renewed in time."""
    rows = registered.query(
        "SELECT split_part(holder, ':', 2)::int FROM headrace.leases WHERE role = %s AND expires_at > clock_timestamp()",
        role,
    )
    return int(rows[0][0]) if rows else 0


def running(up: Worker, *words: str) -> set[int]:
    """Pids of the processes that `headrace up` runs with this end of a command line."""
    found = set()
    for process in psutil.Process(up.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline()[-len(words) :] == list(words):
                found.add(process.pid)
    return found


def states(registered: Any, role: str, *, now: bool = False) -> list[str]:
    still = " AND closed_at IS NULL" if now else ""
    return [state for (state,) in registered.query("SELECT state FROM metrics.incidents WHERE role = %s" + still, role)]


def headrace(environment: dict[str, str], folder: Path, *words: str) -> str:
    argv = [sys.executable, "-P", "-m", "headrace", *words]
    done = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("role", ["small-2", "intake"])
def test_who_hangs_without_a_standby_is_replaced(challenged: Any, origin: Any, start: Start, role: str) -> None:
    up = start("up", "small")
    wait_until(lambda: all(holder(challenged, r) for r in ("intake", "small-1", "small-2")), 60, "all work")
    hanging = psutil.Process(holder(challenged, role))
    hanging.send_signal(signal.SIGSTOP)
    took = wait_until(lambda: "hung" in states(challenged, role), 20, "the state has a name")
    assert took > LEASE
    wait_until(lambda: holder(challenged, role) not in (0, hanging.pid), 20, "another one works")
    wait_until(lambda: not hanging.is_running(), 5, "the old one is gone")
    origin.add(*origin.rows(100, 50))
    done = (
        "SELECT count(*) = 2 FROM headrace.worker_progress AS w JOIN headrace.intake_positions AS p USING (stream) "
        "WHERE w.role <> 'intake' AND w.done = p.seq AND p.seq > 240"
    )
    wait_until(lambda: challenged.query(done) == [(True,)], 20, "everybody goes on")
    wait_until(lambda: states(challenged, role, now=True) == [], 10, "all is well")
    assert states(challenged, role) == ["hung"]
    assert challenged.query("SELECT role FROM metrics.failovers") == [(role,)]
    assert up.says(f"has not renewed its lease for 2 times its length of {LEASE} s: it hangs")
    assert up.end() == 0


def test_status_tells_who_hangs(challenged: Any, start: Start, environment: dict[str, str], tmp_path: Path) -> None:
    learner = start("learn", "small", "small-2")
    wait_until(lambda: holder(challenged, "small-2"), 30, "it works")
    learner.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not holder(challenged, "small-2"), 10, "its lease is over")
    (found,) = json.loads(headrace(environment, tmp_path, "status", "--json"))["streams"]
    assert [(v["version"], v["running"], v["silent"]) for v in found["versions"]] == [
        ("small-1", False, False),
        ("small-2", True, True),
    ]
    said = headrace(environment, tmp_path, "status")
    assert [line.split()[3] for line in said.splitlines() if line.split()[:1] == ["small-2"]] == ["hangs"]


def test_a_former_champions_standby_ends(
    challenged: Any, start: Start, environment: dict[str, str], tmp_path: Path
) -> None:
    environment["HEADRACE_STANDBY"] = "1"
    up = start("up", "small")
    shadow = "SELECT 1 FROM headrace.versions WHERE version = 'small-2' AND status = 'shadow'"
    wait_until(lambda: challenged.query(shadow), 60, "the challenger has caught up")
    stand = "SELECT count(*) FROM metrics.standbys WHERE role = %s"
    wait_until(lambda: challenged.query(stand, "small-1") == [(1,)], 30, "the champion has a standby")
    headrace(environment, tmp_path, "promote", "small", "small-2", "--reason", "a test")
    wait_until(lambda: challenged.query(stand, "small-2") == [(1,)], 30, "the new champion has one")
    wait_until(lambda: len(running(up, "learn", "small", "small-1")) == 1, 10, "the former one needs none")
    wait_until(lambda: holder(challenged, "small-1"), 10, "but it learns on")
    assert len(running(up, "learn", "small", "small-2")) == 2
    assert challenged.query("SELECT count(*) FROM metrics.failovers") == [(0,)]
    assert challenged.query("SELECT count(*) FROM metrics.incidents") == [(0,)]
    assert up.end() == 0


def test_a_seam_is_not_tried_again_and_again(
    challenged: Any, origin: Any, start: Start, environment: dict[str, str], tmp_path: Path
) -> None:
    up = start("up", "small")
    wait_until(lambda: holder(challenged, "intake"), 60, "the intake works")
    wait_until(lambda: (tmp_path / "logs" / "intake-small.log").read_text().count("streaming") == 1, 20, "it streams")
    publication = "DROP PUBLICATION headrace_small; CREATE PUBLICATION headrace_small FOR TABLE visits, outcomes"
    origin.execute(publication)
    wait_until(lambda: "publication_changed" in states(challenged, "intake", now=True), 20, "the state has a name")
    wait_until(lambda: up.says("intake-small ended with 6; it starts again once that is repaired"), 10, "it waits")
    assert not running(up, "intake", "small")
    headrace(environment, tmp_path, "resync", "small")
    took = wait_until(lambda: holder(challenged, "intake"), 25, "it goes on by itself")
    print(f"resumed after {took:.1f} s")
    origin.add(*origin.rows(100, 10))
    wait_until(lambda: challenged.query("SELECT count(*) FROM small.events") == [(110,)], 10, "rows arrive")
    assert up.end() == 0
