"""Real servers and a small stream for every test: one embedded Postgres for the session, databases by the dozen."""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from psycopg2 import sql

from headrace.batch.history import Imported, import_history
from headrace.batch.resync import Resynced, resync
from headrace.definition.load import load_file
from headrace.definition.stream import Stream
from headrace.events import Engine, LogColumn
from headrace.live import intake
from headrace.store import db, leases, log, registry, source
from headrace.store.embedded import EmbeddedPostgres
from headrace.store.migrate import migrate

if "AIRFLOW_HOME" not in os.environ:  # Airflow makes its home, and reads its settings, when it is imported
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="headrace-airflow-")
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)

ENGINE = Engine("test", "0" * 8, {"python": "any"})
START = datetime(2020, 3, 1, tzinfo=UTC)

DEFINITION = '''"""Will this visit score high?"""

from datetime import timedelta
from typing import Any

from headrace import Label, Policy, Source, Stream, category, col, cross, expect, hour_of_day, number, recipes, target_mean


def logistic() -> Any:
    from river import compose, linear_model, optim, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder(drop_zeros=True)
    return (numbers + categories) | linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1))


def slow() -> Any:
    from river import compose, linear_model, optim, preprocessing

    return compose.SelectType(int, float) | preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.001))


stream = Stream(
    name="small",
    source=Source(conn_id="small_db", table="public.visits", key="visit_id", event_time="seen_at"),
    label=Label(
        table="public.outcomes",
        key="visit_id",
        value=col("score") > 15,
        label_time="known_at",
        window=timedelta(hours=6),
        if_missing="drop",
    ),
    features=[
        category("colour", "place"),
        number("size"),
        hour_of_day("seen_at"),
        cross("colour", "place"),
        target_mean("colour"),
    ],
    contract=[
        expect.not_null("colour"),
        expect.in_set("colour", {"a", "b", "c", "d"}),
        expect.between("size", 0, 1000),
    ],
    champion=recipes.river(logistic),
    challengers=[recipes.river(slow, name="slow", target_means=True), recipes.gbdt_lr(), recipes.lightgbm(target_means=False)],
    slices=["colour"],
    policy=Policy(epoch_labels=50, epoch_time=timedelta(hours=12), challenger_slots=3),
)
'''

TABLES = """
CREATE TABLE public.visits (visit_id bigint PRIMARY KEY, seen_at timestamptz, colour text, place text, size double precision);
CREATE TABLE public.outcomes (visit_id bigint PRIMARY KEY, score integer, known_at timestamptz);
"""

Event = tuple[int, datetime | None, str | None, str | None, float | None]
Label = tuple[int, int | None, datetime | None]


@dataclass
class SmallSource:
    """A source database with the tables of the small stream, prepared as a DBA would."""

    dsn: str
    stream: Stream
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own."""
        with closing(psycopg2.connect(self.dsn)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def add(self, events: list[Event], labels: list[Label]) -> None:
        """Insert rows in one transaction."""
        with closing(psycopg2.connect(self.dsn)) as conn, conn, conn.cursor() as cursor:
            insert(cursor, events, labels)

    def rows(self, first: int, count: int, *, labelled: float = 0.9) -> tuple[list[Event], list[Label]]:
        """Events with keys from `first` on, a minute apart from START + first minutes, and most of their labels."""
        events: list[Event] = []
        labels: list[Label] = []
        for i in range(first, first + count):
            colour, size = "abcd"[int(self._random.integers(4))], float(self._random.random() * 100)
            seen = START + timedelta(minutes=i)
            events.append((i, seen, colour, f"p{i % 17}", size))
            if self._random.random() < labelled:
                score = int(10 * (colour == "a") + size / 10 + self._random.normal() * 4)
                labels.append((i, score, seen + timedelta(seconds=int(self._random.integers(1, 3 * 3600)))))
        return events, labels


def insert(cursor: Any, events: list[Event], labels: list[Label]) -> None:
    """Insert rows of both tables."""
    cursor.executemany("INSERT INTO public.visits VALUES (%s, %s, %s, %s, %s)", events)
    cursor.executemany("INSERT INTO public.outcomes VALUES (%s, %s, %s)", labels)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """A Postgres of this test session's own."""
    with tempfile.TemporaryDirectory(prefix="headrace-tests-", dir="/tmp") as home:
        Path(home).chmod(0o755)  # for root's sake: its server runs as another user
        with EmbeddedPostgres(Path(home)) as running:
            with closing(psycopg2.connect(running.dsn("postgres"))) as conn:
                conn.autocommit = True
                with conn.cursor() as cursor:  # nothing here survives the machine, and a hundred databases are made
                    for setting in ("fsync = off", "full_page_writes = off"):
                        cursor.execute(f"ALTER SYSTEM SET {setting}")
                    cursor.execute("SELECT pg_reload_conf()")
            yield running


@pytest.fixture(scope="session")
def fresh_database(server: EmbeddedPostgres) -> Callable[..., str]:
    """Make a database, empty or as a copy of another one; gives its DSN."""
    numbers = itertools.count(1)

    def make(label: str, template: str = "template1") -> str:
        name = re.sub(r"\W", "_", f"{label}_{next(numbers)}")
        with closing(psycopg2.connect(server.dsn("postgres"))) as conn:
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
                )
        return server.dsn(name)

    return make


@pytest.fixture(scope="session")
def migrated(fresh_database: Callable[..., str]) -> str:
    """Name of a database that `migrate` prepared: a template, so nobody may connect to it."""
    dsn = fresh_database("platform_template")
    migrate(dsn)
    return database_of(dsn)


