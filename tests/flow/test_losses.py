"""Sums of predicted numbers: independent of how the log is cut, equal to NumPy's, and refused where nothing can be scored."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.flow.test_scores import cuts_of

from headrace.definition.loss import LOG_LOSS, Loss
from headrace.errors import ModelError
from headrace.flow.losses import RegressionSums, digest_after, losses_of, sums_for
from headrace.flow.scores import GENESIS, ScoreSums

Floats = NDArray[np.float64]
LOSSES = (Loss("absolute"), Loss("squared", cap=9.0), Loss("squared", cap=1e9))
NAMES = ("loss_sum", "loss_sq_sum", "abs_sum", "sq_sum", "p_sum", "y_sum", "y_sq_sum")


def draw(rows: int, seed: int) -> tuple[Floats, Floats]:
    """Labels with a long tail, and predictions of them."""
    rng = np.random.default_rng(seed)
    y = rng.standard_t(3, rows) * 10 + 5
    return y, y + rng.standard_t(3, rows) * 3


@settings(deadline=None, max_examples=60)
@given(
    loss=st.sampled_from(LOSSES),
    rows=st.integers(0, 3000),
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(0, 10**6), max_size=30),
)
def test_batches_of_any_size_give_the_same_bits(loss: Loss, rows: int, seed: int, cuts: list[int]) -> None:
    y, p = draw(rows, seed)
    whole, parts = RegressionSums(loss), RegressionSums(loss)
    losses, batches = whole.add(y, p), cuts_of(rows, cuts)
    batched = [parts.add(y[batch], p[batch]) for batch in batches]
    assert repr(parts) == repr(whole)
    assert np.array_equal(np.concatenate([np.empty(0), *batched]), losses)
    assert np.array_equal(losses_of(loss, y, p), losses)

    once, piecewise = digest_after(GENESIS, loss), digest_after(GENESIS, loss)
    once.update(np.arange(rows), y, p)
    for batch in batches:
        piecewise.update(np.arange(rows)[batch], y[batch], p[batch])
    assert once.finish() == piecewise.finish()


@settings(deadline=None, max_examples=30)
@given(
    loss=st.sampled_from(LOSSES),
    seeds=st.tuples(*[st.integers(0, 2**32)] * 3),
    rows=st.tuples(*[st.integers(0, 300)] * 3),
)
def test_merging_is_adding(loss: Loss, seeds: tuple[int, ...], rows: tuple[int, ...]) -> None:
    data = [draw(n, seed) for n, seed in zip(rows, seeds, strict=True)]
    a, b, c = parts = [RegressionSums(loss) for _ in data]
    whole = RegressionSums(loss)
    for part, (y, p) in zip(parts, data, strict=True):
        part.add(y, p)
        whole.add(y, p)
    before = repr(a)
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c))):
        assert (merged.n, merged.clips, merged.loss) == (whole.n, whole.clips, loss)
        for name in NAMES:
            assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-9)
    assert repr(a) == before


@pytest.mark.parametrize("loss", LOSSES)
def test_sums_agree_with_numpy(loss: Loss) -> None:
    y, p = draw(5_000, 2)
    sums = RegressionSums(loss)
    losses = sums.add(y, p)
    error = p - y
    expected = np.abs(error) if loss.kind == "absolute" else np.minimum(error**2, loss.cap)
    np.testing.assert_array_equal(losses, expected)
    assert sums.clips == (np.count_nonzero(error**2 > loss.cap) if loss.kind == "squared" else 0)
    assert (sums.clips > 100) == (loss.cap == 9.0)
    assert sums.mean_loss == pytest.approx(expected.mean())
    assert sums.loss_sq_sum == pytest.approx((expected**2).sum())
    assert sums.mae == pytest.approx(np.abs(error).mean())
    assert sums.rmse == pytest.approx(math.sqrt((error**2).mean()))
    assert sums.r2 == pytest.approx(1 - (error**2).sum() / ((y - y.mean()) ** 2).sum())
    assert sums.bias == pytest.approx(error.mean())


def test_nothing_and_equal_labels_have_no_share_of_variance() -> None:
    sums = RegressionSums(LOSSES[0])
    assert all(math.isnan(v) for v in (sums.mean_loss, sums.mae, sums.rmse, sums.r2, sums.bias))
    sums.add([3.0, 3.0], [2.0, 5.0])
    assert math.isnan(sums.r2) and sums.mae == 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2e100])
def test_what_cannot_be_scored_is_named(bad: float) -> None:
    sums = RegressionSums(LOSSES[0])
    with pytest.raises(
        ModelError, match=r"the model predicted \S+ at row 1 of 2; expected a number of at most 1e\+100"
    ):
        sums.add([1.0, 2.0], [1.0, bad])
    with pytest.raises(ModelError, match=r"the label is \S+ at row 0 of 2; expected a number"):
        sums.add([bad, 2.0], [1.0, 2.0])
    with pytest.raises(ModelError, match="expected two vectors of one length"):
        sums.add([1.0], [1.0, 2.0])
    assert sums == RegressionSums(LOSSES[0]), "all or nothing"


def test_the_largest_numbers_can_be_summed() -> None:
    sums = RegressionSums(Loss("squared", cap=4.0))
    sums.add(np.full(1000, 1e100), np.full(1000, -1e100))
    assert sums.loss_sum == 4000.0 and all(math.isfinite(getattr(sums, name)) for name in NAMES)


def test_digests_tell_labels_and_predictions_apart() -> None:
    rows: list[tuple[float, float]] = [(1.0, 2.0), (1.0, np.nextafter(2.0, 3)), (1.5, 2.0), (2.0, 1.0)]
    found = set()
    for y, p in rows:
        digest = digest_after(GENESIS, LOSSES[0])
        digest.update([7], [y], [p])
        found.add(digest.finish())
    assert len(found) == len(rows)


def test_a_yes_or_no_keeps_its_sums() -> None:
    assert isinstance(sums_for(LOG_LOSS), ScoreSums)
    assert losses_of(LOG_LOSS, [1], [0.5]).tolist() == [pytest.approx(math.log(2))]
