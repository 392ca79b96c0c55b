"""The guard of the source's disk: a slot that keeps too much is given up, loudly, and the gap can be closed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg2
import pytest

from headrace.errors import SlotError
from headrace.live.guard import Guard
from headrace.store.embedded import EmbeddedPostgres

_BOUND = 64 * 2**20


def write_wal(origin: Any, megabytes: int) -> None:
    """Written to the last byte, not left in a buffer of some megabytes."""
    origin.execute(
        "SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000)) FROM generate_series(1, %s)", megabytes
    )
    origin.execute("SELECT pg_logical_emit_message(true, 'test', '')")


def test_a_slot_is_given_up_before_its_bound(registered: Any, origin: Any, caplog: pytest.LogCaptureFixture) -> None:
    origin.add(*origin.rows(0, 30))
    registered.import_history(origin)
    small = replace(registered.stream, policy=replace(registered.stream.policy, max_slot_bytes=_BOUND))
    guard = Guard(registered.dsn, [(small, origin.dsn)])
    guard.look(small, origin.dsn)
    assert not caplog.messages
    write_wal(origin, 40)
    guard.look(small, origin.dsn)
    guard.look(small, origin.dsn)
    (warning,) = caplog.messages
    assert "it is given up before 67.1 MB: is the intake well?" in warning
    origin.add(*origin.rows(30, 10))
    write_wal(origin, 25)
    guard.start()
    open_incidents = "SELECT state, message FROM metrics.incidents WHERE closed_at IS NULL"
    deadline = time.monotonic() + 20
    while not (found := registered.query(open_incidents)):
        assert time.monotonic() < deadline, "nobody was told"
        time.sleep(0.05)
    guard.end()
    ((state, message),) = found
    assert state == "slot_given_up"
    assert "its bound is 67.1 MB (policy.max_slot_bytes): it was dropped to save the source's disk" in message
    assert message in caplog.messages
    assert origin.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", small.slot) == []
    with pytest.raises(SlotError, match=r"slot_missing: .* `headrace resync small` closes the gap"):
        registered.follow(origin)
    registered.resync(origin)
    registered.follow(origin)
    assert registered.query("SELECT count(*) FROM small.events") == [(40,)]
    assert registered.query(open_incidents) == []


def test_a_slot_that_postgres_gave_up(registered: Any, origin: Any, server: EmbeddedPostgres) -> None:
    """The source's own bound: the WAL is gone."""
    origin.add(*origin.rows(0, 30))
    registered.import_history(origin)
    with bounded(server, "32MB"):
        write_wal(origin, 100)
        origin.add(*origin.rows(30, 10))
        with closing(psycopg2.connect(origin.dsn)) as conn, conn.cursor() as cursor:
            conn.autocommit = True
            cursor.execute("CHECKPOINT")
        with pytest.raises(
            SlotError, match=r"slot_lost: .* its WAL is gone; .* `headrace resync small` closes the gap"
        ):
            registered.follow(origin)
        registered.resync(origin)
    registered.follow(origin)
    assert registered.query("SELECT count(*) FROM small.events") == [(40,)]
    assert registered.query("SELECT split_part(why, ':', 1), events FROM metrics.gaps") == [("slot_lost", 10)]


@contextmanager
def bounded(server: EmbeddedPostgres, size: str) -> Iterator[None]:
    with closing(psycopg2.connect(server.dsn("postgres"))) as conn, conn.cursor() as cursor:
        conn.autocommit = True
        cursor.execute("ALTER SYSTEM SET max_slot_wal_keep_size = %s", (size,))
        cursor.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            cursor.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
            cursor.execute("SELECT pg_reload_conf()")
