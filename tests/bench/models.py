"""What a label costs, and what a model loses: headrace's models against river's pipeline on the same flights.

Everybody sees the same rows in the same order, a label when the flight has landed and not before, and is scored on the last
80% of the labels. `ftrl` starts from columns in memory, text as bytes, and hashes it within its time; river's pipeline
starts from dicts that are there already. `progressive` is `ftrl` in the learner's own code, scores and digests included.

Two oracles, `tests.bench.oracles`, see what `ftrl` sees: VW's `--ftrl` and river's FTRLProximal, same parameters. Their
order is the log's: a row is predicted at its event and learned at its label. Since labels are learned in the same order
either way, one pass also tells what would be lost if labels came at once: each row predicted again just before it is
learned. The demo's own river pipeline is the peer for speed, not an oracle: it loses .001 more than the paper's algorithm,
since its numbers are not bounded at 8 standard deviations (.0004), its intercept follows SGD at a constant rate (.0002) and
river uses each weight one step late (.0004).

Times are CPU seconds of all threads, the median of several runs where one is short.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.bench import oracles
from tests.bench.flights import _FLIGHTS, log_of
from tests.bench.rebuild import rebuilt_faster

from headrace.batch.walk_forward import Walk, walk_forward
from headrace.definition import recipes
from headrace.definition.load import load_file
from headrace.definition.recipes import Recipe
from headrace.demo import flights
from headrace.events import LogBatch
from headrace.flow.features import Encoder
from headrace.flow.progressive import Progressive
from headrace.flow.scores import GENESIS
from headrace.models.boosting import Trained
from headrace.models.build import train
from headrace.models.contract import take
from headrace.models.ftrl import Ftrl
from headrace.models.river_pipeline import RiverModel
from headrace.models.text import Text

_WARM_UP = 2_000  # entries, so that no one's time has compilation in it
_RUNS = 5
_SCORED = 0.8
_SAME = {"alpha": 0.1, "beta": 1.0, "l1": 0.0, "l2": 0.0}  # parameters of all three
Floats = NDArray[np.float64]


def in_columns(batch: LogBatch) -> dict[str, Any]:
    """The log's columns as a learner reads them: text in one buffer, numbers as float64."""
    columns: dict[str, Any] = {}
    for name, values in batch.events.items():
        if values.dtype != object:
            columns[name] = values
        elif any(isinstance(value, str) for value in values.tolist()):
            columns[name] = Text.of(values.tolist())
        else:
            columns[name] = np.array([np.nan if v is None else v for v in values.tolist()], dtype=np.float64)
    return columns


def order_of(batch: LogBatch) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Entries in log order, as `Sequential.run` takes them, and the row of each label's event."""
    n = len(batch.event_seq)
    order = np.argsort(np.concatenate([batch.event_seq, batch.label_seq]), kind="stable")
    return np.where(order < n, order, n - 1 - order), np.searchsorted(batch.event_seq, batch.label_event)


def log_loss(y: Floats, p: Floats) -> float:
    """Over the last labels."""
    scored = slice(int((1 - _SCORED) * len(y)), None)
    p, y = np.clip(p[scored], 1e-6, 1 - 1e-6), y[scored]
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def by_ftrl(batch: LogBatch, **params: Any) -> tuple[Floats, float]:
    """Probability of each event, and CPU seconds."""
    encoder, columns = Encoder(load_file(_FLIGHTS)), in_columns(batch)
    order, row = order_of(batch)

    def go(order: NDArray[np.int64]) -> Floats:
        model = Ftrl(**params)
        X = model.prepare(encoder(columns))
        return model.run(order, X, X, batch.y, np.ones(len(batch.y)), batch.clock_labels, row)

    go(order[:_WARM_UP])
    return _timed(lambda: go(order), _RUNS)


def by_oracles(batch: LogBatch, **params: float) -> dict[str, dict[str, float]]:
    """Log losses of `ftrl`, VW and river that see the same features, with honest delay and as if labels came at once."""
    encoder, (order, row) = Encoder(load_file(_FLIGHTS)), order_of(batch)
    model = Ftrl(bins=False, **params)
    X = model.prepare(encoder(in_columns(batch)))
    again = {name: np.concatenate([values, values[row]]) for name, values in X.items()}
    n = len(X["keys"])
    twice = np.insert(order, np.flatnonzero(order < 0), n - 1 - order[order < 0])  # asked again before its label
    p = model.run(twice, again, X, batch.y, np.ones(len(batch.y)), batch.clock_labels, row)
    seen = oracles.Seen.of(X["keys"], X["numbers"], order, row, batch.y)
    with tempfile.TemporaryDirectory() as folder:
        vw = oracles.Vw(seen, params, Path(folder))
        found = {"ftrl": (p[:n], p[n:]), "vw": vw.predictions(), "river": oracles.by_river(seen, params)}
        times = {"vw": vw.seconds(_RUNS), "vw, labels only": vw.seconds(_RUNS, labels_only=True)}
    losses = {
        name: {"log_loss": log_loss(batch.y, at_event[row]), "at_once": log_loss(batch.y, at_label)}
        for name, (at_event, at_label) in found.items()
    }
    for name, (cpu, wall) in times.items():
        losses.setdefault(name, {})
        losses[name] |= {"us_per_sample": 1e6 * cpu / len(batch.y), "us_wall": 1e6 * wall / len(batch.y)}
    return {name: {key: round(value, 5) for key, value in values.items()} for name, values in losses.items()}


