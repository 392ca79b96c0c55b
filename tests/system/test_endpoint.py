"""The endpoint beside a real intake and real learners: equal bits, a swap under load, kills, refusals."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2 import sql
from psycopg2.extras import execute_values
from tests.columns import listed
from tests.system.wrong import LEARNS_THE_OPPOSITE

from headrace.cli.run import register
from headrace.definition.load import load_file
from headrace.events import micros
from headrace.flow.copybinary import unpack
from headrace.flow.features import series
from headrace.live.request import EventRow, RowReader
from headrace.live.supervisor import PINNED
from headrace.models.engine import engine
from headrace.settings import from_env
from headrace.store import checkpoints, db, log, registry, source
from headrace.store.copyout import copy_out
from headrace.store.embedded import EmbeddedPostgres
from headrace.store.migrate import migrate

DEFINITION = '''
"""Will this order come back?"""

from datetime import timedelta
from typing import Any

from headrace import Label, Policy, Source, Stream, category, col, cross, day_of_week, expect, hour_of_day, number, recipes
from headrace import target_mean, tokens


def logistic() -> Any:
    from river import compose, linear_model, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str, list) | preprocessing.OneHotEncoder()
    return (numbers + categories) | linear_model.LogisticRegression()


def bayes() -> Any:
    from river import compose, naive_bayes

    return compose.SelectType(int, float) | naive_bayes.GaussianNB()


stream = Stream(
    name="orders",
    source=Source(conn_id="shop", table="public.orders", key="id", event_time="placed_at"),
    label=Label(
        table="public.returns",
        key="order_id",
        value=col("returned"),
        label_time="known_at",
        window=timedelta(days=30),
        if_missing="drop",
    ),
    features=[
        category("country", "device", "vip", "campaign"),
        number("amount", "items", "weight", "score"),
        hour_of_day("placed_at"),
        day_of_week("first_seen"),
        cross("country", "device"),
        tokens("tags"),
        target_mean("country", "campaign"),
    ],
    contract=[
        expect.not_null("country"),
        expect.in_set("device", {"phone", "desk"}),
        expect.between("amount", 0, 10000),
        expect.regex("country", "^[A-Z]{2}$"),
    ],
    champion=recipes.river(logistic, name="logistic", target_means=True),
    challengers=[recipes.river(bayes, name="bayes"), recipes.ftrl(bins=False)],
    policy=Policy(epoch_labels=10),
)
'''
TABLES = """
CREATE TABLE public.orders (
    id bigint PRIMARY KEY, placed_at timestamptz NOT NULL, country char(2), device varchar(20), vip boolean, campaign uuid,
    amount numeric(8, 2), items smallint, weight real, score double precision, first_seen date, tags text[]
);
CREATE TABLE public.returns (order_id bigint PRIMARY KEY, returned boolean, known_at timestamptz NOT NULL);
"""
START = datetime(2026, 3, 2, 8, tzinfo=UTC)
HISTORY = 150  # orders, labelled but for the last 50
OFFSET = timedelta(minutes=7)

Row = dict[str, Any]


def order(number: int, when: datetime | None = None) -> Row:
    """A row as the application would send it."""
    draw = random.Random(number)
    return {
        "id": number,
        "placed_at": (when or START + number * timedelta(minutes=1)).isoformat(),
        "country": draw.choice(["DE", "FR", "NO"]),
        "device": draw.choice(["phone", "desk"]),
        "vip": draw.choice([True, False, None]),
        "campaign": draw.choice([None, "7b9a3c1e-0d55-4f0a-9a51-000000000001", "7b9a3c1e-0d55-4f0a-9a51-000000000002"]),
        "amount": round(draw.uniform(1, 500), 2),
        "items": draw.randint(1, 9),
        "weight": draw.choice([None, round(draw.uniform(0, 9), 3)]),
        "score": draw.gauss(0, 1),
        "first_seen": str(date(2024, 1, 1) + timedelta(days=draw.randint(0, 700))),
        "tags": draw.choice([None, [], ["new"], ["sale", "new"], ["sale", "☂", "sale"]]),
    }


def returned(row: Row) -> bool:
    return random.Random(row["id"]).random() < (0.7 if row["country"] == "DE" else 0.2)


class Shop:
    """The application's database, the platform on it, and an endpoint."""

    def __init__(self, room: Path, postgres: EmbeddedPostgres) -> None:
        self.room = room
        for name in ("shop", "headrace"):
            postgres.create_database(name)
        self.dsn, origin = postgres.dsn("headrace"), postgres.dsn("shop")
        (room / "streams").mkdir()
        (room / "streams" / "orders.py").write_text(DEFINITION)
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | {
            "HEADRACE_DSN": self.dsn,
            "HEADRACE_HOME": str(room / "home"),
            "HEADRACE_STREAMS": str(room / "streams"),
            "HEADRACE_CONN_SHOP": origin,
        }
        self.stream = load_file(room / "streams" / "orders.py")
        self.application = db.connect(origin, autocommit=True)
        self.platform = db.connect(self.dsn, autocommit=True)
        self.seq = 0  # where the log has to be by now
        self.number = HISTORY  # of the last order
        self._run(TABLES)
        for number in range(1, HISTORY + 1):
            self.place(order(number))
        self.label(range(1, HISTORY - 49))
        self._run(source.statements(self.stream, role="postgres"))
        self.url = ""
        self.endpoint: subprocess.Popen[bytes] | None = None
        self.up: subprocess.Popen[bytes] | None = None

    def _run(self, statement: str) -> None:
        with self.application.cursor() as cursor:
            cursor.execute(statement)

    def place(self, row: Row) -> None:
        """Insert an order, in a commit of its own; its fields are cast by Postgres."""
        with self.application.cursor() as cursor:
            record = "jsonb_populate_record(NULL::public.orders, %s)"
            cursor.execute(f"INSERT INTO public.orders SELECT * FROM {record}", (json.dumps(row),))
        self.seq += 1

    def label(self, numbers: range) -> None:
        rows = [(n, returned(order(n)), START + n * timedelta(minutes=1) + OFFSET) for n in numbers]
        with self.application.cursor() as cursor:
            execute_values(cursor, "INSERT INTO public.returns VALUES %s", rows)
        self.seq += len(rows)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "headrace", *words]

    def start_up(self) -> None:
        with open(self.room / "up.log", "wb") as out:
            self.up = subprocess.Popen(self.command("up"), env=self.environment, stdout=out, stderr=out)

    def start_endpoint(self) -> None:
        out = self.room / "serve.log"
        with open(out, "wb") as file:
            command = self.command("serve", "orders", "--port", "0")
            self.endpoint = subprocess.Popen(command, env=self.environment, stdout=file, stderr=file)
        self.url = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", out.read_text()), "the endpoint's address")[0]

    def close(self) -> None:
        for process in (self.endpoint, self.up):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(30)
        self.application.close()
        self.platform.close()

    def health(self) -> Row:
        state: Row = httpx.get(f"{self.url}/health").json()
        return state

    def ask(self, row: Row) -> Row:
        response = httpx.post(f"{self.url}/predict", json=row)
        assert response.status_code == 200, response.text
        answer: Row = response.json()
        return answer

    def settle(self) -> None:
        """Wait until log, learners and endpoint stand where everything committed so far is learned."""

        def settled() -> bool:
            position = log.position(self.platform, "orders")
            if position is None or position.seq < self.seq:
                return False
            assert position.seq == self.seq, "the log has entries that nobody made"
            running = [v.version for v in registry.versions(self.platform, "orders") if v.status in registry.RUNNING]
            at = [db.row(self.platform, "progress", {"stream": "orders", "role": version}) for version in running]
            return all(p is not None and p[1] == self.seq for p in at) and self.health()["seq"] == self.seq

        wait_for(settled, f"seq {self.seq}")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    # pytest's own tmp_path is closed to other users, and for root Postgres runs as one.
    room = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    room.chmod(0o755)
    with EmbeddedPostgres(room) as postgres:
        shop = Shop(room, postgres)
        try:
            yield shop
        finally:
            shop.close()
    shutil.rmtree(room)


