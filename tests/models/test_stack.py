"""The stack is what its formulas say, goes on to the bit anywhere, and is never much worse than its best member."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.batch.walk_forward import Walk, walk_forward
from headrace.definition import recipes
from headrace.errors import ModelError
from headrace.models import build
from headrace.models.boosting import Trained, train
from headrace.models.checks import check_model
from headrace.models.contract import Floats, Turns, take
from headrace.models.label_mean import LabelMean
from headrace.models.snapshot import dump, parse
from headrace.models.stack import Member, Stack
from headrace.models.text import is_category, keys_of

Make = Callable[..., Any]  # the fixture that makes a small stream
Ints = NDArray[np.int64]


class Told:
    """A member that predicts what a column says, and learns nothing."""

    memo_width = 0

    def __init__(self, column: str) -> None:
        self._column = column

    def prepare(self, X: Any) -> Any:
        return {"p": X[self._column]}

    def run(self, order: Any, events: Any, labels: Any, y: Floats, weight: Floats, clock: Any, row: Any) -> Floats:
        return np.array(events["p"])

    def ask(self, X: Any, clock: Any, outstanding: int) -> Any:
        return self.predict(X), np.empty((len(X["p"]), 0))

    def learn(self, X: Any, y: Floats, memo: Floats, weight: Floats, clock: Any) -> None:
        """Nothing."""

    def predict(self, X: Any) -> Floats:
        return np.array(X["p"])

    def save(self) -> Any:
        return {}, {}

    def load(self, arrays: Any, meta: Any) -> None:
        """Nothing."""


def told(names: str, absent: str = "", outstanding: float = 30.0) -> Stack:
    members = [Member(name, None if name in absent else Told(name), name) for name in names]
    return Stack(members, outstanding)


def delayed(n: int, seed: int) -> tuple[dict[str, Floats], Floats, Ints]:
    """Predictions of three members, labels, and a log in which labels come some entries after their events, or never."""
    random = np.random.default_rng(seed)
    logit = random.normal(-1, 2, n)
    y = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    noisy = {"a": logit + random.normal(0, 1, n), "b": 3 * logit + 1, "c": random.normal(0, 9, n)}
    place = np.concatenate([np.arange(n) * 2.0, np.arange(n) * 2.0 + random.integers(1, 200, n)])
    order = np.argsort(place, kind="stable")
    order = order[(order < n) | (order % 10 != 0)]  # some labels never come
    return {k: 1 / (1 + np.exp(-v)) for k, v in noisy.items()}, y, np.where(order < n, order, n - 1 - order)


def turns_of(order: Ints, y: Floats, weight: Floats, width: int) -> Turns:
    n = len(y)
    is_event = order >= 0
    outstanding = np.empty(n, dtype=np.int64)
    outstanding[order[is_event]] = (np.cumsum(is_event) - 1 - np.cumsum(~is_event))[is_event]
    clock = np.zeros(n, dtype=np.int64)
    return Turns(order, outstanding, y, weight, clock, np.arange(n), np.full((n, width), np.nan), np.arange(n))


def plainly(p: Floats, absent: list[int], y: Floats, weight: Floats, order: Ints, D: float) -> Floats:
    """The formulas, one row after the other, with numpy's matrices."""
    n, K = p.shape
    s, r = np.array([0.1, 0.1, 1.0, 1.0]), np.array([0.0, 3e-3, 0.0, 3e-3])
    v = s / (K * np.sqrt(1 + D))
    w = np.tile(np.append(np.full(K, 1 / K), 0.0), (4, 1))
    P = [v[m] * np.eye(K + 1) for m in range(4)]
    top, out, memo, waiting = np.full(4, 0.25), np.empty(n), {}, 0
    for entry in order.tolist():
        if entry >= 0:
            clipped = np.clip(p[entry], 1e-3, 1 - 1e-3)
            x = np.clip(np.log(clipped / (1 - clipped)), -6.9, 6.9)
            x[absent] = np.mean(np.delete(x, absent))
            x = np.append(x, 1.0)
            q = 1 / (1 + np.exp(-(w @ x)))
            out[entry], memo[entry] = top @ q, (x, q)
            D += (waiting - D) / 1000
            waiting += 1
            continue
        i = -1 - entry
        x, q = memo.pop(i)
        waiting -= 1
        eta, phi = 1 / np.sqrt(1 + D), 1e-3 / np.sqrt(1 + D)
        top = top * np.clip(q if y[i] else 1 - q, 1e-3, 1 - 1e-3) ** (weight[i] * eta)
        top = (1 - phi) * top / top.sum() + phi / 4
        for m in range(4):
            now = 1 / (1 + np.exp(-(w[m] @ x)))
            h = weight[i] * max(now * (1 - now), 1e-3)
            u = P[m] @ x
            d = 1 + h * (x @ u)
            w[m] += u * weight[i] * (y[i] - now) / d
            P[m] = P[m] - (h / d) * np.outer(u, u)
            low = np.diag(P[m]) < v[m]
            P[m][np.diag_indices(K + 1)] += low * r[m] * v[m] / (1 + D)
    return out


