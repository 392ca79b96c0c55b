"""Rebuild: learn a version again from its base, and prove that it is the same.

Reads the log from the version's base (or from its first entry) and compares every epoch's digest with the one that the
learner stored. Where retention or an erasure took entries that it read, that is impossible and is said; from a later
checkpoint on it is not. Digests of another engine cannot be compared and are counted apart; after an upgrade a new chain
of digests began, at the last state of the engine before it, and so does its rebuild. It writes nothing, but that a
divergence is settled: from the base on, equal digests prove that the learner was right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from psycopg2.extensions import connection as Connection

from headrace.definition.stream import Stream
from headrace.errors import BatchError
from headrace.events import Engine, LogColumn
from headrace.store import db, log, registry
from headrace.store.registry import Version
from headrace.store.state import Live, open_version, read_through


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild found."""

    version: str
    epochs: int  # that it stored since where the rebuild began
    equal: int
    different: tuple[int, ...]  # epochs whose digests differ
    other_engine: int  # epochs stored by another engine: not comparable
    gone: int  # epochs of this engine after another one, whose first state is not kept any more
    settled: int  # incidents of state diverged that it closed
    digest: str  # after the last epoch that was learned again, hex
    seconds: float

    @property
    def sentence(self) -> str:
        """What it means."""
        compared = self.equal + len(self.different)
        apart = f", {self.other_engine} of another engine left out" if self.other_engine else ""
        apart += f", {self.gone} left out since the state they began with is not kept any more" if self.gone else ""
        if self.different:
            return (
                f"{self.version} differs from what it learned live in {len(self.different)} of {compared} epochs, the first "
                f"is {self.different[0]}: its log or its state was changed{apart}."
            )
        if not compared and self.epochs:
            return f"Nothing of {self.version} could be compared: 0 of {self.epochs} epochs{apart}."
        settled = " The replica that had another digest was the one that was wrong." if self.settled else ""
        return (
            f"{self.version} is the same model to the bit: {self.equal} of {self.epochs} epochs have equal digests{apart}."
            f"{settled}"
        )


@dataclass(frozen=True)
class Stored:
    """An epoch as the learner stored it."""

    epoch: int
    seq_first: int
    seq_last: int
    digest: bytes
    engine: str


def rebuild(
    conn: Connection,
    stream: Stream,
    columns: Sequence[LogColumn],
    name: str,
    engine: Engine,
    key: bytes,
    *,
    batch: int = 50_000,
    since: int | None = None,
) -> Rebuilt:
    """Learn a version again, up to its last stored epoch.

    Parameters
    ----------
    conn
        The platform's database.
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
    equal: set[int] = set()
    different: list[int] = []
    other = gone = 0
    digest = ""
    with log.kept_whole(conn, stream.name):
        _check_readable(conn, stream.name, version, since)
        base = version.first_seq - 1 if since is None else since
        for number, whole in enumerate(_chains(conn, stream.name, name)):
            chain = [epoch for epoch in whole if epoch.seq_last > base]
            if not chain:
                continue
            if chain[0].engine != engine.id:
                other += len(chain)
                continue
            # The first chain begins where the version does; a later one at the last state of the engine before it.
            begins = base if number == 0 else max(base, chain[0].seq_first - 1)
            live = open_version(conn, stream, version, columns, key, engine, until=begins)
            if number and live.progressive.seq != begins:
                gone += len(chain)
                continue
            same, others = _learn_again(conn, stream, columns, live, chain, batch)
            equal |= same
            different += others
            digest = live.progressive.digest.hex()
    settled = 0
    if since is None and equal:
        params = {"stream": stream.name, "version": name, "epochs": sorted(equal)}
        with db.transaction(conn):
            settled = db.run(conn, "settle_divergences", params)
    epochs = len(equal) + len(different) + other + gone
    seconds = round(time.monotonic() - began, 1)
    return Rebuilt(name, epochs, len(equal), tuple(different), other, gone, settled, digest, seconds)


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


def _chains(conn: Connection, stream: str, version: str) -> list[list[Stored]]:
    """The epochs that a version stored, cut where the engine changed: there a new chain of digests began."""
    rows = db.rows(conn, "digests", {"stream": stream, "version": version})
    stored = [Stored(epoch, first, last, bytes(digest), engine) for epoch, first, last, digest, engine in rows]
    return [list(chain) for _, chain in groupby(stored, key=lambda epoch: epoch.engine)]


def _learn_again(
    conn: Connection, stream: Stream, columns: Sequence[LogColumn], live: Live, chain: Sequence[Stored], batch: int
) -> tuple[set[int], list[int]]:
    """Epochs of one chain that were learned again, equal and different."""
    stored, goal = {epoch.epoch: epoch.digest for epoch in chain}, chain[-1].seq_last
    equal: set[int] = set()
    different: list[int] = []
    for score in read_through(conn, stream.name, columns, live.progressive, goal, batch):
        if stored.get(score.epoch.epoch) == score.digest:
            equal.add(score.epoch.epoch)
        else:
            different.append(score.epoch.epoch)
    return equal, different
