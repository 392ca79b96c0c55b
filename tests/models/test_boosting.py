"""Training respects time, repeats to the bit, and its artifact survives bytes; the online parts learn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace.errors import ModelError, SnapshotError
from headrace.events import Columns
from headrace.models.boosting import Encoding, Ensemble, Trained, train
from headrace.models.contract import Floats, Model, take
from headrace.models.gbdt_lr import GbdtLr
from headrace.models.lightgbm import LightGbmModel
from headrace.models.text import Text
from headrace.models.tokens import Tokens

Make = Callable[..., Any]  # the fixture that makes a small stream


def test_the_curves_show_where_training_stopped(trained: Trained) -> None:
    assert len(trained.curve_train) == len(trained.curve_valid) >= trained.best_trees
    assert np.argmin(trained.curve_valid) == trained.best_trees - 1
    assert trained.ensemble.trees.count == trained.held_out.trees.count == trained.best_trees
    assert trained.valid_from == 2400
    assert trained.ensemble.text != trained.held_out.text


def test_the_held_out_curve_is_that_of_its_trees(trained: Trained, stream: Make) -> None:
    X, y, _, _ = stream(3000)
    late = slice(trained.valid_from, None)
    _, score = trained.held_out.trees.walk(trained.held_out.encoding.matrix({n: v[late] for n, v in X.items()}))
    assert log_loss(1 / (1 + np.exp(-score)), y[late]) == pytest.approx(min(trained.curve_valid), abs=1e-9)


def test_training_repeats_to_the_bit(stream: Make) -> None:
    one, two = (train(*stream(1500), {"min_data_in_leaf": 20}, threads=threads) for threads in (1, 2))
    assert one.ensemble.trees.leaf_value.tobytes() == two.ensemble.trees.leaf_value.tobytes()
    assert one.held_out.trees.threshold.tobytes() == two.held_out.trees.threshold.tobytes()
    np.testing.assert_allclose(one.curve_valid, two.curve_valid, rtol=1e-12)  # summed in parallel by LightGBM


def test_labels_that_came_late_do_not_teach_the_first_part(stream: Make) -> None:
    X, y, event_time, label_time = stream(2000)
    split = 1600
    late = np.zeros(2000, dtype=np.bool_)
    late[1000:split] = True
    label_time = np.where(late, event_time[split], label_time)
    lied = np.where(late, 1.0 - y, y)
    params = {"min_data_in_leaf": 20, "max_trees": 10}
    honest, other = (train(X, labels, event_time, label_time, params, threads=1) for labels in (y, lied))
    assert honest.held_out.text == other.held_out.text
    assert honest.ensemble.text != other.ensemble.text


def test_outstanding_is_counted_when_events_enter(stream: Make) -> None:
    X, y, _, _ = stream(400)
    event_time = np.arange(400, dtype=np.int64) * 10
    trained = train(X, y, event_time, event_time + 25, {"min_data_in_leaf": 5}, threads=1)
    assert trained.ensemble.outstanding == pytest.approx(2, abs=0.02)  # those of 10 and 20 before


def test_windows_that_cannot_be_used_are_refused(stream: Make) -> None:
    X, y, event_time, label_time = stream(400)
    with pytest.raises(ModelError, match="out of order"):
        train(X, y, event_time[::-1].copy(), label_time)
    with pytest.raises(ModelError, match="held-out part of the window"):
        train(X, np.where(np.arange(400) < 320, y, 0.0), event_time, label_time)
    with pytest.raises(ModelError, match="training part of the window"):
        train(X, y, event_time, np.full(400, event_time[-1]))


def test_wide_categories_stay_out_of_the_trees(trained: Trained, stream: Make) -> None:
    encoding = trained.ensemble.encoding
    assert [name for name, _ in encoding.categories] == ["carrier"]
    assert encoding.wide == ("tail",)
    assert encoding.category_names == ("carrier", "tail")
    assert Encoding.fit(stream(100)[0], max_categories=1000).wide == ()


def test_trees_see_the_commonest_tokens(stream: Make) -> None:
    """The choice is the window's, and what was not chosen counts among the row's tokens only."""
    X, _, event_time, label_time = stream(2_000)
    random = np.random.default_rng(0)
    lists: list[Any] = [[f"t{k}" for k in random.geometric(0.03, 6).tolist()] for _ in range(2_000)]
    lists[:40] = [None] * 40
    y = np.array([float((row is not None and "t3" in row) or i % 7 == 0) for i, row in enumerate(lists)])
    columns = {**X, "genres": Tokens.of(lists)}
    found = train(columns, y, event_time, label_time, {"min_data_in_leaf": 20}).ensemble
    ((name, keys),) = found.encoding.tokens
    counts = Counter(token for row in columns["genres"].lists() for token in row or ())
    assert name == "genres"
    common = {str(token) for token, count in counts.items() if count > counts.most_common(65)[-1][1]}
    assert set(Text.of(sorted(common)).keys().tolist()) <= set(keys.tolist())
    assert len(keys) == 64
    again = Ensemble.parse(found.dump())
    rows = {**take(X, slice(0, 4)), "genres": Tokens.of([["t3", "never seen", "t3"], [], None, ["never seen"]])}
    matrix = again.encoding.matrix(rows)[:, -65:]
    assert matrix.tobytes() == found.encoding.matrix(rows)[:, -65:].tobytes()
    assert matrix[:2, 0].tolist() == [2.0, 0.0]
    assert matrix[:2, 1:].sum(axis=1).tolist() == [1.0, 0.0]
    assert matrix[0, 1 + keys.tolist().index(int(Text.of(["t3"]).keys()[0]))] == 1.0
    assert np.isnan(matrix[2]).all()
    assert matrix[3].tolist() == [1.0, *[0.0] * 64]
    score = found.trees.walk(found.encoding.matrix(rows))[1]
    assert score[0] > score[1] + 1.0, "the label depends on t3"


def test_unknown_and_missing_categories_read_the_same(trained: Trained) -> None:
    columns = {"carrier": np.array(["??", None, "AA"], dtype=object), "wind": np.ones(3), "delay": np.ones(3)}
    matrix = trained.ensemble.encoding.matrix(columns)
    assert np.isnan(matrix[:2, 0]).all()
    assert 0.0 <= matrix[2, 0] < len(trained.ensemble.encoding.categories[0][1])


def test_the_artifact_survives_bytes(trained: Trained) -> None:
    artifact = trained.ensemble.dump()
    parsed = Ensemble.parse(artifact)
    assert parsed.dump() == artifact
    assert parsed.text == trained.ensemble.text
    with pytest.raises(SnapshotError):
        Ensemble.parse(artifact[:-1])


def log_loss(p: Floats, y: Floats) -> float:
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def online(model: Model, X: Columns, y: Floats) -> Floats:
    """Predict each row, then learn it."""
    prepared = model.prepare(X)
    p = np.empty(len(y))
    for i in range(len(y)):
        row, clock = {name: values[i : i + 1] for name, values in prepared.items()}, np.array([i])
        p[i : i + 1], memo = model.ask(row, clock, 0)
        model.learn(row, y[i : i + 1], memo, np.ones(1), clock)
    return p


def test_all_start_as_their_trees(trained: Trained, stream: Make) -> None:
    X, _, _, _ = stream(200, seed=3)
    _, score = trained.ensemble.trees.walk(trained.ensemble.encoding.matrix(X))
    for model in (LightGbmModel(trained.ensemble), GbdtLr(trained.ensemble), GbdtLr(trained.ensemble, offset=False)):
        np.testing.assert_allclose(model.predict(model.prepare(X)), 1 / (1 + np.exp(-score)), rtol=1e-12)


def test_recalibration_repairs_a_shifted_base_rate(trained: Trained, stream: Make) -> None:
    X, y, _, _ = stream(4000, seed=4)
    random = np.random.default_rng(4)
    shifted = np.where(random.random(4000) < 0.5, 1.0, y)  # half of the negatives turn positive
    frozen = log_loss(online(LightGbmModel(trained.ensemble, scale=0.0), X, shifted)[2000:], shifted[2000:])
    recalibrated = log_loss(online(LightGbmModel(trained.ensemble), X, shifted)[2000:], shifted[2000:])
    assert recalibrated < 0.95 * frozen


def test_leaves_and_categories_learn_what_trees_do_not_know(trained: Trained, stream: Make) -> None:
    X, y, _, _ = stream(4000, seed=5)
    odd = np.array([int(tail[1:]) % 2 == 1 for tail in X["tail"]])
    turned = np.where(odd, 1.0 - y, y)
    frozen = log_loss(online(LightGbmModel(trained.ensemble, scale=0.0), X, turned)[3000:], turned[3000:])
    model = GbdtLr(trained.ensemble, category_alpha=0.3)
    assert log_loss(online(model, X, turned)[3000:], turned[3000:]) < 0.95 * frozen


def test_weights_are_ftrl_proximal(trained: Trained, stream: Make) -> None:
    """A row-by-row reading of the formula, with dictionaries."""
    X, y, _, _ = stream(300, seed=6)
    model = GbdtLr(trained.ensemble, leaf_alpha=0.05, category_alpha=0.2, table_bits=16)
    prepared = model.prepare(X)
    found = online(model, X, y)
    z: dict[int, float] = {}
    n: dict[int, float] = {}
    alphas = [0.05] * trained.ensemble.trees.count + [0.2] * 2
    for i in range(len(y)):
        pairs = [(s, a) for s, a in zip(prepared["slots"][i].tolist(), alphas, strict=True) if s >= 0]
        w = {s: -z.get(s, 0.0) * a / (1 + n.get(s, 0.0) ** 0.5) for s, a in pairs}
        p = 1 / (1 + np.exp(-(prepared["score"][i] + sum(w.values()))))
        assert found[i] == pytest.approx(p, rel=1e-9)
        g = p - y[i]
        for s, a in pairs:
            sigma = ((n.get(s, 0.0) + g * g) ** 0.5 - n.get(s, 0.0) ** 0.5) / a
            z[s] = z.get(s, 0.0) + g - sigma * w[s]
            n[s] = n.get(s, 0.0) + g * g


@pytest.mark.parametrize("offset", [True, False])
def test_new_trees_leave_what_does_not_depend_on_them(trained: Trained, stream: Make, offset: bool) -> None:
    X = stream(500, seed=9)[0]
    odd = np.array([float(int(tail[1:]) % 2) for tail in X["tail"]])
    former = GbdtLr(trained.ensemble, category_alpha=0.3, offset=offset)
    online(former, X, odd)
    model = GbdtLr(trained.held_out, category_alpha=0.3, offset=offset)
    fresh = model.predict(model.prepare(X))
    model.take_over(former)
    p = model.predict(model.prepare(X))
    if offset:
        assert p.tobytes() == fresh.tobytes(), "its weights correct trees that are gone"
    else:
        assert log_loss(p, odd) < log_loss(fresh, odd) - 0.05


def test_weights_of_other_trees_are_refused(trained: Trained) -> None:
    with pytest.raises(ModelError, match="load them with their own trees"):
        GbdtLr(trained.ensemble).load(*GbdtLr(trained.ensemble, table_bits=4).save())
