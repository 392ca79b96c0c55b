"""A stream whose labels are numbers, from the source's tables to a verdict and back by a rebuild."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.conftest import ENGINE, Registered, SmallSource

from headrace.batch.audit import audit
from headrace.batch.bootstrap import admit, bootstrap
from headrace.batch.compare import compare
from headrace.batch.rebuild import rebuild
from headrace.cli.look import _print_status, _stream_status
from headrace.definition.load import load_file
from headrace.errors import ModelError
from headrace.live.endpoint import app
from headrace.live.follower import Follower
from headrace.live.learner import Learner
from headrace.live.request import RowReader
from headrace.models.trial import try_recipe
from headrace.store import db, leases, registry, source
from headrace.store.migrate import migrate
from headrace.store.state import open_version, read_through

KEY = b"k" * 32
START = datetime(2020, 3, 1, tzinfo=UTC)
DEFINITION = """
from datetime import timedelta
from headrace import Label, Policy, Source, Stream, category, col, expect, number, recipes, target_mean

def linear():
    from river import compose, linear_model, preprocessing
    return compose.SelectType(int, float) | preprocessing.StandardScaler() | linear_model.LinearRegression()

def logistic():
    from river import compose, linear_model, preprocessing
    return compose.SelectType(int, float) | preprocessing.StandardScaler() | linear_model.LogisticRegression()