@pytest.mark.parametrize("absent", ["", "b"])
def test_it_is_what_the_formulas_say(absent: str) -> None:
    X, y, order = delayed(1500, seed=1)
    weight = np.random.default_rng(2).choice([1.0, 0.3, 4.0], len(y))
    stack = told("abc", absent)
    p, _ = stack.follow(turns_of(order, y, weight, 7), stack.prepare(X), stack.prepare(X))
    table = np.stack([X[name] for name in "abc"], axis=1)
    expected = plainly(table, ["abc".index(name) for name in absent], y, weight, order, 30.0)
    np.testing.assert_allclose(p, expected, rtol=1e-9)
    assert np.ptp(p) > 0.5


def test_turns_and_one_call_give_the_same_bits() -> None:
    X, y, order = delayed(600, seed=3)
    whole, stepping = told("abc"), told("abc")
    turns = turns_of(order, y, np.ones(len(y)), 7)
    p, memo = whole.follow(turns, whole.prepare(X), whole.prepare(X))
    prepared, kept = stepping.prepare(X), np.empty((len(y), 7))
    for entry in order.tolist():
        row = slice(entry, entry + 1) if entry >= 0 else slice(-1 - entry, -entry)
        clock = np.zeros(1, dtype=np.int64)
        if entry >= 0:
            asked, kept[row] = stepping.ask(take(prepared, row), clock, int(turns.outstanding[entry]))
            assert asked[0] == p[entry]
        else:
            stepping.learn(take(prepared, row), y[row], kept[row], np.ones(1), clock)
    assert kept.tobytes() == memo.tobytes()
    assert dump(*stepping.save()) == dump(*whole.save())
    assert stepping.report() == whole.report()


def test_members_are_reported_with_their_own_losses() -> None:
    X, y, order = delayed(800, seed=4)
    stack = told("abc", absent="c")
    stack.follow(turns_of(order, y, np.ones(len(y)), 7), stack.prepare(X), stack.prepare(X))
    a, b, c = stack.report()
    learned = -1 - order[order < 0]
    p = np.clip(X["a"][learned], 1e-3, 1 - 1e-3)
    assert (a.member, a.labels, c.labels, c.loss_sum) == ("a", len(learned), 0, 0.0)
    assert a.loss_sum == pytest.approx(-np.sum(np.log(np.where(y[learned] == 1, p, 1 - p))), rel=1e-4)
    assert a.loss_sum < b.loss_sum
    assert a.top_weights == b.top_weights
    assert sum(a.top_weights) == pytest.approx(1)
    assert [member.labels for member in stack.report()] == [0, 0, 0]


def test_it_trusts_who_is_right() -> None:
    X, y, order = delayed(20_000, seed=5)
    stack = told("abc")
    stack.follow(turns_of(order, y, np.ones(len(y)), 7), stack.prepare(X), stack.prepare(X))
    a, b, c = (member.weight for member in stack.report())
    assert a + 3 * b == pytest.approx(1, abs=0.15)  # b says three times what is true
    assert abs(c) < 0.05


def test_a_broken_member_does_not_pass_for_an_absent_one() -> None:
    X, _, _ = delayed(10, seed=6)
    X["b"][3] = np.nan
    stack = told("abc")
    p = stack.predict(stack.prepare(X))
    assert np.flatnonzero(np.isnan(p)).tolist() == [3]


