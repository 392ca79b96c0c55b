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
from tests.system.workers import Worker

from headrace.cli.run import register
from headrace.definition.load import load_file
from headrace.live.supervisor import PINNED
from headrace.settings import from_env
from headrace.store import source
from headrace.store.embedded import EmbeddedPostgres
from headrace.store.migrate import migrate

HISTORY = 2_000  # events, labelled, before the changes
_DEFINITION = '''
"""Will this impression be clicked?"""

from datetime import timedelta

from headrace import Label, Policy, Source, Stream, category, col, number, recipes

stream = Stream(
    name="ads",
    source=Source(conn_id="shop", table="public.impressions", key="impression_id", event_time="shown_at"),
    label=Label(
        table="public.outcomes",
        key="impression_id",
        value=col("clicked"),
        label_time="told_at",
        window=timedelta(days=1),
        if_missing="drop",
    ),
    features=[category("site", "campaign", "device"), number("u", "v", "w")],
    champion=recipes.ftrl(),
    policy=Policy(epoch_labels=500, epoch_time=timedelta(days=30)),
)
'''
_TABLES = """
CREATE TABLE impressions (impression_id bigint PRIMARY KEY, shown_at timestamptz NOT NULL, site text, campaign text,
    device text, u float8, v float8, w float8);
CREATE TABLE outcomes (impression_id bigint PRIMARY KEY, clicked boolean, told_at timestamptz NOT NULL);
CREATE PROCEDURE live(first bigint, last bigint, size int, lag bigint) LANGUAGE plpgsql AS $$
DECLARE
    i bigint := first;
BEGIN
    WHILE i <= last + lag LOOP  -- half of a transaction's rows are impressions, half outcomes of those `lag` before
        INSERT INTO impressions
            SELECT k, timestamptz '2026-01-01Z' + k * interval '10 ms', 'site ' || k * 7919 % 1000,
                'campaign ' || k * 104729 % 5000, (ARRAY['phone', 'tablet', 'desktop'])[1 + k % 3], (k * 13 % 997) / 100.0,
                (k * 15 % 997) / 100.0, (k * 17 % 997) / 100.0
            FROM generate_series(i, least(i + size - 1, last)) AS k;
        INSERT INTO outcomes
            SELECT k, (k * 7919 % 1000 + k * 31 % 97) % 11 = 0, timestamptz '2026-01-01Z' + (k + lag) * interval '10 ms'
            FROM generate_series(greatest(i - lag, first), i - lag + size - 1) AS k;
        COMMIT;
        i := i + size;
    END LOOP;
END $$;
CREATE PROCEDURE singly(first bigint, last bigint, lag bigint) LANGUAGE plpgsql AS $$
DECLARE
    i bigint := first;
BEGIN
    WHILE i <= last + lag LOOP
        IF i <= last THEN
            INSERT INTO impressions SELECT k, timestamptz '2026-01-01Z' + k * interval '10 ms', 'site ' || k * 7919 % 1000,
                'campaign ' || k * 104729 % 5000, (ARRAY['phone', 'tablet', 'desktop'])[1 + k % 3], (k * 13 % 997) / 100.0,
                (k * 15 % 997) / 100.0, (k * 17 % 997) / 100.0
                FROM (SELECT i AS k) AS one;
            COMMIT;
        END IF;
        IF i - lag >= first THEN
            INSERT INTO outcomes VALUES (i - lag, ((i - lag) * 7919 % 1000 + (i - lag) * 31 % 97) % 11 = 0,
                timestamptz '2026-01-01Z' + i * interval '10 ms');
            COMMIT;
        END IF;
        i := i + 1;
    END LOOP;
END $$;
"""

Cpu = dict[str, float]


@dataclass
class Stage:
    """Both servers, with the history imported and the slot `kept` before the changes."""

    home: Path
    origin: EmbeddedPostgres
    platform: EmbeddedPostgres
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origin.create_database("shop")
        self.platform.create_database("headrace")
        (self.home / "streams").mkdir()
        file = self.home / "streams" / "ads.py"
        file.write_text(_DEFINITION)
        self.environment = os.environ | PINNED | {
            "HEADRACE_DSN": self.platform.dsn("headrace"),
            "HEADRACE_CONN_SHOP": self.origin.dsn("shop"),
            "HEADRACE_HOME": str(self.home),
            "HEADRACE_STREAMS": str(self.home / "streams"),
        }  # fmt: skip
        self.stream = load_file(file)
        self.run("shop", _TABLES + source.statements(self.stream, "postgres"))
        self.run("shop", "CALL live(1, %s, 100, 1000)", (HISTORY,))
        migrate(self.platform.dsn("headrace"))
        register(from_env(self.environment), self.platform.dsn("headrace"), ["ads"])
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
                    cursor.execute("CALL live(%s, %s, %s, 1000)", (first, last, size))
                else:
                    cursor.execute("CALL singly(%s, %s, 1000)", (first, last))
        self.end_lsn = self.ask("shop", "SELECT pg_current_wal_flush_lsn()")
        self.changes = 2 * (last - first + 1)

    def fresh_slot(self, name: str) -> None:
        """A slot that stands where `kept` does."""
        self.run(
            "shop", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (name,)
        )
        self.run("shop", "SELECT pg_copy_logical_replication_slot('kept', %s)", (name,))

    def fresh_platform(self) -> None:
        """The platform as it was before the changes."""
        self.run("postgres", "DROP DATABASE IF EXISTS headrace WITH (FORCE)", on=self.platform)
        self.run("postgres", "CREATE DATABASE headrace TEMPLATE base STRATEGY file_copy", on=self.platform)
        self.run("postgres", "CHECKPOINT", on=self.platform)

    def start(self, *words: str) -> Worker:
        """Start a headrace process."""
        self.workers.append(Worker(self.home, self.environment, *words))
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
def stage() -> Iterator[Stage]:
    """Build one and take it down."""
    with tempfile.TemporaryDirectory(prefix="headrace-stream-", dir="/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        with EmbeddedPostgres(home / "source") as origin, EmbeddedPostgres(home / "platform") as platform:
            made = Stage(home, origin, platform)
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
