"""Postgres's logical change stream (pgoutput, protocol version 1, binary tuples), decoded a chunk at a time.

`parse` takes the payloads of many messages in one buffer and returns `Messages`: the type and transaction of every
message, and, for each relation, the changed rows as `Cells` that point into the buffer. Guarantees: every byte of every
payload is accounted for, else it raises; the order of changes across relations is kept; a Relation message that alters
columns starts a new group of rows. It keeps no state: what the next chunk must know travels in a `Session`. It does not
read from a socket, turn fields into values, or handle streamed (in-progress) and two-phase transactions.

Format: PostgreSQL documentation, "Logical Replication Message Formats".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DecodeError
from headrace.flow.pgtypes import POSTGRES_EPOCH
from headrace.flow.wire import ABSENT, UNCHANGED, Cells, as_bytes, int16, int32, int64, uint32
from headrace.models.text import NULL, kernel

INSERT, UPDATE, DELETE = ord("I"), ord("U"), ord("D")
BEGIN, COMMIT, RELATION, TYPE, ORIGIN, TRUNCATE, MESSAGE = (ord(c) for c in "BCRYOTM")
NEW, KEY, OLD = ord("N"), ord("K"), ord("O")
BINARY_FIELD, TEXT_FIELD, NULL_FIELD, UNCHANGED_FIELD = (ord(c) for c in "btnu")


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A column of a published table."""

    name: str
    type_oid: int
    typmod: int  # -1 when the type has none
    is_key: bool  # part of the replica identity


@dataclass(frozen=True, slots=True)
class Relation:
    """A published table as the server described it before its next change."""

    oid: int
    namespace: str  # "pg_catalog" is sent as ""
    name: str
    replica_identity: str  # "d" default, "n" nothing, "f" full, "i" index
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """The start of a transaction."""

    final_lsn: int  # the LSN of its Commit record
    commit_time: int  # microseconds since the Unix epoch
    xid: int


@dataclass(frozen=True, slots=True)
class TypeName:
    """The name of a type that is not built in; of a domain, the name of its base type."""

    index: int
    oid: int
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The replication origin a transaction came from."""

    index: int
    commit_lsn: int
    name: str


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables that were emptied together."""

    index: int
    oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """What somebody wrote with pg_logical_emit_message."""

    index: int
    transactional: bool
    lsn: int
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Session:
    """What one chunk must tell the next: the tables described so far and the transaction that is still open."""

    relations: Mapping[int, Relation] = field(default_factory=lambda: MappingProxyType({}))
    open: Begin | None = None