def failing(shop: Shop, *words: str) -> str:
    """The one line with which a command that must fail ends."""
    done = subprocess.run(
        shop.command(*words), env=shop.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode not in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_refuses_to_start_with_one_line(shop: Shop) -> None:
    migrate(shop.dsn)
    assert "'orders' is not registered" in failing(shop, "serve", "orders")
    assert "found no stream 'nosuch'" in failing(shop, "serve", "nosuch")
    register(from_env(shop.environment), shop.dsn, ["orders"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in failing(
            shop, "serve", "orders", "--port", port
        )


def test_waits_for_the_history_and_says_so(shop: Shop) -> None:
    shop.start_endpoint()
    wait_for(lambda: "imported" in shop.health()["message"], "the reason")
    for response in (httpx.get(f"{shop.url}/health"), httpx.post(f"{shop.url}/predict", json=order(1))):
        assert response.status_code == 503
        assert "history is still being imported" in response.text
    shop.start_up()
    shop.settle()
    health = shop.health()
    assert health == {
        "ok": True,
        "stream": "orders",
        "version": "orders-1",
        "seq": shop.seq,
        "log_seq": shop.seq,
        "lag": 0,
        "age_seconds": 0.0,
        "message": "orders-1 serves",
    }


def test_probability_is_the_learners_to_the_bit(shop: Shop) -> None:
    """The log is held, an event is asked and only then committed; the learner's checkpoint has its own prediction of it."""
    late = START + timedelta(days=1)
    rows: list[Row] = []
    for i, when in enumerate([None, None, late, START, None, late + timedelta(hours=5)]):
        shop.number += 1
        row = order(shop.number, when)
        if i == 1:  # only what may not be missing
            row = {name: row[name] for name in ("id", "placed_at", "country")}
        rows.append(row)
    asked: dict[int, float] = {}
    for i, row in enumerate(rows):
        shop.settle()
        answer = shop.ask(row)
        assert (answer["version"], answer["seq"], answer["age_seconds"]) == ("orders-1", shop.seq, 0.0)
        assert shop.ask(row) == answer, "asking changes nothing"
        shop.place(row)
        asked[shop.seq] = answer["probability"]
        shop.label(range(HISTORY - 49 + 7 * i, HISTORY - 42 + 7 * i))
    shop.settle()
    checkpoint = wait_for(lambda: newest_with(shop, "orders-1", max(asked)), "a checkpoint beyond the last event")
    stored = dict(
        zip(checkpoint.arrays["open/tail/seq"].tolist(), checkpoint.arrays["open/tail/p"].tolist(), strict=True)
    )
    assert {seq: stored[seq] for seq in asked} == asked
    assert len(set(asked.values())) == len(asked), "the rows must differ for the test to mean anything"


def newest_with(shop: Shop, version: str, seq: int) -> checkpoints.Checkpoint | None:
    checkpoint = checkpoints.last(shop.platform, "orders", version)
    return checkpoint if checkpoint is not None and checkpoint.seq >= seq else None


@pytest.mark.parametrize(
    ("change", "field", "expectation", "reason"),
    [
        ({"country": None}, "country", "not_null(country)", "country is NULL, expected a value"),
        ({"device": "fridge"}, "device", "in_set(device, {desk, phone})", "device is 'fridge', expected one of desk, phone"),
        ({"amount": 10000.01}, "amount", "between(amount, 0, 10000)", "amount is '10000.01', expected between 0 and 10000"),
        ({"score": "1e999"}, "score", "finite(score)", "score is 'inf', expected a finite number"),
        ({"placed_at": "2126-01-01T00:00:00Z"}, "placed_at", "not_ahead", "expected at most 24 h after its commit"),
        ({"placed_at": "2026-03-02T08:00:00"}, "placed_at", "type(placed_at)", "expected an ISO 8601 time with its zone"),
        ({"items": 70000}, "items", "type(items)", "items is 70000, expected an integer (smallint)"),
        ({"items": "3"}, "items", "type(items)", 'items is "3", expected an integer (smallint)'),
        ({"vip": 1}, "vip", "type(vip)", "vip is 1, expected true or false (boolean)"),
        ({"tags": ["new", 1]}, "tags", "type(tags)", 'tags is ["new", 1], expected a list of texts (text[])'),
        ({"tags": "new"}, "tags", "type(tags)", 'tags is "new", expected a list of texts (text[])'),
        ({"tags": ["x"] * 1025}, "tags", "tokens(tags)", "expected a list of one dimension, of at most 1,024 tokens"),
        ({"campaign": "none"}, "campaign", "type(campaign)", 'campaign is "none", expected a text with a UUID (uuid)'),
        ({"country": "D\0"}, "country", "type(country)", "expected a text (character)"),
        ({"country": "\ud800"}, "country", "type(country)", "expected a text (character)"),
        ({"amuont": 3}, "amuont", "known_field", '"amuont" is no column of this stream, expected some of id, placed_at'),
        ({"\ud800": 3}, "\\ud800", "known_field", "is no column of this stream"),
    ],
)  # fmt: skip
def test_refuses_what_quarantine_would(shop: Shop, change: Row, field: str, expectation: str, reason: str) -> None:
    body = json.dumps(order(1) | change).replace('"1e999"', "1e999")  # a number of JSON that no float holds
    response = httpx.post(f"{shop.url}/predict", content=body)
    assert response.status_code == 422
    (violation,) = response.json()["detail"]
    assert (violation["field"], violation["expectation"]) == (field, expectation)
    assert reason in violation["reason"]


def test_names_every_wrong_type_at_once(shop: Shop) -> None:
    response = httpx.post(f"{shop.url}/predict", json=order(1) | {"items": 1.5, "amount": "1", "extra": 0})
    assert {violation["field"] for violation in response.json()["detail"]} == {"items", "amount", "extra"}


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"amount": NaN}', b"[" * 100_000, b"\xff\xfe\x00"])
def test_refuses_what_is_no_json_object(shop: Shop, body: bytes) -> None:
    response = httpx.post(f"{shop.url}/predict", content=body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["expectation"] == "json"


def test_shows_how_to_ask(shop: Shop) -> None:
    page = httpx.get(shop.url).text
    assert "curl -X POST" in page
    assert "src=" not in page, "nothing comes from elsewhere"
    schema = httpx.get(f"{shop.url}/openapi.json").json()
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert list(body["properties"]) == list(VALUES)


VALUES = {
    "id": st.integers(-(2**63), 2**63 - 1),
    "placed_at": st.datetimes(
        START.replace(tzinfo=None, year=1), START.replace(tzinfo=None), timezones=st.timezones()
    ).map(datetime.isoformat),
    "country": st.from_regex("[A-Z]{2}", fullmatch=True),
    "device": st.sampled_from(["phone", "desk", None]),
    "vip": st.booleans() | st.none(),
    "campaign": st.uuids().map(str) | st.uuids().map(lambda u: str(u).upper()) | st.none(),
    "amount": st.decimals(0, 10000, places=2).map(float) | st.none(),
    "items": st.integers(-(2**15), 2**15 - 1) | st.integers(0, 9).map(float) | st.none(),
    "weight": st.floats(width=32, allow_nan=False, allow_infinity=False) | st.none(),
    "score": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53) | st.none(),
    "first_seen": st.dates(date(1900, 1, 1)).map(str) | st.none(),
    "tags": st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))) | st.none(),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.fixed_dictionaries(VALUES))
