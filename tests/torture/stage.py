"""Everything that a run needs: two clusters, the streams on them, a reference for each, and `headrace up` between proxies.

The workers see only the proxies. The reference is a copy of the platform's database as it was before the workers started,
at the same position of the same WAL, on slots of its own that nobody reads before the audit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg2
from psycopg2 import sql
from tests.torture.application import Application
from tests.torture.cluster import Cluster
from tests.torture.neighbour import Neighbour
from tests.torture.workload import Workload

from headrace.batch.history import import_history
from headrace.definition.load import load_file
from headrace.definition.stream import Stream
from headrace.events import Engine
from headrace.live.supervisor import PINNED
from headrace.store import db, leases, registry, source
from headrace.store.migrate import migrate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STREAMS = ("visits", "payments")
SHOP, PLATFORM, REFERENCE = "shop", "platform", "reference"  # databases
LEASE_SECONDS = 3.0
HISTORY = 1_500  # changes before the streams start, at least


@dataclass(frozen=True)
class Role:
    """One writer of a stream."""

    stream: str
    name: str  # "intake", or a version


class Stage:
    """What a run happens on.

    Parameters
    ----------
    home
        A directory of its own, reachable for the servers' account.
    seed
        Of the workload.
    rate
        Changes per second.
    sabotage
        What the workers' driver breaks, or nothing.
    """

    def __init__(self, home: Path, seed: int, rate: float, sabotage: str | None) -> None:
        self.home = home
        self.trigger = home / "sabotage"  # while it exists, the saboteur may strike
        self.source = Cluster("source", home / "source")
        self.platform = Cluster("platform", home / "platform")
        self.clusters = (self.source, self.platform)
        self.streams: dict[str, Stream] = {name: load_file(HERE / "streams" / f"{name}.py") for name in STREAMS}
        self.workload = Workload(seed)
        self.application = Application(self.source.dsn(SHOP), self.workload, rate)
        self.neighbour = Neighbour(self.source.dsn(SHOP))
        self.history = 0  # changes before the streams start
        self._sabotage = sabotage
        self._up: subprocess.Popen[bytes] | None = None

    @property
    def logs(self) -> Path:
        """Where the workers' logs are."""
        return self.home / "headrace" / "logs"

    @property
    def up_log(self) -> Path:
        """What `headrace up` says."""
        return self.home / "up.log"

    @property
    def supervisor(self) -> int:
        """Its pid.

        Raises
        ------
        RuntimeError
            It ended, which it must not.
        """
        assert self._up is not None
        if self._up.poll() is not None:
            raise RuntimeError(f"`headrace up` ended with {self._up.returncode}; see {self.up_log}")
        return self._up.pid

    def environment(self, *, database: str = PLATFORM, disturbed: bool = True) -> dict[str, str]:
        """What a headrace command needs, through the proxies or past them."""
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        shop, platform = self.source.dsn(SHOP), self.platform.dsn(database)
        if disturbed:
            shop, platform = self.source.proxy.dsn(SHOP), self.platform.proxy.dsn(database)
        return inherited | {
            "HEADRACE_DSN": platform,
            "HEADRACE_CONN_SHOP_DB": shop,
            "HEADRACE_HOME": str(self.home / "headrace"),
            "HEADRACE_STREAMS": str(HERE / "streams"),
            "HEADRACE_LEASE_SECONDS": str(LEASE_SECONDS),
            "HEADRACE_STANDBY": "1",
            "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
            **PINNED,
        }

    def prepare(self) -> None:
        """Make the databases, commit some history, register and import the streams, make the reference's slots."""
        self._prepare_source()
        self.application.start()
        self.neighbour.start()
        self.application.grant(HISTORY)
        self.application.wait(HISTORY, 60)
        self.history = self.application.changes
        self._prepare_platform()

    def start(self) -> None:
        """Start `headrace up`."""
        module = ("headrace",) if self._sabotage is None else ("tests.torture.saboteur", self._sabotage)
        environment = self.environment() | {"TORTURE_TRIGGER": str(self.trigger)}
        with self.up_log.open("wb") as output:
            self._up = subprocess.Popen(
                [sys.executable, "-P", "-m", *module, "up", *STREAMS],
                env=environment,
                cwd=self.home,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> int:
        """Stop the workers as a person would; gives the exit code."""
        if self._up is None or self._up.poll() is not None:
            return 0 if self._up is None else self._up.returncode
        self._up.send_signal(signal.SIGTERM)
        return self._up.wait(60)

    def close(self) -> None:
        """Stop everything that still runs."""
        self.application.end()
        self.neighbour.end()
        try:
            self.stop()
        finally:
            for cluster in self.clusters:
                cluster.close()

    def mark(self) -> int:
        """A position at the source that every stream passes once it has read all that is committed by now."""
        ((lsn,),) = self.source.query(SHOP, "SELECT pg_logical_emit_message(true, 'torture.mark', '')::text")
        return source.lsn_number(lsn)

    def positions(self, database: str = PLATFORM) -> dict[str, tuple[int, int]]:
        """(source position, seq) of each stream's log."""
        rows = self.platform.query(database, "SELECT stream, lsn::text, seq FROM headrace.intake_positions")
        return {stream: (source.lsn_number(lsn), seq) for stream, lsn, seq in rows}

    def reached(self, mark: int, database: str = PLATFORM) -> bool:
        """Whether every stream's log is past a mark."""
        return all(lsn > mark for lsn, _ in self.positions(database).values())

    def _prepare_source(self) -> None:
        with self.source.connection("postgres") as conn, conn.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {SHOP}")
        self.source.query(SHOP, (HERE / "tables.sql").read_text())
        for stream in self.streams.values():
            with closing(db.connect(self.source.dsn(SHOP))) as conn:
                identity = source.identity_columns(conn, stream)
            self.source.query(SHOP, source.statements(stream, role="postgres", identity=identity))

    def _prepare_platform(self) -> None:
        self.platform.query("postgres", f"CREATE DATABASE {PLATFORM}")
        dsn = self.platform.dsn(PLATFORM)
        migrate(dsn)
        for stream in self.streams.values():
            self._register(dsn, stream)
        migrate(dsn)  # the views name every stream
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(REFERENCE), sql.Identifier(PLATFORM))
        with self.platform.connection("postgres") as conn, conn.cursor() as cursor:
            cursor.execute(copy)
        for stream in self.streams.values():
            for use in ("reference", "ledger"):
                names = (stream.slot, f"{stream.slot}_{use}")
                self.source.query(SHOP, "SELECT pg_copy_logical_replication_slot(%s, %s)", *names)
        self.platform.query(REFERENCE, "UPDATE headrace.intake_positions SET slot = slot || '_reference'")

    def _register(self, dsn: str, stream: Stream) -> None:
        engine = Engine("any", "", {})
        with closing(db.connect(self.source.dsn(SHOP))) as conn:
            columns = source.log_columns(conn, stream)
        with closing(db.connect(dsn)) as conn, db.transaction(conn):
            registry.register(conn, stream, columns, engine)
            for recipe in stream.challengers:
                registry.add_version(conn, stream, recipe, engine, first_seq=1, evidence_seq=1, status="catching_up")
        with closing(db.connect(dsn, role="headrace_intake")) as conn:
            lease = leases.take(conn, stream.name, "intake", timedelta(seconds=LEASE_SECONDS))
            import_history(conn, self.source.dsn(SHOP), stream, columns, lease, lambda *_: None)


def wait_until(true: object, seconds: float, what: str, *, tick: float = 0.03) -> float:
    """Wait; gives the seconds it took. A server that is away counts as not yet.

    Raises
    ------
    RuntimeError
        It did not happen in time.
    """
    began = time.monotonic()
    assert callable(true)
    while True:
        try:
            if true():
                return time.monotonic() - began
        except psycopg2.OperationalError:
            pass
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(tick)
