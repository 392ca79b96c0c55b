"""Two servers, a slot full of changes that can be read again and again, and headrace beside it from the same start.

An application fills its tables while nobody reads; one slot stays where it was before that, and every contender gets a copy
of it. The platform's database is copied before each run from one that has the history and nothing else.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from tests.bench.stream.shop import LAG, NARROW, Shape
from tests.system.workers import Worker

from headrace.cli.run import register
from headrace.definition.load import load_file
from headrace.live.supervisor import PINNED
from headrace.settings import from_env
from headrace.store import source
from headrace.store.embedded import EmbeddedPostgres
from headrace.store.migrate import migrate

HISTORY = 2_000  # events, labelled, before the changes

Cpu = dict[str, float]


@dataclass
class Stage:
    """Both servers, with the history imported and the slot `kept` before the changes."""

    home: Path
    origin: EmbeddedPostgres
    platform: EmbeddedPostgres
    shape: Shape
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origin.create_database("shop")
        self.platform.create_database("headrace")
        (self.home / "streams").mkdir()
        file = self.home / "streams" / "ads.py"
        file.write_text(self.shape.definition())
        self.environment = os.environ | PINNED | {
            "HEADRACE_DSN": self.platform.dsn("headrace"),
            "HEADRACE_CONN_SHOP": self.origin.dsn("shop"),
            "HEADRACE_HOME": str(self.home),
            "HEADRACE_STREAMS": str(self.home / "streams"),
        }  # fmt: skip
        self.stream = load_file(file)
        self.run("shop", self.shape.tables() + source.statements(self.stream, "postgres"))
        self.run("shop", "CALL live(1, %s, 100, %s)", (HISTORY, LAG))
        migrate(self.platform.dsn("headrace"))
        register(from_env(self.environment), self.platform.dsn("headrace"), ["ads"])
        self.run("postgres", "CREATE DATABASE empty TEMPLATE headrace STRATEGY file_copy", on=self.platform)
        intake = self.start("intake", "ads")
        self.wait(lambda: intake.says("streaming ads"))
        self.end()
        self.run("shop", "SELECT pg_copy_logical_replication_slot('headrace_ads', 'kept')")
        self.run("postgres", "ALTER DATABASE headrace RENAME TO base", on=self.platform)

    def dsn(self, database: str) -> str:
        return self.origin.dsn(database)

    def fill(self, changes: int, *, size: int = 100) -> None:
        """Commit changes, half events and half labels, in transactions of 2 `size` changes, or of one if `size` is 0."""
        first, last = HISTORY + 1, HISTORY + changes // 2
        # Nobody waits for these commits; those of the servers that are measured are as durable as their settings say.
        with closing(psycopg2.connect(self.dsn("shop"))) as conn:
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute("SET synchronous_commit = off")
                if size:
                    cursor.execute("CALL live(%s, %s, %s, %s)", (first, last, size, LAG))
                else:
                    cursor.execute("CALL singly(%s, %s, %s)", (first, last, LAG))
        self.end_lsn = self.ask("shop", "SELECT pg_current_wal_flush_lsn()")
        self.changes = 2 * (last - first + 1)

    def drop_slot(self, name: str) -> None:
        """No such slot any more."""
        self.run(
            "shop", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (name,)
        )

    def fresh_slot(self, name: str) -> None:
        """A slot that stands where `kept` does."""
        self.drop_slot(name)
        self.run("shop", "SELECT pg_copy_logical_replication_slot('kept', %s)", (name,))

    def fresh_platform(self, template: str = "base") -> None:
        """The platform as it was before the changes, or, from `empty`, before the history."""
        self.run("postgres", "DROP DATABASE IF EXISTS headrace WITH (FORCE)", on=self.platform)
        self.run("postgres", f"CREATE DATABASE headrace TEMPLATE {template} STRATEGY file_copy", on=self.platform)
        self.run("postgres", "CHECKPOINT", on=self.platform)

    def rows(self) -> int:
        """The application's rows: each is an entry of the log."""
        return int(self.ask("shop", "SELECT (SELECT count(*) FROM impressions) + (SELECT count(*) FROM outcomes)"))

    def start(self, *words: str, program: str | None = None) -> Worker:
        """Start a headrace process, or a program that makes one of itself."""
        self.workers.append(Worker(self.home, self.environment, *words, program=program))
        return self.workers[-1]

    def end(self) -> None:
        """End all of them."""
        for worker in self.workers:
            worker.end()
        self.workers.clear()

    def run(
        self, database: str, statement: str, values: Sequence[Any] = (), on: EmbeddedPostgres | None = None
    ) -> None:
        with closing(psycopg2.connect((on or self.origin).dsn(database))) as conn:
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute(statement, values or None)

    def ask(self, database: str, statement: str, values: Sequence[Any] = (), on: EmbeddedPostgres | None = None) -> Any:
        with closing(psycopg2.connect((on or self.origin).dsn(database))) as conn, conn.cursor() as cursor:
            cursor.execute(statement, values or None)
            row = cursor.fetchone()
            return row[0] if row else None

    def wait(self, true: Callable[[], Any], seconds: float = 600, pause: float = 0.01) -> float:
        """Wait for something, as long as all workers live; gives when it came true, on the monotonic clock."""
        until = time.monotonic() + seconds
        while not true():
            for worker in self.workers:
                if worker.process.poll() is not None:
                    raise RuntimeError(worker.log.read_text()[-2000:])
            if time.monotonic() > until:
                raise RuntimeError(f"waited {seconds} s in vain")
            time.sleep(pause)
        return time.monotonic()

    def settings(self) -> dict[str, dict[str, str]]:
        """What makes commits durable, as the servers report it."""
        names = ("fsync", "full_page_writes", "synchronous_commit", "server_version")
        return {
            who: {name: self.ask("postgres", f"SHOW {name}", on=server) for name in names}
            for who, server in (("source", self.origin), ("platform", self.platform))
        }


@contextmanager
def stage(shape: Shape = NARROW) -> Iterator[Stage]:
    """Build one and take it down."""
    with tempfile.TemporaryDirectory(prefix="headrace-stream-", dir="/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        with EmbeddedPostgres(home / "source") as origin, EmbeddedPostgres(home / "platform") as platform:
            made = Stage(home, origin, platform, shape)
            try:
                yield made
            finally:
                made.end()


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used; 0 when it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
