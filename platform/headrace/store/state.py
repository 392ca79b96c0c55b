"""A version brought to life: its newest checkpoint and its recipe become a `Progressive` that can read on.

Learner, endpoint and bootstrap all start here, so a version is the same thing wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection

from headrace.definition.recipes import Recipe
from headrace.definition.stream import Stream
from headrace.errors import DefinitionError
from headrace.events import Engine, LogBatch, LogColumn, Recalled
from headrace.flow.features import Encoder
from headrace.flow.negatives import Negatives
from headrace.flow.progressive import EpochScore, Progressive
from headrace.flow.scores import GENESIS
from headrace.models.build import fresh
from headrace.models.contract import Rated
from headrace.models.target_mean import TargetMeans
from headrace.store import checkpoints, log
from headrace.store.checkpoints import Checkpoint
from headrace.store.registry import Version

ARTIFACT = "artifact"  # the array of a checkpoint that holds what bootstrap trained
PRIOR = 0.5  # of target means that were not bootstrapped


@dataclass
class Live:
    """A version at work, with what its next checkpoint carries along."""

    version: Version
    progressive: Progressive
    artifact: NDArray[np.uint8] | None
    learned: int
    engine: Engine

    def checkpoint(self, epoch: int) -> Checkpoint:
        """Its state, at an epoch's end."""
        arrays, meta = self.progressive.state()
        if self.artifact is not None:
            arrays[ARTIFACT] = self.artifact
        at = self.progressive
        rates = at.model.rates() if isinstance(at.model, Rated) else None
        return Checkpoint(at.seq, epoch, at.digest, self.engine.id, self.learned, arrays, meta, rates)


def recipe_of(stream: Stream, version: Version) -> Recipe:
    """The recipe of a version in the stream's present definition.

    Raises
    ------
    DefinitionError
        When the file names no such recipe any more, or a different one under its name.
    """
    recipe = stream.recipe(version.recipe)
    if recipe is None:
        known = ", ".join(r.name for r in stream.recipes())
        raise DefinitionError(
            f"{version.version} has recipe {version.recipe!r}, the definition has {known}; add it back, or retire it"
        )
    if recipe.config() != {name: value for name, value in version.config.items() if name != "negatives"}:
        raise DefinitionError(
            f"recipe {version.recipe!r} differs from the one that {version.version} was registered with; give the changed "
            "recipe a name of its own"
        )
    return recipe


def open_version(
    conn: Connection,
    stream: Stream,
    version: Version,
    columns: Sequence[LogColumn],
    key: bytes,
    engine: Engine,
    *,
    until: int | None = None,
) -> Live:
    """Load a version at its newest checkpoint, or new at its first seq where there is none.

    Parameters
    ----------
    key
        Signs the states of river models.
    until
        Load it at its newest checkpoint up to this seq.
    """
    checkpoint = checkpoints.last(conn, stream.name, version.version, until=until)
    recipe = recipe_of(stream, version)
    artifact = None if checkpoint is None else checkpoint.arrays.get(ARTIFACT)
    if artifact is not None:
        artifact.setflags(write=False)
    live = assemble(stream, version, recipe, artifact, key, engine)
    if checkpoint is not None:
        live.progressive.restore(checkpoint.arrays, checkpoint.meta)
        live.progressive.remember(log.recall(conn, stream.name, columns, live.progressive.newest()))
        live.learned = checkpoint.learned
        if checkpoint.engine != engine.id:  # digests of different engines do not compare: a new chain starts
            live.progressive.restart_chain(GENESIS)
    return live


def assemble(
    stream: Stream, version: Version, recipe: Recipe, artifact: NDArray[np.uint8] | None, key: bytes, engine: Engine
) -> Live:
    """A version that has read nothing yet."""
    encoder = Encoder(stream)
    model = fresh(recipe, key=key, artifact=None if artifact is None else artifact.tobytes(), loss=stream.loss)
    prior = None if stream.loss.regression else PRIOR
    means = TargetMeans(encoder.mean_keys, prior) if recipe.target_means else None
    how = (stream.label.on_late, stream.loss, Negatives.of(version.config))
    progressive = Progressive(model, encoder, means, stream.slices, version.first_seq, GENESIS, *how)
    return Live(version, progressive, artifact, 0, engine)


def read_on(
    conn: Connection,
    stream: str,
    columns: Sequence[LogColumn],
    progressive: Progressive,
    upto: int,
    *,
    states: bool = True,
) -> tuple[LogBatch, Iterator[EpochScore]]:
    """The log's next entries, up to a seq that it has, and what a version makes of them as the iterator goes on.

    Parameters
    ----------
    states
        As in `Progressive.apply`.

    Raises
    ------
    ForgottenError
        When retention has dropped some of them, or events that their labels answer.
    """
    batch = log.read(conn, stream, _read_by(progressive, columns), progressive.seq, upto)
    return batch, progressive.apply(batch, _recalled(conn, stream, columns, progressive, batch), states=states)


def read_through(
    conn: Connection, stream: str, columns: Sequence[LogColumn], progressive: Progressive, goal: int, batch: int
) -> Iterator[EpochScore]:
    """What a version makes of the log up to a seq; nobody asks for its state on the way.

    The next entries are read while the last ones are learned, so `conn` is taken until the iterator ends.

    Parameters
    ----------
    batch
        Entries read at a time; any number gives the same scores.

    Raises
    ------
    ForgottenError
        As `read_on`.
    """

    def read(after: int) -> LogBatch:
        entries = log.read(conn, stream, _read_by(progressive, columns), after, min(after + batch, goal))
        conn.commit()
        return entries

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, progressive.seq)
        while progressive.seq < goal:
            entries = coming.result()
            recalled = _recalled(conn, stream, columns, progressive, entries)
            conn.commit()
            if entries.seq_last < goal:
                coming = reader.submit(read, entries.seq_last)
            yield from progressive.apply(entries, recalled, states=False)


def _read_by(progressive: Progressive, columns: Sequence[LogColumn]) -> list[LogColumn]:
    """The columns that its features are made of."""
    return [column for column in columns if column.name in progressive.log_columns]


def _recalled(
    conn: Connection, stream: str, columns: Sequence[LogColumn], progressive: Progressive, batch: LogBatch
) -> Recalled | None:
    """Events that a batch's labels answer and that are not in memory any more; None when there are none."""
    wanted = progressive.wants(batch)
    if not len(wanted):
        return None
    recalled = log.recall(conn, stream, _read_by(progressive, columns), wanted)
    log.check_recalled(conn, stream, wanted, recalled)
    return recalled
