"""COPY ... TO STDOUT in compiled code, on psycopg2's connection: bytes, errors and transactions as psycopg2 has them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
from psycopg2 import errors, sql
from psycopg2.extensions import STATUS_READY
from psycopg2.extensions import connection as Connection

from headrace.store import db
from headrace.store.copyout import copies_out, copy_out
from headrace.store.embedded import EmbeddedPostgres


@pytest.fixture
def conn(server: EmbeddedPostgres) -> Iterator[Connection]:
    with closing(db.connect(server.dsn("postgres"))) as conn:
        yield conn


def as_psycopg2(conn: Connection, text: str) -> bytes:
    file = io.BytesIO()
    with conn.cursor() as cursor:
        cursor.copy_expert(text, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 WHERE false",
        "SELECT n, repeat('x', n % 100), NULL::text FROM generate_series(1, 20000) AS n",
        "SELECT repeat('x', 3000000) FROM generate_series(1, 3)",  # rows larger than the buffer
    ],
)
def test_it_gives_what_psycopg2_gives(conn: Connection, query: str) -> None:
    text = f"COPY ({query}) TO STDOUT (FORMAT binary)"
    assert copy_out(conn, sql.SQL(text)).tobytes() == as_psycopg2(conn, text)


def test_it_is_part_of_a_transaction_that_is_open(conn: Connection) -> None:
    now = sql.SQL("COPY (SELECT now()) TO STDOUT")
    first, second = copies_out(conn, "COPY (SELECT now()) TO STDOUT; COPY (SELECT now(), 2) TO STDOUT")
    assert second.tobytes() == first.tobytes().strip() + b"\t2\n", "one transaction of their own"
    assert conn.status == STATUS_READY
    assert copy_out(conn, now).tobytes() != first.tobytes()
    with conn.cursor() as cursor:
        cursor.execute("SELECT now()::text || E'\\n'")
        ((begun,),) = cursor.fetchall()
    assert copy_out(conn, now).tobytes().decode() == begun


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("COPY (SELECT missing) TO STDOUT", errors.UndefinedColumn, 'column "missing" does not exist'),
        ("COPY (SELECT 1 / (50000 - n) FROM generate_series(1, 50000) n) TO STDOUT", errors.DivisionByZero, "by zero"),
    ],
)
def test_what_the_server_refuses_is_the_error_that_psycopg2_has(
    conn: Connection, text: str, error: type[psycopg2.Error], said: str
) -> None:
    """Before the first row, and in the middle of them."""
    with pytest.raises(error, match=said) as ours:
        copy_out(conn, sql.SQL(text))
    conn.rollback()
    with pytest.raises(error) as theirs:
        as_psycopg2(conn, text)
    assert ours.value.pgcode == theirs.value.pgcode
    conn.rollback()
    assert copy_out(conn, sql.SQL("COPY (SELECT 1) TO STDOUT")).tobytes() == b"1\n"


def test_a_server_that_goes_away_says_so(conn: Connection, server: EmbeddedPostgres) -> None:
    with closing(psycopg2.connect(server.dsn("postgres"))) as other, other.cursor() as cursor:
        copy_out(conn, sql.SQL("COPY (SELECT 1) TO STDOUT"))
        cursor.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
    with pytest.raises(psycopg2.Error) as gone:
        copy_out(conn, sql.SQL("COPY (SELECT 1) TO STDOUT"))
    assert db.state_of(gone.value) == db.AWAY
    assert conn.closed, "psycopg2 knows"
    with closing(db.connect(server.dsn("postgres"))) as cut:
        copy_out(cut, sql.SQL("COPY (SELECT 1) TO STDOUT"))
        os.close(cut.fileno())
        with pytest.raises(psycopg2.Error) as broken:
            copy_out(cut, sql.SQL("COPY (SELECT 1) TO STDOUT"))
        assert db.state_of(broken.value) == db.AWAY
