"""The DAGs and the page under a real Airflow: from a committed row to a promotion by a scheduled run, and back again.

The platform's database and the source are known to Airflow as connections only, as in a deployment whose Airflow was
there before headrace.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from headrace.airflow.stack import AirflowClient, AirflowStack
from headrace.definition.load import load_file
from headrace.store import source
from headrace.store.embedded import EmbeddedPostgres

REPOSITORY = Path(__file__).parents[2]
COMPARE_EVERY = 10
BEFORE, AFTER = 4_000, 6_000  # events committed before and after the bootstrap
START = datetime(2020, 3, 1, tzinfo=UTC)
DAG_IDS = {f"visits__{what}" for what in ("quality", "bootstrap", "compare", "rollback", "housekeeping")}

# What decides is how sort and place meet, which the first champion does not look at.
DEFINITION = """
from datetime import timedelta
from typing import Any

from headrace import Label, Policy, Source, Stream, category, col, expect, number, recipes


def numbers_only() -> Any:
    from river import compose, linear_model, preprocessing

    return compose.SelectType(int, float) | preprocessing.StandardScaler() | linear_model.LogisticRegression()


stream = Stream(
    name="visits",
    source=Source(conn_id="visits_db", table="public.visits", key="visit_id", event_time="seen_at"),
    label=Label(
        table="public.outcomes",
        key="visit_id",
        value=col("score") > 15,
        label_time="known_at",
        window=timedelta(hours=6),
        if_missing="drop",
    ),
    features=[category("sort", "place"), number("size")],
    contract=[expect.not_null("sort"), expect.in_set("sort", {"a", "b", "c", "d"}), expect.between("size", 0, 1000)],
    champion=recipes.river(numbers_only),
    challengers=[
        recipes.gbdt_lr(target_means=False),
        recipes.lightgbm(target_means=False),
        recipes.ftrl(pairs=True, batch=recipes.Batch()),
    ],
    policy=Policy(epoch_labels=50, epoch_time=timedelta(hours=12), challenger_slots=3),
)
"""
TABLES = """
CREATE TABLE public.visits (visit_id bigint PRIMARY KEY, seen_at timestamptz, sort text, place text, size double precision);
CREATE TABLE public.outcomes (visit_id bigint PRIMARY KEY, score integer, known_at timestamptz);
"""


def rows(first: int, count: int) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Events a minute apart, and their labels up to three hours later."""
    random = Random(first)
    events, labels = [], []
    for i in range(first, first + count):
        seen, sort, place = START + timedelta(minutes=i), random.choice("abcd"), random.choice("pqrs")
        events.append((i, seen, sort, place, random.uniform(0, 100)))
        good = (sort in "ab") == (place in "pq")
        known = seen + timedelta(seconds=random.randrange(1, 3 * 3600))
        labels.append((i, 20 if random.random() < (0.7 if good else 0.2) else 10, known))
    return events, labels


def commit(origin: str, first: int, count: int) -> None:
    """Commit events at the source together with their labels."""
    events, labels = rows(first, count)
    with closing(psycopg2.connect(origin)) as conn, conn, conn.cursor() as cursor:
        cursor.executemany("INSERT INTO public.visits VALUES (%s, %s, %s, %s, %s)", events)
        cursor.executemany("INSERT INTO public.outcomes VALUES (%s, %s, %s)", labels)


@dataclass
class Running:
    """Airflow, beside a platform whose workers run."""

    stack: AirflowStack
    client: AirflowClient
    platform: str
    origin: str

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.platform)) as conn, conn.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        return {task["task_id"]: task["state"] for task in self.client.task_instances(dag_id, run_id)}

    def log(self, dag_id: str, run_id: str, task_id: str) -> str:
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/1"
        return "\n".join(str(line) for line in self.client.get(path)["content"])

    def processes(self, command: str) -> dict[int, list[str]]:
        """Command lines of what runs for this platform, by pid."""
        found = {}
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if command in words and process.environ().get("HEADRACE_HOME") == str(self.stack.home):
                    found[process.pid] = words
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def page(self, token: str | None) -> tuple[int, str]:
        request = urllib.request.Request(f"{self.stack.url}/headrace/")
        if token is not None:
            request.add_header("Cookie", f"_token={token}")  # as the browser does
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def within(seconds: float, holds: Callable[[], Any]) -> Any:
    until = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > until:
            return found
        time.sleep(0.2)
    return found


