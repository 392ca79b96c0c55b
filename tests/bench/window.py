"""A label window of 60 days with ten million open events, and a transaction of a million rows: how much memory?

A fraud-like stream through real processes: history import, a learner, labels of events that are weeks old, kill -9 and
start of both, one heartbeat that ends the window of all that wait; then, on another stage, one transaction of a million
rows. Reports peak memory beside the bounds that docs/operations.md declares.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from headrace import target_mean
from headrace.cli.run import register
from headrace.definition.load import load_file
from headrace.live.supervisor import PINNED
from headrace.settings import from_env
from headrace.store import source
from headrace.store.embedded import EmbeddedPostgres
from headrace.store.migrate import migrate

EVENTS = 10_000_000
_ONE_TRANSACTION = 1_000_000
_NUMBERS = len(target_mean("country").names())  # that an event reads, and that are kept while it is open
_DEFINITION = '''
"""Is this payment a fraud?"""

from datetime import timedelta
from typing import Any

from headrace import Label, Policy, Source, Stream, category, col, expect, number, recipes, target_mean


def logistic() -> Any:
    from river import compose, linear_model, preprocessing

    return compose.SelectType(int, float) | preprocessing.StandardScaler() | linear_model.LogisticRegression()


stream = Stream(
    name="fraud",
    source=Source(conn_id="bank", table="public.payments", key="payment_id", event_time="paid_at"),
    label=Label(
        table="public.chargebacks",
        key="payment_id",
        value=col("fraud"),
        label_time="reported_at",
        window=timedelta(days=60),
        if_missing="negative",
    ),
    features=[number("amount"), category("country"), target_mean("country")],
    contract=[expect.not_null("amount"), expect.in_set("country", {"AT", "BE", "DE", "FR", "NO"})],
    champion=recipes.river(logistic, target_means=True),
    policy=Policy(epoch_labels=500, epoch_time=timedelta(days=1)),
)
'''
_TABLES = """
CREATE TABLE payments (payment_id bigint PRIMARY KEY, paid_at timestamptz NOT NULL, amount float8, country text, card text);
CREATE TABLE chargebacks (payment_id bigint PRIMARY KEY, fraud boolean, reported_at timestamptz NOT NULL);
"""
_PAYMENTS = """
INSERT INTO payments SELECT i, timestamptz '2026-01-01Z' + i * interval '50 days' / %(n)s, 100 * random(),
    ('{AT,BE,DE,FR,NO}'::text[])[1 + i %% 5], 'card ' || i %% 50000 FROM generate_series(%(first)s, %(last)s) AS i