stream = Stream(
    name="delays",
    source=Source(conn_id="air", table="public.departures", key="id", event_time="left_at"),
    label=Label(
        table="public.landings", key="id", value=col("delay"), label_time="landed_at", window=timedelta(hours=12),
        if_missing="drop", on_late="learn", task="regression", loss={loss},
    ),
    features=[category("carrier", "origin"), number("miles"), target_mean("origin")],
    contract=[expect.not_null("carrier"), expect.label_between(-300, 5000)],
    champion=recipes.river(linear),
    challengers=[recipes.ftrl(target_means=True), recipes.lightgbm(target_means=False), recipes.gbdt_lr()],
    slices=["carrier"],
    policy=Policy(epoch_labels=50, epoch_time=timedelta(hours=12), season=timedelta(hours=6), challenger_slots=3),
)
"""
TABLES = """
CREATE TABLE public.departures (id bigint PRIMARY KEY, left_at timestamptz, carrier text, origin text, miles double precision);
CREATE TABLE public.landings (id bigint PRIMARY KEY, delay numeric, landed_at timestamptz);
"""


class Delays(Registered):
    """The stream on a platform and a source of its own."""

    origin: SmallSource

    def fly(self, first: int, count: int) -> None:
        """Departures a minute apart, and their landings: what decides is how carrier and origin meet."""
        random = np.random.default_rng(first)
        departures, landings = [], []
        for i in range(first, first + count):
            left, carrier, origin = START + timedelta(minutes=i), "ABCD"[i * 7 // 3 % 4], "pqrs"[i % 4]
            miles = float(random.uniform(100, 3000))
            delay = (30.0 if (carrier in "AB") == (origin in "pq") else -10.0) + miles / 300 + random.normal() * 5
            landed = left + timedelta(seconds=int(random.integers(60, 2 * 3600)))
            departures.append((i, left, carrier, origin, miles))
            landings.append((i, round(delay, 2), landed))
        with closing(db.connect(self.origin.dsn)) as conn, conn, conn.cursor() as cursor:
            cursor.executemany("INSERT INTO departures VALUES (%s, %s, %s, %s, %s)", departures)
            cursor.executemany("INSERT INTO landings VALUES (%s, %s, %s)", landings)

    def learn(self, *names: str) -> None:
        """Run versions' learners to the log's end."""
        for name in names:
            with closing(db.connect(self.dsn, role="headrace_learner")) as conn:

                def opened(conn: Any = conn, name: str = name) -> Any:
                    known = registry.version(conn, "delays", name)
                    return open_version(conn, self.stream, known, self.columns, KEY, ENGINE)

                learner = Learner(conn, conn, self.stream, self.columns, opened, batch=777)
                lease = leases.take(conn, "delays", name, timedelta(seconds=5), patience=timedelta(seconds=5))
                learner.begin(lease)
                while learner.step():
                    pass
                learner.report()


@pytest.fixture(params=['"absolute"', '"squared", cap=400.0'])
def delays(platform: str, database: Callable[..., str], tmp_path: Any, request: pytest.FixtureRequest) -> Delays:
    (tmp_path / "delays.py").write_text(DEFINITION.replace("{loss}", request.param))
    stream = load_file(tmp_path / "delays.py")
    origin = SmallSource(database("air"), stream)
    origin.execute(TABLES)
    origin.execute(source.statements(stream, role="postgres"))
    with closing(db.connect(origin.dsn)) as conn:
        columns = source.log_columns(conn, stream)
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, stream, columns, ENGINE)
    migrate(platform)
    made = Delays(platform, stream, columns)
    made.origin = origin
    return made


def test_labels_are_logged_as_they_are_and_refused_with_a_reason(delays: Delays) -> None:
    delays.import_history(delays.origin)
    for i, value in enumerate(("12.25", "NaN", "Infinity", "-1000", "9e200", None, "0", "-7"), start=1):
        delays.origin.execute("INSERT INTO departures VALUES (%s, %s, 'A', 'p', 500)", i, START + timedelta(minutes=i))
        delays.origin.execute("INSERT INTO landings VALUES (%s, %s, %s)", i, value, START + timedelta(minutes=i + 10))
    delays.origin.execute("UPDATE landings SET delay = 14.5 WHERE id = 1")
    delays.origin.execute("DELETE FROM landings WHERE id = 8")
    delays.follow(delays.origin)
    story = (
        "SELECT e.key, l.kind::text, l.y, l.y_before FROM delays.labels AS l JOIN delays.events AS e ON e.seq = l.event_seq "
        "ORDER BY l.seq"
    )
    assert delays.query(story) == [
        (1, "observed", 12.25, None),
        (7, "observed", 0.0, None),
        (8, "observed", -7.0, None),
        (1, "correction", 14.5, 12.25),
        (8, "correction", None, -7.0),
    ]
    finite = "expected a finite number of at most 1e+100 in size, or NULL"
    found = delays.query("SELECT key, expectation, reason FROM delays.quarantine ORDER BY key")
    assert [(key, expectation) for key, expectation, _ in found] == [
        ("2", "label"), ("3", "label"), ("4", "label_between(-300, 5000)"), ("5", "label"),
    ]  # fmt: skip
    assert found[0][2] == f"delay is 'NaN', {finite}" and found[1][2] == f"delay is 'Infinity', {finite}"
    assert found[2][2] == "delay is '-1000', expected between -300 and 5000"


def test_a_retyped_label_is_refused_row_by_row(delays: Delays) -> None:
    delays.import_history(delays.origin)
    delays.origin.execute("ALTER PUBLICATION headrace_delays SET TABLE public.departures, public.landings")
    delays.origin.execute("ALTER TABLE landings ALTER COLUMN delay TYPE text")
    delays.trust_publication(delays.origin)
    delays.fly(1, 2)
    delays.follow(delays.origin)
    (row,) = set(delays.query("SELECT expectation, reason FROM delays.quarantine WHERE key = '1'"))
    assert row[0] == "label" and "expected a finite number" in row[1]
    (refused,) = [f for f in source.doctor(delays.origin.dsn, delays.stream) if not f.ok and "delay" in f.what]
    assert "text, expected a number" in refused.found


def test_a_resync_finds_which_numbers_changed(delays: Delays) -> None:
    delays.fly(0, 100)
    delays.import_history(delays.origin)
    delays.origin.execute("SELECT pg_drop_replication_slot('headrace_delays')")
    delays.fly(100, 30)
    delays.origin.execute("UPDATE landings SET delay = delay + 0.01 WHERE id % 10 = 0 AND id < 100")
    delays.origin.execute("UPDATE landings SET delay = 'NaN' WHERE id = 7")
    done = delays.resync(delays.origin)
    assert (done.events, done.corrections, done.quarantined) == (30, 10, 1)
    theirs = delays.origin.execute("SELECT id, delay::double precision FROM landings WHERE id <> 7 ORDER BY 1")
    last = (
        "SELECT e.key, (SELECT l.y FROM delays.labels AS l WHERE l.event_seq = e.seq ORDER BY l.seq DESC LIMIT 1) "
        "FROM delays.events AS e WHERE e.key <> 7 ORDER BY 1"
    )
    assert delays.query(last) == theirs


def test_numbers_in_the_events_own_row(platform: str, database: Callable[..., str], tmp_path: Path) -> None:
    text = DEFINITION.replace("{loss}", '"absolute"').replace('table="public.landings", key="id", ', "")
    (tmp_path / "delays.py").write_text(text)
    stream = load_file(tmp_path / "delays.py")
    origin = SmallSource(database("air"), stream)
    origin.execute(
        "CREATE TABLE departures (id bigint PRIMARY KEY, left_at timestamptz, carrier text, origin text, miles float8, "
        "delay real, landed_at timestamptz)"
    )
    origin.execute(source.statements(stream, role="postgres"))
    with closing(db.connect(origin.dsn)) as conn:
        columns = source.log_columns(conn, stream)
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, stream, columns, ENGINE)
    migrate(platform)
    own = Delays(platform, stream, columns)
    for i, delay in enumerate((None, "-2.5", None), start=1):
        landed = None if delay is None else START
        row = (i, START + timedelta(minutes=i), "A", "p", 1.0, delay, landed)
        origin.execute("INSERT INTO departures VALUES (%s, %s, %s, %s, %s, %s, %s)", *row)
    own.import_history(origin)
    origin.execute("UPDATE departures SET delay = 7, landed_at = left_at WHERE id = 1")
    origin.execute("UPDATE departures SET delay = 'NaN', landed_at = left_at WHERE id = 3")
    own.follow(origin)
    ours = "SELECT e.key, l.y FROM delays.labels AS l JOIN delays.events AS e ON e.seq = l.event_seq ORDER BY 1"
    assert own.query(ours) == [(1, 7.0), (2, -2.5)]
    assert own.query("SELECT key, expectation FROM delays.quarantine") == [("3", "label")]


def test_from_history_to_a_verdict(delays: Delays, capsys: pytest.CaptureFixture[str]) -> None:
    delays.fly(0, 1500)
    delays.import_history(delays.origin)
    delays.learn("delays-1")
    with closing(db.connect(delays.dsn, role="headrace_steer")) as conn:
        made = [
            bootstrap(conn, delays.stream, recipe, delays.columns, ENGINE, KEY)
            for recipe in delays.stream.challengers
            if recipe.bootstraps
        ]
        name = delays.stream.loss.name
        for candidate in made:
            assert candidate.passes and f"held-out {name}" in candidate.sentence
            assert candidate.heldout["loss"] < 0.7 * candidate.heldout["champion_loss"]
        admitted, rejected, _ = admit(conn, delays.stream, [candidate.version for candidate in made])
        assert len(admitted) == 2 and not rejected
        conn.commit()
    everybody = ("delays-1", *admitted)
    delays.learn(*admitted)
    for first in range(1500, 3500, 500):
        delays.fly(first, 500)
        delays.follow(delays.origin)
        delays.learn(*everybody)
    with closing(db.connect(delays.dsn, role="headrace_steer")) as conn:
        outcomes, promoted = compare(conn, delays.stream)
        conn.commit()
    assert promoted in admitted, [outcome.reason for outcome in outcomes]

    kind = delays.stream.loss.kind
    board = delays.query(
        "SELECT version, loss_kind, loss, mae, rmse, r2, bias, log_loss, normalised_entropy, brier, calibration, own_log_loss "
        "FROM metrics.leaderboard ORDER BY loss"
    )
    assert board[-1][0] == "delays-1", "the first champion sees the miles alone"
    for _, found_kind, loss, mae, rmse, r2, bias, *only_of_classes in board:
        assert found_kind == kind and only_of_classes == [None] * 5
        assert rmse > mae > 0 and abs(bias) < 10 and r2 < 1
        assert loss == pytest.approx(mae) if kind == "absolute" else loss <= rmse**2 * (1 + 1e-12)
    assert board[0][5] > 0.8
    assert delays.query("SELECT count(*), count(positives), count(y_sum) FROM headrace.slice_metrics")[0][1] == 0
    sums = "SELECT sum(loss_sum), sum(y_sum), sum(labels) FROM {} WHERE version = 'delays-1'"
    whole, sliced = (
        delays.query(sums.format(table))[0] for table in ("headrace.epoch_metrics", "headrace.slice_metrics")
    )
    assert sliced == pytest.approx(whole)
    expected = delays.query(
        "SELECT sum(y) FROM delays.labels WHERE kind = 'observed' AND seq <= (SELECT max(seq_last) FROM headrace.epochs)"
    )
    assert whole[1] == pytest.approx(expected[0][0])
    assert delays.query("SELECT loss_champion, loss_challenger FROM metrics.slices LIMIT 1")

    with closing(db.connect(delays.dsn, role="headrace_reader")) as conn:
        _print_status(_stream_status(conn, "delays"))
    assert delays.stream.loss.name in (shown := capsys.readouterr().out) and f"{board[0][2]:.4f}" in shown

    with closing(db.connect(delays.dsn, role="headrace_steer")) as conn:
        for version in everybody:
            for batch in (97, 100_000):
                done = rebuild(conn, delays.stream, delays.columns, version, ENGINE, KEY, batch=batch)
                assert done.equal > 10 and done.equal == done.epochs, done.sentence
    with closing(db.connect(delays.dsn, role="headrace_reader")) as conn:
        assert [found.breaches for found in audit(conn, delays.stream, delays.origin.dsn) if not found.ok] == []


def test_a_classifier_is_refused_by_name(delays: Delays) -> None:
    from headrace import recipes

    namespace: dict[str, Any] = {}
    exec(DEFINITION.replace("{loss}", '"absolute"'), namespace)
    with pytest.raises(ModelError, match="found LogisticRegression, expected a river regressor"):
        try_recipe(delays.stream, recipes.river(namespace["logistic"]))
    for recipe in delays.stream.recipes():
        if not recipe.bootstraps:
            assert "keeps the model contract" in try_recipe(delays.stream, recipe)


def test_great_expectations_finds_labels_out_of_bounds(delays: Delays, tmp_path: Path) -> None:
    delays.fly(0, 200)
    delays.import_history(delays.origin)
    code = f"""
