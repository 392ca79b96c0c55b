"""The source: what doctor finds, statements that really prepare it, and a slot that must fit the stored position."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from headrace import Label, category, col, expect, hour_of_day, number
from headrace.errors import SlotError, SourceError
from headrace.live import intake
from headrace.store import changes, db, source

READY = ["connection", "wal_level", "replication slots", "tables and columns", "replication"]


def wrong(dsn: str, stream: Any) -> dict[str, str]:
    """What doctor complains about."""
    return {f.what: f"{f.found}; {f.remedy}" for f in source.doctor(dsn, stream) if not f.ok}


@pytest.fixture
def limited(origin: Any) -> Iterator[str]:
    """DSN of a role that may replicate and, so far, nothing else."""
    origin.execute("DO $$ BEGIN CREATE ROLE headrace_app LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    origin.execute("ALTER ROLE headrace_app REPLICATION")
    yield psycopg2.extensions.make_dsn(origin.dsn, user="headrace_app")
    origin.execute("DROP OWNED BY headrace_app")


def test_a_prepared_source_is_well(origin: Any) -> None:
    findings = source.doctor(origin.dsn, origin.stream)
    assert [f for f in findings if not f.ok] == []
    assert {f.what for f in findings} >= set(READY)
    deadline = time.monotonic() + 10
    while origin.execute("SELECT count(*) FROM pg_replication_slots") != [(0,)]:
        assert time.monotonic() < deadline, "the slot that was tried is still there"
        time.sleep(0.01)


def test_the_statements_prepare_a_source_for_a_role_of_least_privilege(
    database: Callable[..., str], origin: Any, limited: str
) -> None:
    origin.execute("DROP PUBLICATION headrace_small")
    dsn = psycopg2.extensions.make_dsn(limited)
    assert set(wrong(dsn, origin.stream)) == {
        "publication headrace_small", "SELECT on public.visits", "SELECT on public.outcomes"
    }  # fmt: skip
    with closing(db.connect(origin.dsn)) as conn:
        identity = source.identity_columns(conn, origin.stream)
    origin.execute(source.statements(origin.stream, "headrace_app", identity))
    assert wrong(dsn, origin.stream) == {}


def test_a_role_without_replication(origin: Any, limited: str) -> None:
    origin.execute("ALTER ROLE headrace_app NOREPLICATION")
    origin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO headrace_app")
    found = wrong(limited, origin.stream)
    assert list(found) == ["replication"]
    assert "expected a role with REPLICATION and a direct DSN (no pooler)" in found["replication"]


def test_the_statements_quote_odd_names(origin: Any) -> None:
    origin.execute(
        'CREATE SCHEMA "Odd Shop"; CREATE TABLE "Odd Shop"."Order" ("Id" bigint PRIMARY KEY, seen_at timestamptz)'
    )
    stream = replace(
        origin.stream,
        name="odd",
        source=replace(origin.stream.source, table="Odd Shop.Order", key="Id"),
        features=[hour_of_day("seen_at")],
        contract=[],
        slices=[],
    )
    origin.execute(source.statements(stream, "postgres"))
    assert wrong(origin.dsn, stream) == {}


def test_the_publication_covers_the_replica_identity(origin: Any) -> None:
    """Without its columns the application's own updates would fail."""
    origin.execute(
        "CREATE TABLE answers (answer_id bigint PRIMARY KEY, visit_id bigint, score integer, known_at timestamptz)"
    )
    stream = replace(origin.stream, name="other", label=replace(origin.stream.label, table="public.answers"))
    origin.execute("INSERT INTO answers VALUES (1, 1, 1, now())")
    origin.execute(source.statements(stream, "postgres"))
    with pytest.raises(psycopg2.Error, match=r"does not cover the replica identity|cannot update"):
        origin.execute("UPDATE answers SET score = 2")
    assert "lacks answer_id" in wrong(origin.dsn, stream)["publication of public.answers"]
    origin.execute("DROP PUBLICATION headrace_other")
    origin.execute(source.statements(stream, "postgres", {"public.answers": ("answer_id", "visit_id")}))
    assert wrong(origin.dsn, stream) == {
        "replica identity of public.answers": "answer_id without visit_id: an UPDATE that gives a row another visit_id would not "
        "say which it had; ALTER TABLE answers REPLICA IDENTITY FULL, then `headrace source-sql` again"
    }
    origin.execute("DROP PUBLICATION headrace_other")
    with closing(db.connect(origin.dsn)) as conn:
        statements = source.statements(stream, "postgres", source.identity_columns(conn, stream))
    assert (
        'ALTER TABLE "public"."answers" REPLICA IDENTITY FULL; -- to see which visit_id a row had before' in statements
    )
    origin.execute(statements)
    origin.execute("UPDATE answers SET score = 2")
    assert wrong(origin.dsn, stream) == {}


