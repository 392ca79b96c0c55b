"""A million new category values a day for ten days: does `ftrl` keep to its memory, and what does that cost?

Visits of pages: half of them are of a page that nobody has seen before, the others come back to a page of the last hours.
Each page has a rate of its own, as have the site and the hour. A bounded table (a million weights) is compared with one that
never has to drop any; labels come a thousand visits late.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.models.ftrl import Ftrl
from headrace.models.text import Text

DAYS, NEW = 10, 1_000_000
_VISITS = 2 * NEW  # a day
_DAY = 86_400_000_000
_LATE = 1_000
_MAX_WEIGHTS = 1_000_000
_UNBOUNDED = DAYS * NEW + 1_000
_SCORED = 1  # from this day on


def visits(day: int, random: np.random.Generator) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Columns and labels of one day; a page's number never comes again once it is old."""
    new = np.cumsum(np.tile([1, 0], NEW)) + day * NEW
    back = (random.exponential(20_000, _VISITS)).astype(np.int64)
    page = np.where(np.arange(_VISITS) % 2 == 0, new, np.maximum(new - back, 1))
    site, hour = page % 200, np.arange(_VISITS) * 24 // _VISITS
    known = np.ones(_VISITS, dtype=np.bool_)
    size = random.normal(size=_VISITS)
    logit = -1.5 + 1.5 * np.sin(page * 12.9898) + 0.7 * np.cos(site * 78.233) + 0.3 * np.sin(hour) + 0.4 * size
    columns = {name: Text.integers(v, known) for name, v in (("page", page), ("site", site), ("hour", hour))}
    return columns | {"size": size}, (random.random(_VISITS) < 1 / (1 + np.exp(-logit))).astype(np.float64)


def run_one(max_weights: int) -> dict[str, Any]:
    """Go through all days."""
    model, random = Ftrl(alpha=0.3, bins=False, max_weights=max_weights), np.random.default_rng(7)
    order = np.column_stack([np.arange(_LATE, _VISITS), -1 - np.arange(_VISITS - _LATE)]).ravel()
    order = np.concatenate([np.arange(_LATE), order, -1 - np.arange(_VISITS - _LATE, _VISITS)])
    loss, megabytes, seconds = 0.0, [], 0.0
    for day in range(DAYS):
        columns, y = visits(day, random)
        clock = day * _DAY + np.arange(_VISITS) * (_DAY // _VISITS)
        began = time.process_time()
        X = model.prepare(columns)
        p = model.run(order, X, X, y, np.ones(_VISITS), clock)
        seconds += time.process_time() - began
        megabytes.append(sum(array.nbytes for array in model.save()[0].values()) / 1e6)
        if day >= _SCORED:
            loss -= float(np.mean(np.log(np.where(y == 1.0, p, 1.0 - p))))
    return {
        "log_loss": round(loss / (DAYS - _SCORED), 6),
        "state_mb": [round(mb, 1) for mb in megabytes],
        "us_per_label": round(1e6 * seconds / (DAYS * _VISITS), 3),
    }


def run() -> dict[str, Any]:
    """Run the benchmark and print its table."""
    bounded, unbounded = run_one(_MAX_WEIGHTS), run_one(_UNBOUNDED)
    bound = 80 * _MAX_WEIGHTS / 1e6
    print(f"{DAYS} days of {_VISITS:,} visits, {NEW:,} new pages in each; state in MB after each day")
    for name, found in ((f"at most {_MAX_WEIGHTS:,} weights", bounded), ("no bound", unbounded)):
        sizes = " ".join(f"{mb:7,.0f}" for mb in found["state_mb"])
        print(f"{name:28} log loss {found['log_loss']:.5f} {found['us_per_label']:6.2f} us/label {sizes}")
    costs = bounded["log_loss"] / unbounded["log_loss"] - 1
    print(f"the bound costs {costs:+.3%} of the log loss; {bound:,.0f} MB are declared")
    return {
        "bounded": bounded,
        "unbounded": unbounded,
        "costs": round(costs, 6),
        "declared_mb": bound,
        "flat": max(bounded["state_mb"]) <= bound,
    }
