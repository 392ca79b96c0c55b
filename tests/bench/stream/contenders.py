"""Who reads the slot: pg_recvlogical into nothing, headrace until the last label is learned and durable, and by hand."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass

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


def _walsender(stage: Stage) -> int | None:
    pid = stage.ask(
        "shop", "SELECT active_pid FROM pg_replication_slots WHERE slot_name IN ('limit', 'headrace_ads') AND active"
    )
    return None if pid is None else int(pid)


def limit(stage: Stage) -> Took:
    """pg_recvlogical drains the slot to /dev/null."""
    stage.fresh_slot("limit")
    options = ("proto_version=1", f"publication_names={stage.stream.publication}", "binary=true", "messages=true")
    argv = [
        str(find_binaries() / "pg_recvlogical"),
        "-d",
        stage.dsn("shop"),
        "--slot",
        "limit",
        "--start",
        "-f",
        "/dev/null",
    ]
    argv += ["--endpos", stage.end_lsn, "--no-loop", *(word for option in options for word in ("-o", option))]
    process = subprocess.Popen(argv)
    pids: list[int] = []

    def active() -> bool:
        pids[:] = [pid] if (pid := _walsender(stage)) else []
        return bool(pids)

    began = stage.wait(active, pause=0.001)
    sender, spent, me = pids[0], 0.0, 0.0
    while process.poll() is None:
        spent, me = max(spent, cpu_of(sender)), max(me, cpu_of(process.pid))
        time.sleep(0.005)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise RuntimeError(f"pg_recvlogical ended with {process.returncode}")
    stage.run("shop", "SELECT pg_drop_replication_slot('limit')")
    return Took(seconds, stage.changes, {"walsender": spent, "pg_recvlogical": me})


_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = 'headrace'"


def headrace(stage: Stage, versions: int = 1) -> Took:
    """The intake starts at the slot; it ends when every version has learned the last label and made it durable."""
    stage.fresh_platform()
    stage.fresh_slot("headrace_ads")
    learners = {f"ads-{n}": stage.start("learn", "ads", f"ads-{n}") for n in range(1, versions + 1)}
    stage.wait(lambda: all(worker.says("learns from seq") for worker in learners.values()))
    intake = stage.start("intake", "ads")
    goal = stage.ask("headrace", "SELECT seq FROM headrace.intake_positions", on=stage.platform) + stage.changes
    sender: list[int] = []

    def active() -> bool:
        sender[:] = [pid] if (pid := _walsender(stage)) else []
        return bool(sender)

    began = stage.wait(active, pause=0.001)
    pids = {"walsender": sender[0], "intake": intake.pid, "learner": learners["ads-1"].pid}
    for name, application in (
        ("intake's backend", "headrace intake ads"),
        ("learner's backend", "headrace learn ads-1"),
    ):
        pid = stage.ask("postgres", _BACKENDS.replace("%s", f"'{application}'"), on=stage.platform)
        pids[name] = int(pid)
    before = {name: cpu_of(pid) for name, pid in pids.items()}
    learned = (
        "SELECT count(*) FROM (SELECT max(seq) AS seq FROM headrace.checkpoints GROUP BY version) AS newest WHERE seq >= "
        + str(goal)
    )
    ended = stage.wait(lambda: stage.ask("headrace", learned, on=stage.platform) >= versions, pause=0.01)
    cpu = {name: cpu_of(pid) - before[name] for name, pid in pids.items()}
    stage.end()
    return Took(ended - began, stage.changes, cpu)