MISTAKES: list[tuple[str, str, str]] = [
    (
        "DROP TABLE outcomes",
        "table public.outcomes",
        "there is no such table; create it, or correct the stream's definition",
    ),
    (
        "ALTER TABLE visits RENAME size TO width",
        "column public.visits.size",
        "not among visit_id, seen_at, colour, place, width",
    ),
    (
        "ALTER TABLE visits ALTER place TYPE jsonb USING '{}'",
        "column public.visits.place",
        "has type jsonb, expected one of boolean",
    ),
    (
        "ALTER TABLE visits ALTER seen_at TYPE timestamp",
        "time public.visits.seen_at",
        "times without a zone are ambiguous",
    ),
    ("ALTER TABLE visits ALTER size TYPE text", "type of public.visits.size", "is text, expected a number"),
    (
        "ALTER TABLE visits ALTER colour TYPE integer USING 1",
        "type of public.visits.colour",
        "is integer, expected a text",
    ),
    (
        "ALTER TABLE outcomes ALTER score TYPE text",
        "type of public.outcomes.score",
        "correct label.value, which is score > 15",
    ),
    ("ALTER TABLE visits ALTER visit_id TYPE numeric", "key public.visits.visit_id", "expected integer, text or uuid"),
    (
        "ALTER TABLE outcomes ALTER visit_id TYPE integer",
        "keys",
        "visits.visit_id is bigint, public.outcomes.visit_id is integer",
    ),
    (
        "ALTER TABLE visits DROP CONSTRAINT visits_pkey",
        "replica identity of public.visits",
        "DEFAULT without a primary key: updates",
    ),
    (
        "ALTER TABLE visits REPLICA IDENTITY NOTHING",
        "replica identity of public.visits",
        "NOTHING: updates and deletes",
    ),
    (
        "DROP PUBLICATION headrace_small",
        "publication headrace_small",
        "missing, or without tables; run the statements of `headrace",
    ),
    (
        "ALTER PUBLICATION headrace_small SET TABLE visits (visit_id, seen_at, colour), outcomes",
        "publication of public.visits",
        "lacks place, size",
    ),
    (
        "ALTER PUBLICATION headrace_small DROP TABLE outcomes",
        "publication of public.outcomes",
        "lacks visit_id, score, known_at",
    ),
    (
        "ALTER PUBLICATION headrace_small SET (publish = 'insert')",
        "publication headrace_small",
        "leaves out update, delete, truncate, which would never arrive; ALTER PUBLICATION",
    ),
    (
        "ALTER PUBLICATION headrace_small SET TABLE visits WHERE (visit_id > 5), outcomes",
        "rows of public.visits",
        "sends only rows WHERE (visit_id > 5); the others would never arrive",
    ),
]