@dataclass(frozen=True, slots=True)
class Transactions:
    """The chunk's transactions in commit order, all arrays int64[transactions].

    One that was begun in an earlier chunk comes first, with `begin` -1; one whose Commit is yet to come is last, with
    `commit` -1 and `end_lsn` 0. Times are microseconds since the Unix epoch.
    """

    final_lsn: NDArray[np.int64]
    commit_time: NDArray[np.int64]
    xid: NDArray[np.int64]
    begin: NDArray[np.int64]  # index of the Begin message
    commit: NDArray[np.int64]  # index of the Commit message
    end_lsn: NDArray[np.int64]  # what to acknowledge once everything before it is durable


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes to one version of one relation, in stream order.

    Attributes
    ----------
    relation : Relation
    message : int64[rows]
        Index of each change's message in the chunk: merges changes of several relations back into one order.
    transaction : int32[rows]
        Index into `Messages.transactions`.
    kind : uint8[rows]
        `INSERT`, `UPDATE` or `DELETE`.
    new : Cells
        The row after the change; `ABSENT` for deletes.
    old : Cells or None
        The row before, where the message carries one, else `ABSENT`; None when no message of the group does.
    identity : uint8[rows]
        What `old` holds: `OLD` the whole row, `KEY` its key columns (the others NULL), 0 nothing.
    """

    relation: Relation
    message: NDArray[np.int64]
    transaction: NDArray[np.int32]
    kind: NDArray[np.uint8]
    new: Cells
    old: Cells | None
    identity: NDArray[np.uint8]

    def rows_before(self) -> Cells:
        """The row before a DELETE, as far as it was sent; the new row of other changes."""
        if self.old is None:
            return self.new
        gone = self.kind == DELETE
        start, length = np.where(gone, self.old.start, self.new.start), np.where(gone, self.old.length, self.new.length)
        return Cells(self.new.buffer, start, length, np.where(gone, self.old.text, self.new.text), self.new.names)

    def filled(self) -> Cells:
        """`new`, with unchanged TOASTed fields taken from the old row where all of that was sent."""
        new, old = self.new, self.old
        if old is None:
            return new
        known = (new.length == UNCHANGED) & (old.length >= NULL) & (self.identity == OLD)
        return Cells(
            new.buffer,
            np.where(known, old.start, new.start),
            np.where(known, old.length, new.length),
            np.where(known, old.text, new.text),
            new.names,
        )


@dataclass(frozen=True, slots=True)
class Messages:
    """A decoded chunk.

    Attributes
    ----------
    kind : uint8[messages]
        The message byte.
    transaction : int32[messages]
        Index into `transactions`; -1 outside any (a logical message that is not transactional).
    transactions : Transactions
    changes : tuple of Changes
        One for each version of a relation that was changed.
    truncates, logical, types, origins : tuples
    session : Session
        To pass to the next `parse`.
    """

    kind: NDArray[np.uint8]
    transaction: NDArray[np.int32]
    transactions: Transactions
    changes: tuple[Changes, ...]
    truncates: tuple[Truncate, ...]
    logical: tuple[LogicalMessage, ...]
    types: tuple[TypeName, ...]
    origins: tuple[Origin, ...]
    session: Session

    def rows(self, oid: int) -> tuple[Changes, ...]:
        """The changes of one relation: a group for each version of its columns, in order."""
        return tuple(c for c in self.changes if c.relation.oid == oid)


# What a kernel found wrong; the texts are in `_REASONS`.
(_UNKNOWN, _SHORT, _LONG, _OUTSIDE, _NESTED, _NO_RELATION, _LSN, _WIDTH, _FIELD, _MARKER) = range(1, 11)
_REASONS = {
    _UNKNOWN: "unknown message type; expected one of B C O R Y I U D T M (start the stream with proto_version 1)",
    _SHORT: "the payload ends too early",
    _LONG: "the payload has bytes left over",
    _OUTSIDE: "this message must be inside a transaction; pass the session of the chunk before",
    _NESTED: "Begin inside a transaction; was a message lost, or the session of an older chunk passed?",
    _NO_RELATION: "a change to a relation that was not described; pass the session of the chunk before",
    _LSN: "a Commit whose LSN differs from its Begin's; was a message lost?",
    _WIDTH: "the row's number of columns differs from its relation's",
    _FIELD: "unknown column kind; expected one of b t n u",
    _MARKER: "unexpected row marker; expected N, K or O",
}


def _error(buffer: NDArray[np.uint8], message: int, at: int, start: int, code: int) -> DecodeError:
    found = f"byte 0x{buffer[at]:02x} at position {at}" if at < buffer.size else f"end of buffer at position {at}"
    kind = chr(buffer[start])
    return DecodeError(
        f"change stream, message {message} (type {kind!r}) at position {start}: {_REASONS[code]}; {found}"
    )


@kernel
def _scan(
    buffer: Any, offsets: Any, known: Any, group: Any, changes: Any, transaction: Any, transactions: Any, is_open: bool
) -> tuple[int, int, int, int]:
    """Frame every message: which transaction, which group; counts the changes of each group.

    `known[0, g]` is the oid of group g, newest version last; `known[1, g]` whether an earlier chunk described it.
    """
    current = 0 if is_open else -1  # the open transaction
    count = 1 if is_open else 0
    newest = known[0].copy()  # oid of each group that is the current version of its relation, else -1
    last = 0
    for g in range(newest.size):
        if known[1, g] == 0:
            newest[g] = -1
    for i in range(offsets.size - 1):
        at, end = offsets[i], offsets[i + 1]
        kind = buffer[at]
        transaction[i] = current
        if kind in (INSERT, UPDATE, DELETE):
            if end - at < 8:
                return _SHORT, i, end, count
            if current < 0:
                return _OUTSIDE, i, at, count
            oid = uint32(buffer, at + 1)
            if last >= newest.size or newest[last] != oid:
                last = 0
                while last < newest.size and newest[last] != oid:
                    last += 1
                if last == newest.size:
                    return _NO_RELATION, i, at + 1, count
            group[i] = last
            changes[last] += 1
        elif kind == BEGIN:
            if end - at < 21:
                return _SHORT, i, end, count
            if end - at > 21:
                return _LONG, i, at + 21, count
            if current >= 0:
                return _NESTED, i, at, count
            current = count
            transaction[i] = current
            transactions[0, count] = int64(buffer, at + 1)
            transactions[1, count] = int64(buffer, at + 9) + POSTGRES_EPOCH
            transactions[2, count] = uint32(buffer, at + 17)
            transactions[3, count] = i
            transactions[4, count] = -1
            transactions[5, count] = 0
            count += 1
        elif kind == COMMIT:
            if end - at < 26:
                return _SHORT, i, end, count
            if end - at > 26:
                return _LONG, i, at + 26, count
            if current < 0:
                return _OUTSIDE, i, at, count
            if int64(buffer, at + 2) != transactions[0, current]:
                return _LSN, i, at + 2, count
            transactions[4, current] = i
            transactions[5, current] = int64(buffer, at + 10)
            current = -1
        elif kind == MESSAGE:
            if end - at < 2:
                return _SHORT, i, end, count
            if (buffer[at + 1] & 1) == 0:
                transaction[i] = -1
            elif current < 0:
                return _OUTSIDE, i, at, count
        elif kind == TRUNCATE:
            if current < 0:
                return _OUTSIDE, i, at, count
        elif kind == RELATION:
            for g in range(newest.size):
                if newest[g] == known[0, group[i]]:
                    newest[g] = -1
            newest[group[i]] = known[0, group[i]]
        elif kind != TYPE and kind != ORIGIN:
            return _UNKNOWN, i, at, count
    return 0, 0, 0, count


@kernel
def _row(buffer: Any, at: int, end: int, row: int, start: Any, length: Any, text: Any) -> tuple[int, int]:
    """Walk one TupleData; returns the position after it and 0, or the position of a mistake and its code."""
    columns = start.shape[0]
    if end - at < 2:
        return end, _SHORT
    if int16(buffer, at) != columns:
        return at, _WIDTH
    at += 2
    for c in range(columns):
        if at >= end:
            return end, _SHORT
        kind = buffer[at]
        at += 1
        text[c, row] = kind == TEXT_FIELD
        if kind in (BINARY_FIELD, TEXT_FIELD):
            if end - at < 4:
                return end, _SHORT
            size = int32(buffer, at)
            at += 4
            if size < 0 or size > end - at:
                return at - 4, _SHORT
            start[c, row] = at
            length[c, row] = size
            at += size
        else:
            start[c, row] = at
            if kind == NULL_FIELD:
                length[c, row] = NULL
            elif kind == UNCHANGED_FIELD:
                length[c, row] = UNCHANGED
            else:
                return at - 1, _FIELD
    return at, 0


@kernel
def _absent(row: int, start: Any, length: Any, text: Any) -> None:
    for c in range(start.shape[0]):
        start[c, row] = 0
        length[c, row] = ABSENT
        text[c, row] = False


@kernel
def _rows(
    buffer: Any, offsets: Any, message: Any, identity: Any,
    start: Any, length: Any, text: Any, old_start: Any, old_length: Any, old_text: Any,
) -> tuple[int, int, int]:  # fmt: skip
    """Walk the rows of one group; the `old` arrays may have no columns when no message carries an old row."""
    for row in range(message.size):
        at, end = offsets[message[row]], offsets[message[row] + 1]
        kind = buffer[at]
        marker = buffer[at + 5]
        at += 6
        if marker in (KEY, OLD):
            if kind == INSERT:
                return _MARKER, row, at - 1
            identity[row] = marker
            at, code = _row(buffer, at, end, row, old_start, old_length, old_text)
            if code:
                return code, row, at
            if kind == UPDATE:
                if at >= end:
                    return _SHORT, row, end
                marker = buffer[at]
                at += 1
        else:
            identity[row] = 0
            _absent(row, old_start, old_length, old_text)
        if kind == DELETE:
            if identity[row] == 0:
                return _MARKER, row, at - 1
            _absent(row, start, length, text)
        else:
            if marker != NEW:
                return _MARKER, row, at - 1
            at, code = _row(buffer, at, end, row, start, length, text)
            if code:
                return code, row, at
        if at != end:
            return _LONG, row, at
    return 0, 0, 0


class _Reader:
    """Reads one message that is too rare to need a kernel."""

    def __init__(self, buffer: NDArray[np.uint8], index: int, start: int, end: int) -> None:
        self.buffer, self.index, self.start, self.end = buffer, index, start, end
        self.at = start + 1

    def bytes(self, size: int) -> bytes:
        if size < 0 or size > self.end - self.at:
            raise _error(self.buffer, self.index, self.at, self.start, _SHORT)
        self.at += size
        return self.buffer[self.at - size : self.at].tobytes()

    def integer(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.bytes(size), "big", signed=signed)

    def string(self) -> str:
        zero = self.buffer[self.at : self.end].tobytes().find(0)
        if zero < 0:
            raise _error(self.buffer, self.index, self.end, self.start, _SHORT)
        raw = self.bytes(zero + 1)[:-1]
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(
                f"change stream, message {self.index} at position {self.start}: {raw!r} is not UTF-8; expected a name"
                " in UTF-8; connect with client_encoding=UTF8"
            ) from error

    def done(self) -> None:
        if self.at != self.end:
            raise _error(self.buffer, self.index, self.at, self.start, _LONG)


def _relation(reader: _Reader) -> Relation:
    oid, namespace, name = reader.integer(4), reader.string(), reader.string()
    identity = chr(reader.integer(1))
    columns = []
    for _ in range(reader.integer(2)):
        is_key = bool(reader.integer(1) & 1)
        columns.append(RelationColumn(reader.string(), reader.integer(4), reader.integer(4, signed=True), is_key))
    return Relation(oid, namespace, name, identity, tuple(columns))


def _truncate(reader: _Reader) -> Truncate:
    count, options = reader.integer(4), reader.integer(1)
    oids = np.frombuffer(reader.bytes(4 * count), dtype=">u4")
    return Truncate(reader.index, tuple(oids.tolist()), bool(options & 1), bool(options & 2))


def _logical(reader: _Reader) -> LogicalMessage:
    transactional, lsn, prefix = (bool(reader.integer(1) & 1), reader.integer(8), reader.string())
    return LogicalMessage(reader.index, transactional, lsn, prefix, reader.bytes(reader.integer(4)))


def _type_name(reader: _Reader) -> TypeName:
    return TypeName(reader.index, reader.integer(4), reader.string(), reader.string())


def _origin(reader: _Reader) -> Origin:
    return Origin(reader.index, reader.integer(8), reader.string())


def _read_all(kinds: NDArray[np.uint8], kind: int, buffer: Any, offsets: Any, decode: Any) -> tuple[Any, ...]:
    """Messages of a rare kind."""
    found = []
    for i in np.flatnonzero(kinds == kind).tolist():
        reader = _Reader(buffer, i, int(offsets[i]), int(offsets[i + 1]))
        found.append(decode(reader))
        reader.done()
    return tuple(found)


def _changes(
    relation: Relation, message: NDArray[np.int64], buffer: Any, offsets: Any, kinds: Any, transaction: Any
) -> Changes:
    kind = kinds[message]
    names = tuple(c.name for c in relation.columns)
    has_old = np.count_nonzero(buffer[offsets[message] + 5] != NEW) > 0

    def block(columns: int) -> tuple[Any, Any, Any]:
        shape = (columns, message.size)
        return (np.empty(shape, np.int64), np.empty(shape, np.int32), np.empty(shape, np.bool_))

    new, old = block(len(names)), block(len(names) if has_old else 0)
    identity = np.empty(message.size, dtype=np.uint8)
    code, row, at = _rows(buffer, offsets, message, identity, *new, *old)
    if code:
        raise _error(buffer, int(message[row]), at, int(offsets[message[row]]), code)
    old_cells = Cells(buffer, *old, names) if has_old else None
    return Changes(relation, message, transaction[message], kind, Cells(buffer, *new, names), old_cells, identity)


def parse(
    buffer: bytes | bytearray | memoryview | NDArray[np.uint8], offsets: NDArray[np.int64], session: Session
) -> Messages:
    """Decode a chunk of the change stream.

    Parameters
    ----------
    buffer : uint8[bytes]
        The payloads of the messages, one after the other; `Cells` in the result point into it, so keep it unchanged.
    offsets : int64[messages + 1]
        Message i is buffer[offsets[i]:offsets[i + 1]].
    session : Session
        `Session()` for the first chunk after the stream was started, then that of the chunk before.

    Raises
    ------
    DecodeError
        An unknown message or column kind, a damaged payload, a change that its transaction or relation is missing for;
        the message names the byte and its position in the buffer.
    """
    data = as_bytes(buffer)
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    if offsets.size == 0 or offsets[0] < 0 or offsets[-1] > data.size or np.count_nonzero(np.diff(offsets) < 1):
        raise DecodeError(
            f"change stream: the message offsets do not fit a buffer of {data.size} bytes; expected them to rise, one"
            " byte or more for each message, and to stay inside"
        )
    kinds = data[offsets[:-1]]
    messages = kinds.size
    count_of = np.bincount(kinds, minlength=256).tolist()

    def rare(kind: int, decode: Callable[[_Reader], Any]) -> tuple[Any, ...]:
        return _read_all(kinds, kind, data, offsets, decode) if count_of[kind] else ()

    relations = dict(session.relations)
    groups = list(relations.values())
    newest = {r.oid: g for g, r in enumerate(groups)}
    known = len(groups)
    group = np.full(messages, -1, dtype=np.int32)
    described = rare(RELATION, _relation)
    told = np.flatnonzero(kinds == RELATION).tolist() if described else []
    for i, relation in zip(told, described, strict=True):
        # Relations are described again after any cache invalidation: only a real change starts a new group.
        if relations.get(relation.oid) != relation:
            relations[relation.oid] = relation
            newest[relation.oid] = len(groups)
            groups.append(relation)
        group[i] = newest[relation.oid]

    transaction = np.empty(messages, dtype=np.int32)
    table = np.empty((6, count_of[BEGIN] + 1), dtype=np.int64)
    if session.open:
        table[:, 0] = (session.open.final_lsn, session.open.commit_time, session.open.xid, -1, -1, 0)
    oids = np.array([[r.oid for r in groups], [g < known for g in range(len(groups))]], dtype=np.int64)
    changes = np.zeros(len(groups), dtype=np.int64)
    code, i, at, count = _scan(data, offsets, oids, group, changes, transaction, table, session.open is not None)
    if code:
        raise _error(data, i, at, int(offsets[i]), code)
    table = table[:, :count]
    still_open = Begin(*table[:3, -1].tolist()) if count and table[4, -1] < 0 else None

    group[kinds == RELATION] = -1
    rows_of = ((g, np.flatnonzero(group == g)) for g in np.flatnonzero(changes).tolist())
    return Messages(
        kind=kinds,
        transaction=transaction,
        transactions=Transactions(*table),
        changes=tuple(_changes(groups[g], rows, data, offsets, kinds, transaction) for g, rows in rows_of),
        truncates=rare(TRUNCATE, _truncate),
        logical=rare(MESSAGE, _logical),
        types=rare(TYPE, _type_name),
        origins=rare(ORIGIN, _origin),
        session=Session(MappingProxyType(relations), still_open),
    )
