"""River's own checks, river's pipelines, and equality to the bit: rows or frames, copied, pickled, or in another process."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from river import checks, compose, datasets, evaluate, linear_model, metrics, optim, preprocessing

from headrace.definition import recipes
from headrace.errors import ModelError
from headrace.models.boosting import Ensemble
from headrace.models.estimators import (
    ArrayEstimator,
    FtrlClassifier,
    FtrlRegressor,
    GbdtLrClassifier,
    LabelMeanClassifier,
    LightGbmClassifier,
    StackClassifier,
    TargetMean,
    train_trees,
)
from headrace.models.snapshot import dump, parse
from headrace.models.target_mean import TargetMeans

Frame = tuple[pd.DataFrame, pd.Series]
Make = Callable[..., Any]

BUILD: dict[str, Callable[[Ensemble], Any]] = {
    "ftrl": lambda _: FtrlClassifier(),
    "ftrl_all": lambda _: FtrlClassifier(l1=0.1, l2=0.1, pairs=True, admit_after=2, expire_after=150, max_weights=60),
    "label_mean": lambda _: LabelMeanClassifier(20),
    "lightgbm": LightGbmClassifier,
    "gbdt_lr": GbdtLrClassifier,
    "stack": StackClassifier,
}


def _phishing() -> Frame:
    rows = list(datasets.Phishing())
    return pd.DataFrame([x for x, _ in rows]), pd.Series([y for _, y in rows])


@pytest.fixture(scope="module")
def phishing() -> Frame:
    return _phishing()


@pytest.fixture(scope="module")
def of_phishing(phishing: Frame) -> Ensemble:
    return train_trees(*phishing, min_data_in_leaf=20)


@pytest.fixture(scope="module")
def mixed(stream: Make) -> Frame:
    """Categories, numbers and booleans with values missing from all of them."""
    X, y, _, _ = stream(600, seed=3)
    frame = pd.DataFrame(X)
    frame["late"] = pd.array([None if i % 7 == 0 else i % 3 == 0 for i in range(600)], dtype="boolean")
    frame["seats"] = np.arange(600) % 5
    return frame, pd.Series(y == 1.0)


@pytest.fixture(scope="module")
def of_mixed(mixed: Frame) -> Ensemble:
    return train_trees(*mixed, min_data_in_leaf=20, max_trees=20)


@pytest.fixture
def river_checks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Iterator[Callable[[Any], None]]]:
    """river's checks of an estimator; of scikit-learn, which they import, they use nothing for estimators of one label."""
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["sklearn"], "datasets", sys.modules["sklearn.datasets"], raising=False)
    return checks.yield_checks


REGRESSORS: dict[str, Callable[[Ensemble], Any]] = {
    "squared": lambda _: FtrlRegressor(),
    "absolute": lambda _: FtrlRegressor(
        "absolute", l1=0.1, pairs=True, admit_after=2, expire_after=150, max_weights=60
    ),
}


@pytest.mark.parametrize(
    "build",
    [*BUILD.values(), *REGRESSORS.values(), lambda _: TargetMean(["gallup"])],
    ids=[*BUILD, *REGRESSORS, "target_mean"],
)
def test_passes_rivers_checks(build: Any, of_phishing: Ensemble, river_checks: Any) -> None:
    model = build(of_phishing)
    assert model._unit_test_skips() == set()
    done = []
    for check in river_checks(model):
        done.append(check.__name__)
        check(model.clone())
    assert len(done) >= 26
    assert {"check_pickling", "check_emerging_features", "check_bounded_memory_growth"} <= set(done)
    assert ("check_learn_many_matches_learn_one" in done) == isinstance(model, ArrayEstimator)


def _batches(X: pd.DataFrame, y: pd.Series, seed: int) -> Iterator[Frame]:
    """Neighbouring rows, each time with other columns."""
    random, at = np.random.default_rng(seed), 0
    while at < len(X):
        rows = slice(at, at + int(random.integers(1, 90)))
        columns = random.permutation(X.columns)[: random.integers(1, X.shape[1] + 1)]
        yield X[columns][rows], y[rows]
        at = rows.stop


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
def test_frames_and_rows_give_the_same_bits(build: Any, seed: int, mixed: Frame, of_mixed: Ensemble) -> None:
    """Columns that come and go, and columns whose first value comes late in a frame."""
    one, many = build(of_mixed), build(of_mixed)
    for X, y in _batches(*mixed, seed):
        rows = X.astype(object).where(X.notna(), None).to_dict("records")
        p = many.predict_proba_many(X)
        assert p.index.equals(X.index)
        assert p.columns.tolist() == [False, True]
        assert [one.predict_proba_one(x) for x in rows] == p.to_dict("records")
        assert [one.predict_one(x) for x in rows] == many.predict_many(X).tolist()
        weights = pd.Series(np.where(y, 0.5, 2.0), index=y.index)
        many.learn_many(X, y, w=weights)
        for x, label, w in zip(rows, y, weights, strict=True):
            one.learn_one(x, label, w=w)
    assert dump(*one.save()) == dump(*many.save())


