"""The history import: the order of its times, honest delays, all or nothing, and no seam to the stream that follows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import sql
from tests.conftest import database_of, free_slots
from tests.torture.proxy import Direction, Proxy

from headrace.batch import history, resync
from headrace.errors import LeaseError, SlotError, SourceError
from headrace.events import micros
from headrace.store import db, leases, source
from headrace.store.embedded import SOCKET_NAME

START = datetime(2020, 3, 1, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def visit(key: int, minutes: float, colour: str = "a") -> tuple[Any, ...]:
    return (key, at(minutes), colour, "p", 1.0)


def test_entries_come_in_the_order_of_their_times(registered: Any, origin: Any) -> None:
    """Ties: events before labels, then by key; a label never before its own time."""
    origin.add(
        [visit(3, 10), visit(1, 10), visit(2, 0), visit(4, 30)],
        [(2, 20, at(10)), (1, 3, at(20)), (3, 20, at(10)), (9, 1, at(5))],
    )
    done = registered.import_history(origin)
    assert (done.events, done.labels, done.quarantined, done.held) == (4, 3, 0, 1)
    order = [(e[1], e[6], e[8]) for e in registered.entries()]  # key, or the seq and value that a label answers
    assert order == [
        (2, None, None), (1, None, None), (3, None, None), (None, 1, 1.0), (None, 3, 1.0), (None, 2, 0.0), (4, None, None)
    ]  # fmt: skip
    position = registered.query("SELECT seq, slot, lsn = consistent_lsn, watermark FROM headrace.intake_positions")
    assert position == [(7, "headrace_small", True, at(30))]


def test_a_label_enters_after_every_event_before_it(registered: Any, origin: Any) -> None:
    origin.add(*origin.rows(0, 500))
    registered.import_history(origin)
    entries = registered.entries()
    seen: list[datetime] = []
    for _, _, event_time, *_, kind, _, _, label_time in entries:
        moment = event_time or (label_time if kind == "observed" else None)
        if moment is not None:
            seen.append(moment)
    assert seen == sorted(seen)


def test_odd_rows_go_to_quarantine_and_the_rest_comes_in(registered: Any, origin: Any) -> None:
    for column in ("seen_at", "colour"):
        origin.execute(f"ALTER TABLE public.visits ALTER {column} DROP NOT NULL")
    origin.add(
        [
            visit(1, 0),
            (2, None, "a", "p", 1.0),
            visit(3, 1, "z"),
            (4, at(2), None, "p", 1.0),
            (5, at(3), "a", None, None),
        ],
        [(1, 20, None), (5, None, at(4))],
    )
    origin.execute("INSERT INTO public.visits VALUES (6, 'infinity', 'a', 'p', 1), (7, '-infinity', 'a', 'p', 1)")
    origin.execute(
        "INSERT INTO public.visits VALUES (8, '0044-03-15 BC', 'a', 'p', 1), (9, '20000-01-01', 'a', 'p', 1)"
    )
    origin.execute("INSERT INTO public.visits VALUES (10, '2020-03-01 00:05+00', 'a', 'p', 'NaN')")
    origin.execute("INSERT INTO public.visits VALUES (11, now() + interval '2 days', 'a', 'p', 1)")
    origin.execute("INSERT INTO public.visits VALUES (12, '2020-03-01 00:05+00', E'a\\tb\\\\c\\nd', 'p', 1)")
    done = registered.import_history(origin)
    assert (done.events, done.labels, done.quarantined) == (2, 0, 11)
    reasons = dict(registered.query("SELECT key, reason FROM small.quarantine WHERE relation = 'public.visits'"))
    assert reasons["2"] == "seen_at is NULL, expected a value"
    assert reasons["4"] == "colour is NULL, expected a value"
    assert reasons["6"] == "seen_at is 'infinity', expected a time between the years 1 and 9999"
    assert reasons["8"].startswith("seen_at is '-043-03-15")
    assert reasons["9"].startswith("seen_at is '20000-01-01")
    assert reasons["10"] == "size is 'nan', expected a finite number"
    assert reasons["11"].endswith("expected at most 1.5 h after its commit (source.max_ahead)")
    assert registered.query("SELECT content ->> 'colour' FROM small.quarantine WHERE key = '12'") == [("a\tb\\c\nd",)]
    counts = registered.accounting()["history"]
    assert counts["received"] == 14 == sum(counts[n] for n in ("events", "labels", "held", "quarantined", "ignored"))


def test_an_empty_source_has_a_history_too(registered: Any, origin: Any) -> None:
    done = registered.import_history(origin)
    assert done == history.Imported(0, 0, 0, 0)
    origin.add([visit(1, 0)], [(1, 20, at(1))])
    registered.follow(origin)
    assert len(registered.entries()) == 2


def imported(registered: Any, origin: Any) -> tuple[Any, ...]:
    """The log of an import into an empty platform."""
    registered.query(
        "TRUNCATE small.events, small.labels, small.segments, small.held, small.quarantine, headrace.epochs, "
        "headrace.accounting, headrace.intake_positions"
    )
    registered.import_history(origin)
    return registered.entries(), registered.epochs(), registered.accounting()["history"]


def test_chunks_of_any_size_give_the_same_log(registered: Any, origin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a minute fits into one."""
    events, labels = origin.rows(0, 400)
    origin.add(events + [visit(10_000 + i, 50, "b") for i in range(60)], labels)
    whole = imported(registered, origin)
    assert len(whole[0]) > 700
    assert whole[1]
    for rows in (70, 101, 400):
        monkeypatch.setattr(history, "_CHUNK", rows)
        assert imported(registered, origin) == whole


