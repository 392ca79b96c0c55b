"""Scores: sums and digests do not depend on how the log is cut; metrics agree with exact computations."""

from __future__ import annotations

import math
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata

from headrace.errors import ModelError, SnapshotError
from headrace.flow.scores import BINS, CLIP, GENESIS, EpochDigest, ScoreSums, auc_from_histograms, chain, log_loss

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def draw(rows: int, seed: int) -> tuple[Ints, Floats]:
    """Labels and probabilities over the whole range, some of them exactly 0 and 1."""
    rng = np.random.default_rng(seed)
    p = 1.0 / (1.0 + np.exp(-rng.normal(-1.0, 4.0, rows)))
    p[rng.random(rows) < 0.02] = 0.0
    p[rng.random(rows) < 0.02] = 1.0
    return (rng.random(rows) < p).astype(np.int64), p


def cuts_of(rows: int, cuts: list[int]) -> list[slice]:
    edges = sorted({0, rows, *(cut % (rows + 1) for cut in cuts)})
    return [slice(a, b) for a, b in pairwise(edges)]


def exact_auc(y: Ints, p: Floats) -> float:
    positives = int(y.sum())
    ranks = rankdata(p)[y == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(y) - positives)))


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 3000), seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 10**6), max_size=30))
def test_batches_of_any_size_give_the_same_bits(rows: int, seed: int, cuts: list[int]) -> None:
    y, p = draw(rows, seed)
    whole, parts = ScoreSums(), ScoreSums()
    losses = whole.add(y, p)
    batches = cuts_of(rows, cuts)
    batched = [parts.add(y[batch], p[batch]) for batch in batches]
    assert parts.to_bytes() == whole.to_bytes()
    assert np.array_equal(np.concatenate([np.empty(0), *batched]), losses)

    digest = EpochDigest(GENESIS)
    for batch in batches:
        digest.update(np.arange(rows)[batch], y[batch], p[batch])
    assert digest.finish() == chain(GENESIS, np.arange(rows), y, p)


def test_the_sum_is_sequential() -> None:
    """One row at a time is the definition; NumPy's pairwise sum would give other bits on these rows."""
    y, p = draw(20_000, 1)
    sums = ScoreSums()
    losses = sums.add(y, p)
    total = 0.0
    for loss in losses.tolist():
        total += loss
    assert sums.loss_sum == total
    assert float(losses.sum()) != total


def test_sums_agree_with_numpy() -> None:
    y, p = draw(5_000, 2)
    sums = ScoreSums()
    losses = sums.add(y, p)
    q = np.clip(p, CLIP, 1 - CLIP)
    expected = -np.where(y == 1, np.log(q), np.log(1 - q))
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    assert sums.n == 5_000
    assert sums.n_pos == y.sum()
    assert sums.clips == np.count_nonzero(q != p) > 100
    assert sums.loss_sum == pytest.approx(expected.sum())
    assert sums.loss_sq_sum == pytest.approx((expected**2).sum())
    assert sums.brier_sum == pytest.approx(((q - y) ** 2).sum())
    assert sums.p_sum == pytest.approx(q.sum())
    assert sums.histograms.sum(axis=1).tolist() == [5_000 - y.sum(), y.sum()]
    logit = np.clip(np.log(q) - np.log1p(-q), -11.9999, 11.9999)
    by_class = [np.histogram(logit[y == c], bins=BINS, range=(-12, 12))[0] for c in (0, 1)]
    assert np.abs(sums.histograms - by_class).sum() <= 4, "at most rounding at a bin's edge"


def test_log_loss_clips_and_counts() -> None:
    losses, clips = log_loss([1, 0, 0, 1], [0.0, 1.0, 0.0, CLIP])
    assert clips == 3
    np.testing.assert_allclose(losses, [-math.log(CLIP), -math.log(CLIP), 1e-6, -math.log(CLIP)], rtol=1e-6)


@given(seeds=st.tuples(*[st.integers(0, 2**32)] * 3), rows=st.tuples(*[st.integers(0, 300)] * 3))
@settings(deadline=None, max_examples=30)
def test_merging_is_associative_and_equals_adding(seeds: tuple[int, ...], rows: tuple[int, ...]) -> None:
    data = [draw(n, seed) for n, seed in zip(rows, seeds, strict=True)]
    a, b, c = parts = [ScoreSums() for _ in data]
    whole = ScoreSums()
    for part, (y, p) in zip(parts, data, strict=True):
        part.add(y, p)
        whole.add(y, p)
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    for merged in (left, right):
        assert (merged.n, merged.n_pos, merged.clips) == (whole.n, whole.n_pos, whole.clips)
        assert np.array_equal(merged.histograms, whole.histograms)
        for name in ("loss_sum", "loss_sq_sum", "brier_sum", "p_sum"):
            assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_merging_leaves_its_arguments_alone() -> None:
    a, b = ScoreSums(), ScoreSums()
    a.add([1, 0], [0.5, 0.5])
    before = a.to_bytes()
    a.merge(b).add([1], [0.9])
    assert a.to_bytes() == before
    assert b.to_bytes() == ScoreSums().to_bytes()


