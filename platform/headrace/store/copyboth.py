"""The messages of a replication connection that streams: what the server sends, and what is confirmed to it.

psycopg2's own loop answers a server that wants a reply by itself, with the position that the server has just named; the
platform has not stored that one, and after a crash its slot is ahead of it, as if the platform were a restored backup. So
libpq is called here, on psycopg2's connection (`pgconn_ptr` is there for that), and from compiled code: nothing is confirmed
but what the caller says, and no message becomes a Python object. No decoding, no waiting.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2.extras import ReplicationCursor

from headrace.errors import SourceError
from headrace.flow.pgtypes import POSTGRES_EPOCH
from headrace.models.text import kernel
from headrace.store import libpq
from headrace.store.db import is_away

_DATA = ord("w")
_HEADER = 25  # bytes of a data message before its payload
_COMMIT, _MESSAGE = ord("C"), ord("M")
_KEEPALIVE_BYTES = 18
_AWAITED = 5  # place in `Inbox.at`
_NAP = 300  # microseconds in which more comes, when nobody waits for it
_NAPS = 10
_KEPT = 1 << 24  # bytes of an inbox that it does not give back
_LOOKED_AT = 25_000  # messages of other programs that are passed over before the caller is asked whether to go on

NOTHING, FULL, COMMITTED, KEEPALIVE, PASSED, _GROW, _ENDED = range(7)
"""Why `CopyBoth.drain` stopped: nothing has come; the inbox is full; a Commit; a keepalive; many messages were passed over."""


class Inbox:
    """Payloads of messages that have come, one after the other.

    Attributes
    ----------
    count, size, whole
        Messages, their bytes, and messages up to the last Commit.
    """

    def __init__(self) -> None:
        self.buffer = np.empty(1 << 16, dtype=np.uint8)
        self.ends = np.zeros(1 << 10, dtype=np.int64)
        # count, size, whole, a message that found no room (where it is, its size), whether somebody waits
        self.at = np.zeros(6, dtype=np.int64)

    @property
    def count(self) -> int:
        return int(self.at[0])

    @property
    def size(self) -> int:
        return int(self.at[1])

    @property
    def whole(self) -> int:
        return int(self.at[2])

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for what has come: then it is not waited for more. Any thread may say so."""
        return bool(self.at[_AWAITED])

    @awaited.setter
    def awaited(self, awaited: bool) -> None:
        self.at[_AWAITED] = awaited

    def taken(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The first so many messages, in an array of their own, and where each begins and the last ends."""
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), self.ends[:count]])
        cut = int(offsets[-1])
        payloads, left = self.buffer[:cut].copy(), self.size - cut
        self.buffer[:left] = self.buffer[cut : self.size].copy()
        self.ends[: self.count - count] = self.ends[count : self.count] - cut
        self.at[:3] = self.count - count, left, max(self.whole - count, 0)
        if len(self.buffer) > _KEPT >= 2 * left:  # after a row of many megabytes
            self._have(_KEPT)
        return payloads, offsets

    def grow(self) -> None:
        """Room for the message that found none."""
        if self.count == len(self.ends):
            self.ends = np.concatenate([self.ends, np.zeros_like(self.ends)])
        if (wanted := self.size + int(self.at[4])) > len(self.buffer):
            self._have(max(2 * len(self.buffer), wanted))

    def _have(self, size: int) -> None:
        buffer = np.empty(size, dtype=np.uint8)
        buffer[: self.size] = self.buffer[: self.size]
        self.buffer = buffer


class CopyBoth:
    """A replication connection after START_REPLICATION.

    A server that streams fast sends hundreds of small messages in a millisecond, and waking up for each would cost more than
    the messages do: unless somebody waits, `drain` lets some come together.

    Attributes
    ----------
    heard
        When the last message came, by the monotonic clock.
    keepalive
        The last keepalive: where the server's WAL ends, when it was sent, whether it wants an answer.
    """

    def __init__(self, cursor: ReplicationCursor) -> None:
        self._connection = cursor.connection  # keeps what `_conn` points to
        self._conn = cursor.connection.pgconn_ptr
        self._box = np.zeros(1, dtype=np.uint64)  # where libpq says where a message is
        self._functions = libpq.addresses("PQgetCopyData", "PQconsumeInput", "PQfreemem", "usleep")
        self._keepalive = np.zeros(_KEEPALIVE_BYTES, dtype=np.uint8)
        self.heard = time.monotonic()

    def fileno(self) -> int:
        """The socket, for `select`."""
        return self._connection.fileno()

    @property
    def keepalive(self) -> bytes:
        return self._keepalive.tobytes()

    def drain(self, inbox: Inbox, size: int, count: int, *, single: bool) -> int:
        """Take what has come; do not call it once the connection is closed. Messages outside of transactions are passed over.

        Parameters
        ----------
        size, count
            The inbox is full when it has so many bytes or messages.
        single
            Stop at a Commit.

        Returns
        -------
        int
            Why it stopped.

        Raises
        ------
        SourceError
            When the connection ended.
        """
        while True:
            box = self._box.ctypes.data
            stopped, heard = _drain(
                self._conn, self._functions, box, self._box, inbox.buffer, inbox.ends, inbox.at, size, count, single,
                self._keepalive,
            )  # fmt: skip
            if heard:
                self.heard = time.monotonic()
            if stopped == _ENDED:
                raise self._ended()
            if stopped != _GROW:
                return int(stopped)
            inbox.grow()

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
        if libpq.put_copy_data(self._conn, feedback, len(feedback)) != 1 or libpq.flush(self._conn) != 0:
            raise self._ended()

    def _ended(self) -> SourceError:
        result = libpq.get_result(self._conn)
        code, said = libpq.what_failed(self._conn, result)
        why = said or "the server ended it"
        libpq.clear(result)
        away = code is None or is_away(code)
        return SourceError(f"the replication connection ended: {why}", state="source_away" if away else None)


def rehearse() -> None:
    """Have `CopyBoth.drain` compiled, or loaded: an inbox without room asks for no message."""
    inbox, box = Inbox(), np.zeros(1, dtype=np.uint64)
    keepalive = np.zeros(_KEEPALIVE_BYTES, dtype=np.uint8)
    functions = np.zeros(4, dtype=np.int64)
    _drain(0, functions, box.ctypes.data, box, inbox.buffer, inbox.ends, inbox.at, 0, 0, False, keepalive)


@kernel
def _keep(message: Any, size: Any, single: Any, buffer: Any, ends: Any, at: Any) -> Any:
    """Put a data message into the inbox: `NOTHING`, or `PASSED`, `COMMITTED`, `_GROW`."""
    kind = message[_HEADER]
    if kind == _MESSAGE and message[_HEADER + 1] == 0:
        return PASSED
    count, used, length = at[0], at[1], np.int64(size) - _HEADER
    if count == ends.size or used + length > buffer.size:
        return _GROW
    for k in range(length):
        buffer[used + k] = message[_HEADER + k]
    at[0], at[1], ends[count] = count + 1, used + length, used + length
    if kind == _COMMIT:
        at[2] = count + 1
        return COMMITTED if single else NOTHING
    return NOTHING


@kernel
def _drain(
    conn: Any, functions: Any, box_address: Any, box: Any, buffer: Any, ends: Any, at: Any, size: Any, count: Any, single: Any,
    keepalive: Any,
) -> Any:  # fmt: skip
    """Why it stopped, and whether anything came."""
    get, consume, free, sleep = functions
    passed, naps, heard, null = 0, 0, False, np.uint64(0)
    while True:
        if at[1] >= size or at[0] >= count:
            return FULL, heard
        length = np.int32(at[4])
        if length == 0:
            length = libpq.call(get, np.uint64(conn), np.uint64(box_address), np.int32(1))
            if length == 0:
                if not libpq.call(consume, np.uint64(conn), null, np.int32(0)):
                    return _ENDED, heard
                length = libpq.call(get, np.uint64(conn), np.uint64(box_address), np.int32(1))
                if length == 0:
                    if naps == _NAPS or at[_AWAITED]:
                        return NOTHING, heard
                    naps += 1
                    libpq.call(sleep, np.uint64(_NAP), null, np.int32(0))
                    continue
            if length < 0:
                return _ENDED, heard
            heard = True
            at[3] = np.int64(box[0])
        at[4] = 0
        pointer = np.uint64(at[3])
        message = libpq.array_at(libpq.bytes_at(pointer), (np.int64(length),))
        if message[0] != _DATA or length < _HEADER + 1:
            for k in range(min(np.int64(length), keepalive.size)):
                keepalive[k] = message[k]
            libpq.call(free, pointer, null, np.int32(0))
            return KEEPALIVE, heard
        stopped = _keep(message, length, single, buffer, ends, at)
        if stopped == _GROW:
            at[4] = length
            return _GROW, heard
        libpq.call(free, pointer, null, np.int32(0))
        if stopped == COMMITTED:
            return COMMITTED, heard
        passed += stopped == PASSED
        if passed >= _LOOKED_AT:
            return PASSED, heard
