"""Rebuild: learn a version again from its base, and prove that it is the same.

Reads the log from the version's base (or from its first entry) and compares every epoch's digest with the one that the
learner stored. Where retention or an erasure took entries that it read, that is impossible and is said; from a later
checkpoint on it is not. Writes nothing. Digests of another engine cannot be compared and are counted apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import BatchError
from headrace.events import Engine, LogColumn
from headrace.store import db, log, registry
from headrace.store.registry import Version
from headrace.store.state import Live, open_version, read_on


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild found."""

    version: str
    epochs: int  # learned again
    equal: int
    different: tuple[int, ...]  # epochs whose digests differ
    other_engine: int  # epochs stored by another engine: not comparable
    digest: str  # after the last epoch, hex
    seconds: float

    @property
    def sentence(self) -> str:
        """What it means."""
        if self.different:
            return (
                f"{self.version} differs from what it learned live in {len(self.different)} of {self.epochs} epochs, the first "
                f"is {self.different[0]}: its log or its state was changed."
            )
        apart = f", {self.other_engine} of another engine left out" if self.other_engine else ""
        return f"{self.version} is the same model to the bit: {self.equal} of {self.epochs} epochs have equal digests{apart}."


def rebuild(
    conn: Connection,
    stream: Stream,
    columns: Sequence[LogColumn],
    name: str,
    engine: Engine,
    key: bytes,
    *,
    batch: int = 100_000,
    since: int | None = None,
) -> Rebuilt:
    """Learn a version again, up to its last stored epoch.

    Parameters
    ----------
    conn
        The platform's database; only read.
    batch
        Entries read at a time; any number gives the same digests.
    since
        Begin at the checkpoint at this seq instead of at the version's base.

    Raises
    ------
    BatchError
        When there is no such version or checkpoint, or when what it read is dropped or erased.
    """
    began = time.monotonic()
    version = registry.version(conn, stream.name, name)
    with log.kept_whole(conn, stream.name):
        _check_readable(conn, stream.name, version, since)
        until = version.first_seq - 1 if since is None else since
        live = open_version(conn, stream, version, columns, key, engine, until=until)
        return _learn_again(conn, stream, columns, live, engine, batch, began)


def _check_readable(conn: Connection, stream: str, version: Version, since: int | None) -> None:
    """Whether the log has all that the version read since its base, or since a checkpoint."""
    params = {"stream": stream, "version": version.version}
    intact = int((db.row(conn, "intact_after", params) or (0,))[0])
    if since is None:
        why = (db.row(conn, "why_not_rebuildable", params) or (None,))[0]
        if why is None:
            return
        begins = f"{version.version} cannot be rebuilt from its base: {why}"
    else:
        found = db.row(conn, "first_checkpoint_after", {**params, "seq": since})
        if found is not None and found[0] == since >= intact:
            return
        begins = f"{version.version} cannot be rebuilt since seq {since}: " + (
            "it has no checkpoint there" if found is None or found[0] != since else f"entries up to {intact} are gone"
        )
    first = (db.row(conn, "first_checkpoint_after", {**params, "seq": intact}) or (None,))[0]
    if first is None:
        raise BatchError(
            f"{begins}; none of its checkpoints is later than seq {intact}, so nothing of it can be checked"
        )
    raise BatchError(
        f"{begins}; what it learned since seq {first} can be checked: `headrace rebuild {stream} {version.version} --since "
        f"{first}`"
    )


def _learn_again(
    conn: Connection,
    stream: Stream,
    columns: Sequence[LogColumn],
    live: Live,
    engine: Engine,
    batch: int,
    began: float,
) -> Rebuilt:
    name = live.version.version
    rows = db.rows(conn, "digests", {"stream": stream.name, "version": name})
    stored = {epoch: (bytes(digest), of) for epoch, digest, of in rows}
    last = db.row(conn, "last_metrics", {"stream": stream.name, "version": name})
    goal = int(last[0]) if last is not None and last[0] is not None else live.progressive.seq
    equal = other = 0
    different: list[int] = []
    while live.progressive.seq < goal:
        at = live.progressive.seq
        _, scores = read_on(conn, stream.name, columns, live.progressive, min(at + batch, goal))
        conn.commit()
        for score in scores:
            digest, of = stored.get(score.epoch.epoch, (b"", ""))
            if of != engine.id:
                other += 1
            elif digest == score.digest:
                equal += 1
            else:
                different.append(score.epoch.epoch)
    epochs = equal + other + len(different)
    seconds = time.monotonic() - began
    return Rebuilt(name, epochs, equal, tuple(different), other, live.progressive.digest.hex(), round(seconds, 1))
