"""Batch, online, and both at once: who predicts flights best, given the same features and honest label delay?

Everybody sees a year of flights in the order of the log, a label when the flight has landed and not before, and is scored on
the last 80% of the labels. Trees are trained on the first 20%, the bootstrap window, and again every 7 days on all labels
that have come by then; nothing is tuned on what is scored. The stack starts at half of the window, on trees of the half
before (`headrace.batch.walk_forward`); whenever there are new trees, its members get them and its weights go on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.bench.flights import _FLIGHTS, log_of
from tests.bench.models import in_columns, log_loss, order_of

from headrace import category, cross, number, recipes
from headrace.batch.walk_forward import Walk
from headrace.definition.load import load_file
from headrace.definition.recipes import Recipe
from headrace.demo import flights
from headrace.events import LogBatch
from headrace.flow.features import Encoder
from headrace.models import build
from headrace.models.boosting import Ensemble
from headrace.models.contract import take
from headrace.models.target_mean import TargetMeans
from headrace.models.text import is_category, keys_of

_WINDOW = 0.2  # share of the labels that the first bootstrap is trained on
_EVERY = timedelta(days=7) // timedelta(microseconds=1)
_MORE = [
    category("flight", "plane_model", "plane_manufacturer", "plane_type", "plane_engine"),
    number("plane_engines"),
    cross("carrier", "flight"),
]
"""Features beside those of the demo's stream: which flight it is, and more about the plane."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """The year as everybody sees it."""

    batch: LogBatch
    row: NDArray[np.intp]  # each label's event
    X: Mapping[str, NDArray[Any]]
    trees: Mapping[int, Ensemble]  # by the number of labels that they were trained on: half of the window, window, ...

    @property
    def refits(self) -> list[int]:
        """Numbers of labels at which trees are trained, from the whole window on."""
        return sorted(self.trees)[1:]

    def walk(self) -> Walk:
        batch, waits = self.batch, np.zeros(len(self.batch.event_seq), dtype=np.bool_)
        waits[self.row] = True
        return Walk(self.X, batch.event_seq, waits, self.row, batch.label_seq, batch.clock_labels, batch.y)

    def seq(self, labels: int) -> int:
        """Where the log has so many labels."""
        return int(self.batch.label_seq[labels - 1])


