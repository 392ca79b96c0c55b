"""Batch training: one pass is a replay to the bit, more of them repeat to the bit, and the best number is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace.batch import passes
from headrace.batch.passes import Fitted, Labels, Training, fit
from headrace.batch.walk_forward import Walk
from headrace.definition import recipes
from headrace.definition.loss import Loss
from headrace.models.build import fresh
from headrace.models.contract import take
from headrace.models.ftrl import Ftrl
from headrace.models.snapshot import dump
from headrace.models.table import KEY, LAST

Make = Callable[..., Any]
HARD: dict[str, Any] = {"pairs": True, "admit_after": 2, "max_weights": 400, "expire_after": 3_600_000_000, "l1": 0.1}
"""Options of which each has a state of its own."""


def labels_of(stream: Make, n: int = 1_000, seed: int = 0) -> tuple[Labels, NDArray[np.int64]]:
    """Labels in the order in which they came, and the seqs of the events; a seq is a time."""
    X, y, event_time, label_time = stream(n, seed)
    order = np.argsort(np.concatenate([event_time, label_time]), kind="stable")
    seq = np.empty(2 * n, dtype=np.int64)
    seq[order] = np.arange(1, 2 * n + 1)
    row = np.argsort(seq[n:])
    return Labels(X, row, seq[n:][row], label_time[row], y[row], np.ones(n)), seq[:n]


def batch(**options: Any) -> dict[str, Any]:
    return vars(recipes.Batch(**options))


def trained(labels: Labels, shuffled: int, options: dict[str, Any] | None = None, **how: Any) -> Ftrl:
    training = Training(lambda: Ftrl(**options or {}), labels, batch(**how))
    for _ in range(shuffled):
        training.shuffle()
    return training.finished()


def replayed(labels: Labels, **options: Any) -> Ftrl:
    """What a learner makes of the labels."""
    model = Ftrl(**options)
    taught = np.flatnonzero(labels.weight)
    rows = model.prepare(take(labels.X, labels.row[taught]))
    model.learn(rows, labels.y[taught], np.empty((len(taught), 0)), labels.weight[taught], labels.clock[taught])
    return model


def thinned(labels: Labels) -> Labels:
    """A third of the negatives teach, and weigh three."""
    weight = np.where(labels.y == 1.0, 1.0, np.where(np.arange(len(labels.y)) % 3 == 0, 3.0, 0.0))
    weight[-1] = 1.0  # the clock is that of a label that teaches
    return replace(labels, weight=weight)


def fitted(labels: Labels, event_seq: NDArray[np.int64], alpha: float, **how: Any) -> Fitted:
    n = len(event_seq)
    every = np.ones(n, dtype=np.bool_)
    walk = Walk(labels.X, event_seq, every, labels.row, labels.seq, labels.clock, labels.y)
    first, last = int(event_seq[int(0.8 * n)]), int(labels.seq[-1])
    return fit(lambda: Ftrl(alpha=alpha), alpha, batch(**how), labels, walk, first, last, labels.seq >= first)


@pytest.mark.parametrize("options", [{}, HARD])
def test_one_pass_is_a_replay(stream: Make, options: dict[str, Any]) -> None:
    whole, _ = labels_of(stream)
    for labels in (whole, thinned(whole)):
        assert dump(*trained(labels, 0, options).save()) == dump(*replayed(labels, **options).save())


@pytest.mark.parametrize("options", [{}, HARD])
def test_the_same_seed_gives_the_same_bits_however_labels_are_cut(
    stream: Make, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, _ = labels_of(stream)
    states = []
    for piece in (50_000, 7, 1):
        monkeypatch.setattr(passes, "_PIECE", piece)
        states.append(dump(*trained(labels, 2, options).save()))
    assert states[0] == states[1] == states[2]
    assert states[0] != dump(*trained(labels, 2, options, seed=1).save())


def test_the_last_pass_leaves_the_model_as_it_was(stream: Make) -> None:
    """Else a model that was judged on its way would differ from one that was not."""
    labels, _ = labels_of(stream)
    training = Training(lambda: Ftrl(**HARD), labels, batch())
    for _ in range(3):
        training.finished()
        training.shuffle()
    assert dump(*training.finished().save()) == dump(*trained(labels, 3, HARD).save())


@pytest.mark.parametrize("some", [False, True])
def test_after_several_passes_all_but_the_weights_is_what_a_replay_leaves(stream: Make, some: bool) -> None:
    """Scales, bins, clocks: each label that teaches counts once. Weights' ages are true, so the same ones expire."""
    labels, _ = labels_of(stream, 3_000)
    labels = thinned(labels) if some else labels
    options: dict[str, Any] = {"admit_after": 3, "expire_after": 6 * 3_600_000_000}
    (several, _), (once, _) = (m.save() for m in (trained(labels, 3, options), replayed(labels, **options)))
    assert several["scale"].tobytes() == once["scale"].tobytes()
    assert several["state"][2] == once["state"][2] == labels.clock[-1]
    ages = [
        dict(zip(*(a["weights_cells"][:, at].tolist() for at in (KEY, LAST)), strict=True)) for a in (several, once)
    ]
    last = {key: clock for key, clock in ages[0].items() if key in ages[1]}
    assert last == ages[1], "every weight of the replay is there, and as old"
    assert len(ages[0]) < 1.2 * len(ages[1])
    assert max(ages[0].values()) == labels.clock[-1]
    linear = several["linear"][1] / once["linear"][1]
    assert linear[-1] == pytest.approx(2, rel=0.1), "of four passes: n is what was learned, the bias's root is doubled"


