"""100,000 hostile rows through a real intake, to a real learner: conserved, explained, and nobody dies of them."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from tests.conftest import free_slots
from tests.fuzz import rows
from tests.fuzz.rows import Value, copy_text
from tests.fuzz.stream import stream
from tests.system.workers import Worker, wait_until

from headrace.events import Engine
from headrace.live.supervisor import PINNED
from headrace.store import db, registry, source
from headrace.store.migrate import migrate

ROWS, EVENTS, HISTORY, COMMITS = 100_000, 65_000, 10_000, 60
START = datetime(2020, 3, 1, tzinfo=UTC)
FOLDER = Path(__file__).parents[1] / "fuzz"

Table = dict[str, list[Value]]


def hostile_rows(seed: int) -> tuple[Table, Table]:
    """Events in their order, and labels for them, for their neighbours, or for nobody."""
    dice = random.Random(f"intake {seed}")
    odd_times = [f"{t}+00" if "infinity" not in t and "BC" not in t else t for t in rows.TIMES]
    keys: list[Value] = ["", " "]
    while len(keys) < EVENTS:
        odd = dice.choice(rows.TEXTS).encode()[:1500].decode(errors="ignore") if dice.random() < 0.2 else ""
        keys.append(f"{odd}|{len(keys)}" if dice.random() < 0.5 else f"{len(keys)}|{odd}")
    times = [START + timedelta(seconds=15 * n) for n in range(EVENTS)]
    events: Table = {"key": keys, "event_time": [t.isoformat() for t in times], **rows.columns(seed, EVENTS)}
    for n in range(EVENTS):
        if dice.random() < 0.03:
            events["event_time"][n] = dice.choice((None, "2100-01-01 00:00+00", *odd_times))
    labels: Table = {"key": [], "score": [], "known_at": []}
    for n in sorted(dice.sample(range(EVENTS), ROWS - EVENTS)):
        known = times[n] + timedelta(seconds=dice.randrange(20_000))
        labels["key"].append(keys[n] if dice.random() < 0.97 else f"nobody {n}")
        labels["score"].append(dice.choice(("NaN", "Infinity", "1e308", None)) if dice.random() < 0.05 else str(n % 31))
        labels["known_at"].append(dice.choice((None, *odd_times)) if dice.random() < 0.05 else known.isoformat())
    return events, labels


def cut(table: Table, first: float, last: float) -> io.StringIO:
    """A share of a table's rows, for COPY."""
    count = len(table["key"])
    return copy_text({name: values[round(first * count) : round(last * count)] for name, values in table.items()})


@pytest.fixture
def origin(database: Callable[..., str]) -> str:
    """DSN of a source with two empty tables."""
    dsn = database("hostile")
    types = ", ".join(f"{name} {type_}" for name, (type_, _) in rows.COLUMNS.items())
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(f"CREATE TABLE public.hostile (key text PRIMARY KEY, event_time timestamptz, {types})")
        cursor.execute(
            "CREATE TABLE public.answers (key text PRIMARY KEY, score double precision, known_at timestamptz)"
        )
        cursor.execute(source.statements(stream, role="postgres"))
    return dsn


@pytest.fixture
def workers(platform: str, origin: str, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts the stream's workers, which end with the test."""
    with closing(db.connect(origin)) as conn:
        columns = source.log_columns(conn, stream)
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, stream, columns, Engine("any", "", {}))
    migrate(platform)
    (tmp_path / "streams").mkdir()
    (tmp_path / "streams" / "hostile.py").symlink_to(FOLDER / "stream.py")
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment = inherited | {
        "HEADRACE_DSN": platform,
        "HEADRACE_CONN_HOSTILE_DB": origin,
        "HEADRACE_HOME": str(tmp_path),
        "HEADRACE_STREAMS": str(tmp_path / "streams"),
        **PINNED,
    }
    made: list[Worker] = []

    def start(*words: str) -> Worker:
        made.append(Worker(tmp_path, environment, *words))
        return made[-1]

    yield start
    for worker in made:
        worker.end()


def test_hostile_rows_are_conserved_and_explained(platform: str, origin: str, workers: Callable[..., Worker]) -> None:
    events, labels = hostile_rows(7)
    with closing(psycopg2.connect(origin)) as application, closing(db.connect(platform, autocommit=True)) as watch:

        def query(statement: str, *values: Any) -> list[tuple[Any, ...]]:
            with watch.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall()

        def commit(first: float, last: float) -> None:
            with application, application.cursor() as cursor:
                cursor.execute("SET timezone = 'UTC'")
                for name, table in (("hostile", events), ("answers", labels)):
                    cursor.copy_expert(f"COPY public.{name} ({', '.join(table)}) FROM STDIN", cut(table, first, last))

        imported = HISTORY / ROWS
        commit(0.0, imported)
        intake = workers("intake", "hostile")
        wait_until(lambda: intake.process.poll() is not None or intake.says("streaming"), 60, "the history is there")
        learner = workers("learn", "hostile", "hostile-1")
        for n in range(COMMITS):
            step = (1 - imported) / COMMITS
            commit(imported + n * step, 1.0 if n == COMMITS - 1 else imported + (n + 1) * step)
        with application.cursor() as cursor:
            cursor.execute("SELECT pg_logical_emit_message(true, 'headrace.test', '')::text")
            ((end,),) = cursor.fetchall()
        application.commit()

        def through() -> bool:
            assert [w.process.poll() for w in (intake, learner)] == [None, None], intake.log.read_text()
            return query(
                "SELECT p.lsn > %s AND w.done = p.seq FROM headrace.intake_positions AS p "
                "JOIN headrace.worker_progress AS w ON w.role = 'hostile-1'",
                end,
            ) == [(True,)]

        wait_until(through, 90, "everything is in the log, and learned")
        counts = query(
            "SELECT origin, changes, received - logged - held - quarantined - ignored, logged, held, quarantined, ignored "
            "FROM metrics.accounting ORDER BY origin"
        )
        print("\n", *counts, sep="\n")
        assert {origin: (changes, lost) for origin, changes, lost, *_ in counts} == {
            "history": (HISTORY, 0),
            "stream": (ROWS - HISTORY, 0),
        }
        refused = query("SELECT expectation, count(*), min(reason) FROM hostile.quarantine GROUP BY 1 ORDER BY 2 DESC")
        for row in refused:
            print(f"{row[1]:>7}  {row[0]:.40}: {row[2]:.120}")
        assert len(refused) > 15
        assert sum(count for _, count, _ in refused) == sum(row[5] for row in counts)
        unexplained = "SELECT * FROM hostile.quarantine WHERE reason = '' OR expectation = '' OR content = '{}'"
        assert query(unexplained) == []
        ((logged,), (kept,)) = query(
            "SELECT count(*) FROM hostile.events UNION ALL "
            "SELECT count(*) FROM hostile.quarantine WHERE relation = 'public.hostile'"
        )
        assert logged + kept == EVENTS
        assert logged > EVENTS / 5
        sums = (
            "SELECT sum(learned), sum(labels), sum(unscored), sum(loss_sum) / sum(labels) FROM headrace.epoch_metrics"
        )
        ((learned, scored, unscored, loss),) = query(sums)
        assert learned == scored > ROWS / 10
        assert unscored == 0
        assert 0 < loss < 2
        assert query("SELECT role, state, message FROM metrics.incidents") == []
    assert not intake.says("Traceback")
    assert not learner.says("Traceback")
    assert [intake.end(), learner.end()] == [0, 0]
    with closing(psycopg2.connect(origin)) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            free_slots(cursor)
