"""Who reads the slot: pg_recvlogical into nothing, a loop by hand, and headrace until the last label is learned and durable."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
from tests.bench.stream.shop import LAG
from tests.bench.stream.stage import Cpu, Stage, cpu_of

from headrace.store.embedded import find_binaries

_BY_HAND = 100_000  # changes at most: all would take it long


@dataclass(frozen=True)
class Took:
    """One run."""

    seconds: float
    changes: int
    cpu: Cpu  # seconds by process
    audit: dict[str, int] = field(default_factory=dict)  # of headrace: what was sent, and what has come of it

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


def drained(stage: Stage, slot: str, name: str, argv: list[str], changes: int, **variables: str) -> tuple[Took, str]:
    """A program reads changes from a copy of the slot until it ends; gives also the last line that it printed."""
    stage.fresh_slot(slot)
    log = stage.home / f"{slot}.log"
    with log.open("w") as output:
        environment = stage.environment | variables
        process = subprocess.Popen(argv, env=environment, cwd=stage.home, stdout=output, stderr=output)
    try:
        sender, began = _walsender(stage, slot)
        spent, me, before = 0.0, 0.0, cpu_of(process.pid)
        while process.poll() is None:
            spent, me = max(spent, cpu_of(sender)), max(me, cpu_of(process.pid) - before)
            time.sleep(0.005)
        seconds = time.monotonic() - began
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    if process.returncode != 0:
        raise RuntimeError(f"{name} ended with {process.returncode}: {said[-2000:]}")
    stage.drop_slot(slot)
    return Took(seconds, changes, {"walsender": spent, name: me}), said.rpartition("\n")[0].rpartition("\n")[2]


def limit(stage: Stage) -> Took:
    """pg_recvlogical drains the slot to /dev/null."""
    options = ("proto_version=1", f"publication_names={stage.stream.publication}", "binary=true", "messages=true")
    argv = [str(find_binaries() / "pg_recvlogical"), "--dbname", stage.dsn("shop"), "--slot", "limit", "--start"]
    argv += ["--file", "/dev/null", "--endpos", stage.end_lsn, "--no-loop"]
    argv += [word for option in options for word in ("-o", option)]
    return drained(stage, "limit", "pg_recvlogical", argv, stage.changes)[0]


def handwritten(stage: Stage) -> Took:
    """A loop by hand learns from the first changes of the slot.

    Raises
    ------
    RuntimeError
        When it left labels out that it has seen the events of.
    """
    changes = min(stage.changes // 2, _BY_HAND)
    program = str(Path(__file__).with_name("by_hand.py"))
    argv = [sys.executable, "-P", program, stage.dsn("shop"), "handwritten", stage.stream.publication, str(changes)]
    took, learned = drained(stage, "handwritten", "loop", argv, changes)
    if int(learned) != (wanted := (changes - LAG) // 2):  # labels begin when there are so many events
        raise RuntimeError(f"the loop learned {int(learned):,} labels of {changes:,} changes, expected {wanted:,}")
    return took


BACKEND = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = 'headrace'"
_BACKENDS = {
    "intake's backend": "headrace intake ads",
    "learner's backend": "headrace learn ads-1: the log",
    "checkpoints' backend": "headrace learn ads-1",
}
_LEARNED = "SELECT coalesce(max(seq), 0) FROM headrace.checkpoints"


def headrace(stage: Stage, watch: Callable[[Mapping[str, int]], None] = lambda pids: None) -> Took:
    """The intake starts at the slot; it ends when the last label is learned and durable.

    Parameters
    ----------
    watch
        Is told the pids of all processes once they work.
    """
    stage.fresh_platform()
    stage.fresh_slot("headrace_ads")
    learner = stage.start("learn", "ads", "ads-1")
    stage.wait(lambda: learner.says("learns from seq"))
    intake = stage.start("intake", "ads")
    goal = stage.ask("headrace", "SELECT seq FROM headrace.intake_positions", on=stage.platform) + stage.changes
    sender, began = _walsender(stage, "headrace_ads")
    pids = {"walsender": sender, "intake": intake.pid, "learner": learner.pid}
    for name, doing in _BACKENDS.items():
        pids[name] = int(stage.ask("postgres", BACKEND, (doing,), on=stage.platform))
    watch(pids)
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
    return Took(ended - began, stage.changes, cpu, _audit(stage))


def _audit(stage: Stage) -> dict[str, int]:
    """What was sent, and what has come of it.

    Raises
    ------
    RuntimeError
        Something was lost, or came twice.
    """
    asked = {
        "entries_logged": "SELECT count(*) FROM ads.events e FULL JOIN ads.labels l USING (seq)",
        "labels_learned": "SELECT sum(learned) FROM headrace.epoch_metrics WHERE version = 'ads-1'",
    }
    found = {name: int(stage.ask("headrace", query, on=stage.platform)) for name, query in asked.items()}
    before = int(stage.ask("base", "SELECT seq FROM headrace.intake_positions", on=stage.platform))
    found["entries_logged"] -= before
    found["labels_learned"] -= before // 2
    audit = {"changes_sent": stage.changes, "labels_sent": stage.changes // 2, **found}
    if (audit["changes_sent"], audit["labels_sent"]) != (audit["entries_logged"], audit["labels_learned"]):
        raise RuntimeError(f"not all that was sent has come, or not once: {audit}")
    return audit
