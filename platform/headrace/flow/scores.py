"""What an epoch keeps of a model's scores: mergeable sums, score histograms, and the chained digest.

Everything is accumulated one row after the other in log order, without fastmath and without pairwise summation, so a
range of the log gives the same bits however it is cut into batches. `ScoreSums` are additive over epochs, which is what
lets SQL recompute every metric and every verdict; the digest is the proof that two learners saw and scored the same.
This module neither stores nor compares anything, and it refuses a probability or a label that cannot be scored.

Merging is exact in counts and histograms; sums of floats from different epochs agree to rounding in whichever order
they are added.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from headrace.definition.loss import LARGEST
from headrace.errors import ModelError, SnapshotError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
LabelArray = NDArray[np.uint8]

CLIP = 1e-6  # scored probabilities lie in [CLIP, 1 - CLIP]: one confident mistake costs at most 13.8 nats
BINS = 1024
LOGIT_RANGE = 12.0  # bins divide [-12, 12] evenly; the outermost ones also hold what lies beyond
GENESIS = bytes(16)  # the digest before a chain's first epoch

_ROW = np.dtype([("seq", "<i8"), ("label", "u1"), ("probability", "<f8")])
_NUMBER_ROW = np.dtype([("seq", "<i8"), ("label", "<f8"), ("probability", "<f8")])  # whose prediction is a number, too
_HEADER = struct.Struct("<B3q4d")
_FORMAT = 1


def _score_rows(y: LabelArray, p: FloatArray, losses: FloatArray, sums: FloatArray, histograms: IntArray) -> int:
    """Write each row's log loss; add loss, loss², Brier and p to `sums` in order; count bins; return the clips."""
    loss_sum, loss_sq_sum, brier_sum, p_sum = sums[0], sums[1], sums[2], sums[3]
    clips = 0
    for i in range(len(p)):
        q = p[i]
        if q < CLIP or q > 1.0 - CLIP:
            clips += 1
            q = min(max(q, CLIP), 1.0 - CLIP)
        log_p, log_not_p = math.log(q), math.log1p(-q)
        loss = -log_p if y[i] else -log_not_p
        losses[i] = loss
        loss_sum += loss
        loss_sq_sum += loss * loss
        brier_sum += (q - y[i]) * (q - y[i])
        p_sum += q
        place = math.floor((log_p - log_not_p + LOGIT_RANGE) * (BINS / (2.0 * LOGIT_RANGE)))
        histograms[y[i], min(max(place, 0), BINS - 1)] += 1
    sums[0], sums[1], sums[2], sums[3] = loss_sum, loss_sq_sum, brier_sum, p_sum
    return clips


# Called, not decorated: numba is untyped, and this keeps the signature for the type checker.
_score: Callable[[LabelArray, FloatArray, FloatArray, FloatArray, IntArray], int] = njit(cache=True)(_score_rows)


def _add_rows_by_place(at: IntArray, y: FloatArray, losses: FloatArray, p: FloatArray, sums: FloatArray) -> None:
    for i in range(len(at)):
        sums[at[i], 0] += 1.0
        sums[at[i], 1] += y[i]
        sums[at[i], 2] += losses[i]
        sums[at[i], 3] += p[i]


_add_by_place: Callable[[IntArray, FloatArray, FloatArray, FloatArray, FloatArray], None] = njit(cache=True)(
    _add_rows_by_place
)


def log_loss(y: ArrayLike, p: ArrayLike) -> tuple[FloatArray, int]:
    """The log loss of each row, in nats, with probabilities clipped to [1e-6, 1-1e-6], and how many were clipped.

    Parameters
    ----------
    y, p
        Labels in {0, 1} and probabilities of 1, both of shape (n,).

    Raises
    ------
    ModelError
        A probability is not a number in [0, 1], a label is neither 0 nor 1, or the lengths differ.

    Examples
    --------
    >>> losses, clips = log_loss([1, 0, 1], [0.5, 0.5, 0.0])
    >>> losses.round(4).tolist(), clips
    ([0.6931, 0.6931, 13.8155], 1)
    """
    labels, probabilities = _checked(y, p)
    losses = np.empty(len(labels))
    clips = _score(labels, probabilities, losses, np.zeros(4), np.zeros((2, BINS), np.int64))
    return losses, int(clips)


