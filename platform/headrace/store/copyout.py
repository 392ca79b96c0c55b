"""What a COPY ... TO STDOUT gives, in one buffer; no row becomes a Python object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2 import DatabaseError, OperationalError, errors, sql
from psycopg2.extensions import STATUS_READY
from psycopg2.extensions import connection as Connection

from headrace.models.text import kernel
from headrace.store import libpq

_COMMAND_OK, _COPY_OUT = 1, 3  # of ExecStatusType
_FIRST_BYTES = 1 << 16
_MORE = 1
_functions = libpq.addresses("PQgetCopyData", "PQfreemem")


def copy_out(conn: Connection, text: sql.Composable) -> NDArray[np.uint8]:
    """Run a COPY ... TO STDOUT in the connection's transaction; gives its bytes.

    Raises
    ------
    psycopg2.Error
        What the server says against it, as psycopg2 would raise it.
    """
    if conn.status == STATUS_READY and not conn.autocommit:
        with conn.cursor() as cursor:
            cursor.execute("SELECT")  # psycopg2 begins its transaction
    handle = conn.pgconn_ptr
    if not libpq.send_query(handle, text.as_string(conn).encode()):
        raise OperationalError(libpq.what_failed(handle, None)[1])
    result, rows = libpq.get_result(handle), np.empty(0, dtype=np.uint8)
    if libpq.result_status(result) == _COPY_OUT:
        libpq.clear(result)
        rows = _received(handle)
        result = libpq.get_result(handle)
    failed = None if libpq.result_status(result) == _COMMAND_OK else libpq.what_failed(handle, result)
    while result:
        libpq.clear(result)
        result = libpq.get_result(handle)
    if failed is not None:
        code, said = failed
        raise OperationalError(said or "the server ended the connection") if code is None else _error(code, said)
    return rows


def _error(code: str, said: str) -> Exception:
    """The exception that psycopg2 has for an SQLSTATE."""
    try:
        error = errors.lookup(code)(said)
    except KeyError:  # one of a newer server
        error = DatabaseError(said)
    error.__setstate__({"pgcode": code, "pgerror": said})  # type: ignore[no-untyped-call]
    return error


def _received(handle: int | None) -> NDArray[np.uint8]:
    """All rows that come; the next result says whether these are all."""
    buffer, box, at = np.empty(_FIRST_BYTES, dtype=np.uint8), np.zeros(1, dtype=np.uint64), np.zeros(3, dtype=np.int64)
    while _collect(handle, _functions, box.ctypes.data, box, buffer, at) == _MORE:
        larger = np.empty(max(2 * len(buffer), int(at[0] + at[2])), dtype=np.uint8)
        larger[: at[0]] = buffer[: at[0]]
        buffer = larger
    return buffer[: at[0]]


@kernel
def _collect(conn: Any, functions: Any, box_address: Any, box: Any, buffer: Any, at: Any) -> Any:
    """`_MORE` when a row finds no room, 0 when no more come.

    `at`: bytes that are there, and a row that found no room: where it is, its size.
    """
    get, free = functions
    while True:
        if at[2] == 0:
            length = libpq.call(get, np.uint64(conn), np.uint64(box_address), np.int32(0))
            if length < 0:
                return 0
            at[1], at[2] = np.int64(box[0]), length
        length, used = at[2], at[0]
        if used + length > buffer.size:
            return _MORE
        row = libpq.array_at(libpq.bytes_at(np.uint64(at[1])), (length,))
        for k in range(length):
            buffer[used + k] = row[k]
        libpq.call(free, np.uint64(at[1]), np.uint64(0), np.int32(0))
        at[0], at[2] = used + length, 0