def by_river(batch: LogBatch) -> tuple[Floats, float]:
    """The same by the demo's first champion, from dicts."""
    stream = load_file(_FLIGHTS)
    assert stream.champion.build is not None
    order, row = order_of(batch)
    model = stream.champion.build()
    rows = RiverModel(stream.champion.build, bytes(16)).prepare(Encoder(stream)(in_columns(batch)))["river_row"]
    p, y, events = np.full(len(rows), 0.5), (batch.y == 1.0).tolist(), row.tolist()

    def go() -> Floats:
        predict, learn = model.predict_proba_one, model.learn_one
        for entry in order.tolist():
            if entry >= 0:
                p[entry] = predict(rows[entry]).get(True, 0.5)
            else:
                learn(rows[events[~entry]], y[~entry])
        return p

    return _timed(go)


def by_stack(batch: LogBatch, recipe: Recipe) -> tuple[Floats, float]:
    """The same by a stack that was bootstrapped on the first fifth of the labels; CPU seconds as if it had learned all.

    Training is left out; each tree is walked within its time, at the event and again at the label.
    """
    X, window = Encoder(load_file(_FLIGHTS))(in_columns(batch)), int((1 - _SCORED) * len(batch.y))
    _, row = order_of(batch)

    def trees(labels: int) -> Trained:
        order = np.argsort(row[:labels], kind="stable")
        events = row[order]
        times = batch.event_time[events], batch.label_time[order]
        return train(recipe, take(X, events), batch.y[order], *times)

    waits = np.zeros(len(batch.event_seq), dtype=np.bool_)
    waits[row] = True
    walk = Walk(X, batch.event_seq, waits, row, batch.label_seq, batch.clock_labels, batch.y)
    half, last = batch.label_seq[[window // 2, window]].tolist()
    stack = walk_forward(recipe, walk, half, last, trees(window // 2), trees(window))

    def go() -> Floats:
        walk.go(stack, last + 1, int(batch.label_seq[-1]))
        return walk.p

    p, seconds = _timed(go)
    return p, seconds / _SCORED


def progressive(batch: LogBatch) -> float:
    """CPU seconds of `ftrl` in the code of a learner that catches up."""
    stream = load_file(_FLIGHTS)
    columns = in_columns(batch)

    def go() -> Floats:
        version = Progressive(Ftrl(**recipes.ftrl().params), Encoder(stream), None, stream.slices, 1, GENESIS)
        list(version.apply(LogBatch(**{**vars(batch), "events": columns}), states=False))
        return np.empty(0)

    _timed(go)
    return _timed(go, _RUNS)[1]


def _timed(go: Callable[[], Floats], runs: int = 1) -> tuple[Floats, float]:
    """What it returns, and the median of its CPU seconds."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        p = go()
        seconds.append(time.process_time() - began)
    return p, statistics.median(seconds)


def run() -> dict[str, Any]:
    """Run the benchmark and print its table."""
    data = flights.load()
    batch = log_of(data, int(data.departures["scheduled_at"].cast("int64").to_numpy()[0]))
    _, row = order_of(batch)
    found: dict[str, dict[str, float]] = {}

    def note(name: str, p: Floats, seconds: float) -> None:
        found[name] = {
            "log_loss": round(log_loss(batch.y, p[row]), 5),
            "us_per_sample": round(1e6 * seconds / len(batch.y), 3),
        }

    note("river", *by_river(batch))
    note("ftrl", *by_ftrl(batch, bins=False, **_SAME))
    note("ftrl, bins", *by_ftrl(batch))
    note("ftrl, pairs", *by_ftrl(batch, pairs=True, alpha=0.03))
    note("ftrl, admitted after 5", *by_ftrl(batch, admit_after=5))
    note(
        "stack, lean",
        *by_stack(batch, recipes.stack(target_means=False, members=recipes.lean_members(target_means=False))),
    )
    note("stack", *by_stack(batch, recipes.stack(target_means=False)))
    learner = 1e6 * progressive(batch) / len(batch.y)
    judged = by_oracles(batch, **_SAME)
    river = found["river"]["us_per_sample"]
    print(f"{len(batch.y):,} labels of a year of flights; predict and learn, one core")
    print(f"{'model':28} {'log loss':>9} {'us/sample':>10} {'river is':>10}")
    for name, values in found.items():
        cost = values["us_per_sample"]
        print(f"{name:28} {values['log_loss']:9.5f} {cost:10.3f} {river / cost:9.0f}x")
    print(f"{'ftrl in the learner':28} {'':9} {learner:10.3f} {river / learner:9.0f}x")
    ftrl, vw = found["ftrl"]["us_per_sample"], judged["vw"]
    print(
        f"VW reading its cache, all threads: {vw['us_per_sample']:.3f} us/sample for the same predictions and labels,"
    )
    print(
        f"{vw['us_per_sample'] / ftrl:.1f}x ftrl's; for the labels alone {judged['vw, labels only']['us_per_sample']:.3f}"
    )
    print(f"{'the same features for all':28} {'log loss':>9} {'from ftrl':>10} {'at once':>10}")
    for name in ("ftrl", "vw", "river"):
        row_of = judged[name]
        away = row_of["log_loss"] - judged["ftrl"]["log_loss"]
        print(f"{name:28} {row_of['log_loss']:9.5f} {away:+10.5f} {row_of['at_once']:10.5f}")
    return {
        "labels": len(batch.y),
        "models": found,
        "same_features": judged,
        "ratio_river": round(river / ftrl, 1),
        "ratio_vw": round(vw["us_per_sample"] / ftrl, 2),
        "ratio_rebuild": rebuilt_faster(data, river * len(batch.y) / 1e6, len(batch.y))["ratio_rebuild"],
        "learner_us_per_sample": round(learner, 3),
    }