def test_a_minute_larger_than_a_chunk_comes_in_order(
    registered: Any, origin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table whose times are days has all of a day at one moment: it is not read into memory at once."""
    days = [visit(key, 1_440 * (key % 3)) for key in range(300)]
    told = [(key, 20, at(1_440 * (key % 3) + 1_440 * (key % 2))) for key in range(0, 300, 2)]
    odd = [visit(1_000 + i, 50 + i / 700) for i in range(40)]
    origin.add(days + odd, told + [(1_000 + i, 3, at(50 + i / 350)) for i in range(40)])
    largest: list[int] = []
    take = history.Spool.take

    def measured(spool: history.Spool, *args: Any, **kwargs: Any) -> history.Timed:
        taken = take(spool, *args, **kwargs)
        largest.append(len(taken[1]))
        return taken

    monkeypatch.setattr(history.Spool, "take", measured)
    whole = [e[1] for e in imported(registered, origin)[0] if e[1] is not None]
    for rows in (1, 7, 64):
        monkeypatch.setattr(history, "_CHUNK", rows)
        largest.clear()
        entries, _, counts = imported(registered, origin)
        assert max(largest) <= rows
        assert [e[1] for e in entries if e[1] is not None] == whole
        times = [(e[2], 0) if e[1] is not None else (e[10], 1) for e in entries if e[7] != "timeout"]
        assert times == sorted(times), "in order of time, events before labels"
        assert (counts["events"], counts["labels"]) == (340, 190)
    watermarks = registered.query("SELECT watermark FROM small.segments ORDER BY seq_first")
    assert watermarks == sorted(watermarks)


def test_history_equals_a_stream_of_the_same_rows(registered: Any, origin: Any) -> None:
    """One commit for each tick, in the order of the history, gives the same entries and epochs."""
    events, labels = origin.rows(0, 300)
    labels += [(1_000, 5, at(100)), (7, 99, at(290))]  # an event that never comes; a key that is labelled twice
    labels = list({key: (key, score, time) for key, score, time in labels}.values())
    registered.import_history(origin)  # of nothing
    rows = [(micros(e[1]), 0, e[0], e) for e in events] + [(micros(v[2]), 1, v[0], v) for v in labels]
    with closing(psycopg2.connect(origin.dsn)) as conn, conn.cursor() as cursor:
        for _, tick in groupby(sorted(rows), key=lambda r: r[0] // history.TICK):
            for _, table, _, row in tick:
                marks = ", ".join(["%s"] * len(row))
                cursor.execute(f"INSERT INTO {('visits', 'outcomes')[table]} VALUES ({marks})", row)
            conn.commit()
    registered.follow(origin)
    streamed = (registered.entries(), registered.epochs(), registered.accounting()["stream"])
    assert streamed[2]["timeouts"] > 5
    assert (streamed[2]["held"], streamed[2]["quarantined"]) == (0, 1), "it waited for its event as long as events wait"
    assert imported(registered, origin) == streamed


def test_the_publication_must_be_there(registered: Any, origin: Any) -> None:
    origin.execute("DROP PUBLICATION headrace_small")
    with pytest.raises(SourceError, match="publication headrace_small: missing, or without tables; run the statements"):
        registered.import_history(origin)


def test_it_needs_the_lease(registered: Any, origin: Any) -> None:
    with closing(db.connect(registered.dsn, role="headrace_intake")) as conn:
        lease = leases.take(conn, "small", "intake", timedelta(seconds=5))
        registered.query("UPDATE headrace.leases SET token = token + 1")
        with pytest.raises(LeaseError, match="lost the role 'intake'"):
            history.import_history(conn, origin.dsn, registered.stream, registered.columns, lease, lambda *_: None)
    assert registered.entries() == []


def test_a_slot_that_somebody_reads_is_not_dropped(registered: Any, origin: Any) -> None:
    registered.import_history(origin)
    with closing(psycopg2.connect(origin.dsn, connection_factory=psycopg2.extras.LogicalReplicationConnection)) as conn:
        cursor = conn.cursor()
        options = {"proto_version": "1", "publication_names": "headrace_small"}
        cursor.start_replication(slot_name="headrace_small", decode=False, options=options)
        registered.query("DELETE FROM headrace.intake_positions")
        with pytest.raises(SlotError, match=r"in use by another reader.*stop that one first"):
            registered.import_history(origin)


def test_a_slot_that_another_platform_made_is_left_alone(registered: Any, origin: Any) -> None:
    origin.execute("SELECT pg_create_logical_replication_slot('headrace_small', 'pgoutput')")
    with pytest.raises(SlotError, match="this platform did not make it"):
        registered.import_history(origin)
    assert origin.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'headrace_small'") == [(1,)]


MOMENTS = {  # what the import cannot get past, since a lock of ours stands in its way; what it says of itself then
    "the slot was made": ("small.events", "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'headrace_small'"),
    "tables are copied": ("small.events", "SELECT 1 FROM headrace.worker_progress WHERE message LIKE 'copying%'"),
    "the first entries are written": ("small.events", "SELECT 1 FROM pg_locks WHERE NOT granted"),
    "the last entries are written": ("headrace.accounting", "SELECT 1 FROM pg_locks WHERE NOT granted"),
    "the position is written": ("headrace.intake_positions", "SELECT 1 FROM pg_locks WHERE NOT granted"),
}


def test_killed_at_any_moment_it_starts_again_cleanly(
    registered: Any, origin: Any, definitions: Path, tmp_path: Path
) -> None:
    origin.add(*origin.rows(0, 3_000))
    environment = os.environ | {
        "HEADRACE_DSN": registered.dsn,
        "HEADRACE_CONN_SMALL_DB": origin.dsn,
        "HEADRACE_HOME": str(tmp_path),
        "HEADRACE_STREAMS": str(definitions),
        "PYTHONHASHSEED": "0",
    }
    argv = [sys.executable, "-P", "-m", "headrace", "intake", "small"]
    for table, reached in MOMENTS.values():
        with closing(psycopg2.connect(registered.dsn)) as conn, conn.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table} IN SHARE MODE")  # no transaction id: it does not hinder the slot
            with (tmp_path / "intake.log").open("w") as output:
                process = subprocess.Popen(argv, env=environment, stdout=output, stderr=output)
            try:
                _until(registered, reached, process)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
        gone = "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'headrace i%')"
        _until(registered, gone)
        assert registered.query("SELECT 1 FROM headrace.intake_positions") == []
        assert registered.entries() == registered.epochs() == []
        assert registered.accounting() == {}
        registered.query("UPDATE headrace.worker_progress SET message = ''")
    registered.import_history(origin)
    entries = registered.entries()
    assert [e[0] for e in entries] == list(range(1, len(entries) + 1))
    events, labels = origin.execute("SELECT (SELECT count(*) FROM visits), (SELECT count(*) FROM outcomes)")[0]
    assert sum(e[1] is not None for e in entries) == events == 3_000
    assert registered.accounting()["history"]["received"] == events + labels
    assert registered.query("SELECT count(*) FROM pg_replication_slots") == [(1,)]


def _until(registered: Any, reached: str, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 60
    with closing(psycopg2.connect(registered.dsn)) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        while time.monotonic() < deadline:
            cursor.execute(reached)
            if cursor.fetchone():
                return
            assert process is None or process.poll() is None, "the import ended by itself"
            time.sleep(0.005)
    raise AssertionError(f"never came true: {reached}")


@pytest.fixture
def proxied(registered: Any, origin: Any) -> Iterator[Proxy]:
    """The way to the source's server leads through a proxy."""
    made = Proxy(f"{psycopg2.extensions.parse_dsn(origin.dsn)['host']}/{SOCKET_NAME}")
    origin.add(*origin.rows(0, 3_000))
    yield made
    made.close()


def impatient(patch: pytest.MonkeyPatch, seconds: float) -> None:
    patch.setattr(history, "PATIENCE", seconds)
    patch.setattr(resync, "PATIENCE", seconds)
    patch.setattr(source, "_SLOT_SECONDS", seconds / 2)


@contextmanager
def hanging(name: str, proxied: Proxy, direction: Direction) -> Iterator[None]:
    """Before a function of `source` is called, the proxy takes what it is given and passes nothing on: nothing is seen to end."""
    real = getattr(source, name)

    def first(*arguments: Any, **options: Any) -> Any:
        proxied.silence(direction)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        impatient(patch, 1.2)
        patch.setattr(source, name, first)
        began = time.monotonic()
        with pytest.raises((psycopg2.OperationalError, psycopg2.DatabaseError)) as ended:
            yield
        assert db.state_of(ended.value) == db.AWAY
        assert time.monotonic() - began < 10
    proxied.heal()


#: Functions of `source` that an import calls at its several stages: checks, slot, counts, copies.
STAGES = ("publication_made", "system", "create_slot", "identifiers", "columns_text", "column_types")
HANGS = [*((stage, "to client") for stage in STAGES), ("create_slot", "to server"), ("columns_text", "to server")]


@pytest.mark.parametrize(("stage", "direction"), HANGS)
def test_a_source_that_hangs_is_left(
    registered: Any, origin: Any, proxied: Proxy, stage: str, direction: Direction
) -> None:
    ours = replace(origin, dsn=proxied.dsn(database_of(origin.dsn)))
    with hanging(stage, proxied, direction):
        registered.import_history(ours)
    assert registered.import_history(ours).events == 3_000


def test_a_source_that_works_may_take_its_time(
    registered: Any, origin: Any, proxied: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a lock, far longer than one waits for a word; then it sends slowly."""
    impatient(monkeypatch, 2.0)
    identifiers, began = source.identifiers, time.monotonic()
    with closing(psycopg2.connect(origin.dsn)) as other:
        release = threading.Timer(5.0, other.rollback)

        def before_the_count(table: str) -> sql.Identifier:
            if not release.is_alive() and table == "public.visits":
                other.cursor().execute("LOCK TABLE visits IN ACCESS EXCLUSIVE MODE")
                release.start()
                proxied.slow(0.01, 200_000)
            return identifiers(table)

        monkeypatch.setattr(source, "identifiers", before_the_count)
        try:
            done = registered.import_history(replace(origin, dsn=proxied.dsn(database_of(origin.dsn))))
        finally:
            release.join()
    assert done.events == 3_000
    assert time.monotonic() - began > 5


def test_a_resync_leaves_a_source_that_hangs(registered: Any, origin: Any, proxied: Proxy) -> None:
    ours = replace(origin, dsn=proxied.dsn(database_of(origin.dsn)))
    registered.import_history(ours)
    origin.execute("SELECT pg_drop_replication_slot('headrace_small')")
    for stage in ("seam", "column_types", "create_slot", "columns_text"):
        with hanging(stage, proxied, "to client"):
            registered.resync(ours)
        with closing(psycopg2.connect(origin.dsn)) as conn, conn, conn.cursor() as cursor:
            free_slots(cursor)
    assert registered.resync(ours).known > 5_000