def test_the_order_of_a_rows_features_does_not_matter(mixed: Frame) -> None:
    X, y = mixed
    forth, back = FtrlClassifier(), FtrlClassifier()
    for x, label in zip(X.drop(columns="late").to_dict("records"), y, strict=True):
        forth.learn_one(x, label)
        back.learn_one(dict(reversed(x.items())), label)
    assert dump(*forth.save()) == dump(*back.save())


@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
def test_copies_go_on_as_the_original(build: Any, mixed: Frame, of_mixed: Ensemble) -> None:
    """And apart from it: a copied view of an array would be of another array."""
    X, y = mixed
    model = build(of_mixed)
    model.learn_many(X[:300], y[:300])
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.clone(include_attributes=True)]
    for other in [model, *copies]:
        other.learn_many(X[300:], y[300:])
        assert dump(*other.save()) == dump(*model.save())
    assert dump(*model.clone().save()) == dump(*build(of_mixed).save()) != dump(*model.save())


CHILD = """
import sys
from pathlib import Path
import pandas as pd
from headrace.models import estimators
from headrace.models.boosting import Ensemble
from headrace.models.snapshot import dump, parse

folder = Path(sys.argv[1])
ensemble = Ensemble.parse((folder / "trees").read_bytes())
X, y = pd.read_pickle(folder / "rows")
for file in sorted(folder.glob("*.state")):
    arrays, meta = parse(file.read_bytes())
    kind = getattr(estimators, meta["estimator"])
    model = kind(ensemble) if issubclass(kind, estimators.TreesClassifier) else kind()
    model.load(arrays, meta)
    p = model.predict_proba_many(X)
    model.learn_many(X, y)
    file.with_suffix(".p").write_bytes(p[True].to_numpy().tobytes())
    file.with_suffix(".after").write_bytes(dump(*model.save()))
"""


def test_another_process_goes_on_to_the_bit(mixed: Frame, of_mixed: Ensemble, tmp_path: Path) -> None:
    X, y = mixed
    built = [FtrlClassifier(), LabelMeanClassifier(), *(BUILD[n](of_mixed) for n in ("lightgbm", "gbdt_lr", "stack"))]
    (tmp_path / "trees").write_bytes(of_mixed.dump())
    pd.to_pickle((X[300:], y[300:]), tmp_path / "rows")
    for number, model in enumerate(built):
        model.learn_many(X[:300], y[:300])
        (tmp_path / f"{number}.state").write_bytes(dump(*model.save()))
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True)
    for number, model in enumerate(built):
        p = model.predict_proba_many(X[300:])[True].to_numpy()
        assert (tmp_path / f"{number}.p").read_bytes() == p.tobytes()
        assert np.unique(p).size == 1 or p.std() > 0.05
        model.learn_many(X[300:], y[300:])
        assert (tmp_path / f"{number}.after").read_bytes() == dump(*model.save())


def test_predicts_as_well_as_rivers_logistic_regression() -> None:
    def loss(model: Any) -> float:
        return float(evaluate.progressive_val_score(datasets.Phishing(), model, metrics.LogLoss()).get())

    rivers = loss(preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.3)))
    assert loss(FtrlClassifier(alpha=0.3, bins=False)) == pytest.approx(rivers, abs=0.01)
    assert loss(FtrlClassifier(alpha=0.3)) < 0.9 * rivers
    assert loss(LabelMeanClassifier()) == pytest.approx(0.69, abs=0.01)


def test_in_rivers_pipelines() -> None:
    numbers, categories = compose.SelectType(int, float), compose.SelectType(str)
    pipelines = [
        compose.SelectType(int, float) | preprocessing.StandardScaler() | FtrlClassifier(),
        (numbers | preprocessing.StandardScaler()) + (categories | preprocessing.OneHotEncoder()) | FtrlClassifier(),
        numbers + TargetMean("https", prior=0.4) | FtrlClassifier(alpha=0.3),
        compose.Discard("https") | LabelMeanClassifier(),
    ]

    def rows() -> Iterator[tuple[dict[str, Any], bool]]:
        for x, y in datasets.Phishing():
            yield x | {"https": str(x["https"])}, y

    scores = []
    for pipeline in pipelines:
        score = evaluate.progressive_val_score(rows(), pipeline.clone(), metrics.ROCAUC(), delay=20)
        scores.append(score.get())
    assert min(scores[:3]) > 0.93
    assert scores[3] < 0.6


