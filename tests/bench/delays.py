"""How many minutes late? Regression on a year of flights, with honest label delay.

Everybody sees the flights in the order of the log, a label when the flight has landed and not before, and is scored on the
last 80% of the labels, by absolute error and by squared error capped at two hours squared. Trees, and the constants, are
trained on the first 20%; nothing is tuned on what is scored.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.bench.flights import _FLIGHTS, log_of
from tests.bench.models import in_columns, order_of

from headrace import recipes
from headrace.batch.walk_forward import Walk
from headrace.definition.load import load_file
from headrace.definition.loss import Loss
from headrace.definition.recipes import Recipe
from headrace.demo import flights
from headrace.events import LogBatch
from headrace.flow.features import Encoder
from headrace.flow.losses import RegressionSums
from headrace.models import build
from headrace.models.contract import take
from headrace.models.target_mean import TargetMeans
from headrace.models.text import is_category, keys_of

_WINDOW = 0.2  # share of the labels that the trees are trained on
LOSSES = (Loss("absolute"), Loss("squared", cap=120.0**2))

Floats = NDArray[np.float64]


def contestants() -> list[Recipe]:
    """Who races; the best learning rate differs between losses and features."""
    rates = [recipes.ftrl(name=f"ftrl, alpha {a}", alpha=a) for a in (0.01, 0.03, 0.1, 0.3)]
    pairs = recipes.ftrl(name="ftrl, pairs, alpha 0.01", alpha=0.01, pairs=True)
    frozen = recipes.lightgbm(name="lightgbm, frozen", scale=0.0)
    return [frozen, recipes.lightgbm(), recipes.gbdt_lr(), *rates, pairs, recipes.label_mean()]


def features(batch: LogBatch, *, target_means: bool) -> tuple[dict[str, Any], NDArray[np.intp]]:
    """What models see of each event, and each label's event."""
    encoder = Encoder(load_file(_FLIGHTS))
    X: dict[str, Any] = encoder(in_columns(batch))
    order, row = order_of(batch)
    if target_means:
        means, n = TargetMeans(encoder.mean_keys, None), len(batch.event_seq)
        keys, entry = means.keys_of(X), np.where(order < 0, n - 1 - order, order)
        y = np.concatenate([np.zeros(n), batch.y])[entry]
        clock = np.concatenate([batch.clock_events, batch.clock_labels])[entry]
        X |= means.run(np.concatenate([keys, keys[row]])[entry], order < 0, y, np.ones(len(y)), clock)
    return {name: keys_of(values) if is_category(values) else values for name, values in X.items()}, row


def race(
    batch: LogBatch, loss: Loss, X: dict[str, Any], row: NDArray[np.intp], entrants: list[Recipe]
) -> dict[str, Any]:
    """Mean loss of everybody over the last 80% of the labels."""
    window = int(_WINDOW * len(batch.y))
    order = np.argsort(row[:window], kind="stable")
    events = row[:window][order]
    times = batch.event_time[events], batch.clock_labels[:window][order]
    trained = build.train(recipes.lightgbm(), take(X, events), batch.y[:window][order], *times, loss=loss)
    artifact = trained.ensemble.dump()
    known = batch.y[:window]
    constants = {"median": float(np.median(known)), "mean": float(known.mean())}
    found = {
        name: _scored(batch.y[window:], np.full(len(batch.y) - window, c), loss, 0.0) for name, c in constants.items()
    }
    for recipe in entrants:
        began = time.process_time()
        waits = np.zeros(len(batch.event_seq), dtype=np.bool_)
        waits[row] = True
        walk = Walk(X, batch.event_seq, waits, row, batch.label_seq, batch.clock_labels, batch.y)
        model = build.fresh(recipe, key=b"", artifact=artifact if recipe.bootstraps else None, loss=loss)
        first = int(batch.label_seq[window - 1]) + 1 if recipe.bootstraps else 1
        walk.go(model, first, int(batch.label_seq[-1]))
        seconds = time.process_time() - began
        p, y = walk.p[row[window:]], batch.y[window:]
        asked = ~np.isnan(p)  # trees begin at the window's end: labels of earlier events are learned unscored
        found[recipe.name] = _scored(y[asked], p[asked], loss, 1e6 * seconds / len(y))
    return found


def _scored(y: Floats, p: Floats, loss: Loss, us: float) -> dict[str, float]:
    sums = RegressionSums(loss)
    sums.add(y, p)
    numbers = {
        "loss": sums.mean_loss,
        "mae": sums.mae,
        "rmse": sums.rmse,
        "r2": sums.r2,
        "bias": sums.bias,
        "us_per_label": us,
    }
    return {name: round(value, 4) for name, value in numbers.items()}


def run() -> dict[str, Any]:
    """Run the benchmark and print its tables."""
    data = flights.load()
    batch = log_of(data, int(data.departures["scheduled_at"].cast("int64").to_numpy()[0]), minutes=True)
    result: dict[str, Any] = {"labels": len(batch.y)}
    for target_means in (False, True):
        X, row = features(batch, target_means=target_means)
        for loss in LOSSES:
            title = f"{loss.name}, {'with' if target_means else 'without'} target means"
            print(f"\n{title:40} {'loss':>9} {'MAE':>8} {'RMSE':>8} {'R2':>7} {'bias':>7} {'us/label':>9}")
            table = race(batch, loss, X, row, contestants())
            for name, r in table.items():
                numbers = f"{r['loss']:9.3f} {r['mae']:8.3f} {r['rmse']:8.3f} {r['r2']:7.4f} {r['bias']:7.3f}"
                print(f"{name:40} {numbers} {r['us_per_label']:9.2f}")
            result[title] = table
    return result