@pytest.mark.parametrize(("statement", "what", "said"), MISTAKES)
def test_doctor_names_what_is_wrong(origin: Any, statement: str, what: str, said: str) -> None:
    if "TYPE" in statement:
        origin.execute("DROP PUBLICATION headrace_small")  # Postgres protects published columns from a change of type
    origin.execute(statement)
    found = wrong(origin.dsn, origin.stream)
    assert said in found[what], found


def test_columns_are_listed_all_at_once(origin: Any) -> None:
    origin.execute("DROP PUBLICATION headrace_small")
    origin.execute("ALTER TABLE visits DROP colour, ALTER size TYPE text; DROP TABLE outcomes")
    with closing(db.connect(origin.dsn)) as conn, pytest.raises(SourceError) as caught:
        source.log_columns(conn, origin.stream)
    assert len(str(caught.value).split("; ")) >= 6
    assert all(word in str(caught.value) for word in ("visits.colour", "visits.size", "public.outcomes"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"contract": [expect.between("place", 0, 1)]}, "type of public.visits.place: is text, expected a number"),
        (
            {"contract": [expect.regex("seen_at", "x")]},
            "type of public.visits.seen_at: is timestamp with time zone, expected a text",
        ),
        (
            {"contract": [expect.in_set("size", {"a"})]},
            "type of public.visits.size: is double precision, expected a text or uuid",
        ),
        (
            {"contract": [expect.less_than("size", "place")]},
            "size is double precision and place is text, expected types that",
        ),
        (
            {"features": [category("colour"), hour_of_day("size")]},
            "type of public.visits.size: is double precision, expected a time",
        ),
        (
            {"features": [category("colour"), number("place")]},
            r"type of public.visits.place: is text, expected a number or a",
        ),
    ],
)
def test_a_definition_that_does_not_fit_the_types_is_refused(origin: Any, change: dict[str, Any], said: str) -> None:
    with closing(db.connect(origin.dsn)) as conn, pytest.raises(SourceError, match=said):
        source.log_columns(conn, replace(origin.stream, **change))


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (col("place") == "p1", True), (col("place") == 1, False), (col("place") > 1, False), (col("place"), False),
        (col("place").is_present(), True), (col("size") == 1, True), (col("size"), True), (col("size") == "x", False),
    ],
)  # fmt: skip
def test_a_labels_value_must_fit_its_column(origin: Any, value: Any, fits: bool) -> None:
    origin.execute("CREATE TABLE results (visit_id bigint PRIMARY KEY, place text, size float8, known_at timestamptz)")
    label: Label = replace(origin.stream.label, table="public.results", value=value)
    with closing(db.connect(origin.dsn)) as conn:
        if fits:
            source.log_columns(conn, replace(origin.stream, label=label))
        else:
            with pytest.raises(SourceError, match=r"correct label.value, which is"):
                source.log_columns(conn, replace(origin.stream, label=label))


