"""Doing a fault, and measuring how long a role stays without anybody at work."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.torture.cluster import Cluster
from tests.torture.plan import Fault
from tests.torture.proxy import Direction
from tests.torture.stage import PLATFORM, SHOP, Role, Stage, wait_until
from tests.torture.workers import Holder, Worker, Workers

from headrace.store import registry
from headrace.store.db import connect

_TAKEOVER_SECONDS = 60.0
_TRIES = 5  # to find somebody to hurt


@dataclass(frozen=True)
class Done:
    """What a fault did."""

    what: str  # one sentence part, for people
    takeover_ms: float | None = None  # from the signal to when another process was at work for the role
    by: str = ""  # "kill" or "stop", when a takeover was measured


class Hand:
    """Does faults to a stage."""

    def __init__(self, stage: Stage, workers: Workers) -> None:
        self.stage, self.workers = stage, workers
        self._doing: dict[str, Callable[[Fault], Done | None]] = {
            "kill_intake": lambda f: self._kill(Role(f.stream, "intake")),
            "kill_champion": lambda f: self._kill(self._champion(f.stream)),
            "kill_learner": self._kill_challenger,
            "kill_standby": self._kill_standby,
            "stop_intake": lambda f: self._stop(Role(f.stream, "intake")),
            "stop_champion": lambda f: self._stop(self._champion(f.stream)),
            "cut_source": lambda f: self._cut("source", f),
            "cut_platform": lambda f: self._cut("platform", f),
            "slow": self._slow,
            "half_open": self._half_open,
            "restart": self._restart,
            "crash_source": lambda f: self._crash("source"),
            "crash_platform": lambda f: self._crash("platform"),
            "terminate": self._terminate,
        }

    def do(self, fault: Fault) -> Done:
        """Do one fault; when it returns, what can be healed is healed, but nobody needs to work yet.

        Raises
        ------
        RuntimeError
            There was nobody to do it to, again and again.
        """
        for _ in range(_TRIES):
            if (done := self._doing[fault.kind](fault)) is not None:
                return done
            self.workers.wait_for_work(time.time())
        raise RuntimeError(f"fault {fault.number}, {fault.kind}: found nobody to do it to, {_TRIES} times")

    def _cluster(self, name: str) -> Cluster:
        return self.stage.source if name == "source" else self.stage.platform

    def _champion(self, stream: str) -> Role:
        conn = connect(self.stage.platform.dsn(PLATFORM), autocommit=True)
        try:
            return Role(stream, registry.champion(conn, stream))
        finally:
            conn.close()

    def _kill(self, role: Role) -> Done | None:
        before = self._holder(role)
        at = time.time()
        if not self._stands_by(role) or not self.workers.signal(before.pid, signal.SIGKILL):
            return None
        after = self._taken(role, before)
        return Done(f"pid {before.pid} of {role.name} of {role.stream}", 1000 * (after - at), "kill")

    def _stop(self, role: Role) -> Done | None:
        before = self._holder(role)
        at = time.time()
        if not self._stands_by(role) or not self.workers.signal(before.pid, signal.SIGSTOP):
            return None
        try:
            after = self._taken(role, before)
        finally:
            self.workers.signal(before.pid, signal.SIGCONT)
        return Done(f"pid {before.pid} of {role.name} of {role.stream}", 1000 * (after - at), "stop")

    def _kill_challenger(self, fault: Fault) -> Done | None:
        champions = {self._champion(stream) for stream in self.stage.streams}
        roles = sorted(
            (r for r in self.workers.holders() if r.name != "intake" and r not in champions),
            key=lambda r: (r.stream, r.name),
        )
        role = roles[int(fault.chance * len(roles))]
        if not self.workers.signal((pid := self._holder(role).pid), signal.SIGKILL):
            return None
        return Done(f"pid {pid} of {role.name}")

    def _kill_standby(self, fault: Fault) -> Done | None:
        found: list[Worker] = []

        def somebody() -> bool:
            running = self.workers.running()
            found[:] = [w for w in running if not w.holds] or running
            return bool(found)

        wait_until(somebody, _TAKEOVER_SECONDS, "a worker runs")
        chosen = found[int(fault.chance * len(found))]
        if not self.workers.signal(chosen.pid, signal.SIGKILL):
            return None
        return Done(f"pid {chosen.pid} of {chosen.role.name} of {chosen.role.stream}")

    def _cut(self, name: str, fault: Fault) -> Done | None:
        proxy = self._cluster(name).proxy
        count = proxy.cut(refuse=True)
        time.sleep(fault.seconds)
        proxy.heal()
        return Done(f"{count} connections, {fault.seconds:.1f} s") if count else None

    def _slow(self, fault: Fault) -> Done:
        proxy, delay = self._cluster(fault.cluster).proxy, 0.005 + 0.1 * fault.chance
        proxy.slow(delay, 1_000_000)
        time.sleep(2 * fault.seconds)
        proxy.heal()
        return Done(f"the {fault.cluster}'s network by {1000 * delay:.0f} ms, 1 MB/s, {2 * fault.seconds:.1f} s")

    def _half_open(self, fault: Fault) -> Done | None:
        proxy = self._cluster(fault.cluster).proxy
        way: Direction = "to server" if fault.chance < 0.5 else "to client"
        count = proxy.silence(way)
        time.sleep(fault.seconds)
        proxy.heal()
        if not count:
            return None
        return Done(f"{count} connections to the {fault.cluster}, nothing went {way} for {fault.seconds:.1f} s")

    def _restart(self, fault: Fault) -> Done:
        self._cluster(fault.cluster).restart()
        return Done(f"the {fault.cluster}'s server")

    def _crash(self, name: str) -> Done:
        self._cluster(name).crash()
        return Done("")

    def _terminate(self, fault: Fault) -> Done | None:
        cluster = self._cluster(fault.cluster)
        database = SHOP if fault.cluster == "source" else PLATFORM
        with cluster.connection(database) as conn, conn.cursor() as cursor:
            cursor.execute(
                "SELECT pid, application_name FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'headrace %%' "
                "AND backend_type IN ('client backend', 'walsender') ORDER BY application_name, backend_start",
                (database,),
            )
            backends = cursor.fetchall()
            if not backends:
                return None
            pid, name = backends[int(fault.chance * len(backends))]
            cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
            if cursor.fetchone() != (True,):
                return None
        return Done(f"backend {pid} of `{name}` at the {fault.cluster}")

    def _holder(self, role: Role) -> Holder:
        """The process that holds a role, once one does."""
        found: list[Holder] = []

        def held() -> bool:
            alive = {worker.pid for worker in self.workers.running()}
            found[:] = [h for r, h in self.workers.holders().items() if r == role and h.pid in alive]
            return bool(found)

        wait_until(held, _TAKEOVER_SECONDS, f"somebody holds {role.name} of {role.stream}")
        return found[0]

    def _stands_by(self, role: Role) -> bool:
        """Whether a process follows the log and says so: one that starts would only be slow to take over."""
        rows = self.stage.platform.query(
            PLATFORM, "SELECT holder FROM metrics.standbys WHERE (stream, role) = (%s, %s)", role.stream, role.name
        )
        alive = {worker.pid for worker in self.workers.running() if not worker.holds}
        return any(int(holder.rpartition(":")[2]) in alive for (holder,) in rows)

    def _taken(self, role: Role, before: Holder) -> float:
        """When somebody else was at work for the role, seconds since 1970."""
        found: list[float] = []

        def taken() -> bool:
            found[:] = self._ready(role, before)
            return bool(found)

        wait_until(taken, _TAKEOVER_SECONDS, f"somebody takes over {role.name} of {role.stream}", tick=0.01)
        return found[0]

    def _ready(self, role: Role, before: Holder) -> list[float]:
        """Who takes a role is at work once it has said so, not when it has the lease."""
        rows = self.stage.platform.query(
            PLATFORM,
            "SELECT extract(epoch FROM ready_at)::float FROM headrace.failovers "
            "WHERE stream = %s AND role = %s AND token > %s AND ready_at IS NOT NULL ORDER BY token LIMIT 1",
            *(role.stream, role.name, before.token),
        )
        return [rows[0][0]] if rows else []
