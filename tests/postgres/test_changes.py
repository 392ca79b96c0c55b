"""What a source may do to its tables while a stream follows them: each change is taken, or refused by name."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from tests.conftest import START, TABLES, Registered, SmallSource, database_of, free_slots

from headrace.errors import SourceError
from headrace.flow.pgoutput import Messages
from headrace.store import changes, source
from headrace.store.copyboth import PASSED, CopyBoth, Inbox
from headrace.store.embedded import EmbeddedPostgres


@pytest.fixture
def running(registered: Any, origin: Any) -> Any:
    """A platform with a little history."""
    origin.add(*origin.rows(0, 20, labelled=0.6))
    registered.import_history(origin)
    return registered


def refused(registered: Any) -> list[tuple[Any, ...]]:
    """Key, expectation and reason of what is in quarantine."""
    rows: list[tuple[Any, ...]] = registered.query(
        "SELECT key, expectation, reason FROM small.quarantine ORDER BY key, expectation"
    )
    return rows


def keys(registered: Any, since: int) -> list[int]:
    """Keys of the log's events from one on."""
    return [key for (key,) in registered.query("SELECT key FROM small.events WHERE key >= %s ORDER BY seq", since)]


def balanced(registered: Any) -> None:
    """Nothing was lost."""
    for counts in registered.accounting().values():
        outcomes = ("events", "labels", "corrections", "held", "quarantined", "ignored")
        assert counts["received"] == sum(counts[n] for n in outcomes)