def test_what_a_broken_member_was_asked_for_teaches_the_stackers_nothing() -> None:
    X, y, order = delayed(60, seed=6)
    before = told("abc").save()[0]
    X["b"][:] = np.nan
    stack = told("abc")
    _, memo = stack.follow(turns_of(order, y, np.ones(len(y)), 7), stack.prepare(X), stack.prepare(X))
    assert np.isnan(memo[:, 3:]).all()
    for name in ("w", "P", "top"):
        assert stack.save()[0][name].tobytes() == before[name].tobytes()


def test_the_default_members_keep_the_contract(trained: Trained, stream: Make) -> None:
    X, y, _, _ = stream(300, seed=1)
    check_model(lambda: build.stack(recipes.stack(), trained.ensemble), X, y)
    check_model(lambda: build.stack(recipes.stack(), None), X, y)


def test_a_calibration_layer_keeps_the_contract(trained: Trained, stream: Make) -> None:
    X, y, _, _ = stream(300, seed=1)
    by = [name for name in X if is_category(X[name])][:2]
    for recipe in (recipes.stack(calibrate_by=by), recipes.calibrated(recipes.lightgbm(), by)):
        assert recipe.mistakes() == []
        check_model(lambda recipe=recipe: build.stack(recipe, trained.ensemble), X, y)  # type: ignore[misc]
    alone = recipes.calibrated(recipes.ftrl(), by)
    assert (alone.name, alone.bootstraps) == ("ftrl_calibrated", False)
    check_model(lambda: build.fresh(alone, key=b""), X, y)


def test_calibrated_trees_are_trained_as_the_recipe_says() -> None:
    recipe = recipes.calibrated(recipes.lightgbm(num_leaves=7, scale=0.1, search=recipes.Search(trials=3)), ["a"])
    assert recipe.mistakes() == []
    assert recipe.params == {"calibrate_by": ["a"], "num_leaves": 7, "search": {"trials": 3, "seconds": None}}
    assert recipe.members[0].params == {"scale": 0.1}


def test_shared_columns_are_prepared_once(trained: Trained, stream: Make) -> None:
    X, _, _, _ = stream(50)
    prepared = build.stack(recipes.stack(), trained.ensemble).prepare(X)
    assert sum(name.endswith(" slots") for name in prepared) == 1
    assert sum(name.endswith(" keys") for name in prepared) == len(
        {m.params["pairs"] for m in recipes.stack().members if m.kind == "ftrl"}
    )


def alone_and_stacked(trained: Trained, X: Any, y: Floats) -> tuple[Any, Any]:
    """What each member of a stack predicts within it and on its own."""
    recipe = recipes.stack(target_means=False)  # learns at larger rates
    order = np.stack([np.arange(len(y)), ~np.arange(len(y))], axis=1).ravel()
    stack = build.stack(recipe, trained.ensemble)
    turns = turns_of(order, y, np.ones(len(y)), stack.memo_width)
    _, memo = stack.follow(turns, stack.prepare(X), stack.prepare(X))
    within = 1 / (1 + np.exp(-memo[:, : len(recipe.members)]))
    outside = []
    for member in recipe.members:
        model: Any = build.fresh(member, key=b"", artifact=trained.ensemble.dump())
        p = np.empty(len(y))
        for i in range(len(y)):
            row, clock = model.prepare(take(X, slice(i, i + 1))), np.zeros(1, dtype=np.int64)
            p[i : i + 1], kept = model.ask(row, clock, 0)
            model.learn(row, y[i : i + 1], kept, np.ones(1), clock)
        outside.append(p)
    return within, np.stack(outside, axis=1)


def test_members_predict_what_they_would_alone(trained: Trained, stream: Make) -> None:
    X, y, _, _ = stream(400, seed=7)
    within, outside = alone_and_stacked(trained, X, y)
    np.testing.assert_allclose(within, np.clip(outside, 1e-3, 1 - 1e-3), rtol=2e-2, atol=1e-4)
    assert np.ptp(outside, axis=0).min() > 0.02


def go_on(folder: str) -> None:
    """In another process: restore a stack and let it predict."""
    arrays, meta = parse(Path(folder, "state").read_bytes())
    rows, _ = parse(Path(folder, "rows").read_bytes())
    stack: Any = build.fresh(recipes.stack(), key=b"", artifact=Path(folder, "artifact").read_bytes())
    stack.load(arrays, meta)
    Path(folder, "p").write_bytes(stack.predict(stack.prepare(rows)).tobytes())


