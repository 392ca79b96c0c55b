"""Exponential decay at the half-lives of streaming means, for kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.definition.features import HALF_LIVES
from headrace.models.arithmetic import exp2
from headrace.models.text import kernel

_HALF_LIVES = np.array(list(HALF_LIVES.values()), dtype=np.float64)
_LONGEST = float(_HALF_LIVES.max())

COUNT = len(HALF_LIVES)
"""How many half-lives there are."""

FORGOTTEN = 64 * int(_LONGEST)
"""Microseconds after which a label weighs 2^-64 of what it did."""


@kernel
def decays(age: Any, out: Any) -> None:
    """2^(-age/h) for each half-life, `age` in microseconds: one exponential, then whole powers of it."""
    longest = exp2(-age / _LONGEST)
    for h in range(out.shape[0]):
        power, left, value = longest, np.int64(_LONGEST / _HALF_LIVES[h]), 1.0
        while left:
            if left & 1:
                value *= power
            power *= power
            left >>= 1
        out[h] = value