def test_values_that_are_seen_too_seldom_get_no_weight_in_any_pass(stream: Make) -> None:
    labels, _ = labels_of(stream, 300)
    keys, sightings = np.unique(Ftrl(bins=False).prepare(take(labels.X, labels.row))["keys"], return_counts=True)
    seldom = set(keys[(sightings < 4) & (keys != 0)].tolist())
    assert len(seldom) > 50
    model = trained(labels, 6, {"admit_after": 4})
    assert not seldom & set(model.save()[0]["weights_cells"][:, KEY].tolist())


@given(st.floats(0.05, 1.0), st.floats(0.0, 2.0), st.floats(0.0, 1.0), st.integers(0, 100))
def test_no_weight_jumps_when_the_rate_changes(rate: float, l1: float, l2: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    X = {"a": random.choice(np.array(["x", "y", "z"], dtype=object), 200), "b": random.normal(size=200)}
    y, clock = (random.random(200) < 0.4).astype(np.float64), np.zeros(200, dtype=np.int64)
    model = Ftrl(alpha=0.5, l1=l1, l2=l2)
    rows = model.prepare(X)
    model.learn(rows, y, np.empty((200, 0)), np.ones(200), clock)
    before, _ = model.save()
    with model.again(rate, ordered=False):
        inside, _ = model.save()
        for name, skip in (("weights_cells", 2), ("bins", 0), ("linear", 0)):
            z, root, w = (inside[name].view(np.float64)[:, skip:] if name != "linear" else inside[name].T).T
            expected = -np.sign(z) * np.maximum(np.abs(z) - l1, 0) / ((1 + root) / (0.5 * rate) + l2)
            np.testing.assert_allclose(w, expected, rtol=1e-9, atol=1e-9)
    after, _ = model.save()
    for name in ("weights_cells", "bins", "linear"):
        np.testing.assert_allclose(after[name].view(np.float64), before[name].view(np.float64), rtol=1e-9, atol=1e-9)


def test_a_pass_at_a_lower_rate_moves_less(stream: Make) -> None:
    labels, _ = labels_of(stream)
    moved = []
    for rate in (1.0, 0.1):
        model = replayed(labels)
        rows = model.prepare(take(labels.X, labels.row))
        before = model.predict(rows)
        with model.again(rate, ordered=False):
            model.learn(rows, 1 - labels.y, np.empty((len(labels.y), 0)), np.ones(len(labels.y)), labels.clock)
        moved.append(np.abs(model.predict(rows) - before).mean())
    assert moved[1] < 0.5 * moved[0]


def test_the_best_pass_is_chosen_and_nothing_is_learned_from_the_end(stream: Make) -> None:
    labels, event_seq = labels_of(stream, 3_000)
    made = fitted(labels, event_seq, alpha=0.01, passes=12, patience=2)
    losses = [point.loss_heldout for point in made.curve]
    assert made.best == 1 + int(np.argmin(losses)) > 1
    assert len(losses) == min(12, made.best + 2), "it stopped when two more were no better"
    assert [point.iteration for point in made.curve] == list(range(1, len(losses) + 1))
    rates = [0.01] + [0.01 * 0.7**n for n in range(len(losses) - 1)]
    assert [point.learning_rate for point in made.curve] == pytest.approx(rates)
    assert made.curve[1].loss_train < made.curve[0].loss_train
    assert dump(*made.model.save()) == dump(*trained(labels, made.best - 1, {"alpha": 0.01}).save())

    held = labels.seq >= event_seq[int(0.8 * len(event_seq))]
    lied = Labels(labels.X, labels.row, labels.seq, labels.clock, np.where(held, 1 - labels.y, labels.y), labels.weight)
    other = fitted(lied, event_seq, alpha=0.01, passes=1)
    assert other.curve[0].loss_train == made.curve[0].loss_train
    assert other.curve[0].loss_heldout > made.curve[0].loss_heldout


def test_its_held_out_loss_is_that_of_a_learner(stream: Make) -> None:
    """With one pass: the log is followed, each event predicted before its label comes."""
    labels, event_seq = labels_of(stream, 1_000)
    made = fitted(labels, event_seq, alpha=0.1, passes=1)
    model, n = Ftrl(), len(event_seq)
    order = np.argsort(np.concatenate([event_seq, labels.seq]), kind="stable")
    rows = model.prepare(labels.X)
    order = np.where(order < n, order, n - 1 - order)
    p = model.run(order, rows, rows, labels.y, np.ones(n), labels.clock, labels.row)
    asked = np.flatnonzero(event_seq >= event_seq[800])
    assert made.p[asked].tobytes() == p[asked].tobytes()


def test_more_passes_help_where_the_rate_is_too_low(stream: Make) -> None:
    labels, event_seq = labels_of(stream, 3_000)
    one, many = (fitted(labels, event_seq, alpha=0.003, passes=n).curve for n in (1, 8))
    assert min(point.loss_heldout for point in many) < one[0].loss_heldout - 0.01


def test_mistakes_are_named() -> None:
    recipe = recipes.ftrl(batch=recipes.Batch(passes=0, decay=1.5, patience=0, seed=-1))
    assert recipe.mistakes() == [
        "found passes=0, expected at least 1",
        "found decay=1.5, expected above 0, at most 1",
        "found patience=0, expected at least 1",
        "found seed=-1, expected 0 or more",
    ]
    assert recipes.ftrl(batch=recipes.Batch()).mistakes() == []
    stack = recipes.stack(members=[recipes.ftrl(batch=recipes.Batch()), recipes.lightgbm()])
    assert stack.mistakes() == [
        "member 'ftrl' sets batch, but a stack's members start with it, by replay: leave it out, or run the recipe as a "
        "challenger of its own"
    ]


def test_it_is_bootstrapped_and_has_no_trees() -> None:
    recipe = recipes.ftrl(batch=recipes.Batch())
    assert recipe.bootstraps and not recipe.has_trees
    assert not recipes.ftrl().bootstraps
    assert "batch" not in recipes.ftrl().config()["params"], "versions of older recipes stay what they are"
    assert isinstance(fresh(recipe, key=b""), Ftrl)


def test_numbers_as_labels(stream: Make) -> None:
    """What they are scaled by is the window's, once; one pass is a replay; more find what a low rate leaves."""
    labels, event_seq = labels_of(stream, 3_000)
    hours = Labels(labels.X, labels.row, labels.seq, labels.clock, 5.0 + 3.0 * labels.y, labels.weight)
    options: dict[str, Any] = {"alpha": 0.003, "loss": Loss("absolute")}
    once, several = replayed(hours, **options), trained(hours, 2, options)
    assert dump(*trained(hours, 0, options).save()) == dump(*once.save())
    assert several.save()[0]["target"].tobytes() == once.save()[0]["target"].tobytes()
    n, first = len(event_seq), int(event_seq[int(0.8 * len(event_seq))])
    every = np.ones(n, dtype=np.bool_)
    walk = Walk(hours.X, event_seq, every, hours.row, hours.seq, hours.clock, hours.y)
    how = (labels.seq >= first, options["loss"])
    made = fit(lambda: Ftrl(**options), 0.003, batch(), hours, walk, first, int(hours.seq[-1]), *how)
    assert made.best > 1 and made.curve[made.best - 1].loss_heldout < made.curve[0].loss_heldout
