"""What an epoch keeps of predicted numbers, and the sums and digests of either task.

`RegressionSums` is to a regression stream what `headrace.flow.scores.ScoreSums` is to a yes or no: accumulated one row
after the other in log order, without fastmath, so that a range of the log gives the same bits however it is cut, and
additive over epochs, so that SQL recomputes every metric and verdict. Which loss counts is the stream's (`Loss`); nothing
here looks at a definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from headrace.definition.loss import Loss
from headrace.flow.scores import EpochDigest, FloatArray, ScoreSums, checked_numbers, log_loss

_SUMS = ("loss_sum", "loss_sq_sum", "abs_sum", "sq_sum", "p_sum", "y_sum", "y_sq_sum")


def _score_rows(y: FloatArray, p: FloatArray, squared: bool, cap: float, losses: FloatArray, sums: FloatArray) -> int:
    """Write each row's loss; add to `sums`, in the order of `_SUMS`; return how many losses were capped."""
    clips = 0
    for i in range(len(p)):
        error = abs(p[i] - y[i])
        square = error * error
        loss = square if squared else error
        if loss > cap:
            clips += 1
            loss = cap
        losses[i] = loss
        sums[0] += loss
        sums[1] += loss * loss
        sums[2] += error
        sums[3] += square
        sums[4] += p[i]
        sums[5] += y[i]
        sums[6] += y[i] * y[i]
    return clips


# Called, not decorated: numba is untyped, and this keeps the signature for the type checker.
_score: Callable[[FloatArray, FloatArray, bool, float, FloatArray, FloatArray], int] = njit(cache=True)(_score_rows)


@dataclass
class RegressionSums:
    """Additive sums over scored numbers, in the label's unit or its square.

    Examples
    --------
    >>> sums = RegressionSums(Loss("squared", cap=4.0))
    >>> losses = sums.add([1.0, 2.0, 10.0], [0.0, 2.0, 6.0])
    >>> losses.tolist(), sums.clips, sums.mean_loss, sums.mae, round(sums.bias, 2)
    ([1.0, 0.0, 4.0], 1, 1.6666666666666667, 1.6666666666666667, -1.67)
    """

    loss: Loss
    n: int = 0  # labels scored
    clips: int = 0  # losses that were capped
    loss_sum: float = 0.0  # what verdicts stand on: absolute errors, or capped squared ones
    loss_sq_sum: float = 0.0
    abs_sum: float = 0.0  # of absolute errors
    sq_sum: float = 0.0  # of squared errors, not capped
    p_sum: float = 0.0
    y_sum: float = 0.0
    y_sq_sum: float = 0.0

    def add(self, y: ArrayLike, p: ArrayLike) -> FloatArray:
        """Score rows in log order and return their losses, float64 of shape (n,); all or, on an error, none are added.

        Raises
        ------
        ModelError
            A label or a prediction is no finite number, or the lengths differ.
        """
        labels, predictions = checked_numbers(y, p)
        losses = np.empty(len(labels))
        sums = np.array([getattr(self, name) for name in _SUMS])
        self.clips += int(_score(labels, predictions, self.loss.kind == "squared", self.loss.cap, losses, sums))
        for name, value in zip(_SUMS, sums.tolist(), strict=True):
            setattr(self, name, value)
        self.n += len(labels)
        return losses

    def merge(self, other: RegressionSums) -> RegressionSums:
        """The sums over both, as a new object."""
        own = {name: getattr(self, name) + getattr(other, name) for name in ("n", "clips", *_SUMS)}
        return RegressionSums(self.loss, **own)

    @property
    def mean_loss(self) -> float:
        """Mean of the loss that verdicts stand on; NaN without labels."""
        return self.loss_sum / self.n if self.n else math.nan

    @property
    def mae(self) -> float:
        """Mean absolute error; NaN without labels."""
        return self.abs_sum / self.n if self.n else math.nan

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, not capped; NaN without labels."""
        return math.sqrt(self.sq_sum / self.n) if self.n else math.nan

    @property
    def r2(self) -> float:
        """Share of the labels' variance that is predicted, below 0 where their mean does better; NaN when they are equal,
        or so far from 0 that their sums cannot tell."""
        spread = self.y_sq_sum - self.y_sum * self.y_sum / self.n if self.n else 0.0
        return 1.0 - self.sq_sum / spread if spread > 1e-10 * self.y_sq_sum else math.nan

    @property
    def bias(self) -> float:
        """Mean prediction less mean label; NaN without labels."""
        return (self.p_sum - self.y_sum) / self.n if self.n else math.nan


Sums: TypeAlias = ScoreSums | RegressionSums


def sums_for(loss: Loss) -> Sums:
    """Empty sums of an epoch."""
    return RegressionSums(loss) if loss.regression else ScoreSums()


def digest_after(previous: bytes, loss: Loss) -> EpochDigest:
    """The digest of an epoch that follows another one."""
    return EpochDigest(previous, numbers=loss.regression)


def losses_of(loss: Loss, y: ArrayLike, p: ArrayLike) -> FloatArray:
    """The loss of each row, float64 of shape (n,).

    Raises
    ------
    ModelError
        A row cannot be scored.

    Examples
    --------
    >>> losses_of(Loss("absolute"), [1.0, 5.0], [3.0, 5.0]).tolist()
    [2.0, 0.0]
    """
    return RegressionSums(loss).add(y, p) if loss.regression else log_loss(y, p)[0]
