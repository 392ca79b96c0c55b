"""The basic functions stay within a few units in the last place of NumPy's, over their whole range."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.models import arithmetic

ULP = 2.0**-52


@given(st.floats(-700, 700))
def test_exp(x: float) -> None:
    assert abs(arithmetic.exp(x) / math.exp(x) - 1) <= 4 * ULP


@given(st.floats(-1000, 1000))
def test_exp2(x: float) -> None:
    assert abs(arithmetic.exp2(x) / 2.0**x - 1) <= 4 * ULP


@given(st.floats(1e-300, 1e300))
def test_log(x: float) -> None:
    assert abs(arithmetic.log(x) - math.log(x)) <= 4 * ULP * abs(math.log(x))


@given(st.floats(-700, 700))
def test_sigmoid_is_finite_and_rises(x: float) -> None:
    p = arithmetic.sigmoid(x)
    assert 0.0 <= p <= 1.0
    assert p <= arithmetic.sigmoid(x + 1.0)
    assert abs(p - 1 / (1 + math.exp(-x))) <= 4 * ULP


@given(st.floats(1e-6, 1 - 1e-6))
def test_logit_undoes_sigmoid(p: float) -> None:
    assert abs(arithmetic.sigmoid(arithmetic.logit(p)) - p) <= 1e-14


def test_ends() -> None:
    assert arithmetic.exp(-1e9) == 0.0
    assert arithmetic.exp(1e9) == math.inf
    assert np.isnan(arithmetic.exp(math.nan))
    assert arithmetic.exp2(-1e9) == 0.0
    assert arithmetic.exp2(1e9) == arithmetic.exp2(1024.0) == math.inf
    assert math.isclose(arithmetic.exp2(1023.9), 2.0**1023.9, rel_tol=4 * ULP)
    assert np.isnan(arithmetic.exp2(math.nan))
