"""A small stream for model tests, and trees trained on it once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from headrace.models.boosting import Trained, train

settings.register_profile("compiles", deadline=None)  # the first example compiles or loads numba code
settings.load_profile("compiles")


def _stream(
    n: int, seed: int = 0
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return columns, labels, event times and label times of n events in time order."""
    random = np.random.default_rng(seed)
    carrier = random.choice(np.array(["AA", "B6", "UA", "WN", None], dtype=object), n)
    tail = np.array([f"N{k}" for k in random.integers(0, 400, n)], dtype=object)
    wind, delay = random.normal(10, 5, n), random.normal(0, 1, n)
    logit = -1.0 + 0.15 * (wind - 10) + 1.2 * (carrier == "B6") - 0.8 * (carrier == "WN") + 0.5 * delay
    y = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    wind[random.random(n) < 0.1] = np.nan
    event_time = np.sort(random.integers(0, 60 * n, n)) * 1_000_000
    label_time = event_time + random.integers(1, 3_600, n) * 1_000_000
    return {"carrier": carrier, "tail": tail, "wind": wind, "delay": delay}, y, event_time, label_time


@pytest.fixture(scope="session")
def stream() -> Callable[..., Any]:
    """Make a stream: mixed columns, missing values, labels that depend on them and come later."""
    return _stream


@pytest.fixture(scope="session")
def trained() -> Trained:
    """Trees of a few thousand rows, with sets of categories in them."""
    return train(*_stream(3000), {"min_data_in_leaf": 20, "cat_smooth": 1, "min_data_per_group": 5}, threads=1)
