"""Bootstrap: trains a candidate on the log up to an epoch's end, judges it on the held-out end, registers it.

The training matrix is what the log says: the very code that learns online passes over the window and collects each
event's features, target means included, so offline and online features cannot differ. Training ends where the online
part begins: the candidate's first seq is the entry after its window, and events that are still open there are handed
over. Nothing of a model reaches the registry before all of it does.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection

from headrace.batch.training import Fitted, Window, fit
from headrace.definition.loss import Loss
from headrace.definition.recipes import Recipe
from headrace.definition.stream import Stream
from headrace.errors import BatchError
from headrace.events import Columns, Engine, LabelKind, LogColumn
from headrace.flow.features import Encoder
from headrace.flow.losses import losses_of
from headrace.flow.negatives import Negatives
from headrace.flow.progressive import Progressive
from headrace.flow.scores import GENESIS
from headrace.models.contract import Arrays, Clock, Floats, joined, row_count
from headrace.models.target_mean import TargetMeans
from headrace.models.tokens import keyed
from headrace.models.trial import try_recipe
from headrace.store import checkpoints, db, log, registry
from headrace.store.state import Live, read_on

_BATCH = 100_000
_PIECES = 1_000  # stretches of events between labels that are put together at a time


@dataclass(frozen=True)
class Candidate:
    """What a bootstrap made."""

    version: str
    recipe: str
    first_seq: int
    iterations: int  # trees, or passes over the window
    heldout: Mapping[
        str, Any
    ]  # loss, loss_kind, champion_loss (None before it scored there), labels, epoch_first, epoch_last
    passes: bool
    sentence: str
    seconds: float


class _Collector:
    """A model that keeps what it is shown: the pass over the log that makes the training matrix."""

    memo_width = 0

    def __init__(self) -> None:
        self._parts: list[dict[str, NDArray[Any]]] = []
        self._pieces: list[Columns] = []

    def collected(self) -> dict[str, NDArray[Any]]:
        """All rows so far."""
        if self._pieces:
            self._parts.append(joined(self._pieces))
            self._pieces = []
        return joined(self._parts)

    def prepare(self, X: Columns) -> Columns:
        return keyed(X)

    def ask(self, X: Columns, clock: Clock, outstanding: int) -> tuple[Floats, Floats]:
        self._pieces.append(X)
        if len(self._pieces) == _PIECES:  # runs between labels are short
            self._parts.append(joined(self._pieces))
            self._pieces = []
        return np.full(len(clock), 0.5), np.empty((len(clock), 0))

    def learn(self, X: Columns, y: Floats, memo: Floats, weight: Floats, clock: Clock) -> None:
        """Nothing to learn: the matrix is collected at events."""

    def predict(self, X: Columns) -> Floats:
        return np.full(row_count(X), 0.5)

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        return {}, {}

    def load(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """It has no state."""


def collect(conn: Connection, stream: Stream, columns: Sequence[LogColumn], recipe: Recipe, seq_last: int) -> Window:
    """The log, from where it begins by now, to an epoch's end, as training data.

    Raises
    ------
    BatchError
        When there are no labels in it.
    """
    prior = _prior(conn, stream, seq_last)
    encoder = Encoder(stream)
    means = TargetMeans(encoder.mean_keys, prior) if recipe.target_means else None
    collector = _Collector()
    at = dropped = log.dropped_through(conn, stream.name)
    negatives = Negatives.of(stream.config_of(recipe))
    pass_over = Progressive(collector, encoder, means, (), at + 1, GENESIS, loss=stream.loss, negatives=negatives)
    parts: list[dict[str, NDArray[Any]]] = []
    while at < seq_last:
        batch, scores = read_on(conn, stream.name, columns, pass_over, min(at + _BATCH, seq_last))
        conn.commit()
        for _ in scores:
            pass
        known = (batch.label_kind != LabelKind.CORRECTION) & ~np.isnan(batch.y) & (batch.label_event > dropped)
        parts.append(
            {
                "event_seq": batch.event_seq,
                "event_clock": batch.clock_events,
                "label_seq": batch.label_seq[known],
                "label_event": batch.label_event[known],
                "label_clock": batch.clock_labels[known],
                "y": batch.y[known],
            }
        )
        at = batch.seq_last
    log_columns = joined(parts)
    open_seq, open_means = pass_over.waiting()
    return Window(
        X=collector.collected(),
        event_seq=log_columns["event_seq"],
        event_clock=log_columns["event_clock"],
        label_row=np.searchsorted(log_columns["event_seq"], log_columns["label_event"]),
        label_seq=log_columns["label_seq"],
        label_clock=log_columns["label_clock"],
        y=log_columns["y"],
        negatives=negatives,
        means=means,
        open_seq=open_seq,
        open_means=None if means is None else open_means,
    )


def _prior(conn: Connection, stream: Stream, seq_last: int) -> float | None:
    """Share of positive labels up to a seq; None where labels are numbers."""
    row = db.row(conn, "label_range", {"upto": seq_last}, schema=stream.name)
    rate, low, high = row or (None, None, None)
    if rate is None or low == high:
        found = "the same number only" if stream.loss.regression else f"one class only (rate {rate})"
        raise BatchError(f"the log of {stream.name!r} up to seq {seq_last} has labels of {found}; wait for more")
    return None if stream.loss.regression else float(rate)


def last_epoch_end(conn: Connection, stream: str) -> tuple[int, int]:
    """(epoch, seq) of the newest complete epoch.

    Raises
    ------
    BatchError
        When there is none yet.
    """
    row = db.row(conn, "last_epoch", {"stream": stream})
    if row is None:
        raise BatchError(f"stream {stream!r} has no complete epoch yet: wait until its history is imported")
    return int(row[0]), int(row[1])


def bootstrap(
    conn: Connection,
    stream: Stream,
    recipe: Recipe,
    columns: Sequence[LogColumn],
    engine: Engine,
    key: bytes,
    *,
    seq_last: int | None = None,
    dag_run_id: str | None = None,
    threads: int = 1,
) -> Candidate:
    """Train, judge and register one candidate.

    Parameters
    ----------
    conn
        The platform's database, as role headrace_steer.
    seq_last
        End of the window: the last epoch that ends at or before it is used; the newest one when not given.

    Raises
    ------
    BatchError
        When the recipe is not trained offline, or the window has too little in it.
    ModelError
        When what was trained breaks the model contract.
    """
    if not recipe.bootstraps:
        raise BatchError(
            f"recipe {recipe.name!r} replays the log by itself and is not bootstrapped; choose among the challengers"
        )
    began = time.monotonic()
    epoch, cut = last_epoch_end(conn, stream.name)
    if seq_last is not None and seq_last < cut:
        epochs = db.rows(conn, "range_epochs", {"stream": stream.name, "first": 0, "last": seq_last})
        if not epochs:
            raise BatchError(f"no epoch of {stream.name!r} ends at or before seq {seq_last}")
        epoch, cut = epochs[-1][0], epochs[-1][2]
    conn.commit()
    with log.kept_whole(conn, stream.name):
        window = collect(conn, stream, columns, recipe, cut)
        fitted, heldout = _fit(conn, stream, recipe, key, window, cut, threads)
        artifact = fitted.artifact
        try_recipe(stream, recipe, artifact=None if artifact is None else artifact.tobytes())
        late = stream.label.on_late
        progressive = Progressive(
            fitted.model,
            Encoder(stream),
            window.means,
            stream.slices,
            cut + 1,
            GENESIS,
            late,
            stream.loss,
            window.negatives,
        )
        opened = log.recall(conn, stream.name, columns, window.open_seq).events
        clock = window.event_clock[np.searchsorted(window.event_seq, window.open_seq)]
        progressive.adopt(window.open_seq, window.open_means, opened, clock)
        with db.transaction(conn):
            version = registry.add_version(
                conn,
                stream,
                recipe,
                engine,
                first_seq=cut + 1,
                evidence_seq=cut + 1,
                status="candidate",
                heldout=heldout,
                dag_run_id=dag_run_id,
            )
            live = Live(registry.version(conn, stream.name, version), progressive, artifact, 0, engine)
            checkpoints.write(conn, stream.name, version, live.checkpoint(epoch))
            for point in fitted.curve:
                db.run(conn, "add_curve", {"stream": stream.name, "version": version, **vars(point)})
    good, sentence = judge(version, heldout)
    return Candidate(version, recipe.name, cut + 1, fitted.best, heldout, good, sentence, time.monotonic() - began)


def _fit(
    conn: Connection, stream: Stream, recipe: Recipe, key: bytes, window: Window, cut: int, threads: int
) -> tuple[Fitted, dict[str, Any]]:
    """Train on the window; score what was held out, over whole epochs, as the champion did."""
    first = window.held_out(stream.loss)
    epochs = db.rows(conn, "range_epochs", {"stream": stream.name, "first": first, "last": cut})
    if not epochs:
        raise BatchError(
            f"the held-out end of the window, from seq {first} to {cut}, has no whole epoch; wait for more labels"
        )
    # Labels from the first held-out event on: none of them was known when the first part ended.
    judged = (window.label_seq >= epochs[0][1]) & (window.label_seq <= epochs[-1][2])
    fitted = fit(recipe, key, window, first, cut, judged, threads, stream.loss)
    losses = losses_of(stream.loss, window.y[judged], window.negatives.corrected(fitted.p))
    return fitted, {
        "epoch_first": epochs[0][0],
        "epoch_last": epochs[-1][0],
        **fitted.found,
        "loss": float(losses.mean()),
        "loss_kind": stream.loss.kind,
        "labels": len(losses),
        "champion_loss": champion_loss(conn, stream.name, epochs[0][1], epochs[-1][2]),
    }


def champion_loss(conn: Connection, stream: str, first: int, last: int) -> float | None:
    """The champion's mean loss over the epochs within a range of seq; None unless it scored all of them."""
    champion = registry.champion(conn, stream)
    row = db.row(conn, "range_metrics", {"stream": stream, "version": champion, "first": first, "last": last})
    epochs = db.rows(conn, "range_epochs", {"stream": stream, "first": first, "last": last})
    if row is None or row[0] != len(epochs) or not row[1]:
        return None
    return float(row[2]) / int(row[1])


