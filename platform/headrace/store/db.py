"""Connections to the platform's database and to sources, with errors that say what to do.

A connection takes the group role that its work needs (least privilege), sets a recognisable application name and TCP
timeouts, and works in UTC and UTF-8, whatever encoding the server's database has.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn, parse_dsn
from psycopg2.extras import execute_values

from headrace.errors import ServerError
from headrace.store.queries import all_queries, query

Role = Literal["headrace_intake", "headrace_learner", "headrace_steer", "headrace_reader"]
Row = tuple[Any, ...]

_ROWS_AT_ONCE = 1000  # of one INSERT

#: libpq's parameters of every connection.
NETWORK: Mapping[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "client_encoding": "UTF8",
}


def connect(
    dsn: str, *, role: Role | None = None, application: str = "headrace", autocommit: bool = False
) -> Connection:
    """Open a connection.

    Raises
    ------
    ServerError
        When the DSN is wrong or the server refuses; the message never shows a password.
    """
    try:
        conn: Connection = psycopg2.connect(
            dsn,
            application_name=application,
            options="-c timezone=UTC -c bytea_output=hex",
            **NETWORK,
        )
    except psycopg2.ProgrammingError as error:
        raise ServerError(
            f"the DSN cannot be read: {_line(error)}; expected e.g. postgresql://user@host/database"
        ) from error
    except psycopg2.OperationalError as error:
        if dsn.startswith("service=") and "not found" in str(error):
            name = dsn.removeprefix("service=")
            raise ServerError(
                f"found neither HEADRACE_CONN_{name.upper()} in the environment nor a libpq service {name!r}; set the "
                "first to the database's DSN"
            ) from error
        raise ServerError(f"cannot connect to {describe(dsn)}: {_line(error)}") from error
    conn.autocommit = autocommit
    if role is not None:
        try:
            with conn.cursor() as cursor:
                cursor.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            if not autocommit:
                conn.commit()
        except psycopg2.Error as error:
            conn.close()
            raise ServerError(
                f"cannot take role {role} on {describe(dsn)}: {_line(error)}; run `headrace migrate` as the owner, or grant it"
            ) from error
    return conn


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def is_away(sqlstate: str | None) -> bool:
    """Whether an SQLSTATE means that the server went away or does not let anybody in; None is a connection that broke.

    >>> [is_away(code) for code in (None, "08006", "57P01", "57014", "40P01")]
    [True, True, True, False, False]
    """
    return sqlstate is None or sqlstate.startswith(("08", "57P"))


AWAY = "away"


def state_of(error: psycopg2.Error) -> str | None:
    """Name of the state that a server's error means: `AWAY`, or what it says; None for an error that should not be.

    >>> state_of(psycopg2.errors.LockNotAvailable()), state_of(psycopg2.errors.UndefinedColumn())
    ('lock_not_available', None)
    """
    if isinstance(error, psycopg2.InterfaceError):
        return AWAY
    # A connection that breaks within a COPY is a DatabaseError of no kind of its own.
    if type(error) in (psycopg2.OperationalError, psycopg2.DatabaseError) or (error.pgcode and is_away(error.pgcode)):
        return AWAY
    if isinstance(error, psycopg2.OperationalError):
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
    return None


@contextmanager
def answering(conn: Connection, seconds: float) -> Iterator[None]:
    """Wait no longer than so many seconds for a server's answers; then the connection ends with an error of psycopg2's.

    TCP notices a peer that is gone. It cannot notice one behind a proxy that takes everything and passes nothing on, and
    neither can a timeout at the server.
    """
    with socket.socket(fileno=os.dup(conn.fileno())) as peer:
        timer = threading.Timer(seconds, peer.shutdown, [socket.SHUT_RDWR])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


@contextmanager
def working(conn: Connection, dsn: str, seconds: float, received: Callable[[], int]) -> Iterator[None]:
    """Let a server work for as long as it does, a sort may take hours without a word; end a connection that hangs.

    Every third of `seconds` somebody asks on a connection of its own. One that hangs is one whose backend waits for its
    client, or of which nobody can tell, twice in a row without a byte in between.

    Parameters
    ----------
    dsn
        Where `conn` leads to.
    received
        Gives how much has arrived on it.
    """
    pid, over = conn.info.backend_pid, threading.Event()

    def watch() -> None:
        idle_at: int | None = None
        while not over.wait(seconds / 3):
            now = received()
            idle = not _works(dsn, pid, seconds)
            if idle and now == idle_at:
                peer.shutdown(socket.SHUT_RDWR)
                return
            idle_at = now if idle else None

    with socket.socket(fileno=os.dup(conn.fileno())) as peer:
        thread = threading.Thread(target=watch, name=f"watch backend {pid}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _works(dsn: str, pid: int, seconds: float) -> bool:
    try:
        with closing(connect(dsn, application="headrace watch", autocommit=True)) as conn, answering(conn, seconds):
            found = row(conn, "backend_works", {"pid": pid})
    except (ServerError, psycopg2.Error):
        return False
    return found is not None and bool(found[0])


def describe(dsn: str) -> str:
    """Where a DSN points to, without its password.

    >>> describe("postgresql://ada:secret@db.example:5433/shop")
    'ada@db.example:5433/shop'
    """
    try:
        parts = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        return "an unreadable DSN"
    if "service" in parts:
        return f"service {parts['service']}"
    user = f"{parts['user']}@" if "user" in parts else ""
    port = f":{parts['port']}" if "port" in parts else ""
    return f"{user}{parts.get('host', 'localhost')}{port}/{parts.get('dbname', parts.get('user', 'postgres'))}"


def with_database(dsn: str, database: str) -> str:
    """The same server's DSN with another database."""
    return make_dsn(dsn, dbname=database)


@contextmanager
def transaction(conn: Connection) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any exception."""
    try:
        yield conn
    except BaseException:
        if not conn.closed:
            conn.rollback()
        raise
    conn.commit()


def rows(
    conn: Connection, name: str, params: Mapping[str, Any] | None = None, *, schema: str | None = None
) -> list[Row]:
    """All rows of a named query."""
    with conn.cursor() as cursor:
        cursor.execute(query(name, schema), params or {})
        return cursor.fetchall()


def row(
    conn: Connection, name: str, params: Mapping[str, Any] | None = None, *, schema: str | None = None
) -> Row | None:
    """The first row of a named query, or None."""
    with conn.cursor() as cursor:
        cursor.execute(query(name, schema), params or {})
        return cursor.fetchone()


def run_all(conn: Connection, name: str, params: Sequence[Mapping[str, Any]]) -> None:
    """Run a named INSERT of one row for each of some, as one statement."""
    if params:
        head, values = all_queries()[name].split("VALUES ")
        with conn.cursor() as cursor:
            execute_values(cursor, f"{head}VALUES %s", params, template=values, page_size=_ROWS_AT_ONCE)


def run(conn: Connection, name: str, params: Mapping[str, Any] | None = None, *, schema: str | None = None) -> int:
    """Run a named query that returns nothing; gives the number of rows it touched."""
    with conn.cursor() as cursor:
        cursor.execute(query(name, schema), params or {})
        return cursor.rowcount
