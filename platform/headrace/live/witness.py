"""A witness: what a replica computed for each epoch, against what the writer stored.

Standbys and endpoints learn the same entries as the writer of a version, so on one engine their digests are equal to the
bit. When one is not, one of the two computed wrongly, and a replica that cannot tell which must not answer or take over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from psycopg2.extensions import connection as Connection

from headrace.errors import DivergedError
from headrace.flow.progressive import EpochScore
from headrace.store import db


@dataclass
class Witness:
    """Digests computed here, until the writer's are known.

    Parameters
    ----------
    engine
        Id of the engine at work here: digests are chained, so they compare as long as the writer's engine was the same.
    """

    stream: str
    version: str
    engine: str
    stored: int = 0  # newest epoch that the writer stored, as far as it was computed here
    comparable: bool = True  # whether the writer's chain of digests is the one that goes on here
    _own: dict[int, bytes] = field(default_factory=dict)

    def saw(self, scores: Iterable[EpochScore]) -> None:
        """Epochs that ended here."""
        self._own |= {score.epoch.epoch: score.digest for score in scores}

    def compare(self, conn: Connection) -> None:
        """Compare with what is stored by now. That it is equal does not clear anybody: both may have begun wrongly.

        Raises
        ------
        DivergedError
            When the writer stored another digest for an epoch than was computed here, on the same engine.
        """
        if not self._own:
            return
        first, last = min(self._own), max(self._own)
        params = {"stream": self.stream, "version": self.version, "after": max(self.stored, first - 1), "upto": last}
        for epoch, digest, engine in db.rows(conn, "digests_between", params):
            self.comparable &= engine == self.engine
            if self.comparable and bytes(digest) != self._own[epoch]:
                found, here = bytes(digest).hex()[:16], self._own[epoch].hex()[:16]
                raise DivergedError(
                    f"epoch {epoch} of {self.version} has digest {found} in the metrics and {here} here, on the same engine "
                    f"{engine}: one of the two computed wrongly, `headrace rebuild {self.stream} {self.version}` tells "
                    "which; this one stops",
                    version=self.version,
                    epoch=epoch,
                )
            self.stored = epoch
            del self._own[epoch]