@dataclass(eq=False)
class ScoreSums:
    """Additive sums over scored labels.

    Examples
    --------
    >>> sums = ScoreSums()
    >>> losses = sums.add([1, 0, 0, 1], [0.9, 0.2, 0.4, 0.3])
    >>> sums.n, sums.n_pos, round(sums.mean_loss, 4), sums.auc, round(sums.calibration, 2)
    (4, 2, 0.5108, 0.75, 0.9)
    >>> ScoreSums.from_bytes(sums.to_bytes()).merge(sums).n
    8
    """

    n: int = 0  # labels scored
    n_pos: int = 0  # of them positive
    clips: int = 0  # probabilities outside [1e-6, 1-1e-6]
    loss_sum: float = 0.0  # nats
    loss_sq_sum: float = 0.0  # nats²
    brier_sum: float = 0.0
    p_sum: float = 0.0  # of clipped probabilities, as scored
    histograms: IntArray = field(default_factory=lambda: np.zeros((2, BINS), np.int64))  # [class, score bin]

    def add(self, y: ArrayLike, p: ArrayLike) -> FloatArray:
        """Score rows in log order and return their losses, float64 of shape (n,); all or, on an error, none are added.

        Raises
        ------
        ModelError
            As in `log_loss`.
        """
        labels, probabilities = _checked(y, p)
        losses = np.empty(len(labels))
        sums = np.array([self.loss_sum, self.loss_sq_sum, self.brier_sum, self.p_sum])
        self.clips += int(_score(labels, probabilities, losses, sums, self.histograms))
        self.loss_sum, self.loss_sq_sum, self.brier_sum, self.p_sum = sums.tolist()
        self.n += len(labels)
        self.n_pos += int(np.count_nonzero(labels))
        return losses

    def merge(self, other: ScoreSums) -> ScoreSums:
        """The sums over both, as a new object."""
        return ScoreSums(
            n=self.n + other.n,
            n_pos=self.n_pos + other.n_pos,
            clips=self.clips + other.clips,
            loss_sum=self.loss_sum + other.loss_sum,
            loss_sq_sum=self.loss_sq_sum + other.loss_sq_sum,
            brier_sum=self.brier_sum + other.brier_sum,
            p_sum=self.p_sum + other.p_sum,
            histograms=self.histograms + other.histograms,
        )

    @property
    def mean_loss(self) -> float:
        """Mean log loss in nats; NaN without labels."""
        return self.loss_sum / self.n if self.n else math.nan

    @property
    def normalised_entropy(self) -> float:
        """See `normalised_entropy`."""
        return normalised_entropy(self.loss_sum, self.n, self.n_pos)

    @property
    def calibration(self) -> float:
        """Predicted over observed positives, 1 is perfect; NaN without positives (He et al. 2014, §2)."""
        return self.p_sum / self.n_pos if self.n_pos else math.nan

    @property
    def auc(self) -> float:
        """See `auc_from_histograms`."""
        return auc_from_histograms(self.histograms)

    def to_bytes(self) -> bytes:
        """A compact encoding: format, counts and sums in little-endian order, then the packed histograms."""
        header = _HEADER.pack(
            _FORMAT, self.n, self.n_pos, self.clips, self.loss_sum, self.loss_sq_sum, self.brier_sum, self.p_sum
        )
        return header + pack_histograms(self.histograms)

    @classmethod
    def from_bytes(cls, data: bytes) -> ScoreSums:
        """The inverse of `to_bytes`; raises SnapshotError for anything else."""
        if len(data) < _HEADER.size or data[0] != _FORMAT:
            raise SnapshotError(
                f"stored score sums have {len(data)} bytes and start with {data[:1].hex() or 'nothing'}; expected format "
                f"{_FORMAT:02x} and at least {_HEADER.size} bytes: rebuild the epoch from the log"
            )
        _, n, n_pos, clips, loss_sum, loss_sq_sum, brier_sum, p_sum = _HEADER.unpack_from(data)
        histograms = unpack_histograms(data[_HEADER.size :])
        return cls(n, n_pos, clips, loss_sum, loss_sq_sum, brier_sum, p_sum, histograms)