def test_a_pipeline_learns_frames(phishing: Frame) -> None:
    X, y = phishing
    pipeline = preprocessing.StandardScaler() | FtrlClassifier()
    for at in range(0, 1_000, 100):
        pipeline.learn_many(X[at : at + 100], y[at : at + 100])
    p = pipeline.predict_proba_many(X[1_000:])
    assert ((p[True] > 0.5) == y[1_000:]).mean() > 0.85


def test_trees_ignore_what_they_were_not_trained_on(mixed: Frame, of_mixed: Ensemble) -> None:
    (x,) = mixed[0][:1].drop(columns="late").to_dict("records")
    for name in ("lightgbm", "gbdt_lr", "stack"):
        model = BUILD[name](of_mixed)
        p = model.predict_proba_one(x)
        assert model.predict_proba_one(x | {"new": "x", "newer": 1.0}) == p
        assert model.predict_proba_one({}) != p


def test_rows_without_features() -> None:
    model = FtrlClassifier()
    model.learn_one({"wind": None, "origin": None, "late": float("nan")}, True)
    assert model.predict_proba_one({}) == {False: 0.5, True: 0.5}
    model.learn_one({"origin": "JFK"}, True)
    assert model.predict_proba_one({})[True] > 0.5, "the bias has learned"


def test_a_stack_has_the_members_it_is_given(of_mixed: Ensemble, mixed: Frame) -> None:
    two = StackClassifier(of_mixed, (recipes.lightgbm(), recipes.label_mean()))
    two.learn_many(*mixed)
    assert two.save()[1]["model"]["members"].keys() == {"lightgbm", "label_mean"}
    with pytest.raises(ModelError, match=r"stack: found 1 member\(s\), expected at least two"):
        StackClassifier(of_mixed, (recipes.lightgbm(),))


