"""Commands in child processes: their results, logs, failures and ends; connections; the trigger that waits."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg2
import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from psycopg2.extensions import parse_dsn

from headrace import settings
from headrace.airflow import connections
from headrace.airflow.operators import HeadraceCommand
from headrace.airflow.triggers import CaughtUpTrigger
from headrace.errors import SettingsError


def run(program: str, **env: str) -> dict[str, Any]:
    operator = HeadraceCommand(task_id="t", words=["quality"])
    return operator._run([sys.executable, "-c", program], {**os.environ, **env})


def test_the_document_is_the_result_and_the_log_comes_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    program = """
import sys, time
print("2026-11-23 10:00:00,123 WARNING look here", file=sys.stderr, flush=True)
time.sleep(0.5)
print("plain", file=sys.stderr, flush=True)
print('{"loss": NaN, "n": 3}' + " " * 300_000)
"""
    assert run(program) == {"loss": None, "n": 3}
    first, second = capsys.readouterr().out.splitlines()
    assert re.search(r"\[warning *\] look here ", first)
    assert re.search(r"\[info *\] plain ", second)
    told = [datetime.fromisoformat(line.split()[0]) for line in (first, second)]
    assert told[1] - told[0] > timedelta(seconds=0.3), "the first line must not wait for the second"


@pytest.mark.parametrize(("code", "kind"), [(1, AirflowException), (3, AirflowException), (2, AirflowFailException)])
def test_a_failure_has_the_commands_own_sentence(code: int, kind: type[Exception]) -> None:
    program = f"import sys; print('headrace: found 1, expected 2\\nlater', file=sys.stderr); sys.exit({code})"
    with pytest.raises(AirflowException, match=r"^found 1, expected 2$") as raised:
        run(program)
    assert type(raised.value) is kind


def test_what_is_no_document_is_refused() -> None:
    with pytest.raises(AirflowException, match="expected one JSON document"):
        run("print('hello')")
    with pytest.raises(AirflowException, match="expected a JSON object"):
        run("print('[1]')")


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_kill_ends_the_command_even_one_that_ignores_sigterm(stubborn: bool) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if stubborn else ""
    program = f"import os, signal, sys, time; {ignore} print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    operator = HeadraceCommand(task_id="t", words=["quality"])
    pids: list[int] = []
    failures: list[BaseException] = []
    operator._tell = lambda line: pids.append(int(line))  # type: ignore[method-assign]

    def execute() -> None:
        try:
            operator._run([sys.executable, "-c", program], os.environ)
        except AirflowException as error:
            failures.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    within(10, lambda: pids)
    began = time.monotonic()
    operator.on_kill()
    assert time.monotonic() - began < 1, "it runs in a signal handler"
    thread.join(10)
    assert not thread.is_alive()
    assert not psutil.pid_exists(pids[0])
    assert failures


def within(seconds: float, holds: Callable[[], object]) -> None:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    assert holds()


def test_connections_become_the_childs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_DSN", raising=False)
    with pytest.raises(SettingsError, match=r"neither HEADRACE_DSN .* nor an Airflow connection 'headrace_platform'"):
        connections.task_settings("shop_db")

    platform = {
        "conn_type": "postgres",
        "host": "/run/pg, 1",
        "login": "ada",
        "password": "a b'\\c",
        "schema": "headrace",
    }
    monkeypatch.setenv("AIRFLOW_CONN_HEADRACE_PLATFORM", json.dumps(platform))
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    monkeypatch.setenv("HEADRACE_CONN_SHOP_DB", "service=shop")
    found = connections.task_settings("shop_db")
    assert found.dsn is not None
    assert parse_dsn(found.dsn) == {"host": "/run/pg, 1", "user": "ada", "password": "a b'\\c", "dbname": "headrace"}
    assert settings.connection(found, "shop_db") == "service=shop", (
        "Airflow has no such connection: the environment counts"
    )
    assert not [name for name in found.environment if name.startswith("AIRFLOW_")]

    shop = {
        "conn_type": "postgres",
        "host": "db",
        "port": 5433,
        "extra": {"sslmode": "verify-full", "cursor": "dictcursor"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_SHOP_DB", json.dumps(shop))
    found = connections.task_settings("shop_db")
    assert parse_dsn(settings.connection(found, "shop_db")) == {"host": "db", "port": "5433", "sslmode": "verify-full"}

    monkeypatch.setenv("HEADRACE_DSN", "postgresql:///mine")
    assert connections.task_settings().dsn == "postgresql:///mine", "the environment counts for the platform"


def test_a_misspelt_extra_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="'shop_db' has the extra 'ssl_mode', expected one of libpq's parameters"):
        connections.libpq(
            Connection(conn_id="shop_db", conn_type="postgres", host="db", extra='{"ssl_mode": "require"}')
        )


def test_the_trigger_is_rebuilt_from_what_it_serialises_and_tells_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DSN", "postgresql://ada:secret@db/headrace")
    path, arguments = CaughtUpTrigger(stream="ads", versions=["ads-2", "ads-3"], patience=600.0).serialize()
    assert arguments == {"stream": "ads", "versions": ["ads-2", "ads-3"], "patience": 600.0}
    module, _, name = path.rpartition(".")
    again = getattr(__import__(module, fromlist=[name]), name)(**arguments)
    assert again.serialize() == (path, arguments)
    assert "secret" not in json.dumps(arguments)


def fired(trigger: CaughtUpTrigger, seconds: float) -> dict[str, Any] | None:
    """The trigger's event, or None when there was none in time."""

    async def first() -> dict[str, Any]:
        event = await anext(aiter(trigger.run()))
        payload: dict[str, Any] = event.payload
        return payload

    async def wait() -> dict[str, Any] | None:
        try:
            return await asyncio.wait_for(first(), seconds)
        except TimeoutError:
            return None

    return asyncio.run(wait())


