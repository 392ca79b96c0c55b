"""The demo from an empty home to a promotion, the audit after it, and that the audit can fail.

One run of the real thing, Airflow included, serves all tests of this module: it takes a few minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from headrace.store.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)


@dataclass
class Ran:
    """A demo that ran until its first promotion."""

    home: Path
    environment: dict[str, str]
    summary: dict[str, Any]
    output: str
    code: int

    def headrace(self, *words: str, dsn: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = self.environment | ({"HEADRACE_DSN": dsn} if dsn else {})
        return subprocess.run(
            [sys.executable, "-P", "-m", "headrace", *words],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def demo() -> Iterator[Ran]:
    with tempfile.TemporaryDirectory(prefix="headrace-demo-", dir="/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "AIRFLOW"))}
        environment |= {"HEADRACE_HOME": str(home / "home"), "HEADRACE_STREAMS": str(ROOT / "dags" / "streams")}
        summary = home / "demo.json"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "headrace", "demo", "--until-promotion", "--json", str(summary)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=840,
            check=False,
        )
        document = json.loads(summary.read_text()) if summary.exists() else {}
        yield Ran(home / "home", environment, document, done.stdout + done.stderr, done.returncode)


def test_it_ends_with_a_promotion_by_a_scheduled_run(demo: Ran) -> None:
    assert demo.code == 0, demo.output[-4000:]
    first = demo.summary["promotions"][0]
    assert first["run_type"] == "scheduled"
    assert first["dag_run_id"].startswith("scheduled__")
    assert first["log_e"] >= first["log_e_needed"] > 4.6
    assert re.search(r"beats flights-1 by \d", first["reason"])
    assert demo.summary["log_loss"]["champion"] < demo.summary["log_loss"]["first_champion"]
    assert demo.summary["log_loss"]["labels"] > 5_000


def test_the_summary_has_what_happened(demo: Ran) -> None:
    summary = demo.summary
    assert summary["imported"] == {"events": 252_484, "labels": 244_686}
    assert summary["streamed"]["events"] > 10_000
    assert summary["timeouts"] > 7_000
    assert summary["quarantined"] == summary["streamed"]["events"] // 2_000
    assert summary["learned"]["flights-1"] > 250_000
    assert summary["dag_runs"]["flights__bootstrap"] == {"success": 1}
    assert summary["dag_runs"]["flights__compare"]["success"] >= 2
    assert 0 < summary["seconds"]["to_ready"] < summary["seconds"]["to_first_promotion"] < summary["seconds"]["total"]


def test_it_leaves_no_process_behind(demo: Ran) -> None:
    left = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        environment = process.info["environ"] or {}
        if environment.get("HEADRACE_HOME") == str(demo.home) or str(demo.home) in " ".join(
            process.info["cmdline"] or []
        ):
            left.append((process.info["pid"], process.info["cmdline"]))
    assert left == []


def test_the_audit_finds_everything_in_order(demo: Ran) -> None:
    done = demo.headrace("check", "--json")
    assert done.returncode == 0, done.stderr
    invariants = json.loads(done.stdout)["flights"]
    names = {
        "conservation",
        "seq_dense",
        "labelled_once",
        "learned_once",
        "epochs",
        "serving_history",
        "positions",
        "source",
    }
    assert names <= set(invariants)
    assert all(invariant["ok"] for invariant in invariants.values())
    assert invariants["conservation"]["counts"]["stream"]["received"] > 20_000
    assert invariants["serving_history"]["counts"]["champions"] == 2
    assert invariants["source"]["counts"]["public.departures"] > 260_000


MUTATIONS = {
    "seq_dense": "DELETE FROM flights.events WHERE seq = (SELECT max(event_seq) FROM flights.labels WHERE kind = 'observed')",
    "labelled_once": (
        "INSERT INTO flights.labels SELECT (SELECT seq + 1 FROM headrace.intake_positions), event_seq, kind, y, y_before, "
        "corrects, label_time FROM flights.labels WHERE kind = 'observed' ORDER BY seq DESC LIMIT 1"
    ),
    "positions": "UPDATE headrace.intake_positions SET seq = seq + 100",
    "conservation": "DELETE FROM flights.quarantine WHERE quarantine_id = (SELECT min(quarantine_id) FROM flights.quarantine)",
    "serving_history": "UPDATE headrace.serving_history SET seq_first = seq_first + 5 WHERE seq_last IS NULL",
    "learned_once": "UPDATE headrace.epoch_metrics SET learned = learned + 1, labels = labels + 1 WHERE epoch = 100",
    "epochs": "UPDATE headrace.epochs SET seq_first = seq_first + 1 WHERE epoch = 50",
}


@pytest.fixture(scope="module")
def server(demo: Ran) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(demo.home) as running:
        yield running


@pytest.mark.parametrize("invariant", MUTATIONS)
def test_the_audit_names_what_is_broken(demo: Ran, server: EmbeddedPostgres, invariant: str) -> None:
    dsn = server.dsn(_copy(server, "headrace", f"broken_{invariant}"))
    _run(dsn, MUTATIONS[invariant])
    done = demo.headrace("check", "--json", "--without-source", dsn=dsn)
    assert done.returncode == 5
    assert invariant in {name for name, found in json.loads(done.stdout)["flights"].items() if not found["ok"]}
    assert f"flights: {invariant}: " in done.stderr


def test_the_queries_people_type_run(demo: Ran) -> None:
    queries = (
        "SELECT * FROM metrics.leaderboard WHERE stream = 'flights' ORDER BY log_loss",
        "SELECT h.version, h.why, v.code_sha, v.rebuildable FROM metrics.serving_history h JOIN metrics.versions v "
        "USING (stream, version) WHERE stream = 'flights' AND now() <@ during",
        "SELECT version, seq, kind, served FROM metrics.learned_from WHERE stream = 'flights' AND key = '8371'",
        "SELECT *, received - logged - held - quarantined - ignored AS lost FROM metrics.accounting",
    )
    for query in queries:
        done = demo.headrace("psql", "-c", query)
        assert done.returncode == 0, done.stderr
        assert "(0 rows)" not in done.stdout


def test_status_says_who_serves(demo: Ran) -> None:
    done = demo.headrace("status", "--json")
    assert done.returncode == 0, done.stderr
    (stream,) = json.loads(done.stdout)["streams"]
    assert stream["champion"] == demo.summary["promotions"][-1]["version"]
    assert not stream["intake"]["running"]


def _copy(server: EmbeddedPostgres, template: str, name: str) -> str:
    with closing(psycopg2.connect(server.dsn("postgres"))) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return name


def _run(dsn: str, statement: str) -> None:
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(statement)
        assert cursor.rowcount > 0
