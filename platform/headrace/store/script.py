"""Statements that go to the server together: one round trip, one transaction.

A transaction of the intake is ten statements, three of them COPYs; one after the other, each would cost a round trip, which
for a few rows is most of the time. Here they are sent as one query, which Postgres runs as one transaction unless one is
open; each COPY ... FROM STDIN is given its rows when its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2 import InternalError, OperationalError, errors, sql
from psycopg2.extensions import STATUS_READY
from psycopg2.extensions import connection as Connection

from headrace.errors import LeaseError
from headrace.flow.wire import as_bytes
from headrace.store import libpq
from headrace.store.queries import query

_EMPTY, _COMMAND_OK, _TUPLES_OK, COPY_OUT, _COPY_IN = range(5)  # of ExecStatusType
_AT_ONCE = 1 << 18  # bytes of a COPY that the connection is given at a time
_LOST = "HR001"  # raised by headrace.keep_lease


class Script:
    """Collects statements, and runs them.

    Parameters
    ----------
    conn
        With no transaction open `run` is one; else `run` is part of that one. It must not autocommit: `begin` could not keep
        together what `run` is called several times for.
    """

    def __init__(self, conn: Connection) -> None:
        assert not conn.autocommit
        self.conn = conn
        self._cursor = conn.cursor()  # runs nothing
        self._statements: list[bytes] = []
        self._rows: list[NDArray[np.uint8]] = []

    @property
    def size(self) -> int:
        """Bytes that wait for `run`."""
        return sum(map(len, self._rows)) + sum(map(len, self._statements))

    def add(self, name: str, params: Mapping[str, Any] | None = None) -> None:
        """A named query that gives nothing back."""
        self.add_text(query(name), params)

    def add_text(self, text: sql.Composable, params: Mapping[str, Any] | None = None) -> None:
        """Another statement that gives nothing back."""
        self._statements.append(
            text.as_string(self.conn).encode() if params is None else self._cursor.mogrify(text, params)
        )

    def copy(self, text: sql.Composable, rows: bytes | NDArray[np.uint8]) -> None:
        """A COPY ... FROM STDIN and what it is given."""
        self.add_text(text)
        self._rows.append(as_bytes(rows))

    def begin(self) -> None:
        """Have the connection's transaction begin, which `run` is then part of: something must be known before the commit."""
        if self.conn.status == STATUS_READY:
            with self.conn.cursor() as cursor:
                cursor.execute("SELECT")  # psycopg2 begins one

    def run(self) -> None:
        """Run what was collected.

        Raises
        ------
        LeaseError
            When `keep_lease` finds that the role is another process's by now.
        psycopg2.Error
            As psycopg2 would raise it; nothing of the script is done.
        """
        text, rows = b";\n".join(self._statements), iter(self._rows)
        self._statements, self._rows = [], []
        handle = self.conn.pgconn_ptr
        if text:
            query_at_once(self.conn, text, {_COPY_IN: lambda: _give(handle, next(rows))})


def query_at_once(conn: Connection, text: bytes, copies: Mapping[int, Callable[[], None]]) -> None:
    """Send statements as one query, and do for each COPY among them what its status asks for.

    Raises
    ------
    LeaseError, psycopg2.Error
        As `Script.run`; a connection that ended is closed, so that psycopg2 knows.
    """
    handle, failed = conn.pgconn_ptr, None
    if not libpq.send_query(handle, text):
        failed = libpq.what_failed(handle, None)
    while failed is None or failed[0] is not None:  # once a connection has ended there may be no last result
        if not (result := libpq.get_result(handle)):
            break
        status = libpq.result_status(result)
        if status in copies:
            copies[status]()
        elif status not in (_EMPTY, _COMMAND_OK, _TUPLES_OK) and failed is None:
            failed = libpq.what_failed(handle, result)
        libpq.clear(result)
    if failed is not None:
        if libpq.is_broken(handle):
            conn.close()
        raise error_of(*failed)


def _give(handle: int | None, rows: NDArray[np.uint8]) -> None:
    """Give a COPY its rows; what goes wrong is its result."""
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        if libpq.put_copy_data(handle, part.ctypes.data, len(part)) != 1:
            break
    libpq.put_copy_end(handle, None)


def error_of(code: str | None, said: str) -> Exception:
    """The exception that psycopg2 has for an SQLSTATE; None is a connection that ended."""
    if code is None:
        return OperationalError(said or "the server ended the connection")
    if code == _LOST:
        return LeaseError(said)
    try:
        error = errors.lookup(code)(said)
    except KeyError:  # one of a newer server
        error = InternalError(said)
    error.__setstate__({"pgcode": code, "pgerror": said})  # type: ignore[no-untyped-call]
    return error
