"""A version at work: the same bits however the log is cut or restored, and nothing known before its time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.definition.recipes import Recipe
from headrace.definition.stream import Stream
from headrace.errors import ModelError
from headrace.events import Columns, Engine, EpochRange, LabelKind, LogBatch, micros
from headrace.flow.features import Encoder
from headrace.flow.join import Chunk, Op, new_join
from headrace.flow.progressive import EpochScore, Progressive
from headrace.models.boosting import train
from headrace.models.snapshot import dump, parse
from headrace.models.target_mean import TargetMeans
from headrace.store.registry import Version
from headrace.store.state import Live, assemble

MINUTE = 60_000_000
START = micros(datetime(2020, 3, 1, tzinfo=UTC))
ENGINE = Engine("test", "0" * 8, {})
EVENTS = 700


@dataclass(frozen=True)
class Log:
    """A whole log in columns, as `LogBatch` has them."""

    seq: int
    event_seq: NDArray[np.int64]
    events: Columns
    labels: Columns  # seq, event, kind, y, before, time
    clock: NDArray[np.int64]  # by seq, from 0 on
    epochs: tuple[EpochRange, ...]

    def batch(self, after: int, upto: int) -> LogBatch:
        """Entries after `after` up to `upto`."""
        events = slice(*np.searchsorted(self.event_seq, [after, upto], side="right").tolist())
        labels = slice(*np.searchsorted(self.labels["seq"], [after, upto], side="right").tolist())
        part = {name: values[labels] for name, values in self.labels.items()}
        columns = {name: values[events] for name, values in self.events.items()}
        return LogBatch(
            seq_first=after + 1,
            seq_last=upto,
            event_seq=self.event_seq[events],
            event_time=columns["event_time"],
            events=columns,
            clock_events=self.clock[self.event_seq[events]],
            label_seq=part["seq"],
            label_event=part["event"],
            label_kind=part["kind"],
            y=part["y"],
            y_before=part["before"],
            label_time=part["time"],
            clock_labels=self.clock[part["seq"]],
            epochs=tuple(e for e in self.epochs if after < e.seq_last <= upto),
            received_through=None,
        )

    def batches(self, size: int, after: int = 0, upto: int | None = None) -> Iterator[LogBatch]:
        """The log from `after` on, in batches."""
        last = self.seq if upto is None else upto
        for start, end in pairwise([*range(after, last, size), last]):
            yield self.batch(start, end)

    def columns_of(self, seqs: NDArray[np.int64]) -> Columns:
        """Log columns of some events."""
        at = np.searchsorted(self.event_seq, seqs)
        return {name: values[at] for name, values in self.events.items()}

    def flipped(self, first: int) -> Log:
        """The same log with every value from a label's seq on turned round."""
        y, before = (
            np.where(self.labels["seq"] >= first, 1.0 - self.labels[n], self.labels[n]) for n in ("y", "before")
        )
        return replace(self, labels={**self.labels, "y": y, "before": before})