class SliceSums:
    """Sums of each value of one slice, added one row after the other.

    Examples
    --------
    >>> sums = SliceSums()
    >>> sums.add(["JFK", None, "JFK"], np.ones(3), np.array([0.1, 0.2, 0.3]), np.array([0.9, 0.8, 0.7]))
    >>> [(value, *(round(number, 1) for number in row)) for value, row in sums.rows()]
    [('', 1.0, 1.0, 0.2, 0.8), ('JFK', 2.0, 2.0, 0.4, 1.6)]
    """

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._sums = np.zeros((16, 4))  # labels, their sum, losses, predictions

    def add(self, values: Sequence[str | None], y: FloatArray, losses: FloatArray, p: FloatArray) -> None:
        """Add rows in log order; a missing value is the empty one."""
        place = self._place
        at = np.array([place.setdefault(value or "", len(place)) for value in values], dtype=np.int64)
        while len(place) > len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        _add_by_place(at, y, losses, p, self._sums)

    def rows(self) -> list[tuple[str, list[float]]]:
        """Values in order, with number and sum of labels, sum of losses and sum of predictions of each."""
        return [(value, self._sums[at].tolist()) for value, at in sorted(self._place.items())]


def normalised_entropy(loss_sum: float, n: int, n_pos: int) -> float:
    """Mean loss over the entropy of the label rate: below 1 is better than always predicting the rate.

    NaN when only one class was seen. He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (2014), §2.

    Examples
    --------
    >>> normalised_entropy(-4 * math.log(0.5), 4, 2)
    1.0
    """
    if not 0 < n_pos < n:
        return math.nan
    rate = n_pos / n
    return loss_sum / n / -(rate * math.log(rate) + (1.0 - rate) * math.log(1.0 - rate))


def auc_from_histograms(histograms: IntArray) -> float:
    """Area under the ROC curve from score histograms int64[2, bins]: pairs within one bin count one half.

    The Mann-Whitney statistic of the binned scores. On smooth scores, logit-spaced bins cost a bias of about 1.2e-5 and
    noise of about 0.002 / sqrt(positives), far below the sampling error. NaN when only one class was seen.

    Examples
    --------
    >>> auc_from_histograms(np.array([[3, 1], [1, 3]]))
    0.75
    """
    negatives, positives = histograms.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    if pairs == 0:
        return math.nan
    below = np.cumsum(negatives) - negatives
    return float(positives @ (below + 0.5 * negatives) / pairs)


def pack_histograms(histograms: IntArray) -> bytes:
    """Histograms int64[2, 1024] as zlib-compressed little-endian integers: a few hundred bytes for a usual epoch."""
    return zlib.compress(histograms.astype("<i8").tobytes(), 6)


def unpack_histograms(data: bytes) -> IntArray:
    """The inverse of `pack_histograms`; raises SnapshotError for anything else."""
    expected = 2 * BINS * 8
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, expected + 1)
    except zlib.error as error:
        raise SnapshotError(f"stored histograms are damaged ({error}): rebuild the epoch from the log") from None
    if len(raw) != expected or not inflater.eof or inflater.unused_data:
        raise SnapshotError(
            f"stored histograms do not decode to exactly {expected} bytes (2 classes, {BINS} bins): rebuild the epoch "
            "from the log"
        )
    return np.frombuffer(raw, "<i8").astype(np.int64).reshape(2, BINS)


