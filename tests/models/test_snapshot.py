"""States survive bytes exactly, damage is found, and a pickle loads nothing that is not allowed."""

from __future__ import annotations

import hmac
import os
import pickle
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace.errors import SnapshotError
from headrace.models.allowed import ALLOWED
from headrace.models.snapshot import dump, parse, sign, state_digest, unsign

KEY = b"0123456789abcdef"
Make = Callable[..., Any]  # the fixture that makes a small stream

dtypes = st.one_of(npst.floating_dtypes(), npst.integer_dtypes(), npst.boolean_dtypes())
states = st.dictionaries(
    st.text("abcdef_", min_size=1), npst.arrays(dtypes, npst.array_shapes(min_dims=0, min_side=0)), max_size=4
)
metas = st.dictionaries(
    st.text(),
    st.one_of(st.none(), st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    max_size=4,
)


@given(states, metas)
def test_bytes_and_back(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    state = dump(arrays, meta)
    found, found_meta = parse(state)
    assert found_meta == meta
    assert {n: (a.dtype.newbyteorder("="), a.shape) for n, a in found.items()} == {
        n: (a.dtype.newbyteorder("="), a.shape) for n, a in arrays.items()
    }
    assert state_digest(found) == state_digest(arrays)
    assert dump(dict(reversed(found.items())), found_meta) == dump(found, meta)


@given(states, st.data())
def test_any_damage_is_found(arrays: dict[str, Any], data: st.DataObject) -> None:
    state = bytearray(dump(arrays, {"a": 1}))
    at = data.draw(st.integers(0, len(state) - 1))
    state[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SnapshotError):
        parse(bytes(state))
    with pytest.raises(SnapshotError):
        parse(bytes(state[:at]))


def test_the_digest_sees_names_shapes_types_and_bits() -> None:
    a = np.zeros(4)
    others = [{"b": a}, {"a": a.reshape(2, 2)}, {"a": a.astype(np.int64)}, {"a": np.array([0.0, 0.0, 0.0, -0.0])}]
    assert len({state_digest(arrays) for arrays in [{"a": a}, *others]}) == 5


def test_objects_are_refused() -> None:
    with pytest.raises(SnapshotError, match="found objects in the state's array 'names'"):
        dump({"names": np.array(["x"], dtype=object)}, {})
    with pytest.raises(SnapshotError, match="JSON part cannot be written"):
        dump({}, {"now": float("nan")})


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, ("true",)


class GetsAttributes:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, (dict, "__subclasses__")


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Harmful(), "posix.system"),
        (GetsAttributes(), "builtins.getattr"),
        (partial(eval, "1"), "builtins.eval"),
        (os.PathLike, "os.PathLike"),
    ],
)
def test_a_pair_that_is_not_allowed_is_named(thing: object, named: str) -> None:
    with pytest.raises(SnapshotError, match=f"found {named} in a model state"):
        unsign(sign(thing, KEY), KEY)


def test_a_dotted_name_does_not_reach_through_an_allowed_class() -> None:
    # Protocol 4 looks dotted names up attribute by attribute; the pair must match as a whole.
    evil = b"\x80\x04\x8c\x06randomq\x00\x8c\x0bRandom.seedq\x01\x93."
    with pytest.raises(SnapshotError, match=r"found random\.Random\.seed in a model state"):
        unsign(hmac.digest(KEY, evil, "sha256") + evil, KEY)


def test_nothing_is_unpickled_before_the_signature_holds() -> None:
    signed = sign(Counter("abc"), KEY)
    for damaged in (signed[:-1] + b"x", b"x" + signed[1:], signed[:10], b""):
        with pytest.raises(SnapshotError, match="signature does not match"):
            unsign(damaged, KEY)
    with pytest.raises(SnapshotError, match="signature does not match"):
        unsign(signed, b"another key, 16 bytes")
    with pytest.raises(SnapshotError, match="found a signing key of 3 bytes"):
        sign(Counter(), b"abc")


class Mine:
    """A class of the user's own pipeline."""


def test_a_declared_pair_loads() -> None:
    signed = sign(Mine(), KEY)
    with pytest.raises(SnapshotError, match=f"{Mine.__module__}.Mine"):
        unsign(signed, KEY)
    assert isinstance(unsign(signed, KEY, {(Mine.__module__, "Mine")}), Mine)


def test_nothing_allowed_executes_or_looks_up_by_name() -> None:
    assert not {module for module, _ in ALLOWED} & {
        "os",
        "posix",
        "subprocess",
        "sys",
        "importlib",
        "operator",
        "pickle",
    }
    names = {"getattr", "eval", "exec", "compile", "open", "__import__", "setattr", "globals", "type", "object"}
    assert not {name for module, name in ALLOWED if module == "builtins"} & names


