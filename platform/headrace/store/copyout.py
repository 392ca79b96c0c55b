"""What COPY ... TO STDOUT gives, each in one buffer; no row becomes a Python object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.models.text import kernel
from headrace.store import libpq
from headrace.store.script import COPY_OUT, query_at_once

_FIRST_BYTES = 1 << 16
_MORE = 1
_functions = libpq.addresses("PQgetCopyData", "PQfreemem")


def copy_out(conn: Connection, text: sql.Composable) -> NDArray[np.uint8]:
    """What one COPY ... TO STDOUT gives, see `copies_out`."""
    (rows,) = copies_out(conn, text.as_string(conn))
    return rows


def copies_out(conn: Connection, text: str) -> list[NDArray[np.uint8]]:
    """Run some COPY ... TO STDOUT, with semicolons between, in one round trip; gives the bytes of each.

    They are part of the connection's transaction when one is open, and one of their own else.

    Raises
    ------
    psycopg2.Error
        What the server says against it, as psycopg2 would raise it.
    """
    given: list[NDArray[np.uint8]] = []
    query_at_once(conn, text.encode(), {COPY_OUT: lambda: given.append(_received(conn.pgconn_ptr))})
    return given


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
