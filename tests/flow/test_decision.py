"""The decision rule: formulas against published numbers and quadrature, verdicts against simulated truth."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate
from scipy.stats import nct, norm
from scipy.stats import t as student

from headrace.errors import BatchError
from headrace.flow.decision import Evidence, PairedEpochs, Rule, Verdict, choose, compare, probation
from headrace.flow.eprocess import (
    autocorrelation,
    confidence_radius,
    log_bayes_factor,
    log_e_plus,
    log_t_cdf,
    long_run_inflation,
)

Floats = NDArray[np.float64]
START = datetime(2026, 1, 1, tzinfo=UTC)
WOBBLE = 0.003 * np.tile([3.0, -2.0, 1.0, -3.0, 0.0, 1.0], 20)  # noise whose neighbours do not correlate positively

counts = st.integers(0, 5_000)
means = st.floats(-1e6, 1e6)
spreads = st.floats(0, 1e12)
kappas = st.floats(1, 20)


# -- the formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "mean", "ss", "ln_bf", "ln_e", "radius"),
    [(10, 0.5, 9.0, 0.2135033354, 0.8000340768, 1.50452106), (40, 0.3, 39.0, 0.3877542685, 1.0426677450, 0.50630950)],
)
def test_published_values(k: int, mean: float, ss: float, ln_bf: float, ln_e: float, radius: float) -> None:
    assert float(log_bayes_factor(k, mean, ss)) == pytest.approx(ln_bf, abs=6e-11)
    assert float(log_e_plus(k, mean, ss)) == pytest.approx(ln_e, abs=6e-11)
    assert float(confidence_radius(k, ss, alpha=0.05)) == pytest.approx(radius, abs=6e-9)


def test_published_value_of_evidence_against() -> None:
    assert float(log_e_plus(40, -0.3, 39.0)) == pytest.approx(-2.2021923419, abs=6e-11)


@pytest.mark.parametrize("g", [0.26, 0.5])
@pytest.mark.parametrize(("k", "mean", "ss"), [(2, 0.4, 1.0), (10, 0.5, 9.0), (10, -0.2, 4.0), (40, 0.3, 39.0)])
def test_quadrature_over_the_noncentral_t_is_an_independent_oracle(k: int, mean: float, ss: float, g: float) -> None:
    """The Bayes factor is the prior's average of the t statistic's likelihood ratio; E+ averages over gains only."""
    t = math.sqrt(k) * mean / math.sqrt(ss / (k - 1))

    def ratio(effect: float) -> float:
        weight = norm.pdf(effect, scale=math.sqrt(g))
        return float(nct.pdf(t, k - 1, math.sqrt(k) * effect) * weight / student.pdf(t, k - 1))

    reach = 8 * math.sqrt(g)
    gains = integrate.quad(ratio, 0, reach, epsabs=0, epsrel=1e-11, limit=400)[0]
    losses = integrate.quad(ratio, -reach, 0, epsabs=0, epsrel=1e-11, limit=400)[0]
    assert float(log_bayes_factor(k, mean, ss, g=g)) == pytest.approx(math.log(gains + losses), abs=1e-8)
    assert float(log_e_plus(k, mean, ss, g=g)) == pytest.approx(math.log(2 * gains), abs=1e-8)


@pytest.mark.parametrize(("z", "df"), [(-510.0, 1000), (-60.0, 5000), (-45.0, 10**6), (-300.0, 200), (-31.0, 10**4)])
def test_the_tail_of_t_where_it_underflows(z: float, df: int) -> None:
    """Against quadrature of the density relative to its value at z, which is of order one."""

    def density(x: float) -> float:
        return math.exp(-(df + 1) / 2 * (math.log1p(x * x / df) - math.log1p(z * z / df)))

    width = 60 * (z * z + df) / (-z * df)
    relative = integrate.quad(density, z - width, z, epsrel=1e-11, epsabs=0, limit=400)[0]
    expected = float(student.logpdf(z, df)) + math.log(relative)
    assert float(log_t_cdf(z, df)) == pytest.approx(expected, rel=1e-9)


@given(df=st.floats(1, 1e5), z=st.floats(0, 1e3))
def test_both_tails_of_t_sum_to_one(df: float, z: float) -> None:
    assert math.exp(float(log_t_cdf(z, df))) + math.exp(float(log_t_cdf(-z, df))) == pytest.approx(1, abs=1e-12)


@given(k=counts, mean=means, ss=spreads, kappa=kappas)
def test_evidence_is_finite_and_a_radius_is_never_nan(k: int, mean: float, ss: float, kappa: float) -> None:
    assert math.isfinite(float(log_bayes_factor(k, mean, ss, kappa=kappa)))
    assert math.isfinite(float(log_e_plus(k, mean, ss, kappa=kappa)))
    assert float(confidence_radius(k, ss, alpha=0.05, kappa=kappa)) >= 0


@given(k=counts, mean=means, step=st.floats(0, 1e6), ss=spreads)
def test_evidence_rises_with_the_mean(k: int, mean: float, step: float, ss: float) -> None:
    lower, higher = log_e_plus(k, [mean, mean + step], ss).tolist()
    assert higher >= lower - 1e-9 * (1 + k)


@given(k=counts, mean=means, ss=st.floats(1e-6, 1e12), power=st.integers(-200, 200))
def test_evidence_does_not_depend_on_the_unit(k: int, mean: float, ss: float, power: int) -> None:
    assume(mean == 0 or abs(mean) > 1e-6)
    unit = 2.0**power
    for evidence in (log_bayes_factor, log_e_plus):
        assert float(evidence(k, mean * unit, ss * unit**2)) == pytest.approx(
            float(evidence(k, mean, ss)), abs=1e-9 * (1 + k)
        )
    radius = float(confidence_radius(k, ss, alpha=0.05))
    assert float(confidence_radius(k, ss * unit**2, alpha=0.05)) == pytest.approx(radius * unit)


@given(k=st.integers(1, 300), mean=st.floats(-2, 2), ss=st.floats(1, 1e3))
def test_the_sides_are_symmetric(k: int, mean: float, ss: float) -> None:
    two_sided = float(log_bayes_factor(k, mean, ss))
    assert float(log_bayes_factor(k, -mean, ss)) == two_sided
    both = np.logaddexp(*log_e_plus(k, [mean, -mean], ss).tolist())
    assert both == pytest.approx(two_sided + math.log(2), abs=1e-9)


@given(k=st.integers(2, 400), ss=st.floats(1e-3, 1e3), alpha=st.floats(0.001, 0.4), kappa=kappas)
def test_the_confidence_sequence_inverts_the_bayes_factor(k: int, ss: float, alpha: float, kappa: float) -> None:
    radius = float(confidence_radius(k, ss, alpha=alpha, kappa=kappa))
    assume(math.isfinite(radius) and radius < 1e6)
    assert float(log_bayes_factor(k, radius, ss, kappa=kappa)) == pytest.approx(-math.log(alpha), rel=1e-6)


def test_no_blocks_one_block_and_no_variance() -> None:
    assert float(log_e_plus(0, 0.0, 0.0)) == 0
    assert float(log_bayes_factor(1, 3.0, 0.0)) == pytest.approx(0), "one block says nothing two-sided"
    assert np.logaddexp(*log_e_plus(1, [3.0, -3.0], 0.0).tolist()) == pytest.approx(math.log(2))
    assert confidence_radius([0, 1], 0.0, alpha=0.05).tolist() == [math.inf, math.inf]
    assert float(log_e_plus(20, 0.0, 0.0)) == 0, "equal to the last bit: no evidence"
    limit = float(log_e_plus(20, 1.0, 1e-18))
    assert float(log_e_plus(20, 1.0, 0.0)) == pytest.approx(limit)
    assert float(confidence_radius(20, 0.0, alpha=0.05)) == 0


def test_formulas_broadcast() -> None:
    grid = log_e_plus(np.array([[10], [40]]), np.array([0.5, 0.3, -0.3]), 39.0)
    assert grid.shape == (2, 3)
    assert grid[1, 1] == float(log_e_plus(40, 0.3, 39.0))


def test_autocorrelation_and_inflation() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200_000)
    ar = np.empty_like(noise)
    ar[0] = noise[0]
    for i in range(1, len(ar)):
        ar[i] = 0.3 * ar[i - 1] + noise[i]
    assert [autocorrelation(ar, lag) for lag in (1, 2)] == pytest.approx([0.3, 0.09], abs=0.01)
    assert long_run_inflation(ar) == pytest.approx(
        1 + 2 * (0.8 * 0.3 + 0.6 * 0.09 + 0.4 * 0.027 + 0.2 * 0.0081), abs=0.03
    )
    assert long_run_inflation(noise) == pytest.approx(1, abs=0.02)
    assert long_run_inflation(np.array([1.0, -1.0] * 20)) == 1.0
    assert autocorrelation(np.full(7, 0.1), 1) == 0.0
    assert autocorrelation(np.array([1.0]), 1) == 0.0
    assert autocorrelation(np.empty(0), 1) == 0.0


# -- verdicts ----------------------------------------------------------------------------------------------------------


def paired(champion: Floats, challenger: Floats, labels: int = 500, hours: float = 2.0) -> PairedEpochs:
    """Epochs of equal size from mean losses per label."""
    times = [START + timedelta(hours=hours) * i for i in range(len(champion) + 1)]
    sizes = np.full(len(champion), labels)
    return PairedEpochs(sizes, champion * labels, challenger * labels, times[:-1], times[1:])


def race(rng: np.random.Generator, epochs: int, gain: float, noise: float = 0.01) -> PairedEpochs:
    """A champion with a loss of about 0.5 and a challenger that is better by `gain`, with independent paired noise."""
    champion = 0.5 + rng.normal(0, 0.03, epochs)
    return paired(champion, champion * (1 - gain) + rng.normal(0, noise, epochs))


@pytest.mark.parametrize(
    ("champion", "challenger", "verdict"),
    [
        (1.0, 1.0, "promote"),
        (1.0, 1.08, "promote"),
        (1.0, 1.2, "keep"),
        (1.0, 0.85, "keep"),
        (1.3, 1.2, "promote"),
        (1.3, 0.7, "keep"),
    ],
)
def test_the_guard_of_calibration_keeps_a_challenger_that_is_further_off(
    champion: float, challenger: float, verdict: str
) -> None:
    epochs = race(np.random.default_rng(0), 60, 0.05)
    positives = np.full(60, 20.0)
    epochs = replace(epochs, positives=positives, champion_p=champion * positives, challenger_p=challenger * positives)
    guarded = look(epochs, Rule(guards=("calibration",)))
    assert guarded.verdict == verdict
    free = look(epochs)
    assert free.verdict == "promote"
    assert free.evidence == guarded.evidence
    assert guarded.evidence.calibration_challenger == pytest.approx(challenger)
    if verdict == "keep":
        assert guarded.reason.startswith(free.reason[:-1] + ", but stays in shadow: it predicts ")
        assert (
            f"{challenger:.3f} times the positive labels that came, the champion {champion:.3f} times" in guarded.reason
        )
        assert guarded.reason.endswith("; at most 7.8% passes.")  # 0.02 + 2 / sqrt(1200)
    else:
        assert guarded == free


def test_the_guard_of_calibration_needs_positive_labels() -> None:
    epochs = race(np.random.default_rng(0), 60, 0.05)
    nothing = replace(epochs, positives=np.zeros(60), champion_p=np.ones(60), challenger_p=np.ones(60))
    for unknown in (epochs, nothing):
        guarded = look(unknown, Rule(guards=("calibration",)))
        assert guarded.verdict == "keep"
        assert "the guard of calibration found no positive labels" in guarded.reason
        assert guarded.evidence.calibration_champion is None


def first(epochs: PairedEpochs, count: int) -> PairedEpochs:
    return PairedEpochs(
        epochs.labels[:count],
        epochs.champion[:count],
        epochs.challenger[:count],
        epochs.first_watermark[:count],
        epochs.last_watermark[:count],
    )


def look(epochs: PairedEpochs, rule: Rule | None = None) -> Verdict:
    return compare(epochs, rule or Rule(), champion="flights-1", challenger="flights-2")


def ever(epochs: PairedEpochs, rule: Rule, every: int) -> str:
    """The first verdict other than keep in looks after every few epochs, as the scheduled comparison takes them."""
    for count in range(every, len(epochs.labels) + 1, every):
        verdict = look(first(epochs, count), rule).verdict
        if verdict != "keep":
            return verdict
    return "keep"


def test_a_better_challenger_is_promoted_with_its_numbers() -> None:
    verdict = look(race(np.random.default_rng(1), 67, gain=0.04))
    e = verdict.evidence
    assert (verdict.verdict, verdict.champion, verdict.challenger, e.missing) == (
        "promote",
        "flights-1",
        "flights-2",
        "",
    )
    assert (e.blocks, e.block_size_epochs, e.labels) == (67, 1, 33_500)
    assert e.seasons == pytest.approx(67 * 2 / 24)
    assert e.log_e >= e.log_e_needed == pytest.approx(math.log(50))
    assert e.gain is not None and e.loss_champion and e.loss_challenger and e.gain_low and e.gain_high
    assert e.gain == pytest.approx(1 - e.loss_challenger / e.loss_champion)
    assert 0.005 <= e.gain_low < e.gain < e.gain_high
    assert verdict.reason == (
        f"flights-2 beats flights-1 by {100 * e.gain:.1f}% (at least {100 * e.gain_low:.1f}%) over 33,500 labels in "
        f"67 blocks: ln E {e.log_e:.2f} ≥ 3.91."
    )


def test_the_evidence_can_be_recomputed_from_the_formulas() -> None:
    inflated = 0
    for seed in range(40):
        epochs = race(np.random.default_rng(seed), 40, gain=0.01)
        e = look(epochs, Rule(slots=2)).evidence
        size = e.block_size_epochs
        champion, challenger = (
            column[: 40 // size * size].reshape(-1, size).sum(axis=1) for column in (epochs.champion, epochs.challenger)
        )
        d = (0.995 * champion - challenger) / (500 * size)
        ss, kappa = float(((d - d.mean()) ** 2).sum()), long_run_inflation(d)
        inflated += kappa > 1.05
        assert e.blocks == len(d)
        assert e.kappa == pytest.approx(kappa)
        assert e.lag1 == pytest.approx(autocorrelation(d, 1))
        assert e.log_e == pytest.approx(float(log_e_plus(len(d), d.mean(), ss, kappa=kappa)))
        assert e.log_e_retire == pytest.approx(float(log_e_plus(len(d), -d.mean(), ss, kappa=kappa)))
        assert e.log_e_needed == pytest.approx(math.log(2 / 0.02))
        assert e.log_e_retire_needed == pytest.approx(math.log(20))
        assert e.loss_champion == pytest.approx((champion / (500 * size)).mean())
        radius = float(confidence_radius(len(d), ss, alpha=0.02, kappa=kappa))
        if math.isfinite(radius):
            assert e.gain_low is not None and e.gain_high is not None and e.loss_champion
            assert e.gain_low == pytest.approx(0.005 + (d.mean() - radius) / e.loss_champion)
            assert e.gain_high == pytest.approx(0.005 + (d.mean() + radius) / e.loss_champion)
    assert inflated >= 2, "some of these runs must need the inflation"


@given(seed=st.integers(0, 10_000), gain=st.floats(-0.05, 0.05), count=st.integers(24, 80))
def test_promotion_and_the_lower_bound_say_the_same(seed: int, gain: float, count: int) -> None:
    """E+ is twice the Bayes factor times a probability: a promotion implies that the bound clears the margin."""
    verdict = look(race(np.random.default_rng(seed), count, gain))
    if verdict.verdict == "promote":
        assert verdict.evidence.gain_low is not None
        assert verdict.evidence.gain_low >= 0.005 - 1e-12


@given(seed=st.integers(0, 10_000), power=st.integers(-30, 30))
def test_a_verdict_does_not_depend_on_the_unit_of_the_loss(seed: int, power: int) -> None:
    epochs = race(np.random.default_rng(seed), 48, gain=0.01)
    scaled = dataclasses.replace(
        epochs, champion=epochs.champion * 2.0**power, challenger=epochs.challenger * 2.0**power
    )
    assert look(scaled).reason == look(epochs).reason


def test_a_worse_challenger_is_retired() -> None:
    verdict = look(race(np.random.default_rng(3), 60, gain=-0.03))
    assert verdict.verdict == "retire"
    assert verdict.reason.startswith("flights-2 is not 0.5% better than flights-1, its loss is ")
    assert "% higher over 30,000 labels in 60 blocks: ln E " in verdict.reason
    assert verdict.evidence.log_e_retire >= math.log(20)


def test_an_identical_challenger_is_retired_not_promoted() -> None:
    champion = 0.5 + np.random.default_rng(4).normal(0, 0.03, 60)
    verdict = look(paired(champion, champion))
    assert verdict.verdict == "retire"
    assert verdict.evidence.gain == pytest.approx(0)


def test_keep_says_what_is_missing_and_the_outlook_is_about_right() -> None:
    epochs = race(np.random.default_rng(8), 400, gain=0.012)
    verdict = look(first(epochs, 30), Rule(slots=2))
    assert verdict.verdict == "keep"
    assert verdict.reason == f"flights-2 stays in shadow: {verdict.evidence.missing}."
    start, _, outlook = verdict.evidence.missing.partition("; ")
    assert start.startswith("needs ln E 4.61, has ")
    assert start.endswith(" after 15,000 labels")
    assert outlook.startswith("at this rate about ")
    more = int(outlook.removeprefix("at this rate about ").removesuffix(" more labels").replace(",", ""))
    e = verdict.evidence
    factor = 1 + more / 15_000
    d = (0.995 * epochs.champion[:30] - epochs.challenger[:30]) / 500
    ss = float(((d - d.mean()) ** 2).sum())
    there = float(log_e_plus(30 * factor, d.mean(), ss * factor, kappa=e.kappa))
    assert there == pytest.approx(e.log_e_needed, rel=0.05)


def test_keep_when_the_challenger_is_not_ahead_or_hardly_so() -> None:
    wobble = np.tile([0.02, -0.01, 0.01, -0.02], 10)
    behind = look(paired(np.full(40, 0.5), 0.4975 + 0.0005 + wobble))
    assert behind.verdict == "keep"
    assert behind.evidence.missing.endswith("; its mean gain is not above 0.5%")
    hardly = look(paired(np.full(40, 0.5), 0.4975 - 0.0001 + wobble))
    assert hardly.evidence.missing.endswith("; at this rate more than 1,980,000 more labels")


def test_too_few_blocks() -> None:
    verdict = look(race(np.random.default_rng(5), 9, gain=0.2))
    assert verdict.verdict == "keep"
    assert verdict.evidence.missing == "needs 10 blocks, has 9 after 4,500 labels"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_comparison_that_has_just_begun(count: int) -> None:
    verdict = look(race(np.random.default_rng(5), count, gain=0.2))
    assert verdict.reason == f"flights-2 stays in shadow: needs 10 blocks, has {count} after {count * 500:,} labels."
    assert (verdict.evidence.loss_champion is None) == (count == 0)
    numbers = [v for v in dataclasses.asdict(verdict.evidence).values() if isinstance(v, float)]
    assert all(math.isfinite(number) for number in numbers)


def test_too_few_seasons() -> None:
    epochs = race(np.random.default_rng(6), 23, gain=0.1)
    verdict = look(epochs)
    assert verdict.verdict == "keep"
    assert verdict.evidence.log_e > verdict.evidence.log_e_needed
    assert verdict.evidence.missing == "needs 2 full seasons, has 1.91 after 11,500 labels"
    assert look(epochs, Rule(season=timedelta(hours=23))).verdict == "promote"
    assert look(epochs, Rule(season=timedelta(days=7))).evidence.seasons == pytest.approx(46 / 168)


def test_correlated_blocks_are_merged_until_they_are_not() -> None:
    shared = np.repeat(WOBBLE[:22], 4)  # neighbours within four epochs share their noise
    verdict = look(paired(np.full(87, 0.5), 0.45 + shared[:87]))
    e = verdict.evidence
    assert (e.block_size_epochs, e.blocks, e.labels) == (4, 21, 21 * 4 * 500), "the last three epochs wait"
    assert e.lag1 <= 0.15
    assert verdict.verdict == "promote"


def test_correlation_that_no_merge_removes_gives_no_verdict() -> None:
    trend = np.linspace(-0.1, 0.1, 400)
    verdict = look(paired(np.full(400, 0.5), 0.3 + trend))
    assert verdict.verdict == "keep"
    assert verdict.evidence.block_size_epochs == 16
    assert verdict.evidence.missing.startswith("neighbouring blocks correlate by 0.8")
    few = look(paired(np.full(36, 0.5), 0.3 + trend[:36]))
    assert few.verdict == "keep"
    assert few.evidence.block_size_epochs == 2
    assert "needs 10 blocks of 4 epochs, has 9" in few.evidence.missing


def test_epochs_without_labels_are_skipped() -> None:
    epochs = race(np.random.default_rng(9), 60, gain=0.03)
    gap = np.arange(0, 60, 3)
    holes = PairedEpochs(
        np.insert(epochs.labels, gap, 0),
        np.insert(epochs.champion, gap, 0.0),
        np.insert(epochs.challenger, gap, 0.0),
        [epochs.first_watermark[int(i)] for i in np.insert(np.arange(60), gap, gap)],
        [epochs.last_watermark[int(i)] for i in np.insert(np.arange(60), gap, gap)],
    )
    assert look(holes).reason == look(epochs).reason


def test_caps_end_a_comparison_without_a_winner() -> None:
    epochs = paired(np.full(40, 0.5), 0.496 + np.tile([0.02, -0.01, 0.01, -0.02], 10))
    assert look(epochs).verdict == "keep"
    by_labels = look(epochs, Rule(max_labels=20_000))
    assert by_labels.verdict == "retire"
    assert by_labels.reason.startswith(
        "flights-2 did not beat flights-1 within its cap of 20,000 labels: needs ln E 3.91, has "
    )
    assert "cap of 3 days" in look(epochs, Rule(max_time=timedelta(days=3))).reason
    assert look(epochs, Rule(max_labels=20_001, max_time=timedelta(days=4))).verdict == "keep"
    better = race(np.random.default_rng(1), 67, gain=0.04)
    assert look(better, Rule(max_labels=1_000)).verdict == "promote", "a winner is not capped"


def test_of_several_winners_the_highest_lower_bound_is_promoted() -> None:
    champion = np.full(80, 0.5)
    fields = {"steady": (0.05, 0.5), "wild": (0.07, 8.0), "worse": (-0.05, 1.0)}
    verdicts = [
        compare(paired(champion, champion * (1 - gain) + noise * WOBBLE[:80]), Rule(), champion="old", challenger=name)
        for name, (gain, noise) in fields.items()
    ]
    assert [v.verdict for v in verdicts] == ["promote", "promote", "retire"]
    gains = [v.evidence.gain for v in verdicts]
    assert gains[1] is not None and gains[0] is not None and gains[1] > gains[0], "the wild one looks better"
    chosen = choose(verdicts)
    assert [v.verdict for v in chosen] == ["promote", "keep", "retire"]
    assert chosen[1].reason.startswith("wild passed too (at least ")
    assert "but steady gains more: at least 4." in chosen[1].reason
    assert choose(verdicts[1:]) == verdicts[1:]
    assert choose([]) == []


def test_probation_rolls_back_a_worse_champion_early_and_keeps_a_good_one() -> None:
    former = 0.5 + np.random.default_rng(11).normal(0, 0.03, 12)
    worse = paired(former * 1.06 + WOBBLE[:12], former)
    verdict = probation(worse, Rule(), champion="flights-2", former="flights-1")
    assert verdict.verdict == "rollback"
    assert verdict.evidence.seasons < 2
    assert verdict.reason.startswith("flights-2 is worse than the former champion flights-1: its loss is 6.")
    assert verdict.reason.endswith("≥ 2.30.")
    assert verdict.evidence.log_e_needed == pytest.approx(math.log(10))
    assert verdict.evidence.log_e_retire_needed is None
    assert probation(first(worse, 4), Rule(), champion="b", former="a").verdict == "keep"
    good = paired(former * 0.97 + WOBBLE[:12], former)
    kept = probation(good, Rule(), champion="flights-2", former="flights-1")
    assert kept.verdict == "keep"
    assert kept.reason.startswith("flights-2 stays champion in probation: needs ln E 2.30, has ")


def test_probation_tests_the_difference_of_the_rule() -> None:
    """D = (B_new - (1 + tolerance) A_old)/n with g = 0.5, as published, although computed as a comparison."""
    former = 0.5 + np.random.default_rng(12).normal(0, 0.03, 15)
    new = former * 1.02 + WOBBLE[:15]
    e = probation(paired(new, former), Rule(), champion="b", former="a").evidence
    d = new - 1.01 * former
    expected = log_e_plus(15, d.mean(), ((d - d.mean()) ** 2).sum(), g=0.5, kappa=long_run_inflation(d))
    assert e.block_size_epochs == 1
    assert e.log_e == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(2, 5)}, "equal lengths"),
        ({"champion": np.array([1.0, math.nan, 1.0])}, "epoch 1 of 3"),
        ({"challenger": np.array([1.0, 1.0, math.inf])}, "epoch 2 of 3"),
        ({"labels": np.array([1, -1, 1])}, "epoch 1 of 3 has -1 labels"),
        ({"first_watermark": [datetime(2026, 1, 1)] * 3}, "no time zone"),  # noqa: DTZ001
    ],
)
def test_epochs_that_cannot_be_compared_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchError, match=message):
        dataclasses.replace(race(np.random.default_rng(0), 3, 0.0), **change)


@pytest.mark.parametrize(
    "change",
    [{"alpha": 0.0}, {"slots": 0}, {"min_gain": 1.0}, {"season": timedelta(0)}, {"merges": ()}, {"tolerance": -1}],
)
def test_rules_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BatchError, match="expected"):
        Rule(**change)


def test_verdicts_travel_as_plain_numbers() -> None:
    e = look(race(np.random.default_rng(1), 30, 0.02)).evidence
    assert {type(getattr(e, f.name)) for f in dataclasses.fields(Evidence)} <= {int, float, str, type(None)}


# -- error rates under repeated looks ----------------------------------------------------------------------------------

RUNS = 200


def shares(gain: float, *, noise: float = 0.01, seed: int, rule: Rule | None = None, **shape: int) -> dict[str, float]:
    epochs, every = shape.get("epochs", 120), shape.get("every", 6)
    rng = np.random.default_rng(seed)
    outcomes = [ever(race(rng, epochs, gain, noise), rule or Rule(), every) for _ in range(RUNS)]
    return {name: outcomes.count(name) / RUNS for name in ("promote", "retire", "keep")}


def test_challengers_that_are_not_better_are_promoted_in_at_most_3_percent_of_runs() -> None:
    assert shares(0.0, seed=21)["promote"] <= 0.03, "equal models"
    at_margin = shares(0.005, seed=22, rule=Rule(futility_alpha=1e-9))
    assert at_margin["promote"] <= 0.03, "better by just the margin, the hardest null"


def test_a_true_gain_is_found() -> None:
    found = shares(0.02, seed=23)
    assert found["promote"] >= 0.9
    assert found["retire"] <= 0.05


def test_models_that_swap_skill_with_the_season_are_not_promoted() -> None:
    """Each is better for half a day; without the season gate a look inside the first half-day promotes one."""
    rng = np.random.default_rng(24)
    hours = np.arange(192) * 0.5
    swap = 0.02 * np.sin(2 * np.pi * hours / 24)
    runs = []
    for _ in range(40):
        champion = 0.5 + rng.normal(0, 0.03, len(hours))
        runs.append(paired(champion, champion * 0.995 - swap + rng.normal(0, 0.01, len(hours)), hours=0.5))
    gated, blind = (
        [ever(run, Rule(min_seasons=seasons, futility_alpha=1e-9), 8) for run in runs].count("promote")
        for seasons in (2.0, 0.0)
    )
    assert gated == 0
    assert blind >= 8
