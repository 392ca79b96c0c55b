"""headrace with one function broken: `python -m tests.torture.saboteur lost|twice|flip COMMAND ...`, for the rig's own proof.

`up` starts its workers through this module too. A worker of the chosen role strikes once, when the file named by
TORTURE_TRIGGER exists, and removes the file when what it broke is durable. Nothing of this is in the product.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("lost", "twice", "flip")
VICTIM = {
    "lost": ("intake", "visits"),
    "twice": ("learn", "visits", "visits-2"),
    "flip": ("learn", "visits", "visits-2"),
}


def armed() -> bool:
    """Whether the rig wants it now."""
    return Path(os.environ["TORTURE_TRIGGER"]).exists()


def disarm() -> None:
    """It is done and durable."""
    Path(os.environ["TORTURE_TRIGGER"]).unlink(missing_ok=True)


def lose_a_row() -> None:
    """The intake drops the last change of a stretch, and does not count it either."""
    from headrace.flow.admit import Admission
    from headrace.live import intake

    chunk_of, write = Admission.chunk, intake._write
    struck = False

    def chunk(self: Admission, clock: Any) -> Any:
        nonlocal struck
        made = chunk_of(self, clock)
        events = np.flatnonzero(made.op == 0)
        if not armed() or not len(events):
            return made
        struck = True
        self.received -= 1
        last = int(events[-1])
        fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
        shorter = {name: np.delete(fields[name], last) for name in ("commit", "op", "time", "y", "row")}
        return dataclasses.replace(made, **shorter, key=made.key.take(np.delete(np.arange(len(made.key)), last)))

    def written(*arguments: Any) -> Any:
        done = write(*arguments)
        if struck:
            disarm()
        return done

    Admission.chunk = chunk  # type: ignore
    intake._write = written  # type: ignore


def learn_twice() -> None:
    """A learner reads one label twice."""
    from headrace.flow.openevents import OpenEvents
    from headrace.store import log

    read, close = log.read, OpenEvents.close
    struck = False

    def repeated(*arguments: Any) -> Any:
        nonlocal struck
        batch = read(*arguments)
        useful = [
            i
            for i, (kind, y) in enumerate(zip(batch.label_kind.tolist(), batch.y.tolist(), strict=True))
            if kind == 0 and y == y and batch.epochs and batch.label_seq[i] < batch.epochs[0].seq_last
        ]
        if struck or not armed() or not useful:
            return batch
        struck, at = True, useful[0]
        names = ("label_seq", "label_event", "label_kind", "y", "y_before", "clock_labels")
        again: dict[str, Any] = {
            name: np.insert(values, at, values[at]) for name in names if (values := getattr(batch, name)) is not None
        }
        _when_written(disarm, int(batch.label_seq[at]))
        return dataclasses.replace(batch, **again)

    log.read = repeated  # type: ignore
    OpenEvents.close = lambda self, seqs: close(self, np.unique(seqs))  # type: ignore[method-assign]


def flip_a_bit() -> None:
    """One bit of one weight of a river model is another one from a checkpoint on."""
    from headrace.store.state import Live

    checkpoint = Live.checkpoint

    def flipped(self: Live, epoch: int) -> Any:
        if armed():
            Live.checkpoint = checkpoint  # type: ignore[method-assign]
            _when_written(disarm, self.progressive.seq)
            model: Any = self.progressive.model
            weights = list(model._model.steps.values())[-1]._weights  # `weights` is a copy
            name = max(weights, key=lambda key: abs(weights[key]))
            bits = np.float64(weights[name]).view(np.uint64) ^ np.uint64(1 << 44)
            weights[name] = float(bits.view(np.float64))
        return checkpoint(self, epoch)

    Live.checkpoint = flipped  # type: ignore[method-assign]


def _when_written(then: Callable[[], None], seq: int) -> None:
    """Call `then` when a checkpoint at or after an entry is durable."""
    from headrace.live.learner import Learner

    store = Learner._store

    def told(self: Learner, lease: Any, scores: Any, checkpoint: Any) -> None:
        store(self, lease, scores, checkpoint)
        if checkpoint.seq >= seq:
            Learner._store = store  # type: ignore[method-assign]
            then()

    Learner._store = told  # type: ignore[method-assign]


BREAK = {"lost": lose_a_row, "twice": learn_twice, "flip": flip_a_bit}


def main() -> int:
    """Break what this process is to break, then be headrace."""
    kind, words = sys.argv[1], sys.argv[2:]
    from headrace import cli
    from headrace.live import supervisor

    if words[0] == "up":
        supervisor.command = lambda *command: (sys.executable, "-P", "-m", "tests.torture.saboteur", kind, *command)
    if tuple(words[: len(VICTIM[kind])]) == VICTIM[kind]:
        BREAK[kind]()
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main())