def _pipelines() -> list[Any]:
    from river import (
        compose,
        drift,
        ensemble,
        facto,
        forest,
        linear_model,
        naive_bayes,
        neighbors,
        optim,
        preprocessing,
        tree,
    )

    optimizers = [
        optim.AdaBound(), optim.AdaDelta(), optim.AdaGrad(), optim.AdaMax(), optim.Adam(), optim.AMSGrad(),
        optim.FTRLProximal(), optim.Momentum(), optim.Nadam(), optim.RMSProp(),
        optim.SGD(optim.schedulers.InverseScaling(0.1)),
    ]  # fmt: skip
    alone = [
        forest.ARFClassifier(n_models=2, seed=1, grace_period=10),
        forest.AMFClassifier(n_estimators=2, seed=1),
        tree.HoeffdingTreeClassifier(grace_period=10, splitter=tree.splitter.HistogramSplitter()),
        tree.HoeffdingAdaptiveTreeClassifier(grace_period=10, seed=1),
        tree.ExtremelyFastDecisionTreeClassifier(grace_period=10),
        tree.SGTClassifier(grace_period=10),
        ensemble.SRPClassifier(n_models=2, seed=1),
        ensemble.ADWINBaggingClassifier(linear_model.LogisticRegression(), n_models=2, seed=1),
        ensemble.AdaBoostClassifier(tree.HoeffdingTreeClassifier(grace_period=10), n_models=2, seed=1),
        ensemble.StackingClassifier([naive_bayes.GaussianNB(), linear_model.Perceptron()], linear_model.Perceptron()),
        facto.FMClassifier(seed=1),
        naive_bayes.GaussianNB(),
        neighbors.KNNClassifier(),
        drift.DriftRetrainingClassifier(naive_bayes.GaussianNB()),
    ]  # fmt: skip
    scalers = [
        preprocessing.AdaptiveStandardScaler(), preprocessing.MinMaxScaler(), preprocessing.MaxAbsScaler(),
        preprocessing.RobustScaler(), preprocessing.StandardScaler(), preprocessing.StatImputer(),
        preprocessing.FeatureHasher(seed=1),
    ]  # fmt: skip
    numbers = compose.SelectType(float)
    return [
        *(numbers | linear_model.LogisticRegression(optimizer) for optimizer in optimizers),
        *(numbers | scaler | linear_model.LogisticRegression() for scaler in scalers),
        *(numbers | model for model in alone),
    ]


def test_real_river_models_load_and_go_on_as_they_were(stream: Make) -> None:
    X, y, _, _ = stream(150)
    rows = [
        {"wind": 0.0 if np.isnan(w) else w, "delay": d}
        for w, d in zip(X["wind"].tolist(), X["delay"].tolist(), strict=True)
    ]
    for model in _pipelines():
        for row, label in zip(rows, y.tolist(), strict=True):
            model.learn_one(row, label == 1.0)
        again = unsign(sign(model, KEY), KEY)
        assert [again.predict_proba_one(row) for row in rows[:20]] == [
            model.predict_proba_one(row) for row in rows[:20]
        ], model
        assert pickle.dumps(again)


def _regressors() -> list[Any]:
    from river import (
        compose,
        dummy,
        ensemble,
        forest,
        linear_model,
        neighbors,
        optim,
        preprocessing,
        rules,
        stats,
        tree,
    )

    losses = [optim.losses.Absolute(), optim.losses.Huber(), optim.losses.Quantile(0.5), optim.losses.Squared()]
    alone = [
        *(tree.HoeffdingTreeRegressor(grace_period=10, leaf_prediction=how) for how in ("mean", "model", "adaptive")),
        *(
            tree.HoeffdingAdaptiveTreeRegressor(grace_period=10, leaf_prediction=how, seed=1)
            for how in ("mean", "model", "adaptive")
        ),
        tree.HoeffdingTreeRegressor(grace_period=10, splitter=tree.splitter.EBSTSplitter()),
        tree.HoeffdingTreeRegressor(grace_period=10, nominal_attributes=["wind"]),
        tree.HoeffdingAdaptiveTreeRegressor(grace_period=10, nominal_attributes=["wind"], seed=1),
        tree.SGTRegressor(grace_period=10),
        forest.ARFRegressor(n_models=2, seed=1, grace_period=10),
        forest.AMFRegressor(n_estimators=2, seed=1),
        ensemble.SRPRegressor(n_models=2, seed=1),
        ensemble.BaggingRegressor(linear_model.LinearRegression(), n_models=2, seed=1),
        rules.AMRules(n_min=10),
        neighbors.KNNRegressor(),
        linear_model.BayesianLinearRegression(),
        dummy.StatisticRegressor(stats.Quantile(0.5)),
    ]
    numbers = compose.SelectType(float)
    return [
        *(numbers | preprocessing.StandardScaler() | linear_model.LinearRegression(loss=loss) for loss in losses),
        *(numbers | model for model in alone),
    ]


def test_real_river_regressors_load_and_go_on_as_they_were(stream: Make) -> None:
    X, y, _, _ = stream(150)
    rows = [{"wind": float(i % 7), "delay": d} for i, d in enumerate(X["delay"].tolist())]
    for model in _regressors():
        for row, label in zip(rows, y.tolist(), strict=True):
            model.learn_one(row, 40.0 * label + row["wind"])
        again = unsign(sign(model, KEY), KEY)
        assert [again.predict_one(row) for row in rows[:20]] == [model.predict_one(row) for row in rows[:20]], model