def test_reads_json_as_postgres_does(shop: Shop, row: Row) -> None:
    columns = registry.columns_of(shop.platform, "orders")
    read = RowReader(shop.stream, columns).read(json.dumps(row).encode(), micros(datetime.now(UTC)))
    assert isinstance(read, EventRow), read
    # Postgres takes 3.0 for an integer from a parameter, not from JSON.
    sent = {name: int(value) if name == "items" and value is not None else value for name, value in row.items()}
    names = sql.SQL(", ").join(sql.Identifier(c.source) for c in columns)
    text = sql.SQL("COPY (SELECT {} FROM jsonb_populate_record(NULL::public.orders, {})) TO STDOUT (FORMAT binary)")
    cells = unpack(copy_out(shop.application, text.format(names, sql.Literal(json.dumps(sent)))))
    for i, column in enumerate(columns):
        asked, stored = read.columns[column.name], series(cells, i, column.type_oid)
        assert type(asked) is type(stored)
        # JSON's -0.0 is a numeric to Postgres, which knows no negative zero.
        values = ([v + 0.0 if isinstance(v, float) else v for v in listed(c)] for c in (asked, stored))
        assert len({repr(v) for v in values}) == 1, column.source


class Client(threading.Thread):
    """Asks without a pause and keeps every answer."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.done = url, threading.Event()
        self.answers: list[tuple[int, str, float]] = []  # status, version, seconds

    def run(self) -> None:
        with httpx.Client() as client:
            while not self.done.is_set():
                began = time.monotonic()
                response = client.post(f"{self.url}/predict", json=order(1))
                self.answers.append(
                    (response.status_code, response.json().get("version", ""), time.monotonic() - began)
                )


def test_swaps_champions_without_a_failed_request(shop: Shop) -> None:
    recipe = shop.stream.challengers[0]
    with closing(db.connect(shop.dsn)) as conn, db.transaction(conn):
        second = registry.add_version(
            conn, shop.stream, recipe, engine(), first_seq=1, evidence_seq=1, status="catching_up"
        )
    wait_for(lambda: registry.version(shop.platform, "orders", second).status == "shadow", "the challenger in shadow")
    clients = [Client(shop.url) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        wait_for(lambda: all(len(c.answers) > 20 for c in clients), "answers")
        reason = "the test says so"
        with closing(db.connect(shop.dsn)) as conn, db.transaction(conn):
            registry.change_champion(
                conn,
                "orders",
                registry.Decision("promote", "orders-1", second, reason, {}, "test"),
            )
        for number in range(shop.number + 1, shop.number + 41):  # the log goes on meanwhile
            shop.place(order(number))
        shop.number += 40
        wait_for(lambda: all(c.answers[-1][1] == second for c in clients), "the new champion's answers")
    finally:
        for client in clients:
            client.done.set()
            client.join()
    answers = [answer for client in clients for answer in client.answers]
    assert {status for status, _, _ in answers} == {200}
    assert {version for _, version, _ in answers} == {"orders-1", second}
    for client in clients:
        versions = [version for _, version, _ in client.answers]
        assert versions == sorted(versions), "nobody sees the old one after the new one"


def test_new_champions_probability_is_its_learners(shop: Shop) -> None:
    shop.settle()
    shop.number += 1
    row = order(shop.number)
    answer = shop.ask(row)
    assert answer["version"] == "orders-2"
    shop.place(row)
    event = shop.seq
    shop.label(range(HISTORY + 20, HISTORY + 40))
    shop.settle()
    checkpoint = wait_for(lambda: newest_with(shop, "orders-2", event), "a checkpoint beyond the event")
    stored = dict(
        zip(checkpoint.arrays["open/tail/seq"].tolist(), checkpoint.arrays["open/tail/p"].tolist(), strict=True)
    )
    assert stored[event] == answer["probability"]


def test_survives_a_kill_and_a_lost_connection(shop: Shop) -> None:
    shop.settle()
    before = shop.ask(order(1))
    with shop.platform.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headrace serve orders'"
        )
        assert cursor.rowcount == 1
    assert shop.ask(order(1))["probability"] == before["probability"], "the last weights go on answering"
    shop.place(order(shop.number + 1))
    shop.number += 1
    shop.settle()
    before = shop.ask(order(1))

    assert shop.endpoint is not None
    shop.endpoint.send_signal(signal.SIGKILL)
    shop.endpoint.wait()
    shop.start_endpoint()
    wait_for(lambda: shop.health()["ok"], "the champion")
    assert shop.ask(order(1)) == before


def test_stops_when_its_digests_are_not_the_learners(shop: Shop) -> None:
    out = shop.room / "wrong.log"
    with open(out, "wb") as file:
        words = [sys.executable, "-P", "-c", LEARNS_THE_OPPOSITE, "serve", "orders", "--port", "0"]
        wrong = subprocess.Popen(words, env=shop.environment | PINNED, stdout=file, stderr=file)
    wait_for(lambda: "answers from seq" in out.read_text(), "it answers")
    shop.label(range(HISTORY - 7, HISTORY + 1))
    shop.settle()  # the other endpoint goes on
    for number in range(1, 13):
        shop.place(order(shop.number + number))
    shop.number += 12
    shop.label(range(shop.number - 11, shop.number + 1))
    shop.settle()
    assert wrong.wait(30) == 1
    last = out.read_text().splitlines()[-1]
    assert last.startswith("headrace: epoch ")
    assert "on the same engine" in last
    with shop.platform.cursor() as cursor:
        incident = "SELECT role, state, message FROM metrics.incidents WHERE closed_at IS NULL"
        cursor.execute(incident)
        ((role, state, message),) = cursor.fetchall()
        assert (role, state, message) == (
            f"serve on {socket.gethostname()}",
            "diverged",
            last.removeprefix("headrace: "),
        )
        assert shop.endpoint is not None
        shop.endpoint.terminate()
        shop.endpoint.wait(15)
        shop.start_endpoint()  # on the same machine, and right: but only a rebuild proves who was
        wait_for(lambda: shop.health()["ok"], "the champion")
        for number in range(1, 13):
            shop.place(order(shop.number + number))
        shop.number += 12
        shop.label(range(shop.number - 11, shop.number + 1))
        shop.settle()

        cursor.execute(incident)
        assert [row[:2] for row in cursor.fetchall()] == [(role, state)]
        words = [sys.executable, "-P", "-m", "headrace", "rebuild", "orders", shop.health()["version"], "--json"]
        done = subprocess.run(
            words, env=shop.environment | PINNED, cwd=shop.room, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["settled"] == 1
        cursor.execute(incident)
        assert cursor.fetchall() == []


def test_says_how_unsure_it_is(shop: Shop) -> None:
    shop.settle()
    assert shop.ask(order(1))["uncertainty"] is None, "a river model does not say"
    recipe = shop.stream.challengers[1]
    with closing(db.connect(shop.dsn)) as conn, db.transaction(conn):
        name = registry.add_version(
            conn, shop.stream, recipe, engine(), first_seq=1, evidence_seq=1, status="catching_up"
        )
    wait_for(lambda: registry.version(shop.platform, "orders", name).status == "shadow", "it in shadow")
    with closing(db.connect(shop.dsn)) as conn, db.transaction(conn):
        decision = registry.Decision("promote", shop.health()["version"], name, "the test says so", {}, "test")
        registry.change_champion(conn, "orders", decision)
    wait_for(lambda: shop.health()["version"] == name, "its answers")
    known = order(1)
    answer, strange = shop.ask(known), shop.ask(known | {"country": "XX", "campaign": str(uuid.UUID(int=7))})
    assert 0 < answer["uncertainty"] < strange["uncertainty"], "of what was never seen it knows less"
    for number in range(1, 21):
        shop.place(known | {"id": shop.number + number})
    shop.number += 20
    shop.label(range(shop.number - 19, shop.number + 1))
    shop.settle()
    assert shop.ask(known)["uncertainty"] < answer["uncertainty"], "labels of such orders have come"


def test_ends_cleanly_on_sigterm(shop: Shop) -> None:
    assert shop.endpoint is not None
    shop.endpoint.terminate()
    assert shop.endpoint.wait(15) == 0
    assert "Traceback" not in (shop.room / "serve.log").read_text()
