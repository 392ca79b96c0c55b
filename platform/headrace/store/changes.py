"""Reading a change stream: whole transactions from a replication cursor, decoded a chunk at a time.

It acknowledges only what its caller says is durable. `tally` is the second reader of an audit: it counts what a slot
delivers and keeps nothing else.
"""

from __future__ import annotations

import select
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from psycopg2.extras import ReplicationCursor

from headrace.definition.stream import Stream
from headrace.flow.pgoutput import DELETE, INSERT, UPDATE, Messages, Session, parse
from headrace.store import source

_CHUNK_BYTES = 8 * 1024 * 1024
_COMMIT = ord("C")
_QUIET_SECONDS = 2.0  # a slot that delivers nothing for so long has nothing more up to now
_KINDS = {INSERT: "insert", UPDATE: "update", DELETE: "delete"}


class Reader:
    """Whole transactions from a replication cursor."""

    def __init__(self, cursor: ReplicationCursor) -> None:
        self._cursor = cursor
        self._payloads: list[bytes] = []
        self._whole = 0  # payloads up to the last Commit
        self._session = Session()

    def read(self, wait: float) -> Messages | None:
        """What has come, up to the last Commit; None when nothing whole came within `wait` seconds."""
        deadline = time.monotonic() + wait
        size = 0
        while size < _CHUNK_BYTES:
            message = self._cursor.read_message()
            if message is not None:
                payload = message.payload
                self._payloads.append(payload)
                size += len(payload)
                if payload[0] == _COMMIT:
                    self._whole = len(self._payloads)
                continue
            if self._whole:
                break
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._cursor], [], [], left)[0]:
                return None
        if not self._whole:
            return None
        taken, self._payloads, self._whole = self._payloads[: self._whole], self._payloads[self._whole :], 0
        offsets = np.zeros(len(taken) + 1, dtype=np.int64)
        np.cumsum([len(p) for p in taken], out=offsets[1:])
        messages = parse(b"".join(taken), offsets, self._session)
        self._session = messages.session
        return messages

    @property
    def idle_at(self) -> str:
        """How far the source's WAL is known to hold nothing but what `read` gave; 0/0 inside a transaction."""
        return "0/0" if self._payloads else source.lsn_text(self._cursor.wal_end)

    def acknowledge(self, lsn: str) -> None:
        """Tell the source that everything up to a position is durable here.

        One byte less is confirmed: once all that was read is confirmed, psycopg2 confirms what keepalives name by itself,
        and the slot would get ahead of the stored position. Streaming starts at the stored position, so nothing comes twice.
        """
        self._cursor.send_feedback(flush_lsn=source.lsn_number(lsn) - 1, force=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Tally:
    """What a slot delivered."""

    until: str  # position of the last commit counted
    changes: dict[str, dict[str, int]]  # table -> insert, update, delete -> count


def tally(dsn: str, stream: Stream, slot: str, since: str, until: str) -> Tally:
    """Count the changes that a slot delivers between two positions, without acknowledging any of them.

    Parameters
    ----------
    slot
        A slot of its own, made when or before the stream's slot was.
    since, until
        Positions at the source: where the stream's history ends, and where its log stands.

    Raises
    ------
    SlotError
        When the slot is missing or in use.
    """
    counts: dict[str, Counter[str]] = {}
    last = "0/0"
    with source.replication(dsn) as cursor:
        source.start(cursor, slot, stream.publication, "0/0")
        reader = Reader(cursor)
        while source.lsn_number(last) < source.lsn_number(until):
            messages = reader.read(wait=_QUIET_SECONDS)
            if messages is None:
                break
            ends = messages.transactions.end_lsn
            counted = (ends > source.lsn_number(since)) & (ends <= source.lsn_number(until))
            for changes in messages.changes:
                table = f"{changes.relation.namespace or 'pg_catalog'}.{changes.relation.name}"
                for kind in changes.kind[counted[changes.transaction]].tolist():
                    counts.setdefault(table, Counter())[_KINDS[kind]] += 1
            for truncate in messages.truncates:
                if counted[messages.transaction[truncate.index]]:
                    counts.setdefault("truncated", Counter())["truncate"] += len(truncate.oids)
            if counted.any():
                last = source.lsn_text(int(ends[counted].max()))
            if int(ends[-1]) > source.lsn_number(until):
                break
    return Tally(last, {table: dict(kinds) for table, kinds in sorted(counts.items())})