class EpochDigest:
    """One link of a learner's chain: a hash over the previous link and an epoch's scores in log order.

    A row is its seq, its label and the bits of its probability, unclipped, or of both where labels are `numbers`; how rows
    are split into updates does not matter. Equal digests mean the same labels were scored with the very same predictions
    since the chain began.

    Examples
    --------
    >>> digest = EpochDigest(GENESIS)
    >>> digest.update([1, 2], [0, 1], [0.25, 0.5])
    >>> digest.finish() == chain(GENESIS, [1, 2], [0, 1], [0.25, 0.5])
    True
    """

    def __init__(self, previous: bytes, *, numbers: bool = False) -> None:
        if len(previous) != len(GENESIS):
            raise SnapshotError(f"a digest has {len(GENESIS)} bytes, found {len(previous)}: the chain cannot go on")
        self._hash = hashlib.blake2b(previous, digest_size=len(GENESIS))
        self._numbers = numbers

    def update(self, seqs: ArrayLike, y: ArrayLike, p: ArrayLike) -> None:
        """Add rows in log order: seqs int64, labels and predictions of the stream's task, all of shape (n,)."""
        labels, predictions = checked_numbers(y, p) if self._numbers else _checked(y, p)
        positions = np.asarray(seqs, np.int64)
        if positions.shape != labels.shape:
            raise ModelError(f"{len(labels)} scores came with seqs of shape {positions.shape}; expected one each")
        rows = np.empty(len(labels), _NUMBER_ROW if self._numbers else _ROW)
        rows["seq"], rows["label"], rows["probability"] = positions, labels, predictions
        self._hash.update(rows.tobytes())

    def finish(self) -> bytes:
        """The 16 bytes that end this epoch and start the next one."""
        return self._hash.digest()


def chain(previous: bytes, seqs: ArrayLike, y: ArrayLike, p: ArrayLike) -> bytes:
    """The next link for an epoch that is at hand as a whole; see `EpochDigest`."""
    digest = EpochDigest(previous)
    digest.update(seqs, y, p)
    return digest.finish()


def _checked(y: ArrayLike, p: ArrayLike) -> tuple[LabelArray, FloatArray]:
    """Labels as uint8 and probabilities as float64, or a ModelError that names the first row that cannot be scored."""
    raw: NDArray[Any] = np.asarray(y)
    probabilities = np.ascontiguousarray(p, np.float64)
    if raw.shape != probabilities.shape or probabilities.ndim != 1:
        raise ModelError(
            f"labels of shape {raw.shape} came with probabilities of shape {probabilities.shape}; expected two vectors "
            "of one length"
        )
    wrong = ~((probabilities >= 0.0) & (probabilities <= 1.0))
    if wrong.any():
        row = int(wrong.argmax())
        raise ModelError(
            f"the model predicted {probabilities[row]} at row {row} of {len(raw)}; expected a probability in [0, 1]: "
            "pause it and go back to its last checkpoint"
        )
    wrong = (raw != 0) & (raw != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ModelError(f"the label at row {row} of {len(raw)} is {raw[row]!r}; expected 0 or 1: see the contract")
    return raw.astype(np.uint8), probabilities


def checked_numbers(y: ArrayLike, p: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Numeric labels and predictions as float64, or a ModelError that names the first row that cannot be scored."""
    labels, predictions = np.ascontiguousarray(y, np.float64), np.ascontiguousarray(p, np.float64)
    if labels.shape != predictions.shape or predictions.ndim != 1:
        raise ModelError(
            f"labels of shape {labels.shape} came with predictions of shape {predictions.shape}; expected two vectors of "
            "one length"
        )
    for what, numbers, todo in (
        ("model predicted", predictions, "pause it and go back to its last checkpoint"),
        ("label is", labels, "see the contract"),
    ):
        if (wrong := ~(np.abs(numbers) <= LARGEST)).any():
            row = int(wrong.argmax())
            raise ModelError(
                f"the {what} {numbers[row]} at row {row} of {len(numbers)}; expected a number of at most {LARGEST:g} in size: "
                f"{todo}"
            )
    return labels, predictions
