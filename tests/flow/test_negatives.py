"""Negative subsampling: what is left out is made up for, and nothing but learning notices."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.flow.test_progressive import MINUTE, START, Log, follow

from headrace import Label, Source, Stream, category, col, number, recipes, target_mean
from headrace.definition.recipes import Recipe
from headrace.events import EpochRange
from headrace.flow.features import Encoder
from headrace.flow.negatives import ALL, Negatives
from headrace.flow.progressive import EpochScore, Progressive
from headrace.flow.scores import GENESIS
from headrace.models.build import fresh
from headrace.models.target_mean import TargetMeans

EVENTS, GROUPS, LATE = 60_000, 6, 500  # a label comes that many events later
RATES = np.geomspace(0.004, 0.12, GROUPS)

rates = st.floats(0.01, 0.99)
seqs = st.lists(st.integers(1, 2**62), min_size=1, max_size=50, unique=True).map(lambda some: np.array(some))


@settings(deadline=None)
@given(seqs, rates, rates)
def test_a_smaller_share_is_a_part_of_a_larger_one(events: NDArray[np.int64], a: float, b: float) -> None:
    nothing = np.zeros(len(events))
    small, large = (Negatives(rate).importance(events, nothing) for rate in sorted((a, b)))
    assert (large[small > 0] > 0).all()
    assert set(small) <= {0.0, 1 / min(a, b)}
    assert (Negatives(a).importance(events, nothing + 1) == 1.0).all()
    assert (ALL.importance(events, nothing) == 1.0).all()
    one_by_one = [Negatives(a).importance(events[i : i + 1], nothing[:1])[0] for i in range(len(events))]
    assert one_by_one == Negatives(a).importance(events, nothing).tolist()


@settings(deadline=None)
@given(rates, st.integers(1, 2**61))
def test_the_expected_gradient_is_that_of_all_labels(rate: float, first: int) -> None:
    """Of logistic regression at fixed weights, over many ranges of seq; the bounds are five standard errors."""
    random, n, ranges = np.random.default_rng(1), 50, 2_000
    x, y = random.normal(size=n), (random.random(n) < 0.1).astype(np.float64)
    gradient = (1 / (1 + np.exp(-x)) - y) * x
    events = first + np.arange(n * ranges)
    weight = Negatives(rate).importance(events, np.tile(y, ranges)).reshape(ranges, n)
    sums = weight @ gradient
    spread = np.sqrt((1 / rate - 1) * (gradient[y == 0] ** 2).sum() / ranges)
    assert sums.mean() == pytest.approx(gradient.sum(), abs=5 * spread)
    assert sums.std() == pytest.approx(spread * np.sqrt(ranges), rel=0.2)


@settings(deadline=None)
@given(st.floats(0.0, 1.0), rates)
def test_the_correction_is_the_odds_ratio(p: float, rate: float) -> None:
    q = float(Negatives(rate, calibrate=True).corrected(np.array([p]))[0])
    assert 0.0 <= q <= p
    assert q == pytest.approx(rate * p / (rate * p + 1 - p), rel=1e-12, abs=1e-300)
    assert Negatives(rate).corrected(np.array([p]))[0] == p


def test_a_model_that_knows_the_sampled_rates_is_calibrated_by_the_correction_alone() -> None:
    rate, each = 0.1, 200_000
    for truth in (0.003, 0.02, 0.3):
        y = (np.random.default_rng(int(1 / truth)).random(each) < truth).astype(np.float64)
        teaches = Negatives(rate).importance(np.arange(1, each + 1), y) > 0
        p = y[teaches].mean()
        q = float(Negatives(rate, calibrate=True).corrected(np.array([p]))[0])
        error = np.sqrt(truth * (1 - truth) / each / rate)
        assert q == pytest.approx(truth, abs=5 * error)
        assert abs(p - truth) > 20 * error


def test_a_target_mean_ends_up_as_if_the_right_value_had_been_there() -> None:
    """Whether the wrong one was left out, weighed, or positive; and the right one, too."""
    hour, negatives = 60 * MINUTE, Negatives(0.3)
    events = np.arange(1, 60)
    random = np.random.default_rng(0)
    wrong, right = (random.integers(0, 2, len(events)).astype(np.float64) for _ in range(2))
    right = np.where(wrong == right, 1 - wrong, right)
    n = len(events)
    clock = np.sort(random.integers(0, 3 * hour, n))
    at_end = np.full(n, 5 * hour)
    w, v = negatives.importance(events, right), negatives.importance(events, wrong)
    assert {(a > 0, b > 0) for a, b in zip(v, w, strict=True)} == {(True, True), (False, True), (True, False)}

    def read(entries: Any, last: int) -> NDArray[np.float64]:
        means = TargetMeans(("k",), 0.5)
        keys = means.keys_of({"k": np.array(["a"] * last, dtype=object)})
        is_label = np.arange(last) < last - 1
        return np.array([float(values[0]) for values in means.run(keys, is_label, *entries).values()])

    none = np.full(n, np.nan)
    nothing, later = np.zeros(1), np.array([6 * hour])
    corrected = (
        np.concatenate([wrong, right, nothing]),
        np.concatenate([v, w, nothing]),
        np.concatenate([clock, at_end, later]),
        np.concatenate([none, wrong, none[:1]]),
        np.concatenate([clock, clock, later]),
        np.concatenate([0 * v, v, nothing]),
    )
    from_the_start = (np.append(right, 0), np.append(w, 0), np.append(clock, 6 * hour))
    found, expected = read(corrected, 2 * n + 1), read(from_the_start, n + 1)
    assert found == pytest.approx(expected, rel=1e-9)
    assert (found <= 1).all()


def stream() -> Stream:
    return Stream(
        name="clicks",
        source=Source(conn_id="ads", table="public.impressions", key="impression_id", event_time="shown_at"),
        label=Label(
            table="public.clicks",
            key="impression_id",
            value=col("click_id").is_present(),
            label_time="clicked_at",
            window=timedelta(minutes=LATE),
            if_missing="negative",
        ),
        features=[category("place"), number("size"), target_mean("place")],
        champion=recipes.ftrl(),
    )


def clicks() -> tuple[Log, NDArray[np.intp]]:
    """A log of rare positives: an event a minute, each with its label `LATE` minutes later; and each event's group."""
    random = np.random.default_rng(11)
    group = random.integers(0, GROUPS, EVENTS)
    y = (random.random(EVENTS) < RATES[group]).astype(np.float64)
    order = np.argsort(np.concatenate([2 * np.arange(EVENTS), 2 * (np.arange(EVENTS) + LATE) + 1]), kind="stable")
    seq = np.empty(2 * EVENTS, dtype=np.int64)
    seq[order] = np.arange(1, 2 * EVENTS + 1)
    time = START + np.concatenate([np.arange(EVENTS), np.arange(EVENTS) + LATE]) * MINUTE
    clock = np.zeros(2 * EVENTS + 1, dtype=np.int64)
    clock[seq] = time
    columns = {
        "event_time": time[:EVENTS],
        "place": np.array([f"place {g}" for g in group.tolist()], dtype=object),
        "size": random.normal(size=EVENTS),
    }
    labels = {
        "seq": seq[EVENTS:],
        "event": seq[:EVENTS],
        "kind": (y == 0).astype(np.int64),
        "y": y,
        "before": np.full(EVENTS, np.nan),
        "corrects": np.zeros(EVENTS, dtype=np.int64),
        "time": time[EVENTS:],
    }
    ends = [*range(20_000, 2 * EVENTS, 20_000), 2 * EVENTS]
    count = [
        int(np.count_nonzero((labels["seq"] > a) & (labels["seq"] <= b)))
        for a, b in zip([0, *ends], ends, strict=False)
    ]
    epochs = [
        EpochRange(i, a + 1, b, c, 0, 0) for i, (a, b, c) in enumerate(zip([0, *ends], ends, count, strict=False))
    ]
    return Log(2 * EVENTS, seq[:EVENTS], columns, labels, clock, tuple(epochs)), group


