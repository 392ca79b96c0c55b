"""Labels in the event's own row: there at once, filled in later, changed, taken back, late, never; and what may not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.conftest import ENGINE, Registered, SmallSource

from headrace.definition.load import load_file
from headrace.flow.join import Join, Joined
from headrace.store import db, log, registry, source
from headrace.store.migrate import migrate

START = datetime(2020, 3, 1, tzinfo=UTC)
DEFINITION = """
from datetime import timedelta
from headrace import Label, Policy, Source, Stream, category, col, expect, number, recipes

def logistic():
    from river import compose, linear_model, preprocessing
    return compose.SelectType(int, float) | preprocessing.StandardScaler() | linear_model.LogisticRegression()

stream = Stream(
    name="payments",
    source=Source(conn_id="shop", table="public.payments", key="payment_id", event_time="paid_at"),
    label=Label(value=col("is_fraud"), label_time="labeled_at", window=timedelta(days=2), if_missing="negative"),
    features=[number("amount"), category("country")],
    contract=[expect.immutable("amount"), expect.between("amount", 0, 1000)],
    champion=recipes.river(logistic),
    policy=Policy(epoch_labels=10, epoch_time=timedelta(days=1)),
)
"""
TABLE = """
CREATE TABLE public.payments (
    payment_id bigint PRIMARY KEY, paid_at timestamptz, amount double precision, country text,
    is_fraud boolean, labeled_at timestamptz
);
ALTER TABLE public.payments REPLICA IDENTITY FULL;
"""


class Payments(Registered):
    """The stream on a platform and a source of its own."""

    origin: SmallSource

    def pay(self, number: int, *, day: float = 0, amount: float = 5.0, fraud: bool | None = None) -> None:
        """Insert a payment, labelled at once when `fraud` says what it is."""
        paid = START + timedelta(days=day)
        values = (number, paid, amount, "CH", fraud, None if fraud is None else paid)
        self.origin.execute("INSERT INTO payments VALUES (%s, %s, %s, %s, %s, %s)", *values)

    def judge(self, number: int, fraud: bool | None, *, day: float) -> None:
        """Fill a label in."""
        told = None if fraud is None else START + timedelta(days=day)
        self.origin.execute(
            "UPDATE payments SET is_fraud = %s, labeled_at = %s WHERE payment_id = %s", fraud, told, number
        )

    def read(self) -> None:
        """Let the intake read what is committed."""
        self.follow(self.origin)

    def story(self, number: int) -> list[tuple[Any, ...]]:
        """A payment's labels in the log: kind, value, value before."""
        return self.query(
            "SELECT l.kind::text, l.y, l.y_before FROM payments.labels AS l JOIN payments.events AS e ON e.seq = l.event_seq "
            "WHERE e.key = %s ORDER BY l.seq",
            number,
        )

    def refused(self) -> list[tuple[Any, ...]]:
        """Key, expectation and reason of what is in quarantine."""
        return self.query("SELECT key, expectation, reason FROM payments.quarantine ORDER BY key, expectation")


@pytest.fixture
def payments(platform: str, database: Callable[..., str], tmp_path: Any) -> Iterator[Payments]:
    (tmp_path / "payments.py").write_text(DEFINITION)
    stream = load_file(tmp_path / "payments.py")
    origin = SmallSource(database("shop"), stream)
    origin.execute(TABLE)
    with closing(db.connect(origin.dsn)) as conn:
        origin.execute(source.statements(stream, role="postgres", identity=source.identity_columns(conn, stream)))
        columns = source.log_columns(conn, stream)
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, stream, columns, ENGINE)
    migrate(platform)
    made = Payments(platform, stream, columns)
    made.origin = origin
    yield made
    for origin_name, counts in made.accounting().items():
        outcomes = ("events", "labels", "corrections", "held", "quarantined", "ignored")
        assert counts["received"] == sum(counts[n] for n in outcomes), f"{origin_name}: something was lost"


def test_a_doctor_finds_it_well(payments: Payments) -> None:
    assert [f for f in source.doctor(payments.origin.dsn, payments.stream) if not f.ok] == []
    payments.origin.execute("ALTER TABLE payments REPLICA IDENTITY DEFAULT")
    (found,) = [f for f in source.doctor(payments.origin.dsn, payments.stream) if not f.ok]
    assert found.found == "not FULL, which immutable(amount) needs to see what an UPDATE changed"