def make_log(stream: Stream, negative: bool = False) -> Log:
    """A log made by the join: labels late, some beyond the window, some never, some corrected."""
    random = np.random.default_rng(3)
    changes: list[tuple[int, Op, int, float]] = []
    for i in range(EVENTS):
        time = START + i * 3 * MINUTE
        changes.append((time, Op.EVENT, i, np.nan))
        if (draw := random.random()) < 0.95:
            delay = int(random.exponential(90)) if draw < 0.9 else 700
            changes.append((time + delay * MINUTE, Op.LABEL, i, float(random.random() < 0.3)))
        if draw < 0.05:
            changes.append((time + 900 * MINUTE, Op.LABEL, i, float(random.random() < 0.5)))
    changes.sort(key=lambda c: c[0])
    commit = np.cumsum(random.random(len(changes)) < 0.6)
    join = new_join(replace(stream, label=replace(stream.label, if_missing="negative" if negative else "drop")))
    joined = join.run(
        Chunk(
            commit - commit[0],
            np.array([c[1] for c in changes], dtype=np.int8),
            [c[2].to_bytes(8, "big") for c in changes],
            np.array([c[0] for c in changes]),
            np.array([c[3] for c in changes]),
            np.arange(len(changes)),
            np.full(int(commit[-1] - commit[0]) + 1, -(2**63)),
        ),
        {},
    )
    clock = np.zeros(join.seq + 1, dtype=np.int64)
    for first, last, _, watermark in joined.segments:
        clock[first : last + 1] = watermark
    who = np.array([changes[row][2] for row in joined.event_row])
    place = np.array([f"p{i % 11}" if i % 13 else None for i in who.tolist()], dtype=object)
    size = np.where(who % 19 == 0, np.nan, (who * 37 % 101).astype(np.float64))
    return Log(
        seq=join.seq,
        event_seq=np.array(joined.event_seq),
        events={
            "key": who,
            "event_time": START + who * 3 * MINUTE,
            "colour": np.array([str("abcd"[i % 4]) for i in (who * 7 // 3).tolist()], dtype=object),
            "place": place,
            "size": size,
        },
        labels={
            "seq": np.array(joined.label_seq),
            "event": np.array(joined.label_event),
            "kind": np.array(joined.label_kind),
            "y": np.array(joined.y),
            "before": np.array(joined.y_before),
            "time": np.array(joined.label_time),
        },
        clock=clock,
        epochs=tuple(joined.epochs),
    )


@pytest.fixture(scope="module")
def log(small: Stream) -> Log:
    made = make_log(small)
    kinds = made.labels["kind"].tolist()
    assert min(kinds.count(kind) for kind in LabelKind) >= 10, "the log lacks a kind of label"
    assert len(made.epochs) >= 8
    return made


@pytest.fixture(scope="module")
def artifacts(small: Stream, log: Log) -> Mapping[bool, bytes]:
    """Trees with and without target means among their features."""
    random, X = np.random.default_rng(5), Encoder(small)(log.events)
    y = ((X["size"] > 50) ^ (random.random(EVENTS) < 0.2)).astype(np.float64)
    times = log.events["event_time"]
    made = {}
    for means in (False, True):
        columns = TargetMeans(("colour",), 0.5).columns if means else ()
        inputs = X | {name: np.clip(0.3 * y + 0.5 * random.random(EVENTS), 0, 1) for name in columns}
        params = {"min_data_in_leaf": 10, "max_trees": 12}
        made[means] = train(inputs, y, times, times + MINUTE, params, threads=1).ensemble.dump()
    return made


@pytest.fixture(params=["river", "slow", "gbdt_lr", "lightgbm"])
def recipe(small: Stream, request: pytest.FixtureRequest) -> Recipe:
    found = small.recipe(request.param)
    assert found is not None
    return found


@pytest.fixture
def make(small: Stream, recipe: Recipe, artifacts: Mapping[bool, bytes]) -> Any:
    """Make a new version of the recipe."""

    def fresh(first_seq: int = 1) -> Progressive:
        version = Version(
            "small-1", 1, recipe.name, {}, first_seq, 1, "shadow", "test", "", None, None, datetime.now(UTC)
        )
        artifact = np.frombuffer(artifacts[recipe.target_means], dtype=np.uint8) if recipe.bootstraps else None
        live: Live = assemble(small, version, recipe, artifact, b"k" * 32, ENGINE)
        return live.progressive

    return fresh


def follow(version: Progressive, batches: Iterator[LogBatch]) -> list[EpochScore]:
    return [score for batch in batches for score in version.apply(batch)]


def told(scores: list[EpochScore]) -> str:
    """Everything that epochs say, comparable to the bit."""
    return repr(
        [
            (
                s.epoch,
                s.digest.hex(),
                s.sums.to_bytes(),
                s.slices,
                s.learned,
                s.unscored,
                s.event_time_first,
                s.event_time_last,
            )
            for s in scores
        ]
    )


def state_of(version: Progressive) -> str:
    """Its state, comparable; a river model counts by what it predicts."""
    arrays, meta = version.state()
    return repr({n: (a.dtype, a.tobytes()) for n, a in arrays.items() if "pickle" not in n}) + repr(meta)


def predictions(version: Progressive, log: Log) -> bytes:
    columns = log.columns_of(log.event_seq[:50])
    return version.predict(columns, np.full(50, int(log.clock[-1]))).tobytes()


def test_batches_of_any_size_give_the_same_bits(make: Any, log: Log) -> None:
    end = log.epochs[-1].seq_last
    outcomes = []
    for size in (1, 7, 100_000):
        version = make()
        scores = follow(version, log.batches(size, upto=end))
        outcomes.append((told(scores), state_of(version), predictions(version, log)))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(scores) == len(log.epochs)
    assert len({s.digest for s in scores}) == len(scores)


def test_a_restored_state_goes_on_to_the_bit(make: Any, log: Log) -> None:
    whole = make()
    scores = follow(whole, log.batches(100_000))
    version, again = make(), []
    for epoch in log.epochs:
        again += follow(version, log.batches(50, version.seq, epoch.seq_last))
        arrays, meta = parse(dump(*version.state()))
        version = make()
        version.restore(arrays, meta, log.columns_of(arrays["open/seq"]))
        assert version.seq == epoch.seq_last
    again += follow(version, log.batches(50, version.seq))
    assert told(again) == told(scores)
    assert predictions(version, log) == predictions(whole, log)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_label_is_unknown_before_its_entry(make: Any, log: Log, share: float) -> None:
    """Flip every label from one on: predictions before it stay, those after it do not."""
    first = int(log.labels["seq"][int(share * len(log.labels["seq"]))])
    later = log.flipped(first)
    honest, flipped = predicted(make(), log), predicted(make(), later)
    before = log.event_seq < first
    assert honest[before].tobytes() == flipped[before].tobytes()
    assert honest[~before].tobytes() != flipped[~before].tobytes()


def predicted(version: Progressive, log: Log) -> NDArray[np.float64]:
    """The probability of each event at its entry, as the model gave it."""
    asked: list[NDArray[np.float64]] = []
    ask = version.model.ask

    def noting(*values: Any) -> Any:
        answer = ask(*values)
        asked.append(answer[0].copy())
        return answer

    version.model.ask = noting  # type: ignore[method-assign, assignment]
    follow(version, log.batches(100_000))
    return np.concatenate(asked)


def test_serving_answers_what_the_learner_scores(make: Any, log: Log) -> None:
    version, upto = make(), int(log.event_seq[300])
    follow(version, log.batches(100_000, upto=upto - 1))
    p = version.predict(log.columns_of(np.array([upto])), log.clock[upto : upto + 1])
    assert predicted(version, replace_start(log, version.seq))[0] == p[0]


def replace_start(log: Log, after: int) -> Any:
    class Rest:
        def batches(self, size: int) -> Iterator[LogBatch]:
            return log.batches(size, after)

    return Rest()


def test_events_before_the_first_seq_are_learned_unscored(make: Any, recipe: Recipe, log: Log) -> None:
    base = log.epochs[3].seq_last
    closed = {
        int(e): int(s)
        for s, e, k in zip(log.labels["seq"], log.labels["event"], log.labels["kind"], strict=True)
        if k != LabelKind.CORRECTION
    }
    seqs = np.array([s for s in log.event_seq.tolist() if s <= base < closed.get(s, log.seq + 1)])
    assert len(seqs) > 5
    means = np.full((len(seqs), 8), 0.4) if recipe.target_means else None
    outcomes = []
    for size in (1, 9, 100_000):
        version = make(base + 1)
        version.adopt(seqs, means, log.columns_of(seqs), log.clock[seqs])
        assert version.outstanding == len(seqs)
        scores = follow(version, log.batches(size, base))
        outcomes.append(told(scores))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    answered = log.labels["event"][
        (log.labels["kind"] == LabelKind.OBSERVED) & (log.labels["seq"] <= log.epochs[-1].seq_last)
    ]
    assert sum(s.unscored for s in scores) == len(set(seqs.tolist()) & set(answered.tolist())) > 0
    assert all(s.learned == s.epoch.labels == s.sums.n + s.unscored for s in scores)


def test_labels_of_events_before_the_first_seq_are_left_out_when_nothing_was_adopted(make: Any, log: Log) -> None:
    base = log.epochs[3].seq_last
    first_label = next(s for s in log.labels["seq"].tolist() if s > base)
    one, many = make(first_label), make(first_label)
    scores = follow(one, log.batches(1, first_label - 1))
    assert told(scores) == told(follow(many, log.batches(100_000, first_label - 1)))
    assert sum(s.unscored for s in scores) == 0
    assert 0 < scores[0].learned < scores[0].epoch.labels


def test_a_state_without_open_events_can_be_restored(make: Any, log: Log) -> None:
    arrays, meta = make().state()
    assert len(arrays["open/seq"]) == 0
    version = make()
    version.restore(arrays, meta, log.columns_of(arrays["open/seq"]))
    scores = follow(version, log.batches(100_000))
    assert told(scores) == told(follow(make(), log.batches(100_000)))


def test_what_is_dropped_or_corrected_does_not_teach(make: Any, log: Log) -> None:
    def only(kind: LabelKind, y: float) -> Log:
        values = np.where(log.labels["kind"] == kind, y, log.labels["y"])
        return replace(log, labels={**log.labels, "y": values})

    plain = told(follow(make(), log.batches(100_000)))
    assert told(follow(make(), only(LabelKind.CORRECTION, np.nan).batches(100_000))) == plain
    taught = follow(make(), only(LabelKind.TIMEOUT, 1.0).batches(100_000))
    assert told(taught) != plain
    counted = log.labels["kind"] != LabelKind.CORRECTION
    ends = log.labels["seq"] <= log.epochs[-1].seq_last
    dropped = int((counted & ends & np.isnan(log.labels["y"])).sum())
    learned = sum(e.labels for e in log.epochs)
    assert sum(s.learned for s in taught) == learned + dropped


def test_a_missing_label_can_mean_negative(make: Any, small: Stream) -> None:
    log = make_log(small, negative=True)
    scores = follow(make(), log.batches(33))
    assert all(s.learned == s.epoch.labels == s.sums.n for s in scores)
    until = log.labels["seq"] <= log.epochs[-1].seq_last
    positives = (log.labels["kind"] != LabelKind.CORRECTION) & (log.labels["y"] == 1.0) & until
    assert sum(s.sums.n_pos for s in scores) == int(positives.sum())


def test_slices_add_up_to_their_epoch(make: Any, log: Log) -> None:
    for score in follow(make(), log.batches(100_000)):
        assert {s.slice for s in score.slices} == {"colour"}
        assert sum(s.labels for s in score.slices) == score.sums.n
        assert sum(s.positives for s in score.slices) == score.sums.n_pos
        assert sum(s.loss_sum for s in score.slices) == pytest.approx(score.sums.loss_sum)


def test_a_gap_is_refused(make: Any, log: Log) -> None:
    version = make()
    with pytest.raises(ModelError, match="found a batch that starts at seq 6, expected 1"):
        list(version.apply(log.batch(5, 10)))
    broken = log.batch(0, 300)
    strange = replace(broken, label_event=np.where(broken.label_event > 50, 10_000, broken.label_event))
    with pytest.raises(ModelError, match="found a label of event 10000, which was never seen"):
        list(version.apply(strange))


def test_a_chain_can_start_again(make: Any, log: Log) -> None:
    version, other = make(), make()
    cut = log.epochs[2].seq_last
    follow(version, log.batches(100_000, upto=cut))
    follow(other, log.batches(100_000, upto=cut))
    other.restart_chain(bytes(16))
    ours, theirs = (follow(v, log.batches(100_000, cut)) for v in (version, other))
    assert [s.sums.to_bytes() for s in ours] == [s.sums.to_bytes() for s in theirs]
    assert all(a.digest != b.digest for a, b in zip(ours, theirs, strict=True))
