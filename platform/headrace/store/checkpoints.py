"""Checkpoints and metrics of versions: one transaction holds both, so a model never knows more than its metrics say.

A state is arrays plus JSON (`headrace.models.snapshot`); arrays of 64 KiB and more are stored by content, so that a
frozen booster is written once however many checkpoints refer to it. The caller owns the transaction.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg2 import Binary
from psycopg2.extensions import connection as Connection

from headrace.errors import SnapshotError
from headrace.events import moment
from headrace.flow.copybinary import packed_row
from headrace.flow.losses import RegressionSums, Sums
from headrace.flow.openevents import saved_seqs
from headrace.flow.progressive import EpochScore
from headrace.flow.scores import pack_histograms
from headrace.models.contract import Rates
from headrace.models.snapshot import Digests, dump, parse, state_digest
from headrace.store import db
from headrace.store.queries import query

_LARGE = 64 * 1024
KEEP = 8  # newest checkpoints of a version that are kept, beside sparse older ones and its base

Arrays = Mapping[str, NDArray[Any]]

_digests = Digests()  # pages of open events and frozen boosters are the same objects in every checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A version's stored state."""

    seq: int
    epoch: int
    digest: bytes  # of the scores up to here, chained
    engine: str
    learned: int  # labels learned online since its first seq
    arrays: Arrays
    meta: Mapping[str, Any]
    rates: Sequence[Rates] | None = None  # for people; not read back


def write(conn: Connection, stream: str, version: str, checkpoint: Checkpoint) -> int:
    """Store a checkpoint; gives its size in bytes."""
    large = {name: array for name, array in checkpoint.arrays.items() if array.nbytes >= _LARGE}
    refs = {name: _digests.of(array) for name, array in large.items()}
    asked = {"stream": stream, "version": version, "sha256": list(refs.values())}
    stored = {sha for (sha,) in db.rows(conn, "stored_artifacts", asked)}
    written = 0
    for name, array in large.items():
        if refs[name] not in stored:
            content = dump({"array": array}, {})
            row = packed_row([stream.encode(), version.encode(), refs[name].encode(), content])
            with conn.cursor() as cursor:  # as a parameter it would be in memory six times
                cursor.copy_expert(query("add_artifact"), io.BytesIO(row))
            stored.add(refs[name])
            written += len(content)
    state = dump({name: array for name, array in checkpoint.arrays.items() if name not in large}, checkpoint.meta)
    params = {
        "stream": stream,
        "version": version,
        "seq": checkpoint.seq,
        "epoch": checkpoint.epoch,
        "digest": Binary(checkpoint.digest),
        "state_digest": Binary(bytes.fromhex(state_digest(_comparable(checkpoint.arrays), _digests))),
        "engine": checkpoint.engine,
        "arrays": json.dumps(refs),
        "state": Binary(state),
        "learned": checkpoint.learned,
        "bytes": len(state) + written,
        "rates": None if checkpoint.rates is None else json.dumps([asdict(rates) for rates in checkpoint.rates]),
    }
    db.run(conn, "add_checkpoint", params)
    thin(conn, stream, version, keep=KEEP)
    return len(state) + written


def thin(conn: Connection, stream: str, version: str, *, keep: int) -> tuple[int, int]:
    """Let go of checkpoints, and of arrays that none refers to any more; gives how many of both.

    What stays: the newest `keep`, the first of each hour of the last day and of each day of the last 30, and the base of a
    version that can be rebuilt. Only who writes the version's checkpoints, or knows that nobody does, may call it.
    """
    gone = db.run(conn, "thin_checkpoints", {"stream": stream, "version": version, "keep": keep})
    return gone, db.run(conn, "thin_artifacts", {"stream": stream, "version": version}) if gone else 0


def _comparable(arrays: Arrays) -> Arrays:
    """What a state digest may cover: equal river models may pickle to different bytes."""
    return {name: array for name, array in arrays.items() if "pickle" not in name}


def last(conn: Connection, stream: str, version: str, *, until: int | None = None) -> Checkpoint | None:
    """A version's newest checkpoint, or the newest one up to a seq.

    Raises
    ------
    SnapshotError
        When it is damaged, or an array of it is missing.
    """
    row = db.row(conn, "last_checkpoint", {"stream": stream, "version": version, "until": until})
    if row is None:
        return None
    seq, epoch, digest, engine, refs, state, learned = row
    arrays, meta = parse(bytes(state))
    for name, sha in refs.items():  # one at a time: together they may be half a gigabyte
        stored = db.row(conn, "artifact", {"stream": stream, "version": version, "sha256": sha})
        if stored is None:
            raise SnapshotError(
                f"checkpoint of {version} at seq {seq}: its array {name!r} ({sha[:12]}) is missing; rebuild it"
            )
        arrays[name] = parse(bytes(stored[0]))[0]["array"]
    return Checkpoint(seq, epoch, bytes(digest), engine, learned, arrays, meta)


@dataclass(frozen=True)
class EpochCost:
    """What an epoch cost its learner."""

    cpu_seconds: float
    peak_rss_bytes: int
    mode: str  # live or replay


def write_metrics(
    conn: Connection, stream: str, version: str, engine: str, scores: Sequence[tuple[EpochScore, EpochCost]]
) -> None:
    """Store what a version did in some epochs."""
    epochs, slices, members = [], [], []
    for score, cost in scores:
        epoch, sums = score.epoch, score.sums
        params = {
            "stream": stream,
            "version": version,
            "epoch": epoch.epoch,
            "seq_first": epoch.seq_first,
            "seq_last": epoch.seq_last,
            **_sums(sums),
            "learned": score.learned,
            "left_out": score.left_out,
            "unscored": score.unscored,
            "cpu_seconds": cost.cpu_seconds,
            "peak_rss_bytes": cost.peak_rss_bytes,
            "event_time_first": None if score.event_time_first is None else moment(score.event_time_first),
            "event_time_last": None if score.event_time_last is None else moment(score.event_time_last),
            "mode": cost.mode,
            "digest": Binary(score.digest),
            "engine": engine,
        }
        epochs.append(params)
        whose = {"stream": stream, "version": version, "epoch": epoch.epoch}
        slices += [{**whose, **vars(s)} for s in score.slices]
        members += [{**whose, **vars(member), "top_weights": list(member.top_weights)} for member in score.members]
    db.run_all(conn, "add_epoch_metrics", epochs)
    db.run_all(conn, "add_slice_metrics", slices)
    db.run_all(conn, "add_member_metrics", members)


def _sums(sums: Sums) -> dict[str, Any]:
    """Columns of an epoch's sums; those of the other task are NULL."""
    own: dict[str, Any] = {name: getattr(sums, name) for name in ("loss_sum", "loss_sq_sum", "p_sum", "clips")}
    own["labels"] = sums.n
    numbers = ("abs_sum", "sq_sum", "y_sum", "y_sq_sum")
    if isinstance(sums, RegressionSums):
        nothing = dict.fromkeys(("positives", "brier_sum", "histogram"))
        return own | nothing | {"loss_kind": sums.loss.kind} | {name: getattr(sums, name) for name in numbers}
    histogram = Binary(pack_histograms(sums.histograms))
    chances = {"positives": sums.n_pos, "brier_sum": sums.brier_sum, "histogram": histogram}
    return own | chances | {"loss_kind": "log"} | dict.fromkeys(numbers)


def open_seqs(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Events that waited for their label at a checkpoint."""
    prefix = "open/"
    arrays = checkpoint.arrays.items()
    return saved_seqs({name.removeprefix(prefix): values for name, values in arrays if name.startswith(prefix)})