"""


class Watched:
    """A headrace process and the most memory that it ever had."""

    def __init__(self, environment: dict[str, str], folder: Path, *words: str) -> None:
        self.log = folder / f"{'-'.join(words)}-{time.monotonic_ns()}.log"
        self.peak = 0  # bytes
        with self.log.open("wb") as output:
            argv = [sys.executable, "-P", "-m", "headrace", *words]
            self.process = subprocess.Popen(argv, env=environment, cwd=folder, stdout=output, stderr=output)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
            self.peak = max(self.peak, 1024 * int(found[1]) if found else 0)
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Bench:
    """The stage: one server with the source and the platform, and how far the workers are."""

    def __init__(self, home: Path, server: EmbeddedPostgres, events: int) -> None:
        self.home, self.events = home, events
        for name in ("bank", "headrace"):
            server.create_database(name)
        self.bank, self.platform = server.dsn("bank"), server.dsn("headrace")
        (home / "streams").mkdir()
        (home / "streams" / "fraud.py").write_text(_DEFINITION)
        self.environment = os.environ | PINNED | {
            "HEADRACE_DSN": self.platform,
            "HEADRACE_CONN_BANK": self.bank,
            "HEADRACE_HOME": str(home),
            "HEADRACE_STREAMS": str(home / "streams"),
        }  # fmt: skip
        stream = load_file(home / "streams" / "fraud.py")
        self.run(_TABLES + source.statements(stream, "postgres"))

    def prepare(self) -> None:
        """The source's rows, and the stream's registration."""
        for first in range(1, self.events + 1, _ONE_TRANSACTION):
            self.pay(first, min(first + _ONE_TRANSACTION - 1, self.events))
        migrate(self.platform)
        register(from_env(self.environment), self.platform, ["fraud"])

    def start(self, *words: str) -> Watched:
        """Start a headrace process."""
        return Watched(self.environment, self.home, *words)

    def count(self, table: str) -> int:
        """Rows of a table of the source."""
        with closing(psycopg2.connect(self.bank)) as conn, conn.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {table}")
            row = cursor.fetchone()
            return int(row[0]) if row else 0

    def run(self, statement: str, values: Any = None) -> None:
        with closing(psycopg2.connect(self.bank)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(statement, values)

    def ask(self, statement: str) -> Any:
        with closing(psycopg2.connect(self.platform)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
            return row[0] if row else None

    def pay(self, first: int, last: int) -> None:
        """One transaction of payments."""
        self.run(_PAYMENTS, {"n": max(self.events, _ONE_TRANSACTION), "first": first, "last": last})

    def wait(self, worker: Watched, statement: str, wanted: int, seconds: float = 3_600) -> float:
        began = time.monotonic()
        while (found := self.ask(statement) or 0) < wanted:
            if worker.process.poll() is not None:
                raise RuntimeError(worker.log.read_text()[-2000:])
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"{found} of {wanted}: {statement}")
            time.sleep(0.2)
        return time.monotonic() - began


Told = Callable[[str, float], None]
_LOGGED = "SELECT seq FROM headrace.intake_positions"
_LEARNED = "SELECT done FROM headrace.worker_progress WHERE role = 'fraud-1'"


def run(events: int = EVENTS) -> dict[str, Any]:
    """All of it; gives what was measured."""
    return {"open_events": events} | _on_stage(_window, events) | _on_stage(_large_transaction, 1_000)


def _on_stage(measure: Callable[[Bench, Told], None], events: int) -> dict[str, float]:
    result: dict[str, float] = {}

    def told(name: str, value: float) -> None:
        result[name] = round(float(value), 1)
        print(f"{name:<40} {value:>12,.1f}", flush=True)

    with tempfile.TemporaryDirectory(prefix="headrace-window-", dir="/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        with EmbeddedPostgres(home / "server") as server:
            bench = Bench(home, server, events)
            bench.prepare()
            measure(bench, told)
    return result


def _large_transaction(bench: Bench, told: Told) -> None:
    intake = bench.start("intake", "fraud")
    bench.wait(intake, _LOGGED, bench.events)
    before = intake.peak
    bench.pay(bench.events + 1, bench.events + _ONE_TRANSACTION)
    told("a_million_rows_s", bench.wait(intake, _LOGGED, bench.events + _ONE_TRANSACTION))
    told("intake_peak_before_mb", before / 1e6)
    told("intake_peak_with_a_million_rows_mb", intake.peak / 1e6)
    intake.kill()


def _window(bench: Bench, told: Told) -> None:
    importing = bench.start("intake", "fraud")
    told("import_s", bench.wait(importing, _LOGGED, bench.events))
    told("import_peak_mb", importing.peak / 1e6)
    importing.kill()
    learner = bench.start("learn", "fraud", "fraud-1")
    told("catch_up_s", bench.wait(learner, _LEARNED, bench.events))
    told("learner_peak_caught_up_mb", learner.peak / 1e6)
    intake = bench.start("intake", "fraud")
    began, dice, key = time.monotonic(), random.Random(7), bench.events
    for _ in range(100):  # in small transactions: new payments, and chargebacks of payments of any age
        bench.pay(key + 1, key + 100)
        key += 100
        rows = ", ".join(f"({k}, {k % 3 == 0}, '2026-02-20Z')" for k in dice.sample(range(1, bench.events), 50))
        bench.run(f"INSERT INTO chargebacks VALUES {rows} ON CONFLICT DO NOTHING")
    labels = bench.count("chargebacks")
    bench.wait(intake, _LOGGED, key + labels)
    bench.wait(learner, _LEARNED, key + labels)
    told("labels_of_old_events", labels)
    told("through_with_them_s", time.monotonic() - began)
    told("artifacts_mb", bench.ask("SELECT sum(length(content)) / 1e6 FROM headrace.artifacts"))
    told("learner_peak_mb", learner.peak / 1e6)
    told("intake_peak_mb", intake.peak / 1e6)
    intake.kill()
    learner.kill()
    bench.pay(key + 1, key + 1)
    intake, learner = bench.start("intake", "fraud"), bench.start("learn", "fraud", "fraud-1")
    told("intake_starts_again_s", bench.wait(intake, _LOGGED, key + 1 + labels))
    told("intake_peak_after_start_mb", intake.peak / 1e6)
    told("learner_starts_again_s", bench.wait(learner, _LEARNED, key + 1 + labels))
    told("learner_peak_after_start_mb", learner.peak / 1e6)
    learner.kill()
    bench.run("SELECT pg_logical_emit_message(true, 'headrace.clock', '2026-06-01T00:00:00Z')")
    told("all_time_out_s", bench.wait(intake, _LOGGED, 2 * (key + 1)))
    told("intake_peak_all_time_out_mb", intake.peak / 1e6)
    intake.kill()
    # What docs/operations.md declares.
    told("bound_of_the_intake_mb", 450 + bench.events * 17 / 1e6)
    told("bound_of_the_learner_mb", 450 + bench.events * (33 + 8 * _NUMBERS) / 1e6)
