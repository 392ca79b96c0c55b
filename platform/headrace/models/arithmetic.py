"""Exponential, logarithm and their kin in basic IEEE 754 operations, for models that must repeat to the bit.

The C library's and the vector library's `exp` and `log` differ in their last bits from one CPU to the next. These use
only additions, multiplications, divisions and exact scalings, which IEEE 754 rounds in one way, compiled without
fastmath. They stay within a few units in the last place of the true value; they are no replacement for numpy where bits
do not matter.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# ln 2 in two parts: k * LN2_HIGH is exact for every exponent k (Cody & Waite 1980), so the reduction loses nothing.
LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
LOG2_E = 1.4426950408889634

# 1/k! for the Taylor series on [-ln 2 / 2, ln 2 / 2]: the first term left out is below 2e-17.
_TAYLOR = np.array([1.0 / float(np.prod(np.arange(1, k + 1, dtype=np.float64))) for k in range(14)])
# 2/(2k+1) for log((1+s)/(1-s)) = 2 (s + s^3/3 + ...), |s| <= 0.172.
_ATANH = np.array([2.0 / (2 * k + 1) for k in range(12)])
_POWERS = np.ldexp(1.0, np.arange(-1022, 1024))


@njit(cache=True, error_model="numpy", forceinline=True)
def exp(x: float) -> float:
    """Return e to the x; 0 below -708, infinite above 709.7.

    >>> exp(1.0), exp(0.0), exp(-1000.0)
    (2.7182818284590455, 1.0, 0.0)
    """
    if np.isnan(x):
        return x
    if x < -708.0:
        return 0.0
    if x > 709.7:
        return np.inf
    k = np.floor(x * LOG2_E + 0.5)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    total = _TAYLOR[13]
    for i in range(12, -1, -1):
        total = total * r + _TAYLOR[i]
    if k > 1023.0:
        return float(total * 2.0 * _POWERS[2045])
    return float(total * _POWERS[int(k) + 1022])


@njit(cache=True, error_model="numpy", forceinline=True)
def exp2(x: float) -> float:
    """Return 2 to the x; 0 below -1022.5, infinite from 1024 on.

    >>> exp2(-3.0), exp2(0.5), exp2(1e300)
    (0.125, 1.414213562373095, inf)
    """
    if np.isnan(x):
        return x
    if x >= 1024.0:
        return np.inf
    k = np.floor(x + 0.5)
    if k < -1022.0:
        return 0.0
    if k > 1023.0:
        return float(exp((x - k) * 0.6931471805599453) * 2.0 * _POWERS[2045])
    return float(exp((x - k) * 0.6931471805599453) * _POWERS[int(k) + 1022])


@njit(cache=True, error_model="numpy", forceinline=True)
def log(x: float) -> float:
    """Return the natural logarithm of a normal positive number.

    >>> log(1.0), log(2.718281828459045)
    (0.0, 1.0)
    """
    low, high = 0, 2045
    while low < high:  # the largest power of two that is not above x: exact, unlike a division by log 2
        middle = (low + high + 1) // 2
        if _POWERS[middle] <= x:
            low = middle
        else:
            high = middle - 1
    k = low - 1022
    m = x / _POWERS[low]
    if m > 1.4142135623730951:
        m *= 0.5
        k += 1
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    total = _ATANH[11]
    for i in range(10, -1, -1):
        total = total * square + _ATANH[i]
    return float(k * LN2_HIGH + (k * LN2_LOW + s * total))


@njit(cache=True, error_model="numpy", forceinline=True)
def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^-x) without overflow.

    >>> sigmoid(0.0), sigmoid(-800.0), sigmoid(800.0)
    (0.5, 0.0, 1.0)
    """
    if x >= 0.0:
        return 1.0 / (1.0 + exp(-x))
    e = exp(x)
    return e / (1.0 + e)


@njit(cache=True, error_model="numpy", forceinline=True)
def logit(p: float) -> float:
    """Return log(p / (1 - p)) for p in (0, 1).

    >>> logit(0.5)
    0.0
    """
    return log(p / (1.0 - p))
