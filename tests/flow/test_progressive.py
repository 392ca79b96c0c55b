"""A version at work: the same bits however the log is cut or restored, and nothing known before its time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.definition import recipes
from headrace.definition.recipes import Recipe
from headrace.definition.stream import Stream
from headrace.errors import ModelError
from headrace.events import Columns, Engine, EpochRange, LabelKind, LogBatch, Recalled, micros
from headrace.flow import openevents, progressive
from headrace.flow.features import Encoder
from headrace.flow.join import Chunk, new_join
from headrace.flow.keys import Keys
from headrace.flow.negatives import ALL, Negatives
from headrace.flow.progressive import EpochScore, Progressive
from headrace.flow.steps import Op
from headrace.models.boosting import train
from headrace.models.snapshot import dump, parse
from headrace.models.target_mean import TargetMeans
from headrace.store.registry import Version
from headrace.store.state import Live, assemble

MINUTE = 60_000_000
START = micros(datetime(2020, 3, 1, tzinfo=UTC))
ENGINE = Engine("test", "0" * 8, {})
EVENTS = 700
WEIGHED, CALIBRATED = Negatives(0.4), Negatives(0.4, calibrate=True)


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
            clock_labels=self.clock[part["seq"]],
            clock_corrected=self.clock[part["corrects"]],
            corrects_timeout=np.isin(part["corrects"], self.labels["seq"][self.labels["kind"] == LabelKind.TIMEOUT]),
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

    def recall(self, seqs: NDArray[np.int64]) -> Recalled:
        """What the store reads back."""
        return Recalled(seqs, self.columns_of(seqs))

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
    (joined,) = join.run(
        Chunk(
            commit - commit[0],
            np.array([c[1] for c in changes], dtype=np.int8),
            Keys.of(c[2].to_bytes(8, "big") for c in changes),
            np.array([c[0] for c in changes]),
            np.array([c[3] for c in changes]),
            np.arange(len(changes)),
            np.full(int(commit[-1] - commit[0]) + 1, -(2**63)),
        ),
        lambda keys, before: {},
    )
    clock = np.zeros(join.seq + 1, dtype=np.int64)
    for first, last, _, watermark in joined.segments.tolist():
        clock[first : last + 1] = watermark
    who = np.array([changes[row][2] for row in joined.events[:, 1].tolist()])
    place = np.array([f"p{i % 11}" if i % 13 else None for i in who.tolist()], dtype=object)
    size = np.where(who % 19 == 0, np.nan, (who * 37 % 101).astype(np.float64))
    return Log(
        seq=join.seq,
        event_seq=joined.events[:, 0],
        events={
            "key": who,
            "event_time": START + who * 3 * MINUTE,
            "colour": np.array([str("abcd"[i % 4]) for i in (who * 7 // 3).tolist()], dtype=object),
            "place": place,
            "size": size,
        },
        labels={
            "seq": joined.labels[:, 0],
            "event": joined.labels[:, 1],
            "kind": joined.labels[:, 2],
            "y": joined.values[:, 0],
            "before": joined.values[:, 1],
            "corrects": joined.labels[:, 3],
            "time": joined.labels[:, 4],
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


@pytest.fixture(params=["river", "slow", "gbdt_lr", "lightgbm", "ftrl", "stack"])
def recipe(small: Stream, request: pytest.FixtureRequest) -> Recipe:
    if request.param == "ftrl":
        return recipes.ftrl(pairs=True, admit_after=2, max_weights=60, target_means=True)
    if request.param == "stack":
        return recipes.stack(calibrate_by=["colour"])
    found = small.recipe(request.param)
    assert found is not None
    return found


@pytest.fixture
def make(small: Stream, recipe: Recipe, artifacts: Mapping[bool, bytes]) -> Any:
    """Make a new version of the recipe."""

    def fresh(first_seq: int = 1, on_late: str = "ignore", negatives: Negatives = ALL) -> Progressive:
        by: Any = "calibrate" if negatives.calibrate else "weight"
        stream = replace(small, negative_rate=negatives.rate, negatives=by)
        config = stream.config_of(recipe)
        version = Version(
            "small-1", 1, recipe.name, config, first_seq, 1, "shadow", "test", "", None, None, datetime.now(UTC)
        )
        artifact = np.frombuffer(artifacts[recipe.target_means], dtype=np.uint8) if recipe.has_trees else None
        stream = replace(small, label=replace(small.label, on_late=on_late))  # type: ignore[arg-type]
        live: Live = assemble(stream, version, recipe, artifact, b"k" * 32, ENGINE)
        return live.progressive

    return fresh


def follow(version: Progressive, batches: Iterator[LogBatch], log: Log | None = None) -> list[EpochScore]:
    """Go through batches; `log` gives what must be read back."""
    scores: list[EpochScore] = []
    for batch in batches:
        wanted = version.wants(batch)
        assert log is not None or not len(wanted)
        scores += version.apply(batch, log.recall(wanted) if log else None)
    return scores


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
                s.left_out,
                s.unscored,
                s.event_time_first,
                s.event_time_last,
                s.members,
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
    return version.predict(columns, np.full(50, int(log.clock[-1])))[0].tobytes()


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
    for size in (70, 100_000):  # without states in between, several epochs are one piece
        version, in_one_go = make(), []
        for batch in log.batches(size, upto=end):
            in_one_go += version.apply(batch, log.recall(version.wants(batch)), states=False)
        assert (told(in_one_go), state_of(version), predictions(version, log)) == outcomes[0]


def test_a_restored_state_goes_on_to_the_bit(make: Any, log: Log) -> None:
    whole = make()
    scores = follow(whole, log.batches(100_000))
    version, again = make(), []
    for epoch in log.epochs:
        again += follow(version, log.batches(50, version.seq, epoch.seq_last))
        arrays, meta = parse(dump(*version.state()))
        version = make()
        version.restore(arrays, meta)
        version.remember(log.recall(version.newest()))
        assert version.seq == epoch.seq_last
    again += follow(version, log.batches(50, version.seq))
    assert told(again) == told(scores)
    assert predictions(version, log) == predictions(whole, log)


@pytest.mark.parametrize(
    ("on_late", "negatives"),
    [
        ("ignore", ALL),
        ("learn", ALL),
        ("reweight", ALL),
        ("ignore", CALIBRATED),
        ("learn", WEIGHED),
        ("reweight", WEIGHED),
    ],
)
def test_what_is_not_kept_in_memory_does_not_show(
    make: Any, small: Stream, monkeypatch: pytest.MonkeyPatch, on_late: str, negatives: Negatives
) -> None:
    """Few features in memory, small pages, corrections that teach, some negatives only: the same bits in batches of any size."""
    log = make_log(small, negative=True)
    end = log.epochs[-1].seq_last
    make = partial(make, on_late=on_late, negatives=negatives)
    plain = make()
    scores = told(follow(plain, log.batches(100_000, upto=end), log))
    monkeypatch.setattr(progressive, "RECENT", 3)
    monkeypatch.setattr(openevents, "PAGE", 50)
    states = []
    for size in (1, 7, 100_000):
        version = make()
        assert told(follow(version, log.batches(size, upto=end), log)) == scores
        states.append(state_of(version))
    assert len(set(states)) == 1
    version, again = make(), []
    for epoch in log.epochs:
        again += follow(version, log.batches(50, version.seq, epoch.seq_last), log)
        arrays, meta = parse(dump(*version.state()))
        version = make()
        version.restore(arrays, meta)
        version.remember(log.recall(version.newest()))
    assert told(again) == scores
    assert state_of(version) == states[0]
    assert predictions(version, log) == predictions(plain, log)


def test_an_event_that_is_not_read_back_is_an_error(make: Any, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progressive, "RECENT", 3)
    version = make()

    def without_looking() -> None:
        for batch in log.batches(7):
            version.wants(batch)
            list(version.apply(batch))

    with pytest.raises(ModelError, match="was not read back from the log, expected what `wants` asks for"):
        without_looking()


@pytest.mark.parametrize(
    ("share", "negatives"), [(0.2, ALL), (0.5, ALL), (0.9, ALL), (0.5, WEIGHED), (0.5, CALIBRATED)]
)
def test_a_label_is_unknown_before_its_entry(make: Any, log: Log, share: float, negatives: Negatives) -> None:
    """Flip every label from one on: predictions before it stay, those after it do not."""
    first = int(log.labels["seq"][int(share * len(log.labels["seq"]))])
    later = log.flipped(first)
    honest, flipped = (predicted(make(negatives=negatives), one) for one in (log, later))
    before = log.event_seq < first
    assert honest[before].tobytes() == flipped[before].tobytes()
    assert honest[~before].tobytes() != flipped[~before].tobytes()


def predicted(version: Progressive, log: Log) -> NDArray[np.float64]:
    """The probability of each event at its entry, as the model gave it."""
    asked: list[NDArray[np.float64]] = []
    version.model = _Turns(version.model)
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
    p = version.predict(log.columns_of(np.array([upto])), log.clock[upto : upto + 1])[0]
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
    version = make()
    version.restore(arrays, meta)
    assert len(version.newest()) == 0
    version.remember(log.recall(version.newest()))
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


class _Turns:
    """A model that takes turns, whether or not it could follow a range in one call."""

    def __init__(self, model: Any) -> None:
        self.memo_width, self.prepare, self.save, self.load = model.memo_width, model.prepare, model.save, model.load
        self.ask, self.learn, self.predict = model.ask, model.learn, model.predict


class _Noting:
    """What a model is taught, beside what it learns."""

    def __init__(self, version: Progressive) -> None:
        self.taught: list[tuple[int, float, float]] = []  # clock, y, weight
        self.p: list[float] = []
        model = version.model = _Turns(version.model)
        learn, predict = model.learn, model.predict

        def noting(X: Columns, y: Any, memo: Any, weight: Any, clock: Any) -> None:
            self.taught += zip(clock.tolist(), y.tolist(), weight.tolist(), strict=True)
            learn(X, y, memo, weight, clock)

        def asking(X: Columns) -> Any:
            p = predict(X)
            self.p += p.tolist()
            return p

        model.learn, model.predict = noting, asking


def test_late_labels_teach_as_the_policy_says(make: Any, small: Stream) -> None:
    log = make_log(small, negative=True)
    labels = log.labels
    late = (labels["kind"] == LabelKind.CORRECTION) & ~np.isnan(labels["y"]) & (labels["y"] != labels["before"])
    assert late.sum() > 10
    taught = {}
    for policy in ("ignore", "learn", "reweight"):
        version = make(on_late=policy)
        noted = _Noting(version)
        scores = follow(version, log.batches(33), log)
        assert all(s.learned == s.epoch.labels == s.sums.n for s in scores), "a correction is never scored or counted"
        taught[policy] = noted
    clocks = [(int(log.clock[seq]), y) for seq, y in zip(labels["seq"][late], labels["y"][late], strict=True)]
    extra = sorted(taught["learn"].taught, key=lambda t: t[:2])
    for clock, y in clocks:
        assert (clock, y, 1.0) in extra
    assert len(taught["learn"].taught) == len(taught["ignore"].taught) + len(clocks)
    weights = [w for _, y, w in taught["reweight"].taught if y == 1.0 and w != 1.0]
    assert set(weights) <= {1.0 + p for p in taught["reweight"].p}
    assert all(1.0 < w < 2.0 for w in weights)
    timeouts = labels["seq"][labels["kind"] == LabelKind.TIMEOUT]
    fakes = late & (labels["y"] == 1.0) & np.isin(labels["corrects"], timeouts)
    assert 0 < len(weights) == fakes.sum() < sum(y == 1.0 for _, y in clocks), "an observed negative was no fake one"
    timed_out = int((labels["kind"] == LabelKind.TIMEOUT).sum())
    fake = [w for _, y, w in taught["reweight"].taught if y == 0.0 and w < 1.0]
    assert 0 < len(fake) <= timed_out
    assert all(0.0 < w < 1.0 for w in fake)


def test_a_correction_moves_a_target_mean_by_the_difference() -> None:
    """As if the right value had been there from the start, at every half-life."""
    hour = 60 * MINUTE
    clock = np.array([0, hour, 3 * hour, 4 * hour], dtype=np.int64)
    keys = TargetMeans(("k",), 0.5).keys_of({"k": np.array(["a"] * 4, dtype=object)})
    nan, is_label = np.nan, np.array([True, True, True, False])
    wrong = TargetMeans(("k",), 0.5)
    corrected = wrong.run(
        keys,
        is_label,
        np.array([0.0, 1.0, 1.0, 0.0]),
        np.ones(4),
        clock,
        np.array([nan, nan, 0.0, nan]),
        np.zeros(4, dtype=np.int64),
    )
    right = TargetMeans(("k",), 0.5)
    rest = [0, 1, 3]
    plain = right.run(keys[rest], is_label[rest], np.array([1.0, 1.0, 0.0]), np.ones(3), clock[rest])
    for name in wrong.columns:
        assert corrected[name][0] == pytest.approx(plain[name][0], rel=1e-12)


def test_a_missing_label_can_mean_negative(make: Any, small: Stream) -> None:
    log = make_log(small, negative=True)
    scores = follow(make(), log.batches(33))
    assert all(s.learned == s.epoch.labels == s.sums.n for s in scores)
    until = log.labels["seq"] <= log.epochs[-1].seq_last
    positives = (log.labels["kind"] != LabelKind.CORRECTION) & (log.labels["y"] == 1.0) & until
    assert sum(s.sums.n_pos for s in scores) == int(positives.sum())


@pytest.mark.parametrize("negatives", [WEIGHED, CALIBRATED])
def test_negatives_that_are_left_out_are_scored_and_teach_nothing(
    make: Any, small: Stream, negatives: Negatives
) -> None:
    log = make_log(small, negative=True)
    version, plain = make(on_late="learn", negatives=negatives), make(on_late="learn")
    noted, all_noted = _Noting(version), _Noting(plain)
    scores = follow(version, log.batches(33), log)
    assert all(s.sums.n == s.epoch.labels == s.learned + s.left_out for s in scores)
    assert [s.sums.n_pos for s in scores] == [s.sums.n_pos for s in follow(plain, log.batches(33), log)]
    weights = {0.0: 1.0 if negatives.calibrate else 2.5, 1.0: 1.0}
    assert all(w == weights[y] for _, y, w in noted.taught)
    for y, share in ((0.0, 0.4), (1.0, 1.0)):
        taught, there = (sum(t[1] == y for t in some.taught) for some in (noted, all_noted))
        assert taught == pytest.approx(share * there, abs=0 if share == 1 else 3 * np.sqrt(0.24 * there))


def test_what_is_served_scored_and_weighed_is_the_corrected_probability(make: Any, small: Stream) -> None:
    log = make_log(small, negative=True)
    version = make(on_late="reweight", negatives=CALIBRATED)
    noted = _Noting(version)
    follow(version, log.batches(33), log)
    weights = [w for _, y, w in noted.taught if y == 1.0 and w != 1.0]
    assert set(weights) <= {1.0 + p / (p + (1 - p) / 0.4) for p in noted.p}
    columns, clock = log.columns_of(log.event_seq[:50]), np.full(50, int(log.clock[-1]))
    noted.p.clear()
    served, raw = version.predict(columns, clock)[0], np.array(noted.p)
    assert served == pytest.approx(raw / (raw + (1 - raw) / 0.4), rel=1e-12)
    assert (served < raw).all()
    upto = int(log.event_seq[-1])
    fresh = make(negatives=CALIBRATED)
    follow(fresh, log.batches(50, upto=upto - 1), log)
    expected = fresh.predict(log.columns_of(np.array([upto])), log.clock[upto : upto + 1])[0]
    follow(fresh, log.batches(50, upto - 1), log)
    assert fresh._open.take(np.array([upto])).p == expected


def test_slices_add_up_to_their_epoch(make: Any, log: Log) -> None:
    for score in follow(make(), log.batches(100_000)):
        assert {s.slice for s in score.slices} == {"colour"}
        assert sum(s.labels for s in score.slices) == score.sums.n
        assert sum(s.positives for s in score.slices) == score.sums.n_pos
        assert sum(s.loss_sum for s in score.slices) == pytest.approx(score.sums.loss_sum)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_model_says_so(make: Any, log: Log, poison: float) -> None:
    """NaN would count as no prediction: it would drop out of every comparison without a word."""
    version = make()
    follow(version, log.batches(100_000, upto=log.epochs[1].seq_last))
    model: Any = version.model
    name = next(name for name in ("run", "follow", "ask") if hasattr(model, name))
    real, seen = getattr(model, name), []

    def poisoned(*values: Any) -> Any:
        answer = real(*values)
        p = answer if name == "run" else answer[0]
        if len(p):
            seen.append(True)
            p[-1] = poison
        return answer

    setattr(model, name, poisoned)
    with pytest.raises(ModelError, match=f"the model predicted {poison} for event .* bound the number in the contract"):
        follow(version, log.batches(100_000, log.epochs[1].seq_last))
    assert seen


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