def case_of(batch: LogBatch, *, target_means: bool) -> Case:
    """Features of the year, and all the trees."""
    stream = load_file(_FLIGHTS)
    encoder = Encoder(replace(stream, features=[*stream.features, *_MORE]))
    order, row = order_of(batch)
    X: dict[str, Any] = encoder(in_columns(batch))
    window = int(_WINDOW * len(batch.y))
    if target_means:
        X |= _means(batch, encoder, X, order, row, float(batch.y[:window].mean()))
    X = {name: keys_of(values) if is_category(values) else values for name, values in X.items()}
    times = np.arange(batch.label_time[window - 1], batch.label_time[-1], _EVERY)
    sizes = [window // 2, window, *np.searchsorted(batch.label_time, times[1:]).tolist()]
    return Case(batch, row, X, {size: _train(batch, X, row[:size]) for size in sizes})


def _means(
    batch: LogBatch, encoder: Encoder, X: Mapping[str, Any], order: NDArray[np.int64], row: Any, prior: float
) -> dict[str, Floats]:
    means, n = TargetMeans(encoder.mean_keys, prior), len(batch.event_seq)
    keys = means.keys_of(X)
    entry = np.where(order < 0, n - 1 - order, order)
    y = np.concatenate([np.zeros(n), batch.y])[entry]
    clock = np.concatenate([batch.clock_events, batch.clock_labels])[entry]
    return means.run(np.concatenate([keys, keys[row]])[entry], order < 0, y, np.ones(len(y)), clock)


def _train(batch: LogBatch, X: Mapping[str, NDArray[Any]], row: NDArray[np.intp]) -> Ensemble:
    labels = np.argsort(row, kind="stable")
    events = row[labels]
    times = batch.event_time[events], batch.label_time[labels]
    return build.train(recipes.lightgbm(), take(X, events), batch.y[labels], *times).ensemble


def alone(case: Case, recipe: Recipe, refits: Sequence[int]) -> Walk:
    """One model; each refit is a new version of it, if it has trees."""
    walk = case.walk()
    if not recipe.bootstraps:
        walk.go(_model(recipe, None), 1, case.seq(len(case.row)))
        return walk
    for size, end in _stretches(case, refits):
        walk.go(_model(recipe, case.trees[size]), case.seq(size) + 1, case.seq(end))
    return walk


def _stretches(case: Case, refits: Sequence[int]) -> list[tuple[int, int]]:
    """From which number of labels to which the trees of the first one are used."""
    sizes = [min(case.trees), *refits]  # those of half the window predict what is labelled, and scored, after it
    return list(zip(sizes, [*refits, len(case.row)], strict=True))


def _model(recipe: Recipe, trees: Ensemble | None) -> Any:
    return build.fresh(recipe, key=b"", artifact=None if trees is None else trees.dump())


def stacked(case: Case, recipe: Recipe, refits: Sequence[int]) -> Walk:
    """The stack; new trees take the former ones' places in it."""
    walk, half = case.walk(), min(case.trees)
    former = build.stack(recipe, None)
    walk.go(former, 1, case.seq(half), started=False)
    for size, end in _stretches(case, refits):
        stack = build.stack(recipe, case.trees[size])
        stack.take_over(former, stackers=size != half)
        walk.go(stack, case.seq(size) + 1, case.seq(end))
        former = stack
    return walk


def contestants(case: Case, *, target_means: bool) -> dict[str, tuple[str, Walk, float]]:
    """(family, what it said, CPU seconds) of everybody."""
    once, often = case.refits[:1], case.refits
    stack, lean = recipes.stack(target_means=target_means), recipes.lean_members(target_means=target_means)
    frozen = recipes.lightgbm(scale=0.0)  # its recalibration cannot move
    entries: list[tuple[str, str, Recipe, list[int]]] = [
        ("batch", "lightgbm, once", frozen, once),
        ("batch", "lightgbm, every 7 d", frozen, often),
        ("batch", "lightgbm, once, recalibrated", recipes.lightgbm(), once),
        ("batch", "lightgbm, every 7 d, recalibrated", recipes.lightgbm(), often),
        *[("online", f"ftrl, alpha {a}", recipes.ftrl(alpha=a), []) for a in (0.001, 0.01, 0.1, 1.0)],
        *[("online", f"ftrl, pairs, alpha {a}", recipes.ftrl(alpha=a, pairs=True), []) for a in (0.001, 0.01, 0.03, 0.1)],
        ("hybrid", "gbdt_lr, every 7 d", recipes.gbdt_lr(), often),
        ("hybrid", "stack, once", stack, once),
        ("hybrid", "stack, lean", recipes.stack(target_means=target_means, members=lean), often),
        ("hybrid", "stack", stack, often),
    ]  # fmt: skip
    found = {}
    for family, name, recipe, refits in entries:
        began = time.process_time()
        walk = (stacked if recipe.kind == "stack" else alone)(case, recipe, refits)
        found[name] = family, walk, time.process_time() - began
    return found


def members(case: Case, recipe: Recipe, walk: Walk) -> dict[str, float]:
    """Log loss of each member, of its probabilities as the stack takes them."""
    logits = walk.memo[case.row, : len(recipe.members)]
    return {
        member.name: log_loss(case.batch.y, 1 / (1 + np.exp(-logits[:, k]))) for k, member in enumerate(recipe.members)
    }


def race(batch: LogBatch, *, target_means: bool) -> dict[str, Any]:
    """The table of one set of features."""
    case = case_of(batch, target_means=target_means)
    models: dict[str, dict[str, Any]] = {}
    for name, (family, walk, seconds) in contestants(case, target_means=target_means).items():
        loss = log_loss(batch.y, walk.p[case.row])
        cost = 1e6 * seconds / np.count_nonzero(~np.isnan(walk.p[case.row]))
        models[name] = {"family": family, "log_loss": round(loss, 5), "us_per_label": round(cost, 2)}
        print(f"{name:36} {family:8} {loss:9.5f} {cost:9.2f}")
        if name == "stack":
            of_members = members(case, recipes.stack(target_means=target_means), walk)
    for name, loss in of_members.items():
        print(f"  its member {name:25} {loss:9.5f}")
    stack = models["stack"]["log_loss"]
    online = min(row["log_loss"] for row in models.values() if row["family"] == "online")
    scheduled = models["lightgbm, every 7 d, recalibrated"]["log_loss"]
    ratios = {
        "better_than_online": round(1 - stack / online, 4),
        "better_than_scheduled": round(1 - stack / scheduled, 4),
        "regret_to_best_member": round(stack / min(of_members.values()) - 1, 4),
    }
    print(", ".join(f"{name} {value:.2%}" for name, value in ratios.items()))
    return {"models": models, "members": {name: round(loss, 5) for name, loss in of_members.items()}, **ratios}


def run() -> dict[str, Any]:
    """Run the benchmark and print its tables."""
    data = flights.load()
    batch = log_of(data, int(data.departures["scheduled_at"].cast("int64").to_numpy()[0]))
    result = {}
    for target_means in (False, True):
        print(
            f"\n{'with' if target_means else 'without'} target means {'':13} {'family':8} {'log loss':>9} {'us/label':>9}"
        )
        result["with" if target_means else "without"] = race(batch, target_means=target_means)
    return {"labels": len(batch.y), "scored": len(batch.y) - int(_WINDOW * len(batch.y)), **result}