def test_another_process_goes_on_to_the_bit(trained: Trained, stream: Make, tmp_path: Path) -> None:
    X, y, _, _ = stream(500, seed=8)
    rows = {name: keys_of(X[name]) if is_category(X[name]) else X[name] for name in sorted(X)}
    stack = build.stack(recipes.stack(), trained.ensemble)
    order = np.stack([np.arange(500), ~np.arange(500)], axis=1).ravel()
    stack.follow(turns_of(order, y, np.ones(500), stack.memo_width), stack.prepare(rows), stack.prepare(rows))
    (tmp_path / "artifact").write_bytes(trained.ensemble.dump())
    (tmp_path / "state").write_bytes(dump(*stack.save()))
    (tmp_path / "rows").write_bytes(dump(rows, {}))
    code = "import sys; from tests.models.test_stack import go_on; go_on(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120, cwd=Path(__file__).parents[2])
    assert (tmp_path / "p").read_bytes() == stack.predict(stack.prepare(rows)).tobytes()


def test_a_state_of_other_members_is_refused(trained: Trained, stream: Make) -> None:
    saved = build.stack(recipes.stack(), None).save()
    with pytest.raises(ModelError, match=r"found a stack of .*, expected lightgbm, "):
        build.stack(recipes.stack(), trained.ensemble).load(*saved)
    with pytest.raises(ModelError, match="found a stack of ab, expected a, b"):
        told("ab").take_over(Stack([Member("ab", LabelMean(), "ab")], 1.0), stackers=True)


def test_new_trees_take_the_former_ones_places(trained: Trained, stream: Make) -> None:
    """Stackers go on or begin anew, as they are told; members without trees always go on."""
    X, y, _, label_times = stream(600, seed=10)
    recipe = recipes.stack()
    walk = Walk(
        X, 2 * np.arange(600), np.ones(600, dtype=np.bool_), np.arange(600), 2 * np.arange(600) + 1, label_times, y
    )
    waiting, plain = build.stack(recipe, None), build.stack(recipe, None)
    walk.go(waiting, 0, 1199, started=False)
    assert np.isnan(walk.p).all()
    (weights, unmoved), (mine, fresh) = ((s.save()[0]["w"], s.save()[0]["top"]) for s in (waiting, plain))
    assert (weights.tobytes(), unmoved.tobytes()) == (mine.tobytes(), fresh.tobytes())
    started, anew = build.stack(recipe, trained.held_out), build.stack(recipe, trained.held_out)
    started.take_over(waiting, stackers=False)
    assert np.abs(started.predict(started.prepare(X)) - anew.predict(anew.prepare(X))).max() > 0.01
    walk.go(started, 0, 1199)
    assert np.isfinite(walk.p).all()
    refitted = build.stack(recipe, trained.ensemble)
    refitted.take_over(started, stackers=True)
    for name in ("w", "P", "top", "delay", "start"):
        assert refitted.save()[0][name].tobytes() == started.save()[0][name].tobytes()


def test_the_walk_knows_no_label_before_its_entry(trained: Trained, stream: Make) -> None:
    X, y, _, label_times = stream(600, seed=12)
    event_seq, label_seq = 2 * np.arange(600), 2 * np.arange(600) + 41  # twenty events later
    cut, said = 600, []
    for labels in (y, np.where(label_seq >= cut, 1.0 - y, y)):
        walk = Walk(X, event_seq, np.ones(600, dtype=np.bool_), np.arange(600), label_seq, label_times, labels)
        walk.go(build.stack(recipes.stack(), trained.ensemble), 0, 1199)
        said.append(walk.p)
    before = event_seq < cut
    assert said[0][before].tobytes() == said[1][before].tobytes()
    assert np.abs(said[0][event_seq > cut + 40] - said[1][event_seq > cut + 40]).max() > 0.05


