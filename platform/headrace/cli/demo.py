"""`headrace demo`: the whole product on a year of real flights, in one terminal.

Starts Postgres, Airflow and `headrace up`, loads January to September 2013 as history, lets October to December happen as
if live, bootstraps challengers through Airflow's API and shows the race. Everything that it starts ends with it.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from headrace.airflow.stack import LOOPBACK, AirflowClient, AirflowStack, claim_port
from headrace.cli.common import DATABASE, stream_of, until_signalled
from headrace.definition.stream import Stream
from headrace.demo import flights, race
from headrace.demo.replay import Replayer, prepare
from headrace.errors import BatchError, ServerError
from headrace.live.process import ProcessTree
from headrace.live.supervisor import command, environment
from headrace.settings import Settings
from headrace.store import db, registry
from headrace.store.embedded import EmbeddedPostgres

STREAM = "flights"
LIVE_FROM = datetime(2013, 10, 1, 4, tzinfo=UTC)  # midnight in New York
_COMPARE_SECONDS = 15
_SETTLE_SECONDS = 60.0
_LAST_RUN_SECONDS = 20.0
_LAST_LOOKS_SECONDS = 4.0 * _COMPARE_SECONDS  # how long compare runs may still look once no label comes any more


@dataclass
class _Demo:
    """What runs, and when it happened."""

    settings: Settings
    speed: float
    console: Console
    server: EmbeddedPostgres
    airflow: AirflowStack
    replayer: Replayer
    workers: ProcessTree
    variables: Mapping[str, str]  # environment of the workers
    began: float
    endpoint: str = ""
    steps: list[str] = field(default_factory=list)
    ready: float | None = None
    bootstrapped: bool = False  # whatever became of it
    promoted: float | None = None
    failure: BaseException | None = None

    @property
    def dsn(self) -> str:
        return self.server.dsn(DATABASE)

    def say(self, text: str) -> None:
        """One line on what happens."""
        self.steps.append(f"{time.monotonic() - self.began:5.0f} s  {text}")
        if not self.console.is_terminal:
            self.console.print(self.steps[-1], soft_wrap=True)

    def steer(self, stop: Callable[[], bool]) -> None:
        """Airflow's part, in a thread: wait until it is ready, switch the DAGs on, trigger the bootstrap."""
        try:
            self.airflow.start()
            self.airflow.wait_ready()
            self.say(
                f"Airflow is ready at {self.airflow.url}, user {self.airflow.user}, password {self.airflow.password}"
            )
            client = self.airflow.client()
            for name in ("rollback", "bootstrap"):
                client.unpause(f"{STREAM}__{name}")
            while not stop() and not self._history_is_in():
                time.sleep(0.5)
            if stop():
                return
            self.ready = time.monotonic() - self.began
            run_id = client.trigger_dag(f"{STREAM}__bootstrap")
            self.say(f"triggered {STREAM}__bootstrap ({run_id}): quality, candidates, gate, catch up, shadow")
            client.unpause(f"{STREAM}__compare")
            self.say(f"{STREAM}__compare runs every {_COMPARE_SECONDS} s on its schedule")
            while not stop() and client.dag_run(f"{STREAM}__bootstrap", run_id)["state"] not in ("success", "failed"):
                time.sleep(2.0)
            self.bootstrapped = True
            if not stop():
                client.unpause(f"{STREAM}__quality")
        except BaseException as error:
            self.failure = error

    def _history_is_in(self) -> bool:
        with closing(db.connect(self.dsn, autocommit=True)) as conn:
            return db.row(conn, "log_position", {"stream": STREAM}) is not None


