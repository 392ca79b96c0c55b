"""Statements that go to the server together: all of them or none, with psycopg2's errors and its idea of the transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
from psycopg2 import errors, sql
from psycopg2.extensions import STATUS_READY
from psycopg2.extensions import connection as Connection
from tests.conftest import Registered

from headrace.errors import LeaseError
from headrace.store import db
from headrace.store.log import Edge
from headrace.store.script import Script


@pytest.fixture
def conn(registered: Registered) -> Iterator[Connection]:
    registered.query("CREATE TABLE notes AS SELECT 1 AS id, '' AS said WHERE false")
    registered.query("ALTER TABLE notes ADD PRIMARY KEY (id)")
    with closing(db.connect(registered.dsn)) as conn:
        yield conn


def notes(registered: Registered) -> list[int]:
    return [id for (id,) in registered.query("SELECT id FROM notes ORDER BY id")]


def add(script: Script, text: str) -> None:
    script.add_text(sql.SQL(text))


def copied(script: Script, rows: bytes) -> None:
    script.copy(sql.SQL("COPY notes FROM STDIN"), rows)


def test_statements_and_copies_run_in_their_order(registered: Registered, conn: Connection) -> None:
    script = Script(conn)
    copied(script, b"1\ta;b\n2\t100%\n")
    add(script, "UPDATE notes SET said = 'first' WHERE id <= 2")
    copied(script, b"".join(b"%d\tx\n" % n for n in range(3, 100_000)))
    script.add_text(sql.SQL("INSERT INTO notes VALUES (%(id)s, %(said)s)"), {"id": 0, "said": "it's; 100%"})
    assert script.size > 700_000
    script.run()
    assert conn.status == STATUS_READY and script.size == 0
    assert len(notes(registered)) == 100_000
    assert registered.query("SELECT said FROM notes WHERE id < 3 ORDER BY id") == [
        ("it's; 100%",),
        ("first",),
        ("first",),
    ]


@pytest.mark.parametrize("begun", [False, True])
def test_what_fails_leaves_nothing(registered: Registered, conn: Connection, begun: bool) -> None:
    script = Script(conn)
    if begun:
        script.begin()
    for bad, error in ((b"8\tx\n8\ty\n", errors.UniqueViolation), (b"eight\n", errors.InvalidTextRepresentation)):
        copied(script, b"7\tx\n")
        copied(script, bad)
        add(script, "INSERT INTO notes VALUES (9, 'z')")
        with pytest.raises(error) as raised:
            script.run()
        assert raised.value.pgcode is not None
        conn.rollback()
        assert notes(registered) == []
    copied(script, b"7\tx\n")
    script.run()
    conn.commit()
    assert notes(registered) == [7]


def test_what_was_begun_is_the_connections_to_commit(registered: Registered, conn: Connection) -> None:
    script = Script(conn)
    copied(script, b"1\tx\n")
    script.begin()
    script.run()
    copied(script, b"2\tx\n")
    script.run()
    assert notes(registered) == []
    conn.commit()
    assert notes(registered) == [1, 2]


def test_a_role_that_was_lost_writes_nothing(registered: Registered, conn: Connection) -> None:
    script = Script(conn)
    copied(script, b"1\tx\n")
    script.add("keep_lease", {"stream": "small", "role": "intake", "token": 999})
    with pytest.raises(LeaseError, match="lost the role 'intake' of stream 'small'"):
        script.run()
    assert notes(registered) == []


def test_a_server_that_goes_away_closes_the_connection(registered: Registered, conn: Connection) -> None:
    script = Script(conn)
    copied(script, b"1\tx\n")
    add(script, "SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(psycopg2.Error) as gone:
        script.run()
    assert db.state_of(gone.value) == db.AWAY
    assert conn.closed
    assert notes(registered) == []


def test_only_what_says_where_the_log_ends_is_believed(registered: Registered, conn: Connection) -> None:
    with conn.cursor() as cursor:
        cursor.execute("LISTEN headrace_small")
        conn.commit()
        for told, edge in (("12 3", Edge(12, 3)), ("", None), ("soon", None), ("1 2 3", None), ("-5 1", None)):
            registered.query("SELECT pg_notify('headrace_small', %s) IS NULL", told)
            cursor.execute("SELECT")
            conn.commit()
            assert Edge.told(conn, "small") == edge
            assert conn.notifies
            conn.notifies.clear()
