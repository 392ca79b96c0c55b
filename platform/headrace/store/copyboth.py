"""The messages of a replication connection that streams: what the server sends, and what is confirmed to it.

psycopg2's own loop answers a server that wants a reply by itself, with the position that the server has just named; the
platform has not stored that one, and after a crash its slot is ahead of it, as if the platform were a restored backup. So
libpq is called here, on psycopg2's connection (`pgconn_ptr` is there for that): nothing is confirmed but what the caller
says. It costs 0.6 us a message more. No decoding, no waiting.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable
from typing import Any

from psycopg2 import _psycopg
from psycopg2.extras import ReplicationCursor

from headrace.errors import SourceError
from headrace.flow.pgtypes import POSTGRES_EPOCH
from headrace.store.db import is_away

DATA, KEEPALIVE = ord("w"), ord("k")
HEADER = 25  # bytes of a DATA message before its payload
_SQLSTATE = ord("C")


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


# The libpq that psycopg2 itself has loaded, found through the module that is linked to it. What never waits keeps the GIL.
_quick, _slow = ctypes.PyDLL(_psycopg.__file__), ctypes.CDLL(_psycopg.__file__)
_pointer, _int = ctypes.c_void_p, ctypes.c_int
_get = _function(_quick, "PQgetCopyData", _int, _pointer, _pointer, _int)
_consume = _function(_quick, "PQconsumeInput", _int, _pointer)
_free = _function(_quick, "PQfreemem", None, _pointer)
_copied = _function(ctypes.pythonapi, "PyBytes_FromStringAndSize", ctypes.py_object, _pointer, ctypes.c_ssize_t)
_put = _function(_slow, "PQputCopyData", _int, _pointer, ctypes.c_char_p, _int)
_flush = _function(_slow, "PQflush", _int, _pointer)
_result = _function(_slow, "PQgetResult", _pointer, _pointer)
_clear = _function(_slow, "PQclear", None, _pointer)
_field = _function(_slow, "PQresultErrorField", ctypes.c_char_p, _pointer, _int)
_said = _function(_slow, "PQerrorMessage", ctypes.c_char_p, _pointer)


class CopyBoth:
    """A replication connection after START_REPLICATION.

    Attributes
    ----------
    heard
        When the last message came, by the monotonic clock.
    """

    def __init__(self, cursor: ReplicationCursor) -> None:
        self._connection = cursor.connection  # keeps what `_conn` points to
        self._conn = cursor.connection.pgconn_ptr
        self._box = _pointer()
        self._at = ctypes.addressof(self._box)
        self.heard = time.monotonic()

    def fileno(self) -> int:
        """The socket, for `select`."""
        return self._connection.fileno()

    def message(self) -> bytes | None:
        """The next message with its header, None when none has come; do not call it once the connection is closed.

        Raises
        ------
        SourceError
            When the connection ended.
        """
        size = _get(self._conn, self._at, 1)
        if size == 0:
            if not _consume(self._conn):
                raise self._ended()
            size = _get(self._conn, self._at, 1)
            if size == 0:
                return None
            self.heard = time.monotonic()
        if size < 0:
            raise self._ended()
        pointer = self._box.value
        message: bytes = _copied(pointer, size)
        _free(pointer)
        return message

    def confirm(self, received: int, durable: int, *, ask: bool = False) -> None:
        """Tell the server how far we are; 0 is no position.

        Parameters
        ----------
        ask
            Whether it should answer at once.

        Raises
        ------
        SourceError
            When the connection ended.
        """
        now = time.time_ns() // 1000 - POSTGRES_EPOCH
        feedback = struct.pack(">cQQQqB", b"r", received, durable, durable, now, ask)
        if _put(self._conn, feedback, len(feedback)) != 1 or _flush(self._conn) != 0:
            raise self._ended()

    def _ended(self) -> SourceError:
        result = _result(self._conn)
        code = _field(result, _SQLSTATE) if result else None
        why = " ".join((_said(self._conn) or b"").decode(errors="replace").split()) or "the server ended it"
        _clear(result)
        away = code is None or is_away(code.decode())
        return SourceError(f"the replication connection ended: {why}", state="source_away" if away else None)