def run_demo(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace demo`"""
    began, stop = time.monotonic(), until_signalled()
    if settings.dsn is not None:
        raise ServerError(
            "HEADRACE_DSN is set: the demo makes databases of its own and only uses its embedded server; unset it"
        )
    stream = stream_of(settings, STREAM)
    console = Console(stderr=False)
    with ExitStack() as stack:
        demo = _start(settings, stream, arguments, console, began, stack)
        _follow(demo, stop, until_promotion=arguments.until_promotion)
        demo.replayer.stop()
        if demo.replayer.error is not None:
            raise demo.replayer.error
        if not _prepared(demo):  # stopped before there was anything to sum up
            return 0
        if not stop():
            _settle(demo, stop)
        summary = _summary(demo, stop)
        demo.say("stopping")
    if arguments.json is not None:
        summary["seconds"]["total"] = round(time.monotonic() - began, 1)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(summary, indent=2, default=str) + "\n")
    _farewell(console, settings, summary, arguments.json)
    if arguments.until_promotion and demo.promoted is None and not stop():
        raise BatchError("the year ended without a promotion by a scheduled compare run; see `headrace status`")
    return 0


def _start(
    settings: Settings, stream: Stream, arguments: argparse.Namespace, console: Console, began: float, stack: ExitStack
) -> _Demo:
    """Everything up to the live stream; what is started ends with `stack`."""
    _claim(settings.home)
    server = EmbeddedPostgres(settings.home)
    stack.enter_context(server)
    for name in (DATABASE, STREAM, "airflow"):
        _fresh_database(server, name)
    variables = environment(settings, server.dsn(DATABASE)) | {
        f"HEADRACE_CONN_{stream.source.conn_id.upper()}": server.dsn(STREAM),
        "HEADRACE_COMPARE_EVERY": str(_COMPARE_SECONDS),
    }
    airflow = AirflowStack(
        settings.home,
        metadata_dsn=server.dsn("airflow"),
        dags_folder=settings.streams.parent,
        plugins_folder=settings.streams.parent.parent / "plugins",
        port=arguments.port,
        env=variables,
    )
    stack.callback(airflow.stop)
    data = flights.load()
    workers = ProcessTree(grace=15.0)
    stack.callback(workers.stop)
    replayer = Replayer(server.dsn(STREAM), data, LIVE_FROM, arguments.speed)
    stack.callback(replayer.stop)
    demo = _Demo(settings, arguments.speed, console, server, airflow, replayer, workers, variables, began)
    demo.say("Postgres runs; starting Airflow beside it")
    threading.Thread(target=demo.steer, args=(lambda: replayer.stopped,), name="airflow", daemon=True).start()
    departed, landed = prepare(server.dsn(STREAM), stream, data, LIVE_FROM)
    demo.say(f"the application's database has January to September: {departed:,} departures, {landed:,} arrivals")
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    workers.spawn("up", command("up", STREAM), env=variables, log=logs / "up.log", cwd=Path.cwd())
    return demo


def _claim(home: Path) -> None:
    """Make sure that what the demo throws away is a demo's."""
    marker = home / "demo"
    if (home / "postgres").exists() and not marker.exists():
        raise ServerError(
            f"{home} holds a platform that is not a demo's; set HEADRACE_HOME to another folder for the demo"
        )
    home.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _fresh_database(server: EmbeddedPostgres, name: str) -> None:
    """An empty database in place of the last demo's."""
    with closing(db.connect(server.dsn("postgres"), autocommit=True)) as conn:
        slots = [row[0] for row in db.rows(conn, "slots_of_database", {"database": name})]
        for slot in slots:
            db.run(conn, "drop_slot", {"slot": slot})
        with conn.cursor() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    server.create_database(name)


def _follow(demo: _Demo, stop: Callable[[], bool], *, until_promotion: bool) -> None:
    """Show the race until it is over."""
    live = Live(console=demo.console, refresh_per_second=4, transient=False) if demo.console.is_terminal else None
    told, started = 0.0, False
    over: float | None = None  # since when the year is over and everybody has read all of it
    with ExitStack() as stack:
        if live is not None:
            stack.enter_context(live)
        conn = None
        while not stop():
            _check_alive(demo)
            if conn is None and _prepared(demo):
                conn = stack.enter_context(closing(db.connect(demo.dsn, autocommit=True)))
            now = race.look(conn, STREAM) if conn is not None else None
            if now is not None and now.seq and not started and (len(now.versions) > 1 or demo.bootstrapped):
                demo.replayer.start()  # not before: on a slow machine the year would be over before anybody is compared
                trained = "the first challenger is trained" if len(now.versions) > 1 else "the bootstrap is over"
                demo.say(f"{trained}; October to December happens now, {demo.speed:,.0f} times as fast")
                started = True
                _serve(demo)
            if now is not None and conn is not None and demo.promoted is None:
                scheduled = [p for p in db.rows(conn, "race_promotions", {"stream": STREAM}) if p[3] == "scheduled"]
                if scheduled:
                    demo.promoted = time.monotonic() - demo.began
                    demo.say(f"promoted {scheduled[0][0]}: {scheduled[0][8]}")
                    if until_promotion:
                        return
            if live is not None and now is not None:
                live.update(race.render(now, demo.replayer.sent, _elsewhere(demo)))
            elif now is not None and time.monotonic() - told > 5.0:
                told = time.monotonic()
                demo.console.print(f"{told - demo.began:5.0f} s  {now.line()}", soft_wrap=True)
            if until_promotion and demo.replayer.done and now is not None and _all_read(now):
                over = over or time.monotonic()
                if time.monotonic() - over > _LAST_LOOKS_SECONDS:
                    return
            time.sleep(0.5)


def _serve(demo: _Demo) -> None:
    """The endpoint that answers with the champion."""
    port = claim_port(None)
    demo.endpoint = f"http://{LOOPBACK}:{port}"
    demo.workers.spawn(
        "serve",
        command("serve", STREAM, "--port", str(port)),
        env=demo.variables,
        log=demo.settings.home / "logs" / "serve.log",
        cwd=Path.cwd(),
    )


def _all_read(now: race.Race) -> bool:
    """Whether every version that runs has read the whole log."""
    return all(row[3] >= now.seq for row in now.versions if row[2] in registry.RUNNING)


def _prepared(demo: _Demo) -> bool:
    """Whether the platform has its tables and views."""
    with closing(db.connect(demo.dsn, autocommit=True)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('metrics.leaderboard') IS NOT NULL")
        row = cursor.fetchone()
    return row is not None and bool(row[0])


def _check_alive(demo: _Demo) -> None:
    if demo.failure is not None:
        raise demo.failure
    if demo.replayer.error is not None:
        raise demo.replayer.error
    if (code := demo.workers.ended().get("up")) is not None:
        tail = (demo.settings.home / "logs" / "up.log").read_text(errors="replace").strip().splitlines()[-5:]
        raise ServerError(f"`headrace up` ended with {code}: " + " / ".join(tail))
    if sentence := demo.airflow.failed():
        raise ServerError(sentence)


def _elsewhere(demo: _Demo) -> list[str]:
    lines = demo.steps[-4:]
    if demo.ready is not None:
        lines = [*lines, f"Airflow: {demo.airflow.url}   user {demo.airflow.user}   password {demo.airflow.password}"]
    if demo.endpoint:
        lines = [*lines, f"endpoint: {demo.endpoint}   POST /predict, GET /health"]
    return [*lines, "SQL: headrace psql    state: headrace status    Ctrl-C stops everything"]


def _settle(demo: _Demo, stop: Callable[[], bool]) -> None:
    """Let intake and learners finish what was committed."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    sent = sum(demo.replayer.sent.values())
    with closing(db.connect(demo.dsn, autocommit=True)) as conn:
        while time.monotonic() < deadline and not stop():
            now = race.look(conn, STREAM)
            streamed = sum(
                row[1] + row[2] for row in db.rows(conn, "race_accounting", {"stream": STREAM}) if row[0] == "stream"
            )
            refused = sum(row[3] for row in db.rows(conn, "race_accounting", {"stream": STREAM}) if row[0] == "stream")
            if streamed + refused >= sent and _all_read(now):
                return
            time.sleep(0.5)


def _summary(demo: _Demo, stop: Callable[[], bool]) -> dict[str, Any]:
    with closing(db.connect(demo.dsn, autocommit=True)) as conn:
        counted = {row[0]: row for row in db.rows(conn, "race_accounting", {"stream": STREAM})}
        promotions = db.rows(conn, "race_promotions", {"stream": STREAM})
        names = ("version", "recipe", "dag_run_id", "run_type", "seq", "at", "log_e", "log_e_needed", "reason")
        now = race.look(conn, STREAM)
        first = f"{STREAM}-1"
        losses = db.row(conn, "race_losses", {"stream": STREAM, "first": first, "champion": now.champion}) or (
            None,
            None,
            0,
        )
        learned = {version: int(labels) for version, labels in db.rows(conn, "race_learned", {"stream": STREAM})}
    runs: dict[str, Counter[str]] = {}
    if demo.ready is not None:
        for run in _ended_runs(demo.airflow.client(), stop):
            runs.setdefault(run["dag_id"], Counter())[run["state"]] += 1
    empty = ("", 0, 0, 0, 0)
    return {
        "imported": dict(zip(("events", "labels"), counted.get("history", empty)[1:3], strict=True)),
        "streamed": dict(zip(("events", "labels"), counted.get("stream", empty)[1:3], strict=True)),
        "quarantined": sum(row[3] for row in counted.values()),
        "timeouts": sum(row[4] for row in counted.values()),
        "learned": learned,
        "promotions": [
            dict(zip(names, row, strict=True)) | {"log_e": _float(row[6]), "log_e_needed": _float(row[7])}
            for row in promotions
        ],
        "log_loss": {"first_champion": losses[0], "champion": losses[1], "labels": losses[2]},
        "seconds": {
            "to_ready": None if demo.ready is None else round(demo.ready, 1),
            "to_first_promotion": None if demo.promoted is None else round(demo.promoted, 1),
            "total": round(time.monotonic() - demo.began, 1),
        },
        "dag_runs": {name: dict(states) for name, states in sorted(runs.items())},
    }


def _ended_runs(client: AirflowClient, stop: Callable[[], bool]) -> list[dict[str, Any]]:
    """All DAG runs, once the compare run at hand has ended, or at once when the demo was told to stop."""
    client.patch(f"/api/v2/dags/{STREAM}__compare", {"is_paused": True})
    deadline = time.monotonic() + _LAST_RUN_SECONDS
    while True:
        found = client.dag_runs("~", limit=1000)
        if stop() or time.monotonic() > deadline or all(run["state"] in ("success", "failed") for run in found):
            return found
        time.sleep(0.5)


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _farewell(console: Console, settings: Settings, summary: dict[str, Any], file: Path | None) -> None:
    """What happened and what to look at next."""
    for promotion in summary["promotions"]:
        console.print(f"promoted {promotion['version']} ({promotion['recipe']}): {promotion['reason']}", soft_wrap=True)
    loss = summary["log_loss"]
    if summary["promotions"] and loss["champion"] is not None:
        console.print(
            f"log loss over the same epochs: first champion {loss['first_champion']:.4f}, champion {loss['champion']:.4f}"
        )
    if file is not None:
        console.print(f"summary: {file}")
    console.print(f"the data stays in {settings.home}: headrace status, headrace check, headrace psql")
    sys.stdout.flush()
