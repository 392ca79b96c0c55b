"""Who reads the slot: pg_recvlogical into nothing, and headrace until the last label is learned and durable."""

from __future__ import annotations

import subprocess
import time
from contextlib import closing
from dataclasses import dataclass

import psycopg2
from tests.bench.stream.stage import Cpu, Stage, cpu_of

from headrace.store.embedded import find_binaries


@dataclass(frozen=True)
class Took:
    """One run."""

    seconds: float
    changes: int
    cpu: Cpu  # seconds by process

    @property
    def per_second(self) -> float:
        return self.changes / self.seconds

    def per_million(self) -> Cpu:
        """CPU seconds per million changes."""
        return {name: round(1e6 * seconds / self.changes, 2) for name, seconds in self.cpu.items()}


def _walsender(stage: Stage, slot: str) -> tuple[int, float]:
    """The process that sends from a slot, as soon as there is one, and when that was on the monotonic clock."""
    pids: list[int] = []

    def active() -> bool:
        pid = stage.ask("shop", "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (slot,))
        pids[:] = [] if pid is None else [int(pid)]
        return bool(pids)

    began = stage.wait(active, pause=0.001)
    return pids[0], began


def limit(stage: Stage) -> Took:
    """pg_recvlogical drains the slot to /dev/null."""
    stage.fresh_slot("limit")
    options = ("proto_version=1", f"publication_names={stage.stream.publication}", "binary=true", "messages=true")
    argv = [str(find_binaries() / "pg_recvlogical"), "--dbname", stage.dsn("shop"), "--slot", "limit", "--start"]
    argv += [
        "--file",
        "/dev/null",
        "--endpos",
        stage.end_lsn,
        "--no-loop",
        *(word for option in options for word in ("-o", option)),
    ]
    process = subprocess.Popen(argv)
    sender, began = _walsender(stage, "limit")
    spent = me = 0.0
    while process.poll() is None:
        spent, me = max(spent, cpu_of(sender)), max(me, cpu_of(process.pid))
        time.sleep(0.005)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise RuntimeError(f"pg_recvlogical ended with {process.returncode}")
    stage.run("shop", "SELECT pg_drop_replication_slot('limit')")
    return Took(seconds, stage.changes, {"walsender": spent, "pg_recvlogical": me})


_BACKEND = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = 'headrace'"
_LEARNED = "SELECT coalesce(max(seq), 0) FROM headrace.checkpoints"


def headrace(stage: Stage) -> Took:
    """The intake starts at the slot; it ends when the last label is learned and durable."""
    stage.fresh_platform()
    stage.fresh_slot("headrace_ads")
    learner = stage.start("learn", "ads", "ads-1")
    stage.wait(lambda: learner.says("learns from seq"))
    intake = stage.start("intake", "ads")
    goal = stage.ask("headrace", "SELECT seq FROM headrace.intake_positions", on=stage.platform) + stage.changes
    sender, began = _walsender(stage, "headrace_ads")
    pids = {"walsender": sender, "intake": intake.pid, "learner": learner.pid}
    for role, doing in (("intake", "headrace intake ads"), ("learner", "headrace learn ads-1")):
        pids[f"{role}'s backend"] = int(stage.ask("postgres", _BACKEND, (doing,), on=stage.platform))
    before = {name: cpu_of(pid) for name, pid in pids.items()}
    with closing(psycopg2.connect(stage.platform.dsn("headrace"))) as conn, conn.cursor() as cursor:
        conn.autocommit = True

        def learned() -> bool:
            cursor.execute(_LEARNED)
            ((seq,),) = cursor.fetchall()
            return bool(seq >= goal)

        ended = stage.wait(learned, pause=0.05)
    cpu = {name: cpu_of(pid) - before[name] for name, pid in pids.items()}
    stage.end()
    return Took(ended - began, stage.changes, cpu)