def unpublished(registered: Any, origin: Any, *statements: str) -> None:
    """Change columns that the publication lists: it must be made anew, as a DBA would, in one transaction."""
    with closing(psycopg2.connect(origin.dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("DROP PUBLICATION headrace_small")
        for statement in statements:
            cursor.execute(statement)
        cursor.execute("CREATE PUBLICATION headrace_small FOR TABLE visits, outcomes")
    registered.trust_publication(origin)


def test_a_column_that_is_added_is_not_seen(running: Any, origin: Any) -> None:
    unpublished(running, origin, "ALTER TABLE visits ADD COLUMN note text DEFAULT 'x'")
    origin.execute("INSERT INTO visits VALUES (100, '2020-03-01 01:00+00', 'a', 'p', 1, 'hello')")
    running.follow(origin)
    assert keys(running, 100) == [100]
    assert refused(running) == []


def test_rows_without_a_dropped_column_wait_in_quarantine_until_it_is_back(running: Any, origin: Any) -> None:
    unpublished(running, origin, "ALTER TABLE visits DROP COLUMN place")
    origin.execute("INSERT INTO visits VALUES (100, '2020-03-01 01:00+00', 'a', 1)")
    unpublished(running, origin, "ALTER TABLE visits ADD COLUMN place text")
    origin.execute("INSERT INTO visits VALUES (101, '2020-03-01 01:00+00', 'a', 1, 'p')")
    running.follow(origin)
    assert keys(running, 100) == [101]
    reason = "public.visits has no column place any more: add it back, or publish it again"
    assert refused(running) == [("100", "column(place)", reason)]
    balanced(running)


def test_a_column_of_another_type_is_taken_as_far_as_its_values_fit(running: Any, origin: Any) -> None:
    """Keys too: a label finds its event whatever width its integers have."""
    unpublished(
        running,
        origin,
        "ALTER TABLE outcomes ALTER visit_id TYPE integer",
        "ALTER TABLE outcomes ALTER score TYPE bigint",
        "ALTER TABLE visits ALTER place TYPE varchar(40)",
        "ALTER TABLE visits ALTER size TYPE real",
    )
    origin.execute("INSERT INTO visits VALUES (100, '2020-03-01 01:00+00', 'a', 'p', 1.5)")
    origin.execute("INSERT INTO outcomes VALUES (100, 50, '2020-03-01 01:10+00')")
    unpublished(running, origin, "ALTER TABLE visits ALTER size TYPE text")
    origin.execute("INSERT INTO visits VALUES (101, '2020-03-01 01:00+00', 'a', 'p', '1.5')")
    running.follow(origin)
    assert running.query("SELECT size, place FROM small.events WHERE key = 100") == [(1.5, "p")]
    labels = running.query(
        "SELECT kind::text, y FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq WHERE e.key = 100"
    )
    assert labels == [("observed", 1.0)]
    reason = "public.visits.size was double precision and is text: give it its old type, or start a new stream"
    assert refused(running) == [("101", "type(size)", reason)]
    balanced(running)


def test_a_type_that_cannot_be_taken_back_to_the_logs(running: Any, origin: Any) -> None:
    unpublished(
        running,
        origin,
        "ALTER TABLE outcomes REPLICA IDENTITY FULL",
        "ALTER TABLE outcomes ALTER visit_id TYPE numeric",
    )
    origin.execute("INSERT INTO outcomes VALUES (700, 50, '2020-03-01 01:10+00')")
    origin.execute("DELETE FROM outcomes WHERE visit_id = 700")
    running.follow(origin)
    reason = "public.outcomes.visit_id was bigint and is numeric: give it its old type, or start a new stream"
    assert refused(running) == [("700", "type(visit_id)", reason)] * 2
    balanced(running)


def test_a_label_that_may_have_moved_unseen_is_refused(running: Any, origin: Any) -> None:
    """The label's row has a key of its own, which is all that an UPDATE names; FULL says the rest."""
    unpublished(
        running,
        origin,
        "ALTER TABLE outcomes DROP CONSTRAINT outcomes_pkey",
        "ALTER TABLE outcomes ADD id serial PRIMARY KEY",
    )
    for key in (100, 101):
        origin.execute("INSERT INTO visits VALUES (%s, '2020-03-01 01:00+00', 'a', 'p', 1)", key)
    origin.execute("INSERT INTO outcomes VALUES (100, 50, '2020-03-01 01:10+00')")
    origin.execute("UPDATE outcomes SET visit_id = 101 WHERE visit_id = 100")
    running.follow(origin)
    story = (
        "SELECT e.key, l.kind::text, l.y FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq "
        "WHERE e.key >= 100 ORDER BY l.seq"
    )
    assert running.query(story) == [(100, "observed", 1.0)]
    reason = (
        "the UPDATE does not say which visit_id the row had before, so its label may have been another event's; expected "
        "visit_id in the replica identity of public.outcomes: ALTER TABLE public.outcomes REPLICA IDENTITY FULL, then "
        "`headrace source-sql`"
    )
    assert refused(running) == [("101", "identity(visit_id)", reason)]
    origin.execute("ALTER TABLE outcomes REPLICA IDENTITY FULL")
    origin.execute("UPDATE outcomes SET visit_id = 100 WHERE visit_id = 101")
    origin.execute("UPDATE outcomes SET visit_id = 101 WHERE visit_id = 100")
    running.follow(origin)
    assert running.query(story) == [(100, "observed", 1.0), (100, "correction", None), (101, "observed", 1.0)]
    balanced(running)


def test_a_label_moves_to_another_event_with_its_key(running: Any, origin: Any) -> None:
    for key in (100, 101):
        origin.execute("INSERT INTO visits VALUES (%s, '2020-03-01 01:00+00', 'a', 'p', 1)", key)
    origin.execute("INSERT INTO outcomes VALUES (100, 50, '2020-03-01 01:10+00')")
    origin.execute("UPDATE outcomes SET visit_id = 101 WHERE visit_id = 100")
    origin.execute("UPDATE visits SET visit_id = 102 WHERE visit_id = 100")
    running.follow(origin)
    story = running.query(
        "SELECT e.key, l.kind::text, l.y FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq "
        "WHERE e.key >= 100 ORDER BY l.seq"
    )
    assert story == [(100, "observed", 1.0), (100, "correction", None), (101, "observed", 1.0)]
    assert [(key, expectation) for key, expectation, _ in refused(running)] == [("102", "immutable(visit_id)")]
    balanced(running)


@pytest.mark.parametrize("identity", ["FULL", "USING INDEX other_identity"])
def test_replica_identities_that_name_the_event(running: Any, origin: Any, identity: str) -> None:
    unpublished(
        running,
        origin,
        "ALTER TABLE outcomes ADD COLUMN other bigint GENERATED ALWAYS AS IDENTITY",
        "CREATE UNIQUE INDEX other_identity ON outcomes (other, visit_id)",
        f"ALTER TABLE outcomes REPLICA IDENTITY {identity}",
    )
    origin.execute("INSERT INTO visits VALUES (100, '2020-03-01 01:00+00', 'a', 'p', 1)")
    origin.execute("INSERT INTO outcomes VALUES (100, 50, '2020-03-01 01:10+00')")
    origin.execute("UPDATE outcomes SET score = 1 WHERE visit_id = 100")
    origin.execute("DELETE FROM outcomes WHERE visit_id = 100")
    running.follow(origin)
    story = running.query(
        "SELECT l.kind::text, l.y FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq "
        "WHERE e.key = 100 ORDER BY l.seq"
    )
    assert story == [("observed", 1.0), ("correction", 0.0), ("correction", None)]
    balanced(running)


def test_a_delete_that_does_not_name_its_event_is_refused(running: Any, origin: Any) -> None:
    unpublished(
        running,
        origin,
        "ALTER TABLE outcomes DROP CONSTRAINT outcomes_pkey",
        "ALTER TABLE outcomes ADD COLUMN other bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    )
    origin.execute("DELETE FROM outcomes WHERE visit_id = (SELECT min(visit_id) FROM outcomes)")
    running.follow(origin)
    ((key, expectation, reason),) = refused(running)
    assert (key, expectation) == (None, "identity(visit_id)")
    assert reason.endswith("ALTER TABLE public.outcomes REPLICA IDENTITY FULL")


def test_partitions_are_published_through_their_root(registered: Any, origin: Any) -> None:
    origin.execute("DROP PUBLICATION headrace_small")
    origin.execute("DROP TABLE visits")
    origin.execute(
        "CREATE TABLE visits (visit_id bigint, seen_at timestamptz, colour text, place text, size float8, "
        "PRIMARY KEY (visit_id, seen_at)) PARTITION BY RANGE (seen_at)"
    )
    origin.execute("CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM ('2020-01-01') TO ('2020-03-02')")
    origin.execute("CREATE TABLE visits_2 PARTITION OF visits FOR VALUES FROM ('2020-03-02') TO ('2021-01-01')")
    origin.execute(source.statements(origin.stream, role="postgres"))
    assert [f.what for f in source.doctor(origin.dsn, origin.stream) if not f.ok] == []
    registered.import_history(origin)
    origin.add(*origin.rows(0, 3_000))
    origin.execute("INSERT INTO visits VALUES (3000, '2020-03-03 02:00+00', 'a', 'p', 1)")
    origin.execute("UPDATE visits SET seen_at = '2020-03-01 00:00+00' WHERE visit_id = 3000")
    registered.follow(origin)
    assert registered.query("SELECT count(*) FROM small.events") == [(3_001,)]
    moved = [(key, expectation) for key, expectation, _ in refused(registered)]
    assert moved == [("3000", "unique(visit_id)")], "a row that moves to another partition comes as delete and insert"
    unpublished(registered, origin)  # without the root
    origin.execute("INSERT INTO visits VALUES (9000, '2020-03-03 01:00+00', 'a', 'p', 1)")
    findings = {f.what: f.found for f in source.doctor(origin.dsn, origin.stream) if not f.ok}
    assert findings["publication of public.visits"].startswith("lacks visit_id")
    assert findings["publication of public.visits_2"] == "is published too, and no table of the stream"
    with pytest.raises(SourceError, match="partitions: publish their root, with publish_via_partition_root = true"):
        registered.follow(origin)
    origin.execute("DROP PUBLICATION headrace_small")
    origin.execute(source.statements(origin.stream, role="postgres"))
    registered.trust_publication(origin)
    registered.follow(origin)
    assert ("9000", "relation") in [(key, expectation) for key, expectation, _ in refused(registered)], (
        "nothing is skipped"
    )
    balanced(registered)


def test_rows_of_an_unknown_table_are_kept_in_quarantine(running: Any, origin: Any) -> None:
    origin.execute("CREATE TABLE notes (id bigint PRIMARY KEY, said text)")
    with closing(psycopg2.connect(origin.dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute("ALTER PUBLICATION headrace_small ADD TABLE notes")
        cursor.execute("INSERT INTO notes VALUES (1, 'hi')")
        cursor.execute("ALTER PUBLICATION headrace_small DROP TABLE notes")
    running.trust_publication(origin)
    running.follow(origin)
    ((key, expectation, reason),) = refused(running)
    assert (key, expectation) == (None, "relation")
    assert reason.startswith("public.notes is not a table of the stream, expected public.visits and public.outcomes")
    assert running.query("SELECT content FROM small.quarantine") == [({"id": "1", "said": "hi"},)]
    balanced(running)


def test_messages_outside_of_transactions_hold_nothing_up(running: Any, origin: Any) -> None:
    """Heartbeats of other consumers of the database's WAL: more of them than a chunk takes, and then nothing else."""
    many = "SELECT count(pg_logical_emit_message(false, 'other', repeat('x', 100000))) FROM generate_series(1, 60)"
    origin.execute(many)
    ((target,),) = origin.execute("SELECT pg_current_wal_lsn()::text")
    running.follow_until(origin, lambda lsn: source.lsn_number(lsn) >= source.lsn_number(target))
    ((confirmed,),) = origin.execute(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'headrace_small'"
    )
    assert source.lsn_number(target) - source.lsn_number(confirmed) < 100
    origin.add(*origin.rows(100, 20))
    origin.execute(many)
    origin.add(*origin.rows(120, 20))
    running.follow(origin)
    assert keys(running, 100) == list(range(100, 140))
    balanced(running)


@contextmanager
def reading(origin: Any, patience: float = changes.PATIENCE) -> Iterator[changes.Reader]:
    """A reader of the small stream's slot, from where it stands."""
    with source.replication(origin.dsn) as cursor:
        source.start(cursor, "headrace_small", "headrace_small", "0/0")
        with closing(changes.Reader(cursor, patience)) as reader:
            yield reader


def confirmed(origin: Any) -> str:
    ((lsn,),) = origin.execute(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'headrace_small'"
    )
    return str(lsn)


def test_a_source_that_asks_is_told_what_is_stored_and_no_more(running: Any, origin: Any) -> None:
    """It asks when it heard nothing for half of its timeout, and when it shuts down."""
    origin.execute(f"ALTER DATABASE {database_of(origin.dsn)} SET wal_sender_timeout = '2s'")
    before, asked = confirmed(origin), 0
    with reading(origin) as reader:
        while asked < 3:
            origin.execute("CREATE TABLE IF NOT EXISTS other AS SELECT 1; INSERT INTO other VALUES (1)")
            assert reader.read(wait=0.5) is None
            if reader.asked:
                reader.alive()
                asked += 1
        assert source.lsn_number(reader.idle_at) > source.lsn_number(before)
        assert confirmed(origin) == before
        reader.acknowledge(reader.idle_at)
        deadline = time.monotonic() + 10
        while confirmed(origin) != reader.idle_at:
            assert time.monotonic() < deadline, "what is stored is confirmed"


def test_a_large_transaction_that_comes_slowly_waits_in_its_file(
    running: Any, origin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little comes at a time, and the reader's caller can do its other work meanwhile."""
    origin.add(*origin.rows(100, 400))
    monkeypatch.setattr(changes, "_CHUNK_BYTES", 4_000)
    drain, drained, waits = CopyBoth.drain, [0], threading.Semaphore(0)

    def slowly(copy: CopyBoth, inbox: Inbox, size: int, count: int, *, single: bool) -> int:
        waits.acquire(timeout=0.1)
        assert inbox.size < 4_500
        drained[0] += 1
        return drain(copy, inbox, size, min(count, inbox.count + 5), single=single) and PASSED

    monkeypatch.setattr(CopyBoth, "drain", slowly)
    with reading(origin) as reader:
        while drained[0] < 50:
            assert reader.read(wait=0) is None
            waits.release()
        waits.release(10_000)
        read = reader.read(wait=20)
        assert isinstance(read, changes.Large)
        read.close()


def test_a_file_that_finds_no_room_is_the_callers_error(
    running: Any, origin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that reads has nobody to tell but who waits for it."""
    origin.add(*origin.rows(100, 400))
    monkeypatch.setattr(changes, "_CHUNK_BYTES", 4_000)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(changes.Large, "add", full)
    with reading(origin) as reader, pytest.raises(OSError, match="No space left"):
        reader.read(wait=20)


def test_what_comes_while_the_caller_writes_comes_in_one_go(running: Any, origin: Any) -> None:
    """And the source is told all the while that somebody reads, but never that it is stored."""
    origin.execute(f"ALTER DATABASE {database_of(origin.dsn)} SET wal_sender_timeout = '1s'")
    with reading(origin, patience=1.0) as reader:
        origin.add(*origin.rows(100, 1))
        first = reader.read(wait=10)
        for at in range(101, 131):
            origin.add(*origin.rows(at, 1))
        time.sleep(2.5)  # the caller's work: longer than the source would wait for a reader that is gone
        before = confirmed(origin)
        rest = reader.read(wait=0)
        assert isinstance(first, Messages) and isinstance(rest, Messages)
        assert len(rest.transactions.end_lsn) >= 30
        assert source.lsn_number(before) < int(first.transactions.end_lsn[0])
        reader.acknowledge(reader.idle_at)  # the connection lives


def test_what_was_not_given_is_not_idle(running: Any, origin: Any) -> None:
    """A keepalive that tells of WAL beyond what the caller was given must not move its position there."""
    origin.execute(f"ALTER DATABASE {database_of(origin.dsn)} SET wal_sender_timeout = '1s'")
    with reading(origin, patience=1.0) as reader:
        assert reader.read(wait=0.3) is None
        origin.add(*origin.rows(100, 5))
        origin.execute("CREATE TABLE IF NOT EXISTS other AS SELECT 1; INSERT INTO other VALUES (1)")
        ((beyond,),) = origin.execute("SELECT pg_current_wal_lsn()::text")
        deadline = time.monotonic() + 10
        while reader._known < source.lsn_number(beyond):
            assert time.monotonic() < deadline, "a keepalive tells of it"
            time.sleep(0.01)
        idle = source.lsn_number(reader.idle_at)
        given = reader.read(wait=10)
        assert isinstance(given, Messages)
        assert idle < int(given.transactions.final_lsn[0])
        assert source.lsn_number(reader.idle_at) >= source.lsn_number(beyond)


def test_a_text_of_another_encoding_arrives_as_it_is_meant(
    registered: Any, server: EmbeddedPostgres, small: Any, free: list[str]
) -> None:
    origin = encoded(server, small, "LATIN1", free)
    origin.add([(1, START, "a", "Köln", 1.0)], [])
    registered.import_history(origin)
    origin.add([(2, START, "b", "Málaga", 1.0)], [])
    registered.follow(origin)
    assert registered.query("SELECT key, place FROM small.events ORDER BY 1") == [(1, "Köln"), (2, "Málaga")]


def test_bytes_without_an_encoding_are_refused_by_name(server: EmbeddedPostgres, small: Any, free: list[str]) -> None:
    origin = encoded(server, small, "SQL_ASCII", free)
    ((what, said),) = [(f.what, f"{f.found}; {f.remedy}") for f in source.doctor(origin.dsn, small) if not f.ok]
    assert what == "encoding"
    assert said.startswith("SQL_ASCII, which says nothing of what its bytes mean; copy the data into a database")


@pytest.fixture
def free(server: EmbeddedPostgres) -> Iterator[list[str]]:
    """Names of databases to drop after the test."""
    names: list[str] = []
    yield names
    with closing(psycopg2.connect(server.dsn("postgres"))) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        free_slots(cursor)
        for name in names:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def encoded(server: EmbeddedPostgres, stream: Any, encoding: str, free: list[str]) -> SmallSource:
    """A source whose database has an encoding of its own."""
    name = f"source_{encoding.lower()}"
    with closing(psycopg2.connect(server.dsn("postgres"))) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING {encoding} LOCALE 'C'")
    free.append(name)
    made = SmallSource(server.dsn(name), stream)
    made.execute(TABLES)
    made.execute(source.statements(stream, role="postgres"))
    return made


def test_a_large_transaction_gives_the_same_log_in_parts(
    registered: Any, origin: Any, database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events, labels, corrections and refused rows in one transaction, read in parts of some kilobytes."""
    origin.add(*origin.rows(0, 50))
    registered.import_history(origin)
    sizes = (2_000, 50_000, changes._CHUNK_BYTES)
    for size in sizes:
        origin.execute("SELECT pg_copy_logical_replication_slot('headrace_small', %s)", f"copy_{size}")
    events, labels = origin.rows(50, 900, labelled=0.7)
    with closing(psycopg2.connect(origin.dsn)) as conn, conn, conn.cursor() as cursor:
        for start in range(0, 900, 90):
            cursor.executemany("INSERT INTO visits VALUES (%s, %s, %s, %s, %s)", events[start : start + 90])
            part = [label for label in labels if start <= label[0] - 50 < start + 90]
            cursor.executemany("INSERT INTO outcomes VALUES (%s, %s, %s)", part)
            cursor.execute("UPDATE outcomes SET score = 40 - score WHERE visit_id % 7 = 0")
        cursor.execute("INSERT INTO visits VALUES (5000, '2020-03-01', 'zz', 'p', 1)")
    origin.add(*origin.rows(2_000, 10))
    read: list[Any] = []
    known = changes.Reader.read

    def noting(self: Any, wait: float) -> Any:
        read.append(known(self, wait))
        return read[-1]

    monkeypatch.setattr(changes.Reader, "read", noting)
    outcomes = []
    for size in sizes:
        read.clear()
        monkeypatch.setattr(changes, "_CHUNK_BYTES", size)
        made = Registered(database("again", database_of(registered.dsn)), registered.stream, registered.columns)
        made.query("UPDATE headrace.intake_positions SET slot = %s", f"copy_{size}")
        made.follow(origin)
        large = [r for r in read if isinstance(r, changes.Large)]
        assert bool(large) == (size != sizes[-1])
        outcomes.append((made.entries(), made.epochs(), made.accounting(), refused(made)))
        balanced(made)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][2]["stream"]["corrections"] > 50
    assert len(outcomes[0][3]) == 1