def as_airflow_connection(conn_id: str, dsn: str) -> dict[str, Any]:
    parts = parse_dsn(dsn)
    return {
        "connection_id": conn_id,
        "conn_type": "postgres",
        "host": parts["host"],
        "login": parts["user"],
        "schema": parts["dbname"],
        "extra": '{"application_name": "through airflow"}',
    }


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def running(room: Path) -> Iterator[Running]:
    streams = room / "streams"
    streams.mkdir()
    (streams / "visits.py").write_text(DEFINITION)
    with EmbeddedPostgres(room) as postgres:
        for name in ("platform", "origin", "airflow"):
            postgres.create_database(name)
        platform, origin = postgres.dsn("platform"), postgres.dsn("origin")
        with closing(psycopg2.connect(origin)) as conn, conn, conn.cursor() as cursor:
            cursor.execute(TABLES)
            cursor.execute(source.statements(load_file(streams / "visits.py"), role="postgres"))
        env = {"HEADRACE_HOME": str(room), "HEADRACE_STREAMS": str(streams)}
        stack = AirflowStack(
            room,
            metadata_dsn=postgres.dsn("airflow"),
            dags_folder=REPOSITORY / "dags",
            plugins_folder=REPOSITORY / "plugins",
            env={**env, "HEADRACE_COMPARE_EVERY": str(COMPARE_EVERY)},
        )
        commit(origin, 0, BEFORE)
        at = {"HEADRACE_DSN": platform, "HEADRACE_CONN_VISITS_DB": origin}
        up = [sys.executable, "-P", "-m", "headrace", "up"]
        workers = subprocess.Popen(up, env={**os.environ, **env, **at})
        try:
            with stack:
                stack.wait_ready()
                client = stack.client()
                for conn_id, dsn in (("headrace_platform", platform), ("visits_db", origin)):
                    client.post("/api/v2/connections", as_airflow_connection(conn_id, dsn))
                yield Running(stack, client, platform, origin)
        finally:
            workers.send_signal(signal.SIGTERM)
            workers.wait(60)


@pytest.mark.timeout(240)
def test_dags_load_and_the_page_wants_a_login(running: Running) -> None:
    client = running.client
    assert within(60, lambda: {dag["dag_id"] for dag in client.get("/api/v2/dags")["dags"]} >= DAG_IDS)
    assert client.get("/api/v2/importErrors")["import_errors"] == []
    assert client.get("/api/v2/plugins/importErrors")["import_errors"] == []
    plugins = [plugin for plugin in client.get("/api/v2/plugins")["plugins"] if plugin["name"] == "headrace"]
    assert [view["href"] for plugin in plugins for view in plugin["external_views"]] == ["/headrace/"]

    assert running.page(None)[0] == 401
    assert running.page("made up")[0] in (401, 403)
    client.login()
    status, html = running.page(client._token)
    assert status == 200, html
    assert "visits-1" in html


@pytest.mark.timeout(240)
def test_rollback_without_a_former_champion_fails_with_a_sentence(running: Running) -> None:
    client = running.client
    client.unpause("visits__rollback")
    with pytest.raises(Exception, match="reason"):
        client.trigger_dag("visits__rollback")
    run_id = client.trigger_dag("visits__rollback", {"reason": "--by=nobody; a {{ template }} and a 'quote'"})
    run = client.wait_for("visits__rollback", run_id, timeout=90)
    assert run["state"] == "failed"
    assert "visits-1 is the first champion of 'visits': there is nobody to roll back to" in running.log(
        "visits__rollback", run_id, "rollback"
    )


@pytest.mark.timeout(240)
def test_housekeeping_says_what_it_did(running: Running) -> None:
    client = running.client
    logged = "SELECT 1 FROM headrace.intake_positions WHERE stream = 'visits' AND watermark IS NOT NULL"
    assert within(90, lambda: running.query(logged))
    client.unpause("visits__housekeeping")
    (run,) = within(60, lambda: client.dag_runs("visits__housekeeping"))
    run_id = run["dag_run_id"]
    assert client.wait_for("visits__housekeeping", run_id, timeout=90)["state"] == "success"
    said = running.log("visits__housekeeping", run_id, "housekeeping")
    assert "Nothing of the log of visits was dropped; it begins at seq 1." in said