def test_target_means_hold_only_what_was_learned_before() -> None:
    random, start = np.random.default_rng(0), datetime(2013, 1, 1, tzinfo=UTC)
    pipeline = TargetMean(["carrier", "gate"], prior=0.3) | compose.Select("mean_all_1h") | LabelMeanClassifier()
    transformer = pipeline["TargetMean"]
    reference = TargetMeans(("carrier", "gate"), prior=0.3)
    clock = np.zeros(1, dtype=np.int64)
    for minute in range(200):
        x = {"carrier": random.choice(["AA", "B6"]), "gate": int(random.integers(3)), "other": 1}
        names = {k: np.array([str(x[k])], dtype=object) for k in ("carrier", "gate")}
        keys, y = reference.keys_of(names), bool(random.random() < 0.4)
        expected = {name: values.item() for name, values in reference.peek(keys, clock).items()}
        assert transformer.transform_one(x) == expected
        t = start + timedelta(minutes=minute)
        pipeline.learn_one(x, y, t=t.replace(tzinfo=None) if minute % 2 else t)
        clock[0] = (t - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        reference.run(keys, np.array([True]), np.array([y], dtype=float), np.ones(1), clock)
    assert len(set(expected.values())) == 12

    again = TargetMean(["carrier", "gate"], prior=0.3)
    again.load(*parse(dump(*transformer.save())))
    for means in (again, transformer):
        means.learn_one({"carrier": "AA"}, True, t=start)  # late: counts as of the last label
        means.learn_one({"gate": None}, False)
    assert dump(*again.save()) == dump(*transformer.save())


def test_lists_are_tokens() -> None:
    """Row by row and in frames, with rows that have none; and after a restore."""
    random = np.random.default_rng(0)
    lists = [None if i % 9 == 4 else [f"t{k}" for k in random.integers(0, 9, 3).tolist()][: i % 4] for i in range(200)]
    y = pd.Series([row is not None and "t1" in row for row in lists])
    frame = pd.DataFrame({"size": random.random(200), "genres": pd.Series(lists, dtype=object)})
    by_row, by_frame = FtrlClassifier(alpha=0.5), FtrlClassifier(alpha=0.5)
    for i, label in enumerate(y):
        by_row.learn_one({"size": frame["size"][i], "genres": lists[i]}, label)
    by_frame.learn_many(frame.iloc[:70], y.iloc[:70])
    by_frame.learn_many(frame.iloc[70:], y.iloc[70:])
    assert dump(*by_row.save()) == dump(*by_frame.save())
    again = FtrlClassifier(alpha=0.5)
    again.load(*parse(dump(*by_row.save())))
    row = {"size": 0.5, "genres": ["t1", "t2"]}
    assert again.predict_proba_one(row) == by_row.predict_proba_one(row)
    assert by_row.predict_proba_one(row)[True] > by_row.predict_proba_one({"size": 0.5})[True] + 0.2
    with pytest.raises(
        ModelError, match=r"found tokens \(a list of str\) for feature 'size', expected a number as before"
    ):
        by_row.learn_one({"size": ["t1"]}, True)
    with pytest.raises(ModelError, match="found lists and single values for feature 'genres'"):
        by_row.learn_many(pd.DataFrame({"genres": [["a"], "a"]}), pd.Series([True, False]))
    with pytest.raises(ModelError, match="found a list for feature 'genres', expected a single value to group by"):
        TargetMean("genres").learn_one({"genres": ["a"]}, True)


def test_mistakes_are_named(of_mixed: Ensemble, mixed: Frame) -> None:
    model = FtrlClassifier()
    model.learn_one({"wind": 3, "origin": "JFK"}, True)
    with pytest.raises(ModelError, match=r"found a category \(str or bool\) for feature 'wind', expected a number"):
        model.predict_one({"wind": "strong"})
    state = dump(*model.save())
    with pytest.raises(ModelError, match=r"found a number for feature 'origin', expected a category"):
        model.learn_one({"origin": 7}, False)
    assert dump(*model.save()) == state, "a row that is refused teaches nothing"
    with pytest.raises(
        ModelError, match="found datetime for feature 'at', expected str, bool, a number, a list of str or None"
    ):
        model.learn_one({"at": datetime(2013, 1, 1)}, False)  # noqa: DTZ001
    with pytest.raises(ModelError, match="found categories and numbers for feature 'wind'"):
        model.learn_many(pd.DataFrame({"wind": ["strong", 3]}), pd.Series([True, False]))
    with pytest.raises(ModelError, match=r"found labels \[2.0\], expected True or False"):
        model.learn_one({"wind": 3}, 2)
    with pytest.raises(ModelError, match=r"found labels that are no booleans \(could not convert"):
        model.learn_one({"wind": 3}, "yes")
    with pytest.raises(ModelError, match="found 1 labels for 600 rows"):
        model.learn_many(mixed[0], pd.Series([True]))
    with pytest.raises(ModelError, match="found 0 categories and 5000 numbers for FTRL, expected at most 250 and 4096"):
        FtrlClassifier().learn_one({f"word{i}": 1 for i in range(5_000)}, True)
    with pytest.raises(ModelError, match="found a state of FtrlClassifier, expected one of LabelMeanClassifier"):
        LabelMeanClassifier().load(*model.save())
    with pytest.raises(ModelError, match=r"found a table of 3 numbers a key and at most 4,194,304 keys, expected"):
        FtrlClassifier(max_weights=10).load(*model.save())
    with pytest.raises(ModelError, match="FTRL: found alpha=-1, expected a positive number"):
        FtrlClassifier(alpha=-1)


def test_nothing_that_follows_a_log_waits_for_river() -> None:
    hot = "build, boosting, ftrl, gbdt_lr, label_mean, lightgbm, river_pipeline, snapshot, stack, target_mean, trees, trial"
    code = f"import sys\nfrom headrace.models import {hot}\nassert 'river' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("build", REGRESSORS.values(), ids=REGRESSORS)
def test_a_regressors_frames_and_rows_give_the_same_bits(build: Any, mixed: Frame, of_mixed: Ensemble) -> None:
    frame, yes = mixed
    y = yes.astype(float) * 30.0 + np.arange(len(yes)) % 11
    one, many = build(of_mixed), build(of_mixed)
    for X, labels in _batches(frame, y, 1):
        rows = X.astype(object).where(X.notna(), None).to_dict("records")
        p = many.predict_many(X)
        assert p.index.equals(X.index)
        many.learn_many(X, labels)
        for row, label in zip(rows, labels.tolist(), strict=True):
            one.learn_one(row, label)
        assert many.predict_many(X).tolist() == [one.predict_one(row) for row in rows]
    again = build(of_mixed)
    again.load(*parse(dump(*many.save())))
    assert again.predict_many(frame).tolist() == many.predict_many(frame).tolist()
    for bad in ("late", float("nan"), 1e101):
        with pytest.raises(ModelError, match=r"found (labels that are no numbers|a label that is not finite)"):
            one.learn_one({"seats": 1}, bad)