def database_of(dsn: str) -> str:
    """The database that a DSN of `EmbeddedPostgres.dsn` names."""
    return str(psycopg2.extensions.parse_dsn(dsn)["dbname"])


@pytest.fixture
def database(server: EmbeddedPostgres, fresh_database: Callable[..., str]) -> Iterator[Callable[..., str]]:
    """As `fresh_database`, for the length of one test: two hundred databases would fill a gigabyte."""
    made: list[str] = []

    def make(label: str, template: str = "template1") -> str:
        made.append(fresh_database(label, template))
        return made[-1]

    yield make
    with closing(psycopg2.connect(server.dsn("postgres"))) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            free_slots(cursor)
            for dsn in made:
                cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database_of(dsn))))


@pytest.fixture
def platform(database: Callable[..., str], migrated: str) -> str:
    """DSN of a new platform database."""
    return database("platform", migrated)


@pytest.fixture(scope="session")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small stream's definition."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "small.py").write_text(DEFINITION)
    return folder


@pytest.fixture(scope="session")
def small(definitions: Path) -> Stream:
    """The small stream."""
    return load_file(definitions / "small.py")


@pytest.fixture
def origin(database: Callable[..., str], small: Stream) -> SmallSource:
    """An empty source database of the small stream."""
    dsn = database("source")
    made = SmallSource(dsn, small)
    made.execute(TABLES)
    made.execute(source.statements(small, role="postgres"))
    return made


@dataclass
class Registered:
    """A platform database with the small stream registered."""

    dsn: str
    stream: Stream
    columns: tuple[LogColumn, ...]

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own."""
        with closing(db.connect(self.dsn)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def import_history(self, origin: SmallSource) -> Imported:
        """Import what the source holds, as `headrace intake` does."""
        with self._as_intake() as (conn, lease):
            return import_history(conn, origin.dsn, self.stream, self.columns, lease, lambda *_: None)

    def resync(self, origin: SmallSource) -> Resynced:
        """Close the seam, as `headrace resync` does."""
        with self._as_intake() as (conn, lease):
            return resync(conn, origin.dsn, self.stream, self.columns, lease, lambda *_: None)

    def trust_publication(self, origin: SmallSource) -> None:
        """As if the publication that is there had always been: what it sends arrives before anybody looks at it."""
        with closing(db.connect(origin.dsn)) as conn:
            made = source.publication_made(conn, self.stream)
        self.query("UPDATE headrace.intake_positions SET publication = %s", made)

    def follow(self, origin: SmallSource) -> None:
        """Run the intake until it has all that is committed at the source by now."""
        beat = "SELECT pg_logical_emit_message(true, 'headrace.test', '')::text"
        target = source.lsn_number(origin.execute(beat)[0][0])
        self.follow_until(origin, lambda lsn: source.lsn_number(lsn) > target)

    def follow_until(self, origin: SmallSource, enough: Callable[[str], bool]) -> None:
        """Run the intake until its stored position is enough."""
        with self._as_intake() as (conn, lease), closing(db.connect(self.dsn, autocommit=True)) as watch:

            def arrived() -> bool:
                at = log.position(watch, self.stream.name)
                return at is not None and enough(at.lsn)

            intake.run(conn, origin.dsn, intake.standing(conn, self.stream, self.columns), lease, arrived)

    @contextmanager
    def _as_intake(self) -> Iterator[tuple[Any, leases.Lease]]:
        with closing(db.connect(self.dsn, role="headrace_intake")) as conn:
            # The one before may have ended without a word: its backend takes a moment to notice.
            lease = leases.take(conn, self.stream.name, "intake", timedelta(seconds=5), patience=timedelta(seconds=5))
            with leases.kept(self.dsn, lease, "headrace_intake"):
                yield conn, lease

    def entries(self) -> list[tuple[Any, ...]]:
        """The log without what depends on when it was read: entries in order of seq."""
        return self.query(
            "SELECT seq, key, event_time, colour, place, size, NULL, NULL, NULL, NULL, NULL FROM small.events UNION ALL "
            "SELECT seq, NULL, NULL, NULL, NULL, NULL, event_seq, kind, y, y_before, label_time FROM small.labels ORDER BY seq"
        )

    def epochs(self) -> list[tuple[Any, ...]]:
        """The epochs of the log."""
        return self.query("SELECT * FROM headrace.epochs ORDER BY epoch")

    def accounting(self) -> dict[str, dict[str, int]]:
        """What became of what was received, by origin."""
        names = ("received", "events", "labels", "corrections", "held", "quarantined", "ignored", "timeouts")
        rows = self.query(f"SELECT origin, {', '.join(names)} FROM headrace.accounting")
        return {origin: dict(zip(names, counts, strict=True)) for origin, *counts in rows}


@pytest.fixture
def registered(platform: str, origin: SmallSource, small: Stream) -> Registered:
    """The small stream on a platform of its own, before any history."""
    with closing(db.connect(origin.dsn)) as conn:
        columns = source.log_columns(conn, small)
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, small, columns, ENGINE)
    migrate(platform)
    return Registered(platform, small, columns)


def free_slots(cursor: Any) -> None:
    """Slots belong to the whole server: none outlives its test."""
    cursor.execute("SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE active")
    cursor.execute("SELECT slot_name FROM pg_replication_slots WHERE NOT temporary")
    for (slot,) in cursor.fetchall():
        for _ in range(100):
            try:
                cursor.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
                break
            except psycopg2.errors.ObjectInUse:
                cursor.execute("SELECT pg_sleep(0.05)")
        else:
            raise AssertionError(f"slot {slot} is still in use")
