"""Batch, online, and both at once: who predicts flights best, given the same features and honest label delay?

The race of `headrace worth` over a year of flights, on all that is scored after the first fifth of the events, without and
with target means. Trees are trained again every 7 days on all labels that have come by then; nothing is tuned on what is
scored.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from tests.bench.flights import _FLIGHTS, log_of
from tests.bench.models import in_columns

from headrace import category, cross, number, recipes
from headrace.definition.load import load_file
from headrace.definition.recipes import Recipe
from headrace.demo import flights
from headrace.events import LogBatch
from headrace.worth.past import Past, from_log
from headrace.worth.race import DAY, Race, race

_MORE = [
    category("flight", "plane_model", "plane_manufacturer", "plane_type", "plane_engine"),
    number("plane_engines"),
    cross("carrier", "flight"),
]
"""Features beside those of the demo's stream: which flight it is, and more about the plane."""


def past_of(batch: LogBatch, *, target_means: bool) -> Past:
    """The year as everybody sees it."""
    stream = load_file(_FLIGHTS)
    own = [feature for feature in stream.features if target_means or feature.kind != "target_mean"]
    return from_log(replace(stream, features=[*own, *_MORE]), replace(batch, events=in_columns(batch)))


def contestants(past: Past) -> list[Recipe]:
    """Who races beside the usual ones: stacks, and linear models of other rates."""
    means = bool(past.means)
    alone = [recipes.ftrl(name=f"ftrl_{a}", alpha=a) for a in (0.001, 0.01, 0.1, 1.0)]
    pairs = [recipes.ftrl(name=f"pairs_{a}", alpha=a, pairs=True) for a in (0.001, 0.03, 0.1)]
    stacks = {
        "stack": recipes.stack(target_means=means, calibrate_by=past.keys),
        "stack_lean": recipes.stack(
            target_means=means, members=recipes.lean_members(target_means=means), calibrate_by=past.keys
        ),
    }
    if past.keys:
        stacks["stack_without_layer"] = recipes.stack(target_means=means)
    linear = [replace(recipe, target_means=means) for recipe in (*alone, *pairs)]
    return [*linear, *(replace(recipe, name=name) for name, recipe in stacks.items())]


def result_of(ran: Race) -> dict[str, Any]:
    """The table of one set of features."""
    sums = {r.entrant.name: ran.sums(r.p) for r in ran.ran}
    models = {
        r.entrant.name: {
            "log_loss": round(sums[r.entrant.name].mean_loss, 5),
            "ne": round(sums[r.entrant.name].normalised_entropy, 4),
            "auc": round(sums[r.entrant.name].auc, 4),
            "calibration": round(sums[r.entrant.name].calibration, 3),
            "us_per_label": round(1e6 * r.cpu_seconds / r.labels, 2),
            "family": r.entrant.family,
        }
        for r in ran.ran
    }
    stack = sums["stack"].mean_loss
    online = min(sums[r.entrant.name].mean_loss for r in ran.ran if r.entrant.family == "online")
    single = min(sums[r.entrant.name].mean_loss for r in ran.ran if not r.entrant.combines)
    return {
        "scored": len(ran.y),
        "models": models,
        "families": {family: round(ran.sums(p).mean_loss, 5) for family, p in ran.families.items()},
        "better_than_online": round(1 - stack / online, 4),
        "better_than_scheduled": round(1 - stack / sums["batch_recalibrated"].mean_loss, 4),
        "regret_to_best_member": round(stack / single - 1, 4),
        "regret_of_family": round(ran.regret, 4),
    }


def show(result: dict[str, Any], title: str) -> None:
    """Print a table."""
    print(f"\n{title:28} {'family':8} {'log loss':>9} {'AUC':>7} {'us/label':>9}")
    for name, row in sorted(result["models"].items(), key=lambda item: item[1]["log_loss"]):
        print(
            f"{name:28} {row['family']:8} {row['log_loss']:9.5f} {row['auc']:7.4f} {row['us_per_label']:9.2f}",
            flush=True,
        )
    print("families: " + ", ".join(f"{family} {loss:.5f}" for family, loss in result["families"].items()))
    ratios = ("better_than_online", "better_than_scheduled", "regret_to_best_member")
    print(", ".join(f"{name} {result[name]:.2%}" for name in ratios))


def run() -> dict[str, Any]:
    """Run the benchmark and print its tables."""
    data, began = flights.load(), time.monotonic()
    batch = log_of(data, int(data.departures["scheduled_at"].cast("int64").to_numpy()[0]))

    def told(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    result: dict[str, Any] = {"labels": len(batch.y)}
    for name, target_means in (("without", False), ("with", True)):
        past = past_of(batch, target_means=target_means)
        result[name] = result_of(race(past, contestants(past), told, every=7 * DAY))
        show(result[name], f"{name} target means")
    return result