def test_wal_level_is_named(origin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the server through its own query, whose answer is the only thing put in here."""
    row = db.row

    def replica(conn: Any, name: str, *rest: Any, **more: Any) -> Any:
        found = row(conn, name, *rest, **more)
        return ("replica", *found[1:]) if name == "source_settings" and found else found

    monkeypatch.setattr(db, "row", replica)
    found = wrong(origin.dsn, origin.stream)
    assert found == {
        "wal_level": "replica, expected logical; ALTER SYSTEM SET wal_level = logical, then restart the server "
        "(managed services: their parameter group)"
    }


@pytest.mark.parametrize("privileged", [True, False])
def test_a_blocked_slot_names_the_blocker(
    origin: Any, limited: str, monkeypatch: pytest.MonkeyPatch, privileged: bool
) -> None:
    monkeypatch.setattr(source, "_SLOT_SECONDS", 1.0)
    dsn = origin.dsn if privileged else limited
    with closing(psycopg2.connect(origin.dsn)) as blocker, blocker.cursor() as cursor:
        cursor.execute("INSERT INTO outcomes VALUES (1, 1, now())")
        with (
            source.replication(dsn) as replication,
            pytest.raises(
                SlotError, match=rf"older transactions are still open: pid {blocker.info.backend_pid} \(postgres"
            ),
        ):
            source.create_slot(dsn, replication, "headrace_small")
        blocker.rollback()
    with source.replication(dsn) as replication:
        lsn, snapshot = source.create_slot(dsn, replication, "headrace_small")
        assert source.lsn_text(source.lsn_number(lsn)) == lsn
        assert snapshot
    with (
        source.replication(dsn) as replication,
        pytest.raises(SlotError, match="is there already, but the log knows no position"),
    ):
        source.create_slot(dsn, replication, "headrace_small")


def test_dropping_a_slot_that_is_not_there_is_quiet(origin: Any) -> None:
    with closing(db.connect(origin.dsn, autocommit=True)) as conn:
        source.drop_slot(conn, "headrace_small")


@pytest.fixture
def running(registered: Any, origin: Any) -> Any:
    """A platform with a little history."""
    origin.add(*origin.rows(0, 20, labelled=0.6))
    registered.import_history(origin)
    return registered


def test_a_slot_in_use_is_refused(running: Any, origin: Any) -> None:
    with source.replication(origin.dsn) as cursor:
        source.start(cursor, "headrace_small", "headrace_small", "0/0")
        with pytest.raises(SlotError, match="slot 'headrace_small' is in use by another reader; stop that one first"):
            running.follow(origin)


def test_a_lost_slot_is_refused(running: Any, origin: Any) -> None:
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    with pytest.raises(
        SlotError,
        match=r"slot_missing: .* but the log stands at .*: changes since then are lost; `headrace resync small`",
    ):
        running.follow(origin)


@pytest.mark.parametrize("change", ["system_identifier = '7'", "timeline = 9"])
def test_another_cluster_is_refused(running: Any, origin: Any, change: str) -> None:
    running.query(f"UPDATE headrace.intake_positions SET {change}")
    with pytest.raises(SlotError, match=r"the source is cluster \d+, timeline 1; the log was filled from cluster"):
        running.follow(origin)


def test_a_platform_behind_its_slot_is_refused(running: Any, origin: Any) -> None:
    """As after a restore from a backup: Postgres would skip what lies between without a word."""
    (before,) = running.query("SELECT lsn::text FROM headrace.intake_positions")
    origin.add(*origin.rows(100, 20))
    running.follow(origin)
    running.query("UPDATE headrace.intake_positions SET lsn = %s", before[0])
    with pytest.raises(
        SlotError, match=rf"platform_behind: slot 'headrace_small' confirmed \S+, the log stands at {before[0]}"
    ):
        running.follow(origin)


def test_an_idle_slot_moves_and_never_gets_ahead_of_the_log(
    running: Any, origin: Any, database: Callable[..., str]
) -> None:
    """WAL of other databases goes by: psycopg2 alone would confirm it before the platform has stored it."""
    other = database("other")
    for _ in range(2):
        target = others_write(other)
        running.follow_until(origin, lambda lsn, target=target: source.lsn_number(lsn) >= source.lsn_number(target))
        ((stored,),) = running.query("SELECT lsn::text FROM headrace.intake_positions")
        assert source.lsn_number(stored) - 1_000_000 < confirmed(origin) <= source.lsn_number(stored)
    origin.add(*origin.rows(100, 20))
    running.follow(origin)
    assert running.query("SELECT count(*) FROM small.events") == [(40,)]


def test_a_crash_in_a_large_transaction_after_a_rest_leaves_no_seam(
    running: Any, origin: Any, database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """WAL of others that went by since the rest is not stored: it must not be confirmed while the transaction is written."""
    monkeypatch.setattr(changes, "_CHUNK_BYTES", 2_000)
    move, other, began = intake._move, database("other"), confirmed(origin)
    steps = iter((others_write, lambda _: origin.add(*origin.rows(100, 2_000)), *[lambda _: None] * 1_000))

    def after_a_rest(lsn: str) -> bool:
        if source.lsn_number(lsn) > began:
            next(steps)(other)
        return False

    def crash(*_: Any, **__: Any) -> None:
        raise ConnectionAbortedError

    monkeypatch.setattr(intake, "_move", crash)
    with pytest.raises(ConnectionAbortedError):
        running.follow_until(origin, after_a_rest)
    ((stored,),) = running.query("SELECT lsn::text FROM headrace.intake_positions")
    assert began < confirmed(origin) <= source.lsn_number(stored)
    monkeypatch.setattr(intake, "_move", move)
    running.follow(origin)
    assert running.query("SELECT count(*) FROM small.events") == [(2_020,)]


def others_write(dsn: str) -> str:
    """A megabyte of WAL that holds nothing for the stream; gives where it ends."""
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS noise (a text)")
        cursor.execute("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        cursor.execute("SELECT pg_current_wal_lsn()::text")
        return str((cursor.fetchone() or ("",))[0])


def confirmed(origin: Any) -> int:
    """What the small stream's slot has confirmed."""
    query = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'headrace_small'"
    ((lsn,),) = origin.execute(query)
    return source.lsn_number(lsn)


def test_a_missing_publication_is_refused_before_it_loses_changes(running: Any, origin: Any) -> None:
    origin.execute("DROP PUBLICATION headrace_small")
    origin.add(*origin.rows(100, 5))
    with pytest.raises(SourceError, match="publication headrace_small: missing, or without tables"):
        running.follow(origin)
    with closing(db.connect(origin.dsn)) as conn:
        origin.execute(source.statements(origin.stream, "postgres", source.identity_columns(conn, origin.stream)))
    with pytest.raises(
        SlotError, match=r"publication_changed: .* may not have been sent; `headrace resync small` closes"
    ):
        running.follow(origin)
    running.resync(origin)
    running.follow(origin)
    assert running.query("SELECT count(*) FROM small.events") == [(25,)]


def test_a_table_that_is_unpublished_for_a_while_is_noticed_by_a_running_intake(running: Any, origin: Any) -> None:
    """Postgres just sends nothing of it, and the positions of its rows pass by."""
    with closing(db.connect(origin.dsn)) as conn:
        identity = source.identity_columns(conn, origin.stream)
    at = time.monotonic()

    def hurt(_: str) -> bool:
        nonlocal at
        if at and time.monotonic() - at > 1:
            at = 0.0
            origin.execute("ALTER PUBLICATION headrace_small DROP TABLE visits")
            origin.add(*origin.rows(100, 5))
            columns = ", ".join(
                dict.fromkeys(
                    (*source.needed_columns(origin.stream)["public.visits"], *(identity["public.visits"] or ()))
                )
            )
            origin.execute(f"ALTER PUBLICATION headrace_small ADD TABLE visits ({columns})")
        return False

    with pytest.raises(SlotError, match="publication_changed: publication 'headrace_small' was changed"):
        running.follow_until(origin, hurt)
    running.resync(origin)
    running.follow(origin)
    assert running.query("SELECT count(*) FROM small.events") == [(25,)]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER PUBLICATION headrace_small SET (publish = 'insert, update, delete')",
        "ALTER PUBLICATION headrace_small SET TABLE visits WHERE (size > 1), outcomes",
    ],
)
def test_a_publication_that_leaves_something_out_is_refused(running: Any, origin: Any, change: str) -> None:
    origin.execute(change)
    running.trust_publication(origin)
    with pytest.raises(SourceError, match="would never arrive"):
        running.follow(origin)
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    with pytest.raises(SourceError, match="would never arrive"):
        running.resync(origin)