def test_the_trigger_waits_until_the_version_has_caught_up(
    registered: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_DSN", registered.dsn)

    def execute(statement: str) -> None:
        with psycopg2.connect(registered.dsn) as conn, conn.cursor() as cursor:
            cursor.execute(statement)
        conn.close()

    trigger = CaughtUpTrigger(stream="small", versions=["small-1"], patience=60.0)
    execute("UPDATE headrace.versions SET status = 'catching_up'")
    execute(
        "INSERT INTO headrace.worker_progress (stream, role, phase, done, goal, per_second) "
        "VALUES ('small', 'small-1', 'catching up', 1000, 91000, 3000)"
    )
    assert fired(trigger, 1.0) is None
    assert "small-1 is 90,000 entries behind, caught up in about 30 s" in capsys.readouterr().out

    impatient = CaughtUpTrigger(stream="small", versions=["small-1"], patience=1.0)
    event = fired(impatient, 10.0)
    assert event is not None
    assert not event["caught_up"]
    assert "small-1 is 90,000 entries behind" in event["sentence"]
    assert "headrace up" in event["sentence"]

    execute("UPDATE headrace.versions SET status = 'rejected'")
    assert fired(trigger, 5.0) == {"caught_up": False, "sentence": "small-1 was rejected while it caught up"}
    execute("UPDATE headrace.versions SET status = 'shadow'")
    assert fired(trigger, 5.0) == {"caught_up": True, "sentence": "small-1 has caught up"}
    unknown = CaughtUpTrigger(stream="small", versions=["small-9"], patience=60.0)
    assert fired(unknown, 5.0) == {"caught_up": False, "sentence": "there is no version small-9: was it deleted?"}


def test_the_trigger_waits_for_a_database_that_is_down_as_long_as_its_patience(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("HEADRACE_DSN", f"postgresql://postgres@/none?host={tmp_path}")
    event = fired(CaughtUpTrigger(stream="small", versions=["small-1"], patience=1.0), 10.0)
    assert event is not None
    assert not event["caught_up"]
    assert "cannot connect to" in event["sentence"]