def run(log: Log, recipe: Recipe, negatives: Negatives) -> tuple[list[EpochScore], Progressive]:
    """A version that learned the log."""
    encoder = Encoder(stream())
    means = TargetMeans(encoder.mean_keys, 0.5) if recipe.target_means else None
    model = fresh(recipe, key=bytes(16))
    version = Progressive(model, encoder, means, ["place"], 1, GENESIS, negatives=negatives)
    return follow(version, log.batches(30_000), log), version


class Uncorrected(Negatives):
    """Forgets what it left out."""

    def corrected(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        return p


ONLINE = [
    recipes.ftrl(alpha=0.3),
    recipes.ftrl(alpha=0.3, target_means=True),
    recipes.stack(members=[recipes.ftrl(alpha=0.3), recipes.label_mean(labels=2000)], target_means=False),
]


@pytest.mark.parametrize("recipe", ONLINE, ids=["ftrl", "means", "stack"])
def test_both_ways_stay_calibrated_in_every_slice_and_without_one_nobody_would(recipe: Recipe) -> None:
    """Metrics are over all labels: a tenth of the negatives teaches almost what all do."""
    log, _ = clicks()
    settled = slice(len(log.epochs) // 2, None)
    losses = {}
    for name, negatives in (("all", ALL), ("weight", Negatives(0.1)), ("calibrate", Negatives(0.1, calibrate=True))):
        scores = run(log, recipe, negatives)[0]
        assert sum(s.sums.n for s in scores) == EVENTS
        losses[name] = sum(s.sums.loss_sum for s in scores[settled])
        p, positives = (sum(getattr(s.sums, n) for s in scores[settled]) for n in ("p_sum", "n_pos"))
        assert p / positives == pytest.approx(1.0, abs=0.12), name
        for value in {s.value for s in scores[-1].slices}:
            mine = [s for score in scores[settled] for s in score.slices if s.value == value]
            rate = RATES[int(value.removeprefix("place "))]
            share = sum(s.p_sum for s in mine) / sum(s.labels for s in mine)
            assert share == pytest.approx(rate, rel=0.5), (name, value)
    assert losses["weight"] < 1.02 * losses["all"]
    assert losses["calibrate"] < 1.02 * losses["all"]
    scores = run(log, recipe, Uncorrected(0.1, calibrate=True))[0][settled]
    assert sum(s.sums.p_sum for s in scores) > 4 * sum(s.sums.n_pos for s in scores)


def test_target_means_are_shares_of_all_labels_in_either_way() -> None:
    log, group = clicks()
    columns = []
    for negatives in (ALL, Negatives(0.1), Negatives(0.1, calibrate=True)):
        _, version = run(log, recipes.ftrl(target_means=True), negatives)
        means = version.means
        assert means is not None
        rows = np.array([int(np.flatnonzero(group == g)[0]) for g in range(GROUPS)])
        X = Encoder(stream())({name: values[rows] for name, values in log.events.items()})
        columns.append(means.peek(means.keys_of(X), np.full(GROUPS, int(log.clock[-1])))["mean_place_1d"])
    every, weighed, calibrated = columns
    assert weighed.tolist() == calibrated.tolist()
    assert weighed == pytest.approx(every, abs=0.05)
    assert weighed.tolist() != every.tolist()
