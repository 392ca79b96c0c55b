"""Progressive validation where labels are numbers: no leak, any batches, restored to the bit, corrections that teach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from tests.conftest import ENGINE
from tests.flow.test_progressive import EVENTS, MINUTE, Log, follow, make_log, predicted, predictions, state_of

from headrace.definition import recipes
from headrace.definition.columns import col
from headrace.definition.loss import Loss
from headrace.definition.recipes import Recipe
from headrace.definition.stream import Stream
from headrace.errors import ModelError
from headrace.events import LabelKind
from headrace.flow.features import Encoder
from headrace.flow.losses import RegressionSums
from headrace.flow.progressive import EpochScore, Progressive
from headrace.flow.scores import GENESIS
from headrace.models.boosting import train
from headrace.models.label_mean import LabelMean
from headrace.models.snapshot import dump, parse
from headrace.models.target_mean import TargetMeans
from headrace.store.registry import Version
from headrace.store.state import Live, assemble


def linear() -> Any:
    from river import compose, linear_model, preprocessing

    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    categories = compose.SelectType(str) | preprocessing.OneHotEncoder()
    return (numbers + categories) | linear_model.LinearRegression()


@pytest.fixture(scope="module")
def log(small: Stream) -> Log:
    """The labels of `make_log`, with minutes in place of a yes or no; corrections name what they replace."""
    made = make_log(small)
    random, kinds = np.random.default_rng(8), made.labels["kind"]
    size = np.nan_to_num(made.columns_of(made.labels["event"])["size"])
    y = np.where(np.isnan(made.labels["y"]), np.nan, 30.0 + size / 2 + random.exponential(8.0, len(kinds)))
    by_seq = dict(zip(made.labels["seq"].tolist(), y.tolist(), strict=True))
    before = np.array([by_seq.get(seq, np.nan) for seq in made.labels["corrects"].tolist()])
    return replace(made, labels={**made.labels, "y": y, "before": before})


@pytest.fixture(scope="module")
def artifacts(small: Stream, log: Log) -> Mapping[tuple[str, bool], bytes]:
    """Trees for either loss, with and without target means among their features."""
    X, random, made = Encoder(small)(log.events), np.random.default_rng(5), {}
    y = 30.0 + np.nan_to_num(X["size"]) / 2 + random.exponential(8.0, EVENTS)
    times = log.events["event_time"]
    for kind in ("absolute", "squared"):
        for means in (False, True):
            columns = TargetMeans(("colour",), None).columns if means else ()
            inputs = X | {name: y + random.normal(0, 20, EVENTS) for name in columns}
            loss, params = Loss(kind, 900.0 if kind == "squared" else np.inf), {"min_data_in_leaf": 10, "max_trees": 12}  # type: ignore[arg-type]
            made[kind, means] = train(inputs, y, times, times + MINUTE, params, loss=loss).ensemble.dump()
    return made


@pytest.fixture(params=["river", "ftrl", "lightgbm", "gbdt_lr", "label_mean"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    made = {
        "river": recipes.river(linear, target_means=True),
        "ftrl": recipes.ftrl(pairs=True, admit_after=2, max_weights=60, target_means=True),
        "lightgbm": recipes.lightgbm(target_means=False),
        "gbdt_lr": recipes.gbdt_lr(),
        "label_mean": recipes.label_mean(labels=20),
    }
    return made[request.param]


@pytest.fixture(params=["absolute", "squared"])
def make(
    small: Stream, recipe: Recipe, artifacts: Mapping[tuple[str, bool], bytes], request: pytest.FixtureRequest
) -> Any:
    """Make a new version of the recipe."""
    own: dict[str, Any] = {"loss": request.param, "cap": 900.0 if request.param == "squared" else None}
    label = replace(small.label, value=col("score"), task="regression", **own)

    def fresh(on_late: str = "learn") -> Progressive:
        version = Version("small-1", 1, recipe.name, {}, 1, 1, "shadow", "test", "", None, None, datetime.now(UTC))
        trees = artifacts[request.param, recipe.target_means] if recipe.bootstraps else None
        artifact = None if trees is None else np.frombuffer(trees, dtype=np.uint8)
        stream = replace(small, label=replace(label, on_late=on_late))  # type: ignore[arg-type]
        live: Live = assemble(stream, version, recipe, artifact, b"k" * 32, ENGINE)
        return live.progressive

    return fresh


def told(scores: list[EpochScore]) -> str:
    """Everything that epochs say, comparable to the bit."""
    return repr([(s.epoch, s.digest.hex(), s.sums, s.slices, s.learned, s.unscored) for s in scores])


def test_batches_of_any_size_give_the_same_bits(make: Any, log: Log) -> None:
    end = log.epochs[-1].seq_last
    outcomes = []
    for size in (1, 7, 100_000):
        version = make()
        scores = follow(version, log.batches(size, upto=end), log)
        outcomes.append((told(scores), state_of(version), predictions(version, log)))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len({s.digest for s in scores}) == len(scores) == len(log.epochs)


def test_a_restored_state_goes_on_to_the_bit(make: Any, log: Log) -> None:
    whole = make()
    scores = follow(whole, log.batches(100_000), log)
    version, again = make(), []
    for epoch in log.epochs:
        again += follow(version, log.batches(50, version.seq, epoch.seq_last), log)
        arrays, meta = parse(dump(*version.state()))
        version = make()
        version.restore(arrays, meta)
        version.remember(log.recall(version.newest()))
    again += follow(version, log.batches(50, version.seq), log)
    assert told(again) == told(scores)
    assert predictions(version, log) == predictions(whole, log)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_label_is_unknown_before_its_entry(make: Any, log: Log, share: float) -> None:
    """Change every label from one on: predictions before it stay, those after it do not."""
    first = int(log.labels["seq"][int(share * len(log.labels["seq"]))])
    moved = np.where(log.labels["seq"] >= first, log.labels["y"] + 100.0, log.labels["y"])
    later = replace(log, labels={**log.labels, "y": moved})
    honest, changed = predicted(make("ignore"), log), predicted(make("ignore"), later)
    before = log.event_seq < first
    assert honest[before].tobytes() == changed[before].tobytes()
    assert honest[~before].tobytes() != changed[~before].tobytes()


def test_scores_are_those_of_the_labels(make: Any, log: Log) -> None:
    scores = follow(make(), log.batches(100_000), log)
    counted = (log.labels["kind"] != LabelKind.CORRECTION) & (log.labels["seq"] <= log.epochs[-1].seq_last)
    y = log.labels["y"][counted]
    sums = [s.sums for s in scores]
    assert all(isinstance(one, RegressionSums) for one in sums)
    assert sum(one.n for one in sums) == np.count_nonzero(~np.isnan(y))
    assert sum(one.y_sum for one in sums) == pytest.approx(np.nansum(y))
    for score in scores:
        assert sum(s.y_sum for s in score.slices) == pytest.approx(score.sums.y_sum)
        assert sum(s.loss_sum for s in score.slices) == pytest.approx(score.sums.loss_sum)
        assert {s.positives for s in score.slices} == {None}


def test_corrections_teach_when_asked_to(make: Any, recipe: Recipe, log: Log) -> None:
    ignoring, learning = (make(policy) for policy in ("ignore", "learn"))
    for version in (ignoring, learning):
        follow(version, log.batches(100_000), log)
    assert predictions(ignoring, log) != predictions(learning, log)


def test_a_prediction_beyond_all_numbers_says_so(small: Stream, log: Log) -> None:
    wild = replace(log, labels={**log.labels, "y": np.where(np.isnan(log.labels["y"]), np.nan, 1e101)})
    loss = Loss("absolute")
    version = Progressive(LabelMean(loss=loss), Encoder(small), None, (), 1, GENESIS, loss=loss)
    with pytest.raises(ModelError, match=r"the model predicted 1e\+101 for event \d+, expected a number"):
        follow(version, wild.batches(7), wild)