@pytest.mark.timeout(400)
def test_bootstrap_then_a_scheduled_compare_promotes_and_a_rollback_undoes_it(running: Running) -> None:
    client = running.client
    client.unpause("visits__compare")
    skipped = within(60, lambda: [run for run in client.dag_runs("visits__compare") if run["state"] == "success"])
    assert skipped[0]["run_type"] == "scheduled"
    assert running.states("visits__compare", skipped[0]["dag_run_id"]) == {"compare": "skipped", "promoted": "skipped"}

    behind = "SELECT 1 FROM metrics.lag WHERE worker = 'visits-1' AND entries_behind = 0 AND position > 0"
    assert within(90, lambda: running.query(behind))
    client.unpause("visits__bootstrap")
    run_id = client.trigger_dag("visits__bootstrap")
    run = client.wait_for("visits__bootstrap", run_id, timeout=240, poll=1)
    assert run["state"] == "success", running.states("visits__bootstrap", run_id)
    versions = dict(running.query("SELECT version, status FROM headrace.versions ORDER BY number"))
    assert versions["visits-1"] == "champion"
    assert "shadow" in versions.values()
    assert len(versions) == 4
    made = running.query(f"SELECT recipe FROM headrace.versions WHERE dag_run_id = '{run_id}' ORDER BY recipe")
    assert made == [("ftrl",), ("gbdt_lr",), ("lightgbm",)]
    tasks = client.task_instances("visits__bootstrap", run_id)
    spans = [(task["start_date"], task["end_date"]) for task in tasks if task["task_id"] == "candidates"]
    assert len(spans) == 3
    assert max(start for start, _ in spans) < min(end for _, end in spans), "they are trained at the same time"
    learners = running.processes("learn")
    assert {words[-1] for words in learners.values()} == {v for v, status in versions.items() if status != "rejected"}
    assert len(learners) >= 3, "each catches up in a process of its own"
    checks = running.query(f"SELECT count(*), bool_and(success) FROM metrics.quality WHERE dag_run_id = '{run_id}'")
    assert checks[0][0] >= 3
    assert checks[0][1]

    for first in range(BEFORE, BEFORE + AFTER, 250):  # the stream's clock moves with commits
        commit(running.origin, first, 250)
    verdicts = "SELECT dag_run_id, run_type, challenger FROM metrics.decisions WHERE verdict = 'promote'"
    promoted = within(120, lambda: running.query(verdicts))
    assert promoted, running.query("SELECT verdict, reason FROM metrics.decisions ORDER BY decision_id DESC LIMIT 3")
    run_id, run_type, challenger = promoted[0]
    assert run_type == "scheduled"
    run = client.wait_for("visits__compare", run_id, timeout=60)
    assert (run["state"], run["run_type"]) == ("success", "scheduled")
    assert running.states("visits__compare", run_id) == {"compare": "success", "promoted": "success"}
    events = client.get("/api/v2/assets/events")["asset_events"]
    by_asset = {(event["uri"], event["source_dag_id"]) for event in events}
    assert ("headrace://visits/champion", "visits__compare") in by_asset
    assert ("headrace://visits/challengers", "visits__bootstrap") in by_asset
    assert ("headrace://visits/quality", "visits__bootstrap") in by_asset
    starts = sorted(run["run_after"] for run in client.dag_runs("visits__compare") if run["run_type"] == "scheduled")
    assert len(starts) >= 3
    assert challenger in running.page(client._token)[1]

    # Nobody else may change the champion from here on.
    client.patch("/api/v2/dags/visits__compare", {"is_paused": True})
    assert within(60, lambda: {run["state"] for run in client.dag_runs("visits__compare")} == {"success"})
    ((champion, former),) = running.query(
        "SELECT challenger, champion FROM metrics.decisions WHERE verdict = 'promote' ORDER BY decision_id DESC LIMIT 1"
    )
    client.unpause("visits__rollback")
    reason = "It was --only a 'test'; {{ really }}"
    run_id = client.trigger_dag("visits__rollback", {"reason": reason})
    assert client.wait_for("visits__rollback", run_id, timeout=90)["state"] == "success"
    serving = running.query("SELECT version, why FROM metrics.serving_history WHERE seq_last IS NULL")
    assert serving == [(former, f"{running.stack.user} rolled back from {champion} to {former}: {reason}")]


@pytest.mark.timeout(240)
def test_a_task_that_is_killed_takes_its_command_along(running: Running) -> None:
    client = running.client
    client.unpause("visits__quality")  # Great Expectations takes its time: enough to be killed in

    assert within(60, lambda: running.processes("quality"))
    run_id = client.dag_runs("visits__quality")[0]["dag_run_id"]
    client.patch(f"/api/v2/dags/visits__quality/dagRuns/{run_id}", {"state": "failed"})
    assert within(60, lambda: not running.processes("quality"))
    assert running.query(f"SELECT count(*) FROM metrics.quality WHERE dag_run_id = '{run_id}'") == [(0,)]
