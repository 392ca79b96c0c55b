"""The log in SQL: what was appended comes back the same, across partitions, restarts and types of keys."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from tests.columns import listed

from headrace.errors import ServerError, SnapshotError
from headrace.events import Engine, EpochRange, LabelKind, LogBatch, micros
from headrace.flow.join import Held, Join, new_join
from headrace.store import checkpoints, db, log, registry, source
from headrace.store.checkpoints import Checkpoint


@pytest.fixture
def conn(registered: Any) -> Iterator[Any]:
    with closing(db.connect(registered.dsn)) as made:
        yield made


@pytest.fixture
def full(registered: Any, origin: Any) -> Any:
    """A log with history and stream, labels of every kind, held ones and quarantine."""
    origin.add(*origin.rows(0, 300, labelled=0.8))
    origin.execute("INSERT INTO outcomes VALUES (5000, 1, '2020-03-01 01:00+00')")
    registered.import_history(origin)
    events, labels = origin.rows(300, 200, labelled=0.8)
    origin.add(events[:100], labels[:60])
    origin.add([], labels[60:])
    origin.add(events[100:], [])
    origin.execute(
        "INSERT INTO visits SELECT 6000 + i, '2020-03-02 00:00+00', 'zz', E'tab\\t\\\\N', i FROM generate_series(1, 3) AS i"
    )
    origin.execute("UPDATE outcomes SET score = 50 - score WHERE visit_id % 20 = 0")
    origin.execute(
        "INSERT INTO outcomes SELECT visit_id, 20, '2020-03-01 09:00+00' FROM visits WHERE visit_id < 20 ON CONFLICT DO NOTHING"
    )
    registered.follow(origin)
    counts = registered.accounting()["stream"]
    assert min(counts[n] for n in ("events", "labels", "corrections", "quarantined", "timeouts")) > 0, counts
    return registered


def same(batches: list[LogBatch]) -> str:
    """Batches put together, comparable."""
    arrays = (
        "event_seq",
        "event_time",
        "clock_events",
        "label_seq",
        "label_event",
        "label_kind",
        "y",
        "y_before",
        "clock_labels",
    )
    whole = [np.concatenate([getattr(b, name) for b in batches]).tolist() for name in arrays]
    columns = [[v for b in batches for v in listed(b.events[name])] for name in batches[0].events]
    return repr((whole, columns, [e for b in batches for e in b.epochs]))


def test_ranges_put_together_are_the_whole(full: Any, conn: Any) -> None:
    at = log.position(conn, "small")
    assert at is not None
    whole = log.read(conn, "small", full.columns, 0, at.seq)
    for size in (1, 7, 100):
        ends = [*range(0, at.seq, size), at.seq]
        pieces = [log.read(conn, "small", full.columns, a, b) for a, b in pairwise(ends)]
        assert same(pieces) == same([whole])
    assert set(whole.label_kind.tolist()) == set(LabelKind)
    assert whole.received_through is not None


def test_what_is_read_is_what_sql_says(full: Any, conn: Any) -> None:
    at = log.position(conn, "small")
    assert at is not None
    batch = log.read(conn, "small", full.columns, 0, at.seq)
    entries = full.entries()
    assert at.seq == len(entries) == len(batch.event_seq) + len(batch.label_seq)
    events = [e for e in entries if e[1] is not None]
    assert batch.events["key"].tolist() == [e[1] for e in events]
    assert batch.event_time.tolist() == [micros(e[2]) for e in events]
    assert listed(batch.events["colour"]) == [e[3] for e in events]
    labels = [e for e in entries if e[1] is None]
    assert [(s, LabelKind(k).name.lower()) for s, k in zip(batch.label_seq, batch.label_kind, strict=True)] == [
        (e[0], e[7]) for e in labels
    ]
    assert np.isnan(batch.y).tolist() == [e[8] is None for e in labels]
    watermarks = full.query("SELECT seq_first, seq_last, watermark FROM small.segments ORDER BY 1")
    clock = {seq: micros(w) for first, last, w in watermarks for seq in range(first, last + 1)}
    assert batch.clock_events.tolist() == [clock[e[0]] for e in events]
    assert batch.clock_labels.tolist() == [clock[e[0]] for e in labels]
    fakes = "SELECT coalesce(c.kind = 'timeout', false) FROM small.labels AS l LEFT JOIN small.labels AS c ON c.seq = l.corrects"
    assert batch.corrects_timeout.tolist() == [fake for (fake,) in full.query(f"{fakes} ORDER BY l.seq")]
    assert set(batch.corrects_timeout[batch.label_kind == LabelKind.CORRECTION].tolist()) == {False, True}
    assert list(batch.epochs) == [EpochRange(e, a, b, n, micros(f), micros(t)) for _, e, a, b, n, f, t in full.epochs()]
    assert full.query("SELECT count(*) FROM small.quarantine WHERE content ->> 'place' = E'tab\\t\\\\N'") == [(3,)]
    assert full.query("SELECT count(*) FROM small.held") == [(1,)]


def test_a_hole_is_not_read_over(full: Any, conn: Any) -> None:
    full.query("DELETE FROM small.labels WHERE seq = (SELECT min(seq) FROM small.labels WHERE seq > 50)")
    with pytest.raises(ServerError, match="has 99 entries from seq 1 to 100, expected 100: run `headrace check`"):
        log.read(conn, "small", full.columns, 0, 100)


@pytest.mark.parametrize("begun", [False, True])
def test_a_long_range_leaves_the_planner_as_it_was(
    full: Any, conn: Any, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    monkeypatch.setattr(log, "_LONG", 10)

    def read() -> None:
        with conn.cursor() as cursor:
            if begun:
                cursor.execute("SELECT")
            log.read(conn, "small", full.columns, 0, 50)

    def sorts() -> list[tuple[str]]:
        with conn.cursor() as cursor:
            cursor.execute("SHOW enable_sort")
            found: list[tuple[str]] = cursor.fetchall()
            return found

    read()
    assert sorts() == [("on",)]
    conn.commit()
    full.query("ALTER TABLE small.segments RENAME TO gone")
    with pytest.raises(psycopg2.errors.UndefinedTable):
        read()
    conn.rollback()
    assert sorts() == [("on",)]


def test_some_events_by_their_seq(full: Any, conn: Any) -> None:
    batch = log.read(conn, "small", full.columns, 0, 100)
    some = batch.event_seq[[3, 1, 5]]
    found = log.recall(conn, "small", full.columns, some).events
    assert found["key"].tolist() == sorted(batch.events["key"][[1, 3, 5]].tolist())
    assert {len(v) for v in log.recall(conn, "small", full.columns, some[:0]).events.values()} == {0}


def test_partitions_do_not_show(registered: Any, origin: Any) -> None:
    """The same rows into one partition and into many: corrections of long closed events find them either way."""
    origin.add(*origin.rows(0, 200))
    registered.import_history(origin)
    origin.execute("UPDATE outcomes SET score = 50 - score")
    origin.execute("DELETE FROM outcomes WHERE visit_id < 50")
    registered.follow(origin)
    whole = (registered.entries(), registered.epochs(), registered.accounting())
    registered.query("DROP TABLE small.events_000000, small.labels_000000")
    registered.query(
        "TRUNCATE small.segments, small.held, headrace.epochs, headrace.accounting, headrace.intake_positions"
    )
    origin.execute("TRUNCATE outcomes, visits")
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    again = type(origin)(origin.dsn, origin.stream)
    origin.add(*again.rows(0, 200))
    registered.query("UPDATE headrace.streams SET partition_entries = 64")
    registered.import_history(origin)
    origin.execute("UPDATE outcomes SET score = 50 - score")
    origin.execute("DELETE FROM outcomes WHERE visit_id < 50")
    registered.follow(origin)
    assert (registered.entries(), registered.epochs(), registered.accounting()) == whole
    parts = registered.query(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'small.events'::regclass ORDER BY 1"
    )
    assert len(parts) == len(whole[0]) // 64 + 1
    indexed = registered.query(
        "SELECT t.relname FROM pg_index AS i JOIN pg_class AS t ON t.oid = i.indrelid"
        " WHERE t.relname LIKE 'events\\_0%' AND NOT i.indisprimary ORDER BY 1"
    )
    assert [name for (name,) in indexed] == [name.split(".")[1] for (name,) in parts[:-1]], "all but the hot one"


def test_a_join_comes_back_as_it_was(full: Any, conn: Any) -> None:
    at = log.position(conn, "small")
    assert at is not None
    join = new_join(full.stream)
    log.Appender("small", full.stream.hash(), full.columns).resume(conn, join, at)
    waiting = full.query(
        "SELECT count(*) FROM small.events AS e WHERE NOT EXISTS (SELECT FROM small.labels AS l WHERE l.event_seq = e.seq)"
    )
    assert join.open_events == waiting[0][0] > 0
    assert (join.seq, join.epoch) == (at.seq, at.epoch)
    ((time, deadline),) = full.query("SELECT label_time, deadline FROM small.held")
    held = Held(1.0, micros(time), micros(deadline))  # as it was changed since
    assert {int.from_bytes(k, "big"): v for k, v in join.held.items()} == {5000: held}


KEYS: dict[str, list[Any]] = {
    "uuid": [str(uuid.UUID(int=i * 7919)) for i in range(1, 5)],
    "text": ["plain", 'it\'s "odd"', "ünï ☂ {a,b}", "back\\slash,NULL"],
    "integer": [-5, 0, 7, 2**31 - 1],
    "varchar(40)": ["a", "A", " a", "a "],
    "character(5)": ["a", "A", " a", "abcde"],
}
LABEL_KEYS = {"character(5)": "character(8)"}  # another width pads otherwise
VISIT = "INSERT INTO visits VALUES (%s, '2020-03-01 01:00+00', 'a', 'p', 1)"
OUTCOME = "INSERT INTO outcomes VALUES (%s, 20, '2020-03-01 01:10+00')"
Keyed = Callable[[str], tuple[Any, Any]]


@pytest.fixture
def keyed(platform: str, database: Callable[..., str], small: Any, origin: Any, registered: Any) -> Keyed:
    """Make platform and source of the small stream with keys of a type."""

    def make(key_type: str) -> tuple[Any, Any]:
        dsn, label_type = database("keys"), LABEL_KEYS.get(key_type, key_type)
        theirs = type(origin)(dsn, small)
        theirs.execute(
            f"CREATE TABLE visits (visit_id {key_type}, seen_at timestamptz, colour text, place text, size float8)"
        )
        theirs.execute(f"CREATE TABLE outcomes (visit_id {label_type}, score integer, known_at timestamptz)")
        theirs.execute("ALTER TABLE visits REPLICA IDENTITY FULL; ALTER TABLE outcomes REPLICA IDENTITY FULL")
        with closing(db.connect(dsn)) as conn:
            theirs.execute(source.statements(small, "postgres", source.identity_columns(conn, small)))
            columns = source.log_columns(conn, small)
        registered.query("DROP SCHEMA small CASCADE; TRUNCATE headrace.streams CASCADE")
        with closing(db.connect(platform)) as conn, db.transaction(conn):
            registry.register(conn, small, columns, Engine("test", "", {}))
        return type(registered)(platform, small, columns), theirs

    return make


@pytest.mark.parametrize("key_type", KEYS)
def test_keys_of_every_type(keyed: Keyed, key_type: str) -> None:
    """Found again after a restart: held, corrected, deleted."""
    ours, theirs = keyed(key_type)
    ours.import_history(theirs)
    first, second, third, fourth = KEYS[key_type]
    visit, outcome = VISIT, OUTCOME
    for statement, keys in ((visit, [first, second]), (outcome, [second, third])):
        for key in keys:
            theirs.execute(statement, key)
    ours.follow(theirs)
    theirs.execute("UPDATE outcomes SET score = 1")
    theirs.execute(visit, third)
    ours.follow(theirs)
    theirs.execute("DELETE FROM outcomes WHERE visit_id = %s", second)
    theirs.execute(outcome, fourth)
    theirs.execute("DELETE FROM outcomes WHERE visit_id = %s", fourth)
    ours.follow(theirs)
    found = ours.query(
        "SELECT e.key::text, l.kind, l.y FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq ORDER BY l.seq"
    )
    assert found == [
        (str(second), "observed", 1.0), (str(second), "correction", 0.0), (str(third), "observed", 0.0),
        (str(second), "correction", None),
    ]  # fmt: skip
    assert ours.query("SELECT count(*) FROM small.held") == [(0,)]
    counts = ours.accounting()["stream"]
    assert counts["received"] == sum(
        counts[n] for n in ("events", "labels", "corrections", "held", "quarantined", "ignored")
    )


@pytest.mark.parametrize("key_type", KEYS)
def test_keys_of_every_type_in_closed_partitions(keyed: Keyed, key_type: str) -> None:
    """Labels of old events find them by the index; a resync does not take those for new."""
    ours, theirs = keyed(key_type)
    ours.query("UPDATE headrace.streams SET partition_entries = 4")
    for key in KEYS[key_type]:
        theirs.execute(VISIT, key)
    ours.import_history(theirs)
    for key in KEYS[key_type]:
        theirs.execute(OUTCOME, key)
        ours.follow(theirs)
    closed = "SELECT l.kind, l.y FROM small.labels AS l JOIN small.events AS e ON e.seq = l.event_seq ORDER BY l.seq"
    assert ours.query(closed) == [("observed", 1.0)] * 4
    theirs.execute("SELECT pg_drop_replication_slot('headrace_small')")
    theirs.execute("UPDATE outcomes SET score = 1")
    done = ours.resync(theirs)
    assert (done.events, done.labels, done.corrections) == (0, 0, 4)
    assert ours.query("SELECT count(*) FROM small.held") == [(0,)]


def test_a_key_that_comes_again_in_a_later_partition(keyed: Keyed) -> None:
    """Taken for a new event, as docs/operations.md says; the query there finds it, and no other event."""
    ours, theirs = keyed("integer")
    ours.query("UPDATE headrace.streams SET partition_entries = 4")
    ours.import_history(theirs)
    for statement, key in ((VISIT, 1), (VISIT, 1), (VISIT, 2), (OUTCOME, 2), (VISIT, 2), (VISIT, 3), (VISIT, 1)):
        theirs.execute(statement, key)
        ours.follow(theirs)
    assert ours.query("SELECT key, expectation FROM small.quarantine") == [("1", "unique(visit_id)")]
    events = ours.query("SELECT key, seq FROM small.events ORDER BY seq")
    assert events == [(1, 1), (2, 2), (2, 4), (3, 5), (1, 6)]
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (query,) = (q for q in re.findall(r"```sql\n(.*?)```", page, re.DOTALL) if "again_seq" in q)
    assert [row[:3] for row in ours.query(query.replace("flights", "small"))] == [(1, 1, 6)]


LARGE = "".join(uuid.UUID(int=i * 7919**9 % 2**128).hex for i in range(100))  # 3,200 bytes; hardly compressible


def test_a_key_that_no_index_holds_goes_to_quarantine(keyed: Keyed) -> None:
    """From history, stream and resync; the rest goes on, and partitions that close get their index."""
    ours, theirs = keyed("text")
    ours.query("UPDATE headrace.streams SET partition_entries = 2")
    theirs.execute(VISIT, LARGE)
    theirs.execute(OUTCOME, LARGE)
    assert ours.import_history(theirs).quarantined == 2
    huge = "é" * 500_000
    for key in (LARGE + "2", huge, "ordinary", "é" * 512):
        theirs.execute(VISIT, key)
        theirs.execute(OUTCOME, key)
    theirs.execute("UPDATE outcomes SET visit_id = 'short' WHERE visit_id = %s", huge)
    theirs.execute("DELETE FROM outcomes WHERE visit_id = %s", LARGE)
    ours.follow(theirs)
    assert ours.query("SELECT key FROM small.events ORDER BY seq") == [("ordinary",), ("é" * 512,)]
    assert ours.query("SELECT key FROM small.held") == [("short",)]
    refused = ours.query("SELECT relation, expectation, substr(reason, 95) FROM small.quarantine")
    expected = "..., expected a key of at most 1,024 bytes, since events are found by it: give the row a shorter one"
    tables = ("public.visits", "public.outcomes")
    assert sorted(refused) == sorted([(table, "key_bytes(visit_id)", expected) for table in tables] * 3)
    theirs.execute("SELECT pg_drop_replication_slot('headrace_small')")
    theirs.execute(VISIT, LARGE + "3")
    theirs.execute(OUTCOME, LARGE + "3")
    theirs.execute(OUTCOME, LARGE + "3")
    ours.resync(theirs)
    assert ours.query("SELECT count(*) FROM small.quarantine WHERE key = %s", LARGE + "3") == [(3,)]
    for counts in ours.accounting().values():
        outcomes = ("events", "labels", "corrections", "held", "quarantined", "ignored")
        assert counts["received"] == sum(counts[n] for n in outcomes)


def checkpoint(seq: int, **arrays: Any) -> Checkpoint:
    return Checkpoint(
        seq, seq // 10, bytes(16), "test", seq, {"open/tail/seq": np.arange(3), **arrays}, {"seq": seq, "names": ["é"]}
    )


def test_checkpoints_come_back_and_large_arrays_are_stored_once(registered: Any, conn: Any) -> None:
    booster, table = np.arange(50_000, dtype=np.int64), np.random.default_rng(1).random(10_000)
    assert checkpoints.last(conn, "small", "small-1") is None
    with db.transaction(conn):
        for seq in range(10, 160, 10):
            checkpoints.write(
                conn,
                "small",
                "small-1",
                checkpoint(seq, artifact=booster, small=np.array([seq, 1.5]), table=table + seq),
            )
    found = checkpoints.last(conn, "small", "small-1")
    assert found is not None
    assert (found.seq, found.epoch, found.learned, found.meta) == (150, 15, 150, {"seq": 150, "names": ["é"]})
    assert found.arrays["artifact"].tobytes() == booster.tobytes()
    assert found.arrays["table"].tobytes() == (table + 150).tobytes()
    assert checkpoints.open_seqs(found).tolist() == [0, 1, 2]
    kept = registered.query("SELECT seq FROM headrace.checkpoints ORDER BY seq")
    assert [seq for (seq,) in kept] == [10, *range(80, 160, 10)], "the first one and the newest eight"
    (stored,) = registered.query("SELECT count(*) FROM headrace.artifacts")
    assert stored == (1 + len(kept),), "arrays of checkpoints that are gone go too"


def test_a_missing_array_is_named(registered: Any, conn: Any) -> None:
    with db.transaction(conn):
        checkpoints.write(conn, "small", "small-1", checkpoint(10, booster=np.arange(50_000)))
    registered.query("DELETE FROM headrace.artifacts")
    with pytest.raises(
        SnapshotError, match=r"checkpoint of small-1 at seq 10: its array 'booster' .* is missing; rebuild it"
    ):
        checkpoints.last(conn, "small", "small-1")


def test_a_state_that_did_not_change_has_the_same_digest(registered: Any, conn: Any) -> None:
    with db.transaction(conn):
        checkpoints.write(
            conn, "small", "small-1", checkpoint(10, w=np.array([1.0]), pickle=np.frombuffer(b"one", dtype=np.uint8))
        )
        checkpoints.write(
            conn, "small", "small-1", checkpoint(20, w=np.array([1.0]), pickle=np.frombuffer(b"two", dtype=np.uint8))
        )
        checkpoints.write(conn, "small", "small-1", checkpoint(30, w=np.array([2.0])))
    digests = [bytes(d) for (d,) in registered.query("SELECT state_digest FROM headrace.checkpoints ORDER BY seq")]
    assert digests[0] == digests[1] != digests[2]


def test_a_failed_transaction_leaves_nothing(registered: Any, conn: Any) -> None:
    def twice() -> None:
        with db.transaction(conn):
            for _ in range(2):
                checkpoints.write(conn, "small", "small-1", checkpoint(10))

    with pytest.raises(psycopg2.errors.UniqueViolation):
        twice()
    assert checkpoints.last(conn, "small", "small-1") is None


def test_labels_without_an_event_have_a_bound(registered: Any, origin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table may have labels of events that the stream never sees: the oldest is given up, also after a start in between."""
    registered.import_history(origin)
    monkeypatch.setitem(vars(Join)["__init__"].__kwdefaults__, "held", 3)
    moment = datetime(2020, 3, 1, tzinfo=UTC)
    for keys in ([7, 5], [6, 9], [2]):
        origin.add([], [(key, 20, moment) for key in keys])
        registered.follow(origin)
    assert registered.query("SELECT key FROM small.held ORDER BY held_id") == [(6,), (9,), (2,)]
    given_up = registered.query("SELECT key, expectation, reason FROM small.quarantine ORDER BY quarantine_id")
    assert [row[:2] for row in given_up] == [("7", "orphan"), ("5", "orphan")]
    assert given_up[0][2] == (
        "no event with visit_id '7' has come and 1,000,000 younger labels wait for theirs, expected few: does public.outcomes "
        "have labels of events that are not in public.visits?"
    )
    counts = registered.accounting()["stream"]
    assert (counts["received"], counts["held"], counts["quarantined"]) == (5, 3, 2)
