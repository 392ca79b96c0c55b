"""Housekeeping: what of a log may go, and letting it go.

The log is dropped by whole partitions, oldest first, when the stream's policy asks for it (`keep`, `keep_bytes`) and when
nothing needs them: no event of theirs waits for its label, every version that runs or may run starts again after all that
models read of them, and no comparison or probation has its evidence there. What was dropped is counted, so an audit still
adds up, and a version that would read it says that it cannot be rebuilt any more. Checkpoints of versions that nobody
runs are thinned. Each partition and each version is one short transaction, which looks again at who needs it: an
interrupted run has done a part, the next one does the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Policy, Stream
from headrace.errors import BatchError
from headrace.store import checkpoints, db, log
from headrace.store.queries import all_queries

_LOCK_TIMEOUT = "500ms"  # how long readers and the intake may be kept waiting for us at a time
_TRIES, _PAUSE = 10, 0.5  # to get the lock; seconds between


@dataclass(frozen=True)
class Part:
    """One partition of the log: whether the policy asks for it to go, and what needs it."""

    partition: int
    seq_first: int
    seq_last: int
    bytes: int
    asked: str | None  # why it should go; None: nothing asks for it
    needed: str | None  # why it stays; None: it may go
    read_seq: int = 0  # of one that goes: the last entry that makes a model read of it

    @property
    def goes(self) -> bool:
        """Whether it is dropped."""
        return self.needed is None


@dataclass(frozen=True)
class Housekept:
    """What a run did."""

    dropped: tuple[Part, ...]
    stays: Part | None  # the first partition that should go and is needed
    not_rebuildable: tuple[str, ...]  # versions that can be rebuilt no more
    checkpoints: int  # let go of, of versions that nobody runs
    artifacts: int
    begins: int  # seq of the log's first entry now
    sentence: str


@dataclass(frozen=True)
class Reader:
    """A version that runs, or may yet."""

    version: str
    status: str
    stands: int  # seq of the oldest state that it may start again from


def readers(conn: Connection, stream: str) -> list[Reader]:
    """The versions of a stream that run or may yet."""
    return [Reader(*row) for row in db.rows(conn, "readers", {"stream": stream, "keep": checkpoints.KEEP})]


def plan(conn: Connection, stream: Stream) -> list[Part]:
    """For each partition of a stream's log, oldest first, whether it goes.

    Raises
    ------
    BatchError
        When the stream has no log yet.
    """
    at = log.position(conn, stream.name)
    if at is None or at.watermark is None:
        raise BatchError(f"stream {stream.name!r} has no log yet: there is nothing to keep house in")
    size, policy = log.partition_entries(conn, stream.name), stream.policy
    tables = {name: f'"{stream.name}".{name}' for name in ("events", "labels")}
    sizes = db.rows(conn, "log_sizes", tables)
    left, held_up = sum(row[1] for row in sizes), None
    parts = []
    for number, room in sizes:
        first, last = max(number * size, 1), (number + 1) * size - 1
        if last >= at.seq:
            parts.append(Part(number, first, at.seq, room, None, "the log grows in it"))
            continue
        then = db.row(conn, "watermark_at", {"seq": last}, schema=stream.name)
        assert then is not None  # segments cover the log
        asked = _asked(policy, at.watermark - then[0], left)
        read_seq, needed = 0, held_up or (None if asked else _unasked(policy, at.watermark - then[0]))
        if needed is None:
            read_seq, needed = _needed(conn, stream, first, last)
        parts.append(Part(number, first, last, room, asked, needed, read_seq))
        if needed is None:
            left -= room
        else:
            held_up = held_up or f"partition {number} before it stays"
    return parts


def _asked(policy: Policy, age: timedelta, left: int) -> str | None:
    if policy.keep is not None and age > policy.keep:
        return f"its last entry is {_days(age)} old in stream time, policy.keep is {_days(policy.keep)}"
    if policy.keep_bytes is not None and left > policy.keep_bytes:
        return f"the log from it on has {left:,} bytes, policy.keep_bytes is {policy.keep_bytes:,}"
    return None


def _unasked(policy: Policy, age: timedelta) -> str:
    if policy.keep is None and policy.keep_bytes is None:
        return "policy.keep and policy.keep_bytes keep everything"
    return f"the policy does not ask for it to go: its last entry is {_days(age)} old in stream time"


def _days(time_: timedelta) -> str:
    """A length of time for people.

    >>> _days(timedelta(days=9, hours=3, seconds=2)), _days(timedelta(hours=30))
    ('9.1 days', '30.0 hours')
    """
    hours = time_.total_seconds() / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"


def _needed(conn: Connection, stream: Stream, first: int, last: int) -> tuple[int, str | None]:
    """(the last entry that makes a model read of a range, who needs the range)."""
    where: dict[str, Any] = {"seq_first": first, "seq_last": last, "late": stream.label.on_late != "ignore"}
    if needed := _needed_by(conn, stream.name, last, 0):
        return 0, needed
    waiting = db.row(conn, "first_waiting", where, schema=stream.name)
    if waiting is not None and waiting[0] is not None:
        return 0, f"event {waiting[0]:,} waits for its label"
    answer = db.row(conn, "last_answer", where, schema=stream.name)
    read_seq = max(last, (answer[0] if answer else None) or 0)
    return read_seq, _needed_by(conn, stream.name, last, read_seq)


def _needed_by(conn: Connection, stream: str, last: int, read_seq: int) -> str | None:
    """The version that needs a range, or whose evidence it is."""
    known = readers(conn, stream)
    for reader in known:
        if reader.stands < last:
            when = "starts again"
            if reader.status == "candidate":
                when = f"is admitted; `headrace admit {stream} {reader.version}` decides"
            return f"{reader.version} ({reader.status}) reads on from seq {reader.stands + 1:,} when it {when}"
    for version, status, champion, since in db.rows(conn, "evidence_ranges", {"stream": stream}):
        if since <= last:
            if status == "probation":
                return f"{version}, the champion before {champion}, is in probation since seq {since:,}"
            return f"{version} is compared with {champion} on what came since seq {since:,}"
    for reader in known:
        if reader.stands < read_seq:
            return (
                f"{reader.version} ({reader.status}) reads label {read_seq:,}, of one of its events, when it starts again "
                f"after seq {reader.stands:,}"
            )
    return None


def housekeep(conn: Connection, stream: Stream) -> Housekept:
    """Drop what the policy asks to drop and nothing needs; thin what idle versions left.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_steer; the user must be granted headrace_intake as well, which owns the log.

    Raises
    ------
    BatchError
        When the stream has no log yet.
    """
    seen = log.position(conn, stream.name)
    parts = plan(conn, stream)
    conn.commit()
    dropped, lost, in_use = [], [], None
    for part in parts:
        if not part.goes:
            break
        assert seen is not None  # there is a plan
        in_use, names = _drop(conn, stream, part, max(seen.seq, part.read_seq))
        if in_use is not None:
            break
        dropped.append(part)
        lost.extend(names)
    stays = next((part for part in parts if part.asked and not part.goes), None)
    thinned = [
        _thin(conn, stream.name, version) for (version,) in db.rows(conn, "idle_versions", {"stream": stream.name})
    ]
    begins = log.dropped_through(conn, stream.name) + 1
    conn.commit()
    states, arrays = sum(t[0] for t in thinned), sum(t[1] for t in thinned)
    made = (tuple(dropped), stays, tuple(lost), states, arrays, begins)
    return Housekept(*made, sentence=_sentence(stream.name, *made, in_use))


def _drop(conn: Connection, stream: Stream, part: Part, since: int) -> tuple[str | None, list[str]]:
    """Drop one partition; gives (why it could not be, versions that can be rebuilt no more)."""
    where = {"seq_first": part.seq_first, "seq_last": part.seq_last}
    counted = db.rows(conn, "range_counts", where, schema=stream.name)  # it is closed: nothing enters it any more
    conn.commit()
    for attempt in range(_TRIES):
        try:
            with db.transaction(conn):
                return _drop_now(conn, stream, part, since, counted)
        except (psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected):
            if attempt + 1 < _TRIES:
                time.sleep(_PAUSE)
        except _InUseError as why:
            return str(why), []
    return f"partition {part.partition} is being read and could not be locked; the next run tries again", []


class _InUseError(BatchError):
    """A partition cannot go now; its transaction is rolled back."""


def _drop_now(
    conn: Connection, stream: Stream, part: Part, since: int, counted: Sequence[db.Row]
) -> tuple[None, list[str]]:
    """One transaction; the log is locked at its end only."""
    name = stream.name
    claimed = db.row(conn, "claim_role", {"stream": name, "role": "past"})
    if claimed is None or not claimed[0]:
        raise _InUseError("a bootstrap, rebuild, check or other housekeeping reads the log; the next run tries again")
    db.row(conn, "lock_timeout", {"lock_timeout": _LOCK_TIMEOUT})
    db.row(conn, "act_as", {"role": "headrace_intake"})
    segments = db.run(conn, "drop_segments", {"seq_last": part.seq_last}, schema=name)
    db.run(conn, "cut_segment", {"seq_last": part.seq_last}, schema=name)
    db.row(conn, "act_as", {"role": "headrace_steer"})
    kinds = ("events", "observed", "timeouts", "corrections")
    record = {
        **vars(part),
        "stream": name,
        "counts": json.dumps({origin: dict(zip(kinds, row[:4], strict=True)) for origin, *row in counted}),
        "labelled": sum(row[5] for row in counted),
        "event_time_last": max((row[6] for row in counted if row[6] is not None), default=None),
        "segments": segments,
        "why": part.asked,
    }
    db.run(conn, "add_retention", record)
    why = f"retention dropped the log up to seq {part.seq_last:,}"
    lost = [row[0] for row in db.rows(conn, "not_rebuildable", {"stream": name, "read_seq": part.read_seq, "why": why})]
    db.row(conn, "act_as", {"role": "headrace_intake"})
    with conn.cursor() as cursor:
        cursor.execute(sql.SQL(all_queries()["lock_log"]).format(schema=sql.Identifier(name)))
    late = stream.label.on_late != "ignore"
    where = {"seq": since, "seq_first": part.seq_first, "seq_last": part.seq_last, "late": late}
    if (db.row(conn, "answers_since", where, schema=name) or (0,))[0]:
        raise _InUseError(
            f"a late label of an event of partition {part.partition} came meanwhile; the next run tries again"
        )
    db.run(conn, "lock_stream", {"stream": name})  # nobody registers a version, or decides about one, from here on
    if needed := _needed_by(conn, name, part.seq_last, part.read_seq):
        raise _InUseError(needed)
    for parent in ("events", "labels"):
        for statement in ("detach_partition", "drop_partition"):
            text = sql.SQL(all_queries()[statement])
            parts = {"schema": name, "parent": parent, "name": log.partition_name(parent, part.partition)}
            with conn.cursor() as cursor:
                cursor.execute(text.format(**{k: sql.Identifier(v) for k, v in parts.items()}))
    return None, lost


def _thin(conn: Connection, stream: str, version: str) -> tuple[int, int]:
    """Let go of what a version that nobody runs left; its last checkpoint, and the base of one that can be rebuilt, stay."""
    with db.transaction(conn):
        claimed = db.row(conn, "claim_role", {"stream": stream, "role": version})
        if claimed is None or not claimed[0]:
            return 0, 0  # its learner is just about to end
        return checkpoints.thin(conn, stream, version, keep=1)


def _sentence(
    stream: str,
    dropped: Sequence[Part],
    stays: Part | None,
    lost: Sequence[str],
    states: int,
    arrays: int,
    begins: int,
    in_use: str | None,
) -> str:
    said = f"Nothing of the log of {stream} was dropped; it begins at seq {begins:,}."
    if dropped:
        room = sum(part.bytes for part in dropped)
        said = (
            f"Dropped {len(dropped)} partitions of the log of {stream} ({room / 1e6:,.1f} MB); it begins at seq {begins:,} "
            "now."
        )
    if in_use is not None:
        said += f" The next one stays for now: {in_use}."
    elif stays is not None:
        said += f" Partition {stays.partition} should go and stays: {stays.needed}."
    if lost:
        said += f" {', '.join(lost)} cannot be rebuilt from the base any more."
    if states:
        said += f" Let go of {states} checkpoints and {arrays} arrays of versions that nobody runs."
    return said