def test_a_publication_of_whole_schemas_that_changed_is_noticed(running: Any, origin: Any) -> None:
    origin.execute("DROP PUBLICATION headrace_small")
    origin.execute("CREATE PUBLICATION headrace_small FOR TABLES IN SCHEMA public")
    running.trust_publication(origin)
    running.follow(origin)
    origin.execute("ALTER PUBLICATION headrace_small DROP TABLES IN SCHEMA public")
    origin.add(*origin.rows(100, 5))
    origin.execute("ALTER PUBLICATION headrace_small ADD TABLES IN SCHEMA public")
    with pytest.raises(SlotError, match="publication_changed: publication 'headrace_small' was changed"):
        running.follow(origin)


def test_a_truncated_table_is_noted_and_does_not_stop_the_stream(running: Any, origin: Any) -> None:
    origin.execute("TRUNCATE outcomes, visits")
    origin.add(*origin.rows(1000, 10))
    running.follow(origin)
    noted = running.query("SELECT relation, expectation, reason FROM small.quarantine ORDER BY 1")
    assert [(relation, expectation) for relation, expectation, _ in noted] == [
        ("public.outcomes", "truncate"),
        ("public.visits", "truncate"),
    ]
    assert noted[0][2].startswith(
        "public.outcomes was truncated; expected deletes, since the rows that went are not named"
    )
    assert running.query("SELECT count(*) FROM small.events WHERE key >= 1000") == [(10,)]


