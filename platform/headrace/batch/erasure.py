"""Erasure: what the platform keeps of one key's rows is blanked, for a person's right to it.

The log keeps its shape: entries, their seqs and the kinds of labels stay, so epochs, metrics and audits still add up. Key,
features, label values and times go, of the event's time the day stays; refused rows are emptied, a label that waits for
its event is given up. What the models learned is not unlearned: docs/erasure.md says what remains and what to do about
it. Nothing is erased that a version at work would read again: that would make it another model than the log says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.batch.housekeeping import readers
from headrace.definition.stream import Stream
from headrace.errors import BatchError
from headrace.events import LogColumn
from headrace.flow.join import Counts
from headrace.store import db
from headrace.store.queries import all_queries

_LOCK_TIMEOUT = "10s"  # for the intake's transaction to end


@dataclass(frozen=True)
class Erased:
    """What an erasure did; it does not hold the key."""

    erasure_id: int
    key_sha256: str
    events: int
    labels: int
    quarantined: int
    held: int
    not_rebuildable: tuple[str, ...]
    sentence: str


def erase(conn: Connection, stream: Stream, columns: Sequence[LogColumn], key: str, *, reason: str, by: str) -> Erased:
    """Blank what the platform has under a key; one transaction.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_steer; the user must be granted headrace_intake as well, which owns the log.
    key
        The event's key, as text.

    Raises
    ------
    BatchError
        When there is nothing under the key, when an event waits for its label, or when a version would read it again.
    """
    with db.transaction(conn):
        return _erase(_Key(conn, stream, columns, key), reason, by)


class _Key:
    """One key of a stream, and queries about it."""

    def __init__(self, conn: Connection, stream: Stream, columns: Sequence[LogColumn], key: str) -> None:
        self.conn, self.stream, self.columns = conn, stream, columns
        type_name = columns[0].type_name
        try:
            row = self._execute("key_as_text", key=key)[1]
        except psycopg2.DataError as error:
            raise BatchError(f"found key {key!r}, expected a {type_name} as {stream.source.key} has it") from error
        self.text = str(row[0][0])
        self.sha256 = hashlib.sha256(self.text.encode()).hexdigest()

    def run(self, name: str, **params: Any) -> int:
        """Run a query; gives the number of rows that it touched."""
        return self._execute(name, key=self.text, **params)[0]

    def rows(self, name: str, **params: Any) -> list[db.Row]:
        """All rows of a query."""
        return self._execute(name, key=self.text, **params)[1]

    def _execute(self, name: str, **params: Any) -> tuple[int, list[db.Row]]:
        features = [sql.SQL(", {} = NULL").format(sql.Identifier(c.name)) for c in self.columns[2:]]
        text = sql.SQL(all_queries()[name]).format(
            schema=sql.Identifier(self.stream.name),
            key_type=sql.SQL(self.columns[0].type_name),
            features=sql.SQL("").join(features),
        )
        with self.conn.cursor() as cursor:
            cursor.execute(text, {"stream": self.stream.name, **params})
            return cursor.rowcount, cursor.fetchall() if cursor.description else []


def _erase(key: _Key, reason: str, by: str) -> Erased:
    conn, stream = key.conn, key.stream
    claimed = db.row(conn, "claim_role", {"stream": stream.name, "role": "past"})
    if claimed is None or not claimed[0]:
        raise BatchError("a bootstrap, rebuild, check or housekeeping reads the log; try again when it has ended")
    _hold_intake(conn, stream.name)
    found = key.rows("find_key", late=stream.label.on_late != "ignore")
    read_seq = max((max(seq, answer or 0) for seq, answer, *_ in found), default=0)
    _check(conn, stream, found, read_seq)
    seqs = [row[0] for row in found]
    db.row(conn, "act_as", {"role": "headrace_intake"})
    labels = 0
    if seqs:
        key.run("blank_events", seqs=seqs)
        labels = key.run("blank_labels", seqs=seqs)
    source, label = (stream.source.table, stream.source.key), (stream.label_table, stream.label_key)
    names = {"events": source[0], "event_key": source[1], "labels": label[0], "label_key": label[1]}
    quarantined, held = key.run("blank_quarantine", **names), key.run("forget_held")
    if held:
        _give_up(conn, stream.name, held)
    db.row(conn, "act_as", {"role": "headrace_steer"})
    if not seqs and not quarantined and not held:
        raise BatchError(_nothing(key))
    if held:
        db.run(conn, "restart_intake", {"stream": stream.name})
    record = {
        "key_sha256": key.sha256,
        "seqs": seqs,
        "read_seq": read_seq,
        "labelled": sum(row[2] for row in found),
        "quarantined": quarantined,
        "held": held,
        "reason": reason,
        "erased_by": by,
    }
    number = int(key.rows("add_erasure", **record)[0][0])
    why = f"erasure {number} blanked what it read up to seq {read_seq:,}"
    lost = db.rows(conn, "not_rebuildable", {"stream": stream.name, "read_seq": read_seq, "why": why})
    names_lost = tuple(row[0] for row in lost)
    said = (
        f"Erasure {number} of {stream.name}: {len(seqs)} events, {labels} labels, {quarantined} refused rows and {held} held "
        "labels."
    )
    if names_lost:
        said += f" {', '.join(names_lost)} cannot be rebuilt from the base any more."
    said += " What models learned of them stays in their weights, see docs/erasure.md."
    return Erased(number, key.sha256, len(seqs), labels, quarantined, held, names_lost, said)


def _hold_intake(conn: Connection, stream: str) -> None:
    """No transaction of the intake runs until ours ends: what is looked at stays so."""
    db.row(conn, "lock_timeout", {"lock_timeout": _LOCK_TIMEOUT})
    try:
        db.row(conn, "lock_intake", {"stream": stream})
    except psycopg2.errors.LockNotAvailable as error:
        raise BatchError("the intake writes a large transaction; try again when it has ended") from error


def _check(conn: Connection, stream: Stream, found: Sequence[db.Row], read_seq: int) -> None:
    waiting = [seq for seq, _, _, waits in found if waits]
    if waiting:
        raise BatchError(
            f"event {waiting[0]} of this key waits for its label, which every version at work will learn; erase it when the "
            f"label has come or its window of {stream.label.window} is over"
        )
    for reader in readers(conn, stream.name):
        if reader.stands < read_seq:
            raise BatchError(
                f"{reader.version} ({reader.status}) would read seq {read_seq} again when it starts again after seq "
                f"{reader.stands}; erase it when its checkpoints are past that, or when it is retired"
            )


def _give_up(conn: Connection, stream: str, held: int) -> None:
    counts = Counts(held=-held, ignored=held)
    names = tuple(Counts.__dataclass_fields__)
    params = {"stream": stream, "origin": "stream", **dict(zip(names, astuple(counts), strict=True))}
    db.run(conn, "add_accounting", params)


def _nothing(key: _Key) -> str:
    before = key.rows("erased_before", key_sha256=key.sha256)[0][0]
    if before is not None:
        return f"this key was erased on {before:%Y-%m-%d %H:%M} UTC, and nothing came under it since"
    return (
        f"found nothing under this key of {key.stream.name!r}: no event, no refused row, no held label; expected the key of an "
        "event"
    )
