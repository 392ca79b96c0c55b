"""Does batch training pay before a linear model goes online? A year of flights, honest label delay.

`ftrl` starts with a fifth, or half, of the year's labels: by a replay, and by as many passes as the window's held-out end
asks for (`headrace.batch.passes`, its defaults). Then both go on online and are scored on what follows. No setting is chosen
by what is scored.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from tests.bench.flights import _FLIGHTS, log_of
from tests.bench.models import in_columns

from headrace.batch.passes import Labels, fit
from headrace.batch.walk_forward import Walk
from headrace.definition import recipes
from headrace.definition.load import load_file
from headrace.demo import flights
from headrace.flow.scores import log_loss
from headrace.models.ftrl import Ftrl
from headrace.models.text import is_category, keys_of
from headrace.worth.past import Past, from_log

_WINDOWS = (0.2, 0.5)  # shares of the labels
_HELD_OUT = 0.2
_SOON = 20_000  # labels right after the window


class Year:
    """The flights as a window of the log; a seq is an entry's number."""

    def __init__(self, past: Past) -> None:
        n, y = len(past.event_time), past.y
        X = {name: keys_of(v) if is_category(v) else v for name, v in past.X.items()}
        seq = np.empty(n + len(y), dtype=np.int64)
        seq[np.where(past.order < 0, n - 1 - past.order, past.order)] = np.arange(1, n + len(y) + 1)
        self.labels = Labels(X, past.label_row, seq[n:], past.label_time, y, np.ones(len(y)))
        waits = np.zeros(n, dtype=np.bool_)
        waits[past.label_row] = True
        self.event_seq = seq[:n]
        self.walk = Walk(X, self.event_seq, waits, past.label_row, seq[n:], past.label_time, y)

    def start(self, window: float, alpha: float, batch: recipes.Batch, *, pairs: bool) -> dict[str, Any]:
        """What came of a start on a share of the labels."""
        last = int(self.labels.seq[int(window * len(self.labels.y)) - 1])
        known = self.labels.before(last + 1)
        first = int(np.sort(self.event_seq[known.row])[int((1 - _HELD_OUT) * len(known.y))])
        began = time.process_time()
        made = fit(
            lambda: Ftrl(alpha=alpha, pairs=pairs),
            alpha,
            vars(batch),
            known,
            self.walk,
            first,
            last,
            known.seq >= first,
        )
        seconds = time.process_time() - began
        self.walk.adopt(made.model, last)
        self.walk.go(made.model, last + 1, int(self.labels.seq[-1]))
        later = slice(len(known.y), None)
        losses, _ = log_loss(self.labels.y[later], self.walk.p[self.labels.row[later]])
        return {
            "passes": made.best,
            "tried": len(made.curve),
            "held_out": round(made.curve[made.best - 1].loss_heldout, 4),
            "soon": round(float(losses[:_SOON].mean()), 4),
            "log_loss": round(float(losses.mean()), 4),
            "cpu_seconds": round(seconds, 1),
        }


def run() -> list[dict[str, Any]]:
    """Run the benchmark and print its table."""
    data, stream = flights.load(), load_file(_FLIGHTS)
    batch = log_of(data, int(data.departures["scheduled_at"].cast("int64").to_numpy()[0]))
    batch = replace(batch, events=in_columns(batch))
    found = []
    print(f"{'means':6} {'pairs':6} {'window':6} {'alpha':>6} | {'replay: held out':>16} {'soon':>7} {'all':>7} | "
          f"{'passes':>10} {'held out':>8} {'soon':>7} {'all':>7} {'CPU s':>6}")  # fmt: skip
    for means, pairs in ((False, False), (True, False), (False, True)):
        features = [feature for feature in stream.features if means or feature.kind != "target_mean"]
        year = Year(from_log(replace(stream, features=features), batch))
        for window in _WINDOWS:
            for alpha in (0.001, 0.01, 0.1) if means or pairs else (0.01, 0.1, 1.0):
                how = {"means": means, "pairs": pairs, "window": window, "alpha": alpha}
                one, many = (
                    year.start(window, alpha, b, pairs=pairs) for b in (recipes.Batch(passes=1), recipes.Batch())
                )
                found.append(how | {"replay": one, "batch": many})
                print(f"{means!s:6} {pairs!s:6} {window:6} {alpha:6} | {one['held_out']:16.4f} {one['soon']:7.4f} "
                      f"{one['log_loss']:7.4f} | {many['passes']:4} of {many['tried']:2} {many['held_out']:8.4f} "
                      f"{many['soon']:7.4f} {many['log_loss']:7.4f} {many['cpu_seconds']:6.1f}", flush=True)  # fmt: skip
    return found