def test_every_way_a_label_can_come(payments: Payments) -> None:
    payments.import_history(payments.origin)
    payments.pay(1, fraud=True)
    payments.pay(2)
    payments.pay(3)
    payments.pay(4)
    payments.judge(2, True, day=1)
    payments.judge(2, False, day=1.5)
    payments.origin.execute("UPDATE payments SET country = 'FR' WHERE payment_id IN (1, 3)")
    payments.judge(2, None, day=0)
    payments.pay(5, day=3)  # the clock passes the window of those before
    payments.judge(3, True, day=3)
    payments.judge(4, False, day=3)
    payments.origin.execute("UPDATE payments SET country = 'IT'")
    payments.origin.execute("DELETE FROM payments WHERE payment_id = 1")
    payments.read()
    assert payments.story(1) == [("observed", 1.0, None)]
    assert payments.story(2) == [("observed", 1.0, None), ("correction", 0.0, 1.0), ("correction", None, 0.0)]
    assert payments.story(3) == [("timeout", 0.0, None), ("correction", 1.0, 0.0)]
    assert payments.story(4) == [("timeout", 0.0, None), ("correction", 0.0, 0.0)], (
        "it came late, and says what was assumed"
    )
    assert payments.story(5) == []
    assert payments.query("SELECT DISTINCT country FROM payments.events") == [("CH",)], "features stay as inserted"
    changes = payments.query("SELECT received - doubled FROM headrace.accounting WHERE origin = 'stream'")
    assert changes == [(5 + 1 + 1 + 2 + 1 + 2 + 5 + 1,)]


def test_a_value_without_its_time_is_no_label_yet(payments: Payments) -> None:
    """A boolean that starts as false says nothing."""
    payments.import_history(payments.origin)
    payments.origin.execute("INSERT INTO payments VALUES (1, '2020-03-01', 5, 'CH', false, NULL)")
    payments.read()
    assert payments.story(1) == []
    payments.judge(1, False, day=1)
    payments.read()
    assert payments.story(1) == [("observed", 0.0, None)]


def test_what_may_not_change(payments: Payments) -> None:
    payments.import_history(payments.origin)
    payments.pay(1)
    payments.origin.execute("UPDATE payments SET amount = 6, is_fraud = true, labeled_at = '2020-03-01 01:00+00'")
    payments.origin.execute("UPDATE payments SET payment_id = 2")
    payments.origin.execute("ALTER TABLE payments REPLICA IDENTITY DEFAULT")
    payments.origin.execute("UPDATE payments SET country = 'FR'")
    payments.read()
    assert payments.story(1) == []
    assert payments.refused() == [
        ("1", "immutable(amount)", "amount is '6.0', expected the value that it had before this UPDATE"),
        (
            "2",
            "immutable(amount)",
            "the row before the UPDATE was not sent, so amount cannot be checked; expected ALTER TABLE public.payments REPLICA "
            "IDENTITY FULL",
        ),
        (
            "2",
            "immutable(payment_id)",
            "the UPDATE gave the event another payment_id; expected it to stay: the log has the event under its first one, "
            "under which labels find it",
        ),
    ]


def test_a_refused_event_takes_its_label_with_it(payments: Payments) -> None:
    payments.import_history(payments.origin)
    payments.pay(1, amount=2000.0, fraud=True)
    payments.judge(1, False, day=1)
    payments.pay(2, day=4)
    payments.pay(3, day=4)
    payments.read()
    assert [(key, expectation) for key, expectation, _ in payments.refused()] == [
        ("1", "between(amount, 0, 1000)"),
        ("1", "orphan"),
    ]
    assert payments.refused()[1][2] == (
        "no event with payment_id '1' came within the label window of 2 days, 0:00:00, expected one: was it refused, or "
        "dropped by retention?"
    )
    assert payments.query("SELECT count(*) FROM payments.held") == [(0,)]


def test_history_and_stream_agree(payments: Payments) -> None:
    """Labels that are in their rows by the time of the import enter at their own time."""
    for number in range(40):
        payments.pay(number, day=number / 10, fraud=number % 3 == 0 if number % 4 == 0 else None)
        if number > 20 and number % 4 == 1:
            payments.judge(number - 15, number % 2 == 0, day=number / 10)
    payments.import_history(payments.origin)
    first = payments.accounting()["history"]
    assert first["events"] == 40
    assert first["received"] == 40 + payments.origin.execute("SELECT count(labeled_at) FROM payments")[0][0]
    for number in range(40, 60):
        payments.pay(number, day=number / 10)
    payments.read()
    late = payments.query(
        "SELECT count(*) FROM payments.labels AS l JOIN payments.events AS e ON e.seq = l.event_seq "
        "WHERE l.kind = 'observed' AND l.label_time < e.event_time"
    )
    assert late == [(0,)]
    with closing(db.connect(payments.dsn)) as conn:
        at = log.position(conn, "payments")
        assert at is not None
        batch = log.read(conn, "payments", payments.columns, 0, at.seq)
    assert bool((batch.clock_labels[1:] >= batch.clock_labels[:-1]).all())
    assert payments.query("SELECT stream, origin FROM metrics.accounting ORDER BY 2") == [
        ("payments", "history"),
        ("payments", "stream"),
    ]