@pytest.mark.parametrize("rate", [0.02, 0.24, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_auc_of_the_histograms_is_close_to_the_exact_one(rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = (rng.random(200_000) < rate).astype(np.int64)
    logit = rng.normal(0.0, 1.0, len(y)) + 1.2 * y + math.log(rate / (1 - rate))
    p = 1.0 / (1.0 + np.exp(-logit))
    sums = ScoreSums()
    sums.add(y, p)
    # Binning costs a bias of about 1.2e-5 and noise that falls with the positives; uniform bins are off by 1e-3.
    assert abs(sums.auc - exact_auc(y, p)) < 1.2e-5 + 4 * 0.002 / math.sqrt(y.sum())


def test_auc_handles_ties_and_single_classes() -> None:
    sums = ScoreSums()
    sums.add([0, 1, 1, 0], [0.3, 0.3, 0.3, 0.3])
    assert sums.auc == 0.5
    assert math.isnan(ScoreSums().auc)
    only = ScoreSums()
    only.add([1, 1], [0.2, 0.9])
    assert math.isnan(only.auc)
    assert math.isnan(only.normalised_entropy)
    assert only.calibration == pytest.approx(0.55)
    assert auc_from_histograms(np.array([[5, 0], [0, 2]])) == 1.0


def test_normalised_entropy_of_the_rate_is_one() -> None:
    sums = ScoreSums()
    sums.add([1, 0, 0, 0], [0.25] * 4)
    assert sums.normalised_entropy == pytest.approx(1.0)
    assert sums.calibration == pytest.approx(1.0)
    assert sums.mean_loss == pytest.approx(sums.loss_sum / 4)


def test_bytes_round_trip_and_are_small() -> None:
    y, p = draw(10_000, 3)
    sums = ScoreSums()
    sums.add(y, p)
    data = sums.to_bytes()
    again = ScoreSums.from_bytes(data)
    assert again.to_bytes() == data
    assert np.array_equal(again.histograms, sums.histograms)
    assert again.loss_sum == sums.loss_sum
    assert len(data) < 3_000
    again.add([1], [0.5])  # the histograms are writable


@pytest.mark.parametrize("damage", ["empty", "format", "cut", "body", "more", "short"])
def test_damaged_bytes_are_refused(damage: str) -> None:
    data = ScoreSums().to_bytes()
    damaged = {
        "empty": b"",
        "format": b"\x09" + data[1:],
        "cut": data[:-3],
        "body": data[:57] + b"\xff" + data[58:],
        "more": data + b"x",
        "short": data[:57] + zlib.compress(bytes(8)),
    }[damage]
    with pytest.raises(SnapshotError):
        ScoreSums.from_bytes(damaged)


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([1, 0], [0.5, math.nan], "predicted nan at row 1 of 2"),
        ([1, 0], [1.5, 0.5], "predicted 1.5 at row 0"),
        ([1, 0], [math.inf, 0.5], "predicted inf"),
        ([2, 0], [0.5, 0.5], "label at row 0"),
        ([1, 0], [0.5], "two vectors"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_leaves_no_trace(y: list[int], p: list[float], message: str) -> None:
    sums = ScoreSums()
    sums.add([1], [0.5])
    before = sums.to_bytes()
    digest, same = EpochDigest(GENESIS), EpochDigest(GENESIS)
    with pytest.raises(ModelError, match=message):
        sums.add(y, p)
    with pytest.raises(ModelError, match=message):
        digest.update([1, 2], y, p)
    assert sums.to_bytes() == before
    assert digest.finish() == same.finish()


def test_the_digest_sees_every_part_of_a_row_and_the_chain() -> None:
    seqs, y, p = [4, 5], [1, 0], [0.25, 0.5]
    base = chain(GENESIS, seqs, y, p)
    others = [
        chain(b"\1" * 16, seqs, y, p),
        chain(GENESIS, [4, 6], y, p),
        chain(GENESIS, seqs, [1, 1], p),
        chain(GENESIS, seqs, y, [0.25, np.nextafter(0.5, 1.0)]),
        chain(GENESIS, [5, 4], [0, 1], [0.5, 0.25]),
        chain(GENESIS, seqs[:1], y[:1], p[:1]),
    ]
    assert len({base, *others}) == 7
    assert len(base) == 16
    with pytest.raises(SnapshotError, match="has 16 bytes, found 3"):
        chain(b"abc", seqs, y, p)


def test_the_digest_refuses_seqs_of_another_length() -> None:
    with pytest.raises(ModelError, match="expected one each"):
        chain(GENESIS, [1], [1, 0], [0.5, 0.5])