from pathlib import Path
from headrace.batch.quality import check
from headrace.cli.look import _print_status, _stream_status
from headrace.definition.load import load_file
from headrace.store import db
conn = db.connect({delays.dsn!r}, role="headrace_steer")
print(check(conn, {delays.dsn!r}, load_file(Path({str(tmp_path / "delays.py")!r})), "run").sentence)
"""

    def sentence() -> str:  # importing it takes seconds and warns: it has a process of its own
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert "All 5 expectations hold" in sentence()
    delays.query("UPDATE delays.labels SET y = 6000 WHERE seq IN (SELECT min(seq) FROM delays.labels) RETURNING 1")
    assert re.search(r"label_between\(-300, 5000\) is broken by 1 of \d+ rows", sentence())


def test_an_endpoint_answers_with_the_number_that_is_scored(delays: Delays) -> None:
    delays.fly(0, 400)
    delays.import_history(delays.origin)
    follower = Follower(delays.dsn, lambda: delays.stream, delays.columns, KEY)
    with closing(db.connect(delays.dsn, role="headrace_reader", autocommit=True)) as conn:
        while follower.serving is None or follower.serving.seq < follower.log_seq:
            follower.step(conn)
    left = START + timedelta(minutes=400)
    row = {"id": 400, "left_at": left.isoformat(), "carrier": "A", "origin": "p", "miles": 1500.0}
    client = TestClient(app(follower, RowReader(delays.stream, delays.columns), numbers=True))
    answer = client.post("/predict", json=row).json()
    assert list(answer) == ["prediction", "uncertainty", "version", "seq", "age_seconds", "stream"]
    assert answer["prediction"] > 1.0, "minutes"
    assert (
        "The answer is its prediction, how far one more label may move it in the label's unit" in client.get("/").text
    )

    delays.origin.execute("INSERT INTO departures VALUES (400, %s, 'A', 'p', 1500)", left)
    delays.follow(delays.origin)
    with closing(db.connect(delays.dsn, role="headrace_learner")) as conn:
        known = registry.version(conn, "delays", "delays-1")
        live = open_version(conn, delays.stream, known, delays.columns, KEY, ENGINE)
        (seq,) = delays.query("SELECT seq FROM delays.events WHERE key = 400")[0]
        for _ in read_through(conn, "delays", delays.columns, live.progressive, seq, 1000):
            pass
    waiting, _ = live.progressive.waiting()
    assert waiting[-1] == seq
    assert live.progressive._open.take(waiting[-1:]).p[0] == answer["prediction"], "to the bit"
