"""Two other FTRLs that see exactly what `ftrl` sees: VW's `--ftrl` and river's FTRLProximal.

`Seen` has the features of each entry as they reach `ftrl`'s weights: numbers of categories' values, and numbers in standard
deviations of the labels before, bounded at 8. VW reads them as integers, so that it neither hashes nor has collisions and its
whole table fits the cache: it is at its best. Its C++ runs over a file; an example without a label is an event.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Seen:
    """Entries in log order.

    Attributes
    ----------
    order
        int64[entries]: i for event i, -1 - i for label i.
    row
        intp[labels], each label's event.
    y
        float64[labels].
    values
        int64[events, categories], -1 where missing.
    at_event, at_label
        float64[events or labels, numbers], scaled.
    """

    order: Ints
    row: NDArray[np.intp]
    y: Floats
    values: Ints
    at_event: Floats
    at_label: Floats

    @classmethod
    def of(cls, keys: NDArray[np.uint64], numbers: Floats, order: Ints, row: NDArray[np.intp], y: Floats) -> Seen:
        """From prepared rows; what is scaled here is summed up at once, not one after the other."""
        values = np.unique(np.append(np.uint64(0), keys), return_inverse=True)[1]
        middle, labelled = np.nanmean(numbers, axis=0), numbers[row]
        known, away = np.isfinite(labelled), np.where(np.isfinite(labelled), labelled - middle, 0.0)
        count = np.maximum(np.cumsum(known, axis=0), 1)
        mean = np.cumsum(away, axis=0) / count
        variance = np.cumsum(away**2, axis=0) / count - mean**2
        per_spread = np.where(variance > 1e-12, 1.0 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
        # Before the first label there is no scale.
        mean, per_spread = (np.vstack([np.zeros(len(middle)), part]) for part in (mean + middle, per_spread))

        def scaled(x: Floats, labels: Ints) -> Floats:
            return np.clip(np.nan_to_num((x - mean[labels]) * per_spread[labels]), -8.0, 8.0)

        labels_before = np.empty(len(numbers), dtype=np.int64)
        labels_before[order[order >= 0]] = np.cumsum(order < 0)[order >= 0]
        return cls(
            order,
            row,
            y,
            values.reshape(-1)[1:].reshape(keys.shape) - 1,
            scaled(numbers, labels_before),
            scaled(labelled, np.arange(1, len(row) + 1)),
        )

    def entries(self) -> Iterator[tuple[float | None, list[int], list[float]]]:
        """Label (None for an event), categories and numbers of each entry."""
        for entry in self.order.tolist():
            if entry >= 0:
                yield None, self.values[entry].tolist(), self.at_event[entry].tolist()
            else:
                yield self.y[~entry], self.values[self.row[~entry]].tolist(), self.at_label[~entry].tolist()

    def split(self, p: Floats) -> tuple[Floats, Floats]:
        """Predictions of entries in order as those of events and those of labels, made just before they were learned."""
        is_event = self.order >= 0
        at_event = np.empty(len(self.values))
        at_event[self.order[is_event]] = p[is_event]
        return at_event, p[~is_event]


class Vw:
    """VW over the same entries, from a file in a folder and then from its cache."""

    def __init__(self, seen: Seen, params: Mapping[str, float], folder: Path) -> None:
        self._seen = seen
        self._whole, self._labels = folder / "entries", folder / "labels"
        self._arguments = ["--ftrl", "--ftrl_alpha", str(params["alpha"]), "--ftrl_beta", str(params["beta"])]
        self._arguments += ["--l1", str(params["l1"]), "--l2", str(params["l2"])]
        self._arguments += ["--loss_function", "logistic", "--link", "logistic", "--quiet"]
        first = int(seen.values.max()) + 1
        with self._whole.open("w") as whole, self._labels.open("w") as labels:
            for y, values, numbers in seen.entries():
                features = [str(value) for value in values if value >= 0]
                features += [f"{j}:{x:.9g}" for j, x in enumerate(numbers, first) if x]
                line = f"{'' if y is None else '1 ' if y else '-1 '}| {' '.join(features)}\n"
                whole.write(line)
                if y is not None:
                    labels.write(line)

    def predictions(self) -> tuple[Floats, Floats]:
        """Of events and of labels."""
        out = self._whole.with_suffix(".p")
        self._run(self._whole, "-p", str(out))
        return self._seen.split(np.loadtxt(out))

    def seconds(self, runs: int, *, labels_only: bool = False) -> tuple[float, float]:
        """CPU and wall seconds from the cache, predictions not written, medians; VW reads in a thread of its own."""
        file = self._labels if labels_only else self._whole
        self._run(file)  # writes the cache
        spent = [self._run(file) for _ in range(runs)]
        cpu, wall = zip(*spent, strict=True)
        return statistics.median(cpu), statistics.median(wall)

    def _run(self, file: Path, *more: str) -> tuple[float, float]:
        from vowpalwabbit import Workspace

        arguments = ["-d", str(file), "--cache_file", f"{file}.cache", *self._arguments, *more]
        cpu, wall = time.process_time(), time.perf_counter()
        model = Workspace(arg_list=arguments)  # runs over the file, in C++
        spent = time.process_time() - cpu, time.perf_counter() - wall
        model.finish()
        return spent


def by_river(seen: Seen, params: Mapping[str, float]) -> tuple[Floats, Floats]:
    """River's logistic regression with FTRLProximal; its intercept is a feature like the others."""
    from river import linear_model, optim

    model: Any = linear_model.LogisticRegression(optim.FTRLProximal(**params), intercept_lr=0.0)
    p = []
    for y, values, numbers in seen.entries():
        x = {value: 1.0 for value in values if value >= 0} | {-2 - j: v for j, v in enumerate(numbers) if v} | {-1: 1.0}
        p.append(model.predict_proba_one(x)[True])
        if y is not None:
            model.learn_one(x, y == 1.0)
    return seen.split(np.array(p))