def test_heartbeats_carry_stream_time(running: Any, origin: Any) -> None:
    emit = "SELECT pg_logical_emit_message(true, 'headrace.clock', %s)"
    waiting = (
        "SELECT count(*) FROM small.events AS e LEFT JOIN small.labels AS l ON l.event_seq = e.seq WHERE l.seq IS NULL"
    )
    for nonsense in ("soon", "2020-03-01T00:00:00", "9999-01-01T00:00:00+00:00"):
        origin.execute(emit, nonsense)
    running.follow(origin)
    assert running.query(waiting)[0][0] > 0
    origin.execute(emit, "2020-03-02T00:00:00+00:00")
    running.follow(origin)
    assert running.query(waiting) == [(0,)]
    assert running.query("SELECT watermark::text FROM headrace.intake_positions") == [("2020-03-02 00:00:00+00",)]


def test_changes_of_every_kind(running: Any, origin: Any) -> None:
    """Updates and deletes of events mean nothing; those of labels correct; rows that break the contract are kept aside."""
    origin.execute("DELETE FROM outcomes; DELETE FROM visits")
    origin.execute(
        "INSERT INTO visits VALUES (100, '2020-03-01 01:00+00', 'a', 'p', 1), (101, '2020-03-01 01:00+00', 'zz', 'p', 1)"
    )
    origin.execute("UPDATE visits SET size = 2 WHERE visit_id = 100")
    origin.execute("INSERT INTO outcomes VALUES (100, 20, '2020-03-01 01:01+00'), (200, NULL, '2020-03-01 01:01+00')")
    origin.execute("UPDATE outcomes SET score = 3 WHERE visit_id = 100")
    origin.execute("UPDATE outcomes SET score = 4 WHERE visit_id = 100")
    origin.execute("DELETE FROM outcomes WHERE visit_id = 100")
    before = running.accounting()["history"]
    running.follow(origin)
    counts = running.accounting()["stream"]
    late = running.query(
        "SELECT kind, y, y_before FROM small.labels AS l JOIN small.events AS e ON e.seq = event_seq"
        " WHERE key = 100 ORDER BY l.seq"
    )
    assert late == [("observed", 1.0, None), ("correction", 0.0, 1.0), ("correction", None, 0.0)]
    assert counts["received"] == before["received"] + 8
    assert counts["corrections"] == 2 + before["labels"]
    assert counts["quarantined"] == 1
    assert counts["ignored"] == 20 + 1 + 1 + 1  # deleted visits, an updated one, no value, the same value again
    assert running.query("SELECT key, reason FROM small.quarantine") == [
        ("101", "colour is 'zz', expected one of a, b, c, d")
    ]
