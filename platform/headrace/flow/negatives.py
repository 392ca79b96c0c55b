"""Which negative labels teach, and how a version makes up for those that do not.

Where one label in a thousand is positive, most of what learning costs goes to negatives that say little. A share of them
teaches, drawn by a hash of their event's seq: every version, replay and rebuild of a stream draws the same ones, and a
smaller share is a part of a larger one. Those that are left out are scored like all others: metrics, comparisons and
held-out losses see every label. No I/O, no state.

Two ways make up for it, and never both (docs/decisions/0012-negative-subsampling.md). "weight": a negative that teaches
weighs 1 / rate (McMahan et al. 2013, section 4.6). "calibrate": it weighs 1, and what the model then says, p, becomes
p / (p + (1 - p) / rate) (He et al. 2014, section 6.3). Target means take weights in either case, so that they are shares of
all labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from headrace.models.text import GAMMA, kernel, mix64

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Negatives:
    """Which negatives teach.

    Attributes
    ----------
    rate
        Share of them, in (0, 1].
    calibrate
        Whether predictions make up for the others; if not, weights do.

    Examples
    --------
    >>> half = Negatives(0.5)
    >>> half.importance(np.arange(1, 7), np.array([0.0, 0.0, 0.0, 0.0, 1.0, np.nan])).tolist()
    [0.0, 2.0, 2.0, 0.0, 1.0, 0.0]
    >>> Negatives(0.1, calibrate=True).corrected(np.array([0.0, 0.5, 1.0])).round(4).tolist()
    [0.0, 0.0909, 1.0]
    """

    rate: float = 1.0
    calibrate: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """As a version was registered with, see `Stream.config_of`; all of them where its configuration does not say."""
        kept = config.get("negatives")
        return cls() if kept is None else cls(float(kept["rate"]), kept["by"] == "calibrate")

    def importance(self, events: Ints, y: Floats) -> Floats:
        """How many labels each one stands for.

        Parameters
        ----------
        events, y
            Seqs of the labels' events, and the labels.

        Returns
        -------
        float64[n]
            1 for a positive label, 1 / rate for a negative that teaches, 0 for one that does not, and for a missing value.
        """
        out: Floats = (y == y).astype(np.float64)
        if self.rate < 1.0:
            _weigh(events, y, self.rate, out)
        return out

    def weight(self, importance: Floats) -> Floats:
        """float64[n]: what the labels that teach weigh for a model."""
        return (importance > 0.0).astype(np.float64) if self.calibrate else importance

    def corrected(self, p: Floats) -> Floats:
        """float64[n]: the probabilities that a model's stand for."""
        return p / (p + (1.0 - p) / self.rate) if self.calibrate and self.rate < 1.0 else p


ALL = Negatives()


@kernel
def _weigh(events: Any, y: Any, rate: Any, out: Any) -> None:
    """headrace.negative_teaches of the SQL draws the same."""
    for i in range(events.shape[0]):
        if y[i] == 0.0:
            drawn = mix64(np.uint64(events[i]) * GAMMA) >> np.uint64(11)
            out[i] = 1.0 / rate if float(drawn) * 2.0**-53 < rate else 0.0
