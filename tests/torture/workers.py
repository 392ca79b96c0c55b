"""The processes that `headrace up` runs: who holds a role, who stands by, and whether all of them work again."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
from tests.torture.stage import PLATFORM, Role, Stage, wait_until

_RECOVERY_SECONDS = 90.0


@dataclass(frozen=True)
class Worker:
    """One process."""

    pid: int
    role: Role
    holds: bool  # the role's lease


@dataclass(frozen=True)
class Holder:
    """Who holds a role."""

    pid: int
    token: int
    backend: int  # pid at the platform's server
    acquired: float  # seconds since 1970


class Workers:
    """Looks at the workers and sends them signals."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.sent = Counter[int]()  # signals that a worker does not survive

    def holders(self) -> dict[Role, Holder]:
        """Who holds each role, as the platform's database has it."""
        rows = self.stage.platform.query(
            PLATFORM,
            "SELECT stream, role, holder, token, backend_pid, extract(epoch FROM acquired_at)::float FROM headrace.leases",
        )
        return {
            Role(stream, role): Holder(int(holder.rpartition(":")[2]), token, backend, at)
            for stream, role, holder, token, backend, at in rows
        }

    def running(self) -> list[Worker]:
        """All workers, in order of role and age."""
        held = {holder.pid for holder in self.holders().values()}
        found = []
        for process in psutil.Process(self.stage.supervisor).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if (role := _role(process.cmdline())) is not None and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((role.stream, role.name, process.create_time(), process.pid))
        return [Worker(pid, Role(stream, name), pid in held) for stream, name, _, pid in sorted(found)]

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal; False when the process is gone."""
        try:
            psutil.Process(pid).send_signal(number)
        except psutil.NoSuchProcess:
            return False
        if number == signal.SIGKILL:
            self.sent[-number] += 1
        return True

    def wait_for_work(self, since: float, seconds: float = _RECOVERY_SECONDS) -> float:
        """Wait until every role works after a fault; gives the seconds it took.

        Every log has what was committed at the source by now, every version is through with that, every lease was
        renewed after the fault, and another process stands by for every intake and champion.
        """
        began = time.monotonic()
        mark = [0]

        def marked() -> bool:
            mark[0] = self.stage.mark()
            return True

        wait_until(marked, seconds, "the source takes a mark")
        wait_until(lambda: self.stage.reached(mark[0]), seconds, "every intake has what was committed")
        seqs = {stream: seq for stream, (_, seq) in self.stage.positions().items()}
        wait_until(lambda: self._learned(seqs, since), seconds, "every version is where the logs were")
        wait_until(lambda: self._stood_by(since), seconds, "every intake and champion has a standby")
        return time.monotonic() - began

    def _stood_by(self, since: float) -> bool:
        missing = self.stage.platform.query(
            PLATFORM,
            "SELECT 1 FROM (SELECT stream, 'intake' AS role FROM headrace.streams UNION ALL "
            "SELECT stream, version FROM headrace.versions WHERE status = 'champion') AS wanted "
            "LEFT JOIN headrace.standbys AS s USING (stream, role) "
            "GROUP BY stream, role HAVING coalesce(max(s.reported_at) <= to_timestamp(%s), true)",
            since,
        )
        return not missing

    def _learned(self, seqs: dict[str, int], since: float) -> bool:
        stale = self.stage.platform.query(
            PLATFORM,
            "SELECT 1 FROM headrace.leases WHERE renewed_at < to_timestamp(%s)",
            since,
        )
        rows = self.stage.platform.query(
            PLATFORM,
            "SELECT v.stream, coalesce(w.done, 0) FROM headrace.versions AS v LEFT JOIN headrace.worker_progress AS w "
            "ON w.stream = v.stream AND w.role = v.version AND w.reported_at > to_timestamp(%s) "
            "WHERE v.status NOT IN ('candidate', 'rejected', 'retired')",
            since,
        )
        return not stale and all(done >= seqs[stream] for stream, done in rows)


def _role(words: list[str]) -> Role | None:
    """The role that a command line asks for."""
    if "intake" in words and "-m" in words:
        return Role(words[words.index("intake") + 1], "intake")
    if "learn" in words and "-m" in words:
        return Role(*words[words.index("learn") + 1 :][:2])
    return None