def test_one_heartbeat_closes_many_events_in_parts(payments: Payments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million may wait: what closes them goes to the log bit by bit, and late labels in the same read find them there."""
    payments.query("UPDATE headrace.streams SET partition_entries = 100")
    payments.import_history(payments.origin)
    rows = "INSERT INTO payments SELECT i, %s, 1, 'CH' FROM generate_series(1, 500) AS i"
    payments.origin.execute(rows, START)
    payments.read()
    monkeypatch.setitem(vars(Join)["__init__"].__kwdefaults__, "part", 30)
    sizes: list[int] = []
    write = log.Appender._write

    def measured(appender: log.Appender, script: Any, joined: Joined, *rest: Any) -> None:
        sizes.append(len(joined.labels))
        write(appender, script, joined, *rest)

    monkeypatch.setattr(log.Appender, "_write", measured)
    beat = "SELECT pg_logical_emit_message(true, 'headrace.clock', %s)"
    payments.origin.execute(beat, (START + timedelta(days=3)).isoformat())
    for number in (1, 250, 500):
        payments.judge(number, True, day=3)
    payments.read()
    assert max(sizes) <= 33
    assert payments.query("SELECT kind::text, count(*) FROM payments.labels GROUP BY 1 ORDER BY 1") == [
        ("correction", 3),
        ("timeout", 500),
    ]
    assert payments.story(250) == [("timeout", 0.0, None), ("correction", 1.0, 0.0)]
    counts = payments.accounting()["stream"]
    assert (counts["received"], counts["timeouts"], counts["corrections"]) == (503, 500, 3)
    first, last = payments.query("SELECT seq_first, seq_last FROM payments.segments WHERE seq_first > 500 ORDER BY 1")[
        0
    ]
    assert (first, last) == (501, 1000), "one commit, one segment"


def test_a_resync_accounts_for_each_row_once(payments: Payments) -> None:
    """A row is an event and, where it has one, its label: left out or not, two things of one change."""
    payments.import_history(payments.origin)
    for number in range(10):
        payments.pay(number, fraud=number % 2 == 0 if number < 6 else None)
    payments.pay(50, amount=5_000.0, fraud=True)  # refused
    payments.read()
    payments.origin.execute("SELECT pg_drop_replication_slot('headrace_payments')")
    payments.pay(10, fraud=True)
    payments.judge(7, True, day=0.5)
    payments.judge(0, None, day=0.5)
    done = payments.resync(payments.origin)
    assert (done.events, done.labels, done.corrections, done.refused) == (1, 2, 1, 2)
    assert payments.story(0) == [("observed", 1.0, None), ("correction", None, 1.0)]
    ((changes,),) = payments.query("SELECT changes FROM metrics.accounting WHERE origin = 'resync'")
    assert changes == 12 + 1, "the source's rows, and the label that was taken back"


def test_a_row_ahead_of_its_time_ends_no_wait(registered: Registered, origin: SmallSource) -> None:
    """Six hours of label window: what lies 90 minutes ahead is accepted, a minute more is not, nor is such a heartbeat."""
    visit = "INSERT INTO visits SELECT %s, now() + %s, 'a', 'p', 1"
    registered.import_history(origin)
    for number in range(5):
        origin.execute(visit, number, -timedelta(minutes=number))
    registered.follow(origin)
    origin.execute(visit, 10, timedelta(minutes=89))
    for number, ahead in enumerate((timedelta(minutes=91), timedelta(hours=7), timedelta(hours=23)), start=11):
        origin.execute(visit, number, ahead)
    origin.execute("SELECT pg_logical_emit_message(true, 'headrace.clock', (now() + interval '7 h')::text)")
    origin.execute(visit, 20, timedelta(0))
    registered.follow(origin)
    assert registered.query("SELECT key FROM small.events ORDER BY seq") == [(n,) for n in (0, 1, 2, 3, 4, 10, 20)]
    refused = registered.query("SELECT key, expectation, reason FROM small.quarantine ORDER BY key")
    assert [(key, expectation) for key, expectation, _ in refused] == [(str(n), "not_ahead") for n in (11, 12, 13)]
    assert refused[0][2].endswith("expected at most 1.5 h after its commit (source.max_ahead)")
    assert registered.query("SELECT count(*) FROM small.labels") == [(0,)]
    ((ahead,),) = registered.query("SELECT max(watermark) - now() FROM small.segments")
    assert timedelta(hours=1) < ahead < timedelta(hours=1.5)
