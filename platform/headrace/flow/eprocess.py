"""The evidence of the decision rule: t-statistic e-processes and confidence sequences on block means.

Plain formulas over NumPy arrays that broadcast; they may be looked at after every block, for ever, and keep their error
rate. They are finite for every finite input (a radius may be infinite), invariant to the unit of the loss, and know
nothing of models, epochs or verdicts: `decision` decides what a block is and what follows from the evidence.

Notation: K blocks with mean `mean` and sum of squared deviations `ss`; `g` is the prior variance of the standardised
effect; `kappa` >= 1 inflates `ss` for blocks that are still correlated (`long_run_inflation`).

References
----------
Pérez-Ortiz, Lardy, de Heide, Grünwald: E-statistics, group invariance and anytime-valid testing (arXiv 2208.07610).
Wang, Ramdas: Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance (2310.03722).
Choe, Ramdas: Comparing sequential forecasters (2110.00115).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, stdtr

FloatArray = NDArray[np.float64]

PRIOR_VARIANCE = 0.26  # g: the default prior puts most of its mass on standardised effects below 1


def log_bayes_factor(
    blocks: ArrayLike, mean: ArrayLike, ss: ArrayLike, *, g: float = PRIOR_VARIANCE, kappa: ArrayLike = 1.0
) -> FloatArray:
    """Two-sided evidence against a mean of zero: ln of the t-test's Bayes factor under the right-Haar prior.

    Parameters
    ----------
    blocks, mean, ss, kappa
        Number of blocks (>= 0), their mean, the sum of their squared deviations (>= 0), its inflation (>= 1); broadcast.
    g
        Variance of the normal prior on mean/standard deviation.

    Returns
    -------
    float64 array
        -1/2 ln(1+Kg) + K/2 [ln(1+u) - ln(1 + u/(1+Kg))] with u = K mean² / (kappa ss); its limit where ss = 0; and 0
        (no evidence) where there are no blocks or every block is exactly zero.

    Examples
    --------
    >>> round(float(log_bayes_factor(10, 0.5, 9.0)), 10)
    0.2135033354
    """
    k, m, v, informed = _standardise(blocks, mean, ss, kappa)
    shrink = 1.0 + k * g
    ratio = k * m**2 * (1.0 - 1.0 / shrink) / (v + k * m**2 / shrink)
    return np.where(informed, 0.5 * (k * np.log1p(ratio) - np.log(shrink)), 0.0)


def log_e_plus(
    blocks: ArrayLike, mean: ArrayLike, ss: ArrayLike, *, g: float = PRIOR_VARIANCE, kappa: ArrayLike = 1.0
) -> FloatArray:
    """One-sided evidence that the mean is above zero: ln of the e-process with the prior's positive half.

    Reject "the mean is at most 0" at level alpha when it reaches ln(1/alpha), at whichever look that happens. It rises
    with `mean`, and E+(mean) + E+(-mean) is twice the Bayes factor.

    Parameters
    ----------
    blocks, mean, ss, g, kappa
        As in `log_bayes_factor`.

    Returns
    -------
    float64 array
        ln BF + ln 2 + ln F_t(z; K): F_t is the posterior probability of a positive effect.

    Examples
    --------
    >>> round(float(log_e_plus(40, 0.3, 39.0)), 10), round(float(log_e_plus(40, -0.3, 39.0)), 10)
    (1.042667745, -2.2021923419)
    """
    k, m, v, informed = _standardise(blocks, mean, ss, kappa)
    precision = k + 1.0 / g
    spread = 0.5 * (v + k / g / precision * m**2)
    z = k * m / precision / np.sqrt(spread / (0.5 * k * precision))
    evidence = log_bayes_factor(blocks, mean, ss, g=g, kappa=kappa) + np.log(2.0) + log_t_cdf(z, k)
    return np.where(informed, evidence, 0.0)


def confidence_radius(
    blocks: ArrayLike, ss: ArrayLike, *, alpha: float, g: float = PRIOR_VARIANCE, kappa: ArrayLike = 1.0
) -> FloatArray:
    """Half the width of the two-sided confidence sequence: mean ± radius holds at all looks with probability 1 - alpha.

    A value lies outside exactly when the Bayes factor against it reaches 1/alpha.

    Parameters
    ----------
    blocks, ss, g, kappa
        As in `log_bayes_factor`.
    alpha
        Two-sided error, in (0, 1).

    Returns
    -------
    float64 array
        sqrt(kappa ss / K (1-q)/(q-r)), r = 1/(1+Kg), q = (r alpha²)^(1/K), in the unit of the blocks; infinite while
        q <= r (too few blocks).

    Examples
    --------
    >>> round(float(confidence_radius(40, 39.0, alpha=0.05)), 8)
    0.5063095
    """
    k, total = np.broadcast_arrays(np.asarray(blocks, np.float64), np.asarray(ss, np.float64) * np.asarray(kappa))
    some = np.maximum(k, 1.0)
    r = 1.0 / (1.0 + some * g)
    log_q = (np.log(r) + 2.0 * np.log(alpha)) / some
    room = np.exp(log_q) - r
    bounded = (k > 0) & (room > 0)
    return np.where(bounded, np.sqrt(total / some * -np.expm1(log_q) / np.where(bounded, room, 1.0)), np.inf)


def autocorrelation(x: FloatArray, lag: int) -> float:
    """The sample autocorrelation of a series at `lag` >= 1; 0 when the series is constant or not longer than the lag.

    Examples
    --------
    >>> autocorrelation(np.array([1.0, -1.0, 1.0, -1.0]), 1)
    -0.75
    """
    centred = x - x.mean() if len(x) > lag else np.zeros(1)
    scale = float(np.abs(centred).max())
    # The rounding error of the mean alone is not a signal.
    if scale <= 4 * np.finfo(np.float64).eps * float(np.abs(x).max(initial=0.0)):
        return 0.0
    centred = centred / scale
    return float(centred[lag:] @ centred[:-lag]) / float(centred @ centred)


def long_run_inflation(x: FloatArray) -> float:
    """kappa: how much larger the long-run variance of the blocks is than their variance; never below 1.

    max(1, 1 + 2 sum_{l=1..4} (1 - l/5) r_l), the Newey-West (Bartlett) weights with four lags.

    Examples
    --------
    >>> long_run_inflation(np.array([1.0, -1.0, 1.0, -1.0]))
    1.0
    """
    return max(1.0, 1.0 + 2.0 * sum((1.0 - lag / 5.0) * autocorrelation(x, lag) for lag in range(1, 5)))


def log_t_cdf(z: ArrayLike, df: ArrayLike) -> FloatArray:
    """ln of Student's t distribution function, accurate and finite where the function itself underflows to zero.

    Examples
    --------
    >>> round(float(log_t_cdf(0.0, 5.0)), 6), round(float(log_t_cdf(-500.0, 1000.0)))
    (-0.693147, -2767)
    """
    z, df = np.broadcast_arrays(np.asarray(z, np.float64), np.asarray(df, np.float64))
    below = stdtr(df, -np.abs(z))
    tiny = below < 1e-200
    lower = np.log(np.where(tiny, 1.0, below))
    if tiny.any():
        lower = np.where(tiny, _log_t_tail(np.where(tiny, z, -np.sqrt(df)), df), lower)
    return np.where(z > 0, np.log1p(-below), lower)


def _log_t_tail(z: FloatArray, df: FloatArray) -> FloatArray:
    """ln F_t far below zero: F = I_x(a, 1/2) / 2 with a = df/2, x = df/(df + z²), by its continued fraction.

    DLMF 8.17.22; 60 terms are exact to rounding where F < 1e-200.
    """
    a, odds = df / 2.0, z**2 / df
    x = 1.0 / (1.0 + odds)
    fraction = np.ones_like(a)
    for m in range(30, -1, -1):
        fraction = 1.0 - (m + 1) * (m + 0.5) * x / ((a + 2 * m + 1) * (a + 2 * m + 2)) / fraction
        fraction = 1.0 - (a + m) * (a + 0.5 + m) * x / ((a + 2 * m) * (a + 2 * m + 1)) / fraction
    factor = -a * np.log1p(odds) + 0.5 * np.log(odds * x) - np.log(2.0 * a) - betaln(a, 0.5)
    return np.asarray(factor - np.log(fraction))


def _standardise(
    blocks: ArrayLike, mean: ArrayLike, ss: ArrayLike, kappa: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.bool_]]:
    """K, mean and inflated ss in a unit that neither overflows nor underflows when squared, and where there is any."""
    k, m, root = np.broadcast_arrays(
        np.asarray(blocks, np.float64),
        np.asarray(mean, np.float64),
        np.sqrt(np.asarray(ss, np.float64)) * np.sqrt(np.asarray(kappa, np.float64)),
    )
    scale = np.maximum(np.abs(m), root)
    informed = (k > 0) & (scale > 0)
    unit = np.where(informed, scale, 1.0)
    return (
        np.where(informed, k, 1.0),
        np.where(informed, m / unit, 0.0),
        np.where(informed, root / unit, 1.0) ** 2,
        informed,
    )