def test_a_start_among_slow_negatives_is_not_misled(trained: Trained, stream: Make) -> None:
    """A positive label comes at once, a negative one is a time-out: the first labels of new events are all positive."""
    n, slow = 3_000, 600
    X, y, _, _ = stream(n, seed=4)
    at = np.concatenate([2.0 * np.arange(n), 2.0 * np.arange(n) + np.where(y == 1.0, 3.0, 2.0 * slow + 1.0)])
    seq = np.argsort(np.argsort(at, kind="stable")) + 1
    by_seq = np.argsort(seq[n:])
    labels = by_seq, seq[n:][by_seq], seq[n:][by_seq], y[by_seq]
    walk = Walk(X, seq[:n], np.ones(n, dtype=np.bool_), *labels)
    half = int(seq[1_500])
    walk_forward(recipes.stack(), walk, half, int(seq.max()), trained, trained)
    new = slice(1_501, 1_500 + slow)
    assert walk.p[new].mean() == pytest.approx(y[new].mean(), abs=0.06)
    assert np.isfinite(walk.p[seq[n:] > half]).all() and np.isnan(walk.p[seq[n:] <= half]).all()


def test_the_label_mean_is_of_the_last_labels() -> None:
    model, y = LabelMean(labels=10), np.random.default_rng(11).integers(0, 2, 300).astype(np.float64)
    model.learn(model.prepare({"a": y}), y, np.empty((300, 0)), np.ones(300), np.zeros(300, dtype=np.int64))
    age = 0.9 ** np.arange(299, -1, -1)
    expected = ((age * y).sum() + 0.5) / (age.sum() + 1)
    assert model.predict({"nothing": np.empty((1, 0))})[0] == pytest.approx(expected)


def test_its_own_state_does_not_grow() -> None:
    sizes = []
    for n in (200, 2000):
        X, y, order = delayed(n, seed=9)
        stack = told("abc")
        stack.follow(turns_of(order, y, np.ones(n), 7), stack.prepare(X), stack.prepare(X))
        sizes.append(len(dump(*stack.save())))
    assert sizes[0] == sizes[1]


def synthetic(kind: str, n: int) -> tuple[dict[str, Floats], Floats]:
    """River's SEA concepts: one for good, one after the other, or one slowly in the other's place."""
    from river.datasets import synth

    before, after = (iter(synth.SEA(variant=variant, noise=0.1, seed=1)) for variant in (0, 2))
    drifted = {"none": 0.0, "abrupt": np.arange(n) > n // 2, "gradual": np.clip(np.arange(n) / n - 0.3, 0, 0.5) / 0.5}[
        kind
    ]
    later = np.random.default_rng(3).random(n) < drifted
    taken = [next(after if is_later else before) for is_later in later.tolist()]
    return {f"x{k}": np.array([x[k] for x, _ in taken]) for k in range(3)}, np.array([float(y) for _, y in taken])


@pytest.mark.parametrize("members", [None, [recipes.lightgbm(), recipes.gbdt_lr()]])
@pytest.mark.parametrize("kind", ["none", "abrupt", "gradual"])
def test_regret_to_the_best_member_is_small(kind: str, members: list[recipes.Recipe] | None) -> None:
    """After a walk-forward start on the first 30%, with labels that come 100 events late."""
    n, window, late = 15_000, 4_500, 100
    X, y = synthetic(kind, n)
    event_seq, label_seq = 2 * np.arange(n), 2 * (np.arange(n) + late) + 1
    recipe = recipes.stack(members=members)
    params = {"max_trees": 50, "min_data_in_leaf": 50}
    times = event_seq, label_seq

    def trees(labels: int) -> Trained:
        return train(take(X, slice(labels)), y[:labels], *(t[:labels] for t in times), params)

    rows = np.arange(n)
    walk = Walk(X, event_seq, np.ones(n, dtype=np.bool_), rows, label_seq, label_seq, y)
    half, last = int(label_seq[window // 2 - 1]), int(label_seq[window - 1])
    stack = walk_forward(recipe, walk, half, last, trees(window // 2), trees(window))
    assert np.isnan(walk.p[label_seq <= half]).all()
    assert np.isfinite(walk.p[(label_seq > half) & (event_seq <= last)]).all()
    walk.go(stack, last + 1, int(label_seq[-1]))

    scored = slice(window + late, None)
    q = np.column_stack([1 / (1 + np.exp(-walk.memo[scored, : len(recipe.members)])), walk.p[scored]])
    losses = -np.mean(np.log(np.where(y[scored, None] == 1, q, 1 - q)), axis=0)
    assert losses[-1] <= 1.005 * losses[:-1].min()