def judge(version: str, heldout: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a candidate may go into shadow by its held-out loss, and why.

    >>> judge("ads-2", {"loss": 0.45, "loss_kind": "log", "champion_loss": 0.5, "labels": 1000})[1]
    'ads-2 passes: held-out log loss 0.4500 over 1,000 labels, 10.0% below the champion (0.5000).'
    """
    loss, champion, labels = heldout["loss"], heldout["champion_loss"], heldout["labels"]
    shown = f"held-out {Loss(heldout['loss_kind']).name} {loss:.4f} over {labels:,} labels"
    if not math.isfinite(loss):
        return False, f"{version} is rejected: its {shown} is not finite."
    if champion is None:
        return True, f"{version} passes: {shown}; the champion has not scored those epochs yet, so the shadow decides."
    if loss <= champion:
        return True, f"{version} passes: {shown}, {1 - loss / champion:.1%} below the champion ({champion:.4f})."
    return False, f"{version} is rejected: {shown}, {loss / champion - 1:.1%} above the champion ({champion:.4f})."


def admit(conn: Connection, stream: Stream, names: Sequence[str]) -> tuple[list[str], list[str], str]:
    """Candidates that pass the held-out gate start to catch up; the others are rejected. Gives both, and why.

    Evidence for a new recipe begins now: its author may have seen everything before.

    Raises
    ------
    BatchError
        When one of them is no candidate, or there are not enough challenger slots.
    """
    admitted: list[str] = []
    rejected: list[str] = []
    sentences = []
    with db.transaction(conn):
        db.run(conn, "lock_stream", {"stream": stream.name})
        found = registry.versions(conn, stream.name)
        for version in found:
            # A new training of a recipe takes the slot of the one before.
            same = [v for v in found if v.recipe == version.recipe and v.version in names]
            if same and version.version not in names and version.status in ("shadow", "catching_up"):
                registry.set_status(conn, stream.name, version.version, "retired", was=("shadow", "catching_up"))
        busy = sum(v.status in ("shadow", "catching_up") for v in registry.versions(conn, stream.name))
        free = stream.policy.challenger_slots - busy
        position = db.row(conn, "log_position", {"stream": stream.name})
        for name in names:
            version = registry.version(conn, stream.name, name)
            if version.status != "candidate" or version.heldout is None:
                raise BatchError(f"{name} is {version.status}, expected a candidate of a bootstrap")
            heldout = _with_champion(conn, stream.name, version.heldout)
            passes, sentence = judge(name, heldout)
            if passes and free <= 0:
                passes, sentence = (
                    False,
                    f"{name} is rejected: all {stream.policy.challenger_slots} challenger slots are taken.",
                )
            sentences.append(sentence)
            (admitted if passes else rejected).append(name)
            free -= passes
            status = "catching_up" if passes else "rejected"
            registry.set_status(conn, stream.name, name, status, was=("candidate",))
            evidence_seq = (position[0] if position else 0) + 1
            db.run(conn, "set_evidence", {"stream": stream.name, "version": name, "evidence_seq": evidence_seq})
    return admitted, rejected, " ".join(sentences)


def _with_champion(conn: Connection, stream: str, heldout: Mapping[str, Any]) -> dict[str, Any]:
    """The held-out numbers with the champion's loss as it is known by now."""
    epochs = db.rows(
        conn, "epochs_between", {"stream": stream, "first": heldout["epoch_first"], "last": heldout["epoch_last"]}
    )
    loss = champion_loss(conn, stream, epochs[0][1], epochs[-1][2]) if epochs else None
    document: dict[str, Any] = json.loads(json.dumps(dict(heldout)))
    return document | {"champion_loss": loss}
