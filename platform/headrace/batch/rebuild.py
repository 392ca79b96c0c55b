"""Rebuild: learn a version again from its base, and prove that it is the same.

Reads the log from the version's first checkpoint (or from its first entry) and compares every epoch's digest with the one
that the learner stored. Writes nothing. Digests of another engine cannot be compared and are counted apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.events import Engine, LogColumn
from headrace.store import db, registry
from headrace.store.state import open_version, read_on


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
) -> Rebuilt:
    """Learn a version again up to its last stored epoch.

    Parameters
    ----------
    conn
        The platform's database; only read.
    batch
        Entries read at a time; any number gives the same digests.

    Raises
    ------
    BatchError
        When there is no such version.
    """
    began = time.monotonic()
    version = registry.version(conn, stream.name, name)
    rows = db.rows(conn, "digests", {"stream": stream.name, "version": name})
    stored = {epoch: (bytes(digest), of) for epoch, digest, of in rows}
    live = open_version(conn, stream, version, columns, key, engine, from_base=True)
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
