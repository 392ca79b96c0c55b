"""Lists of tokens are what Python's own lists are; what models make of them is the same however it is cut."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace import recipes
from headrace.models.boosting import train
from headrace.models.build import fresh
from headrace.models.checks import check_model
from headrace.models.contract import Floats, joined, merged, take
from headrace.models.ftrl import Ftrl
from headrace.models.gbdt_lr import GbdtLr
from headrace.models.snapshot import dump, parse
from headrace.models.text import Text, seed_of
from headrace.models.tokens import Tokens, beside, keyed

Rows = list[list[str | None] | None]
rows_of_lists = st.lists(st.none() | st.lists(st.none() | st.text(max_size=3), max_size=8), max_size=12)


def as_sets(rows: Rows) -> list[list[str] | None]:
    """What a column keeps of its rows."""
    return [None if row is None else list(dict.fromkeys(t for t in row if t is not None)) for row in rows]


@given(rows_of_lists, st.data())
def test_rows_are_what_they_were(rows: Rows, data: st.DataObject) -> None:
    tokens, kept = Tokens.of(rows), as_sets(rows)
    assert len(tokens) == len(rows)
    assert tokens.lists() == kept
    assert tokens[1:3].lists() == kept[1:3]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10)) if rows else []
    some = tokens[np.array(chosen, dtype=np.intp)]
    assert some.lists() == [kept[i] for i in chosen]
    assert some.compact().lists() == some.lists()
    assert some.widest == max((len(kept[i] or ()) for i in chosen), default=0)


@given(rows_of_lists, rows_of_lists)
def test_columns_of_keys_are_put_together(first: Rows, second: Rows) -> None:
    a, b = Tokens.of(first).keys(), Tokens.of(second).keys()
    assert Tokens.concat([a, b]).lists() == a.lists() + b.lists()
    assert joined([{"t": a}, {"t": b}])["t"].lists() == a.lists() + b.lists()
    where = np.random.default_rng(len(first)).permutation(np.arange(len(a) + len(b)) < len(a))
    ours, others = iter(a.lists()), iter(b.lists())
    expected = [next(ours) if mine else next(others) for mine in where.tolist()]
    assert merged({"t": a}, where, {"t": b})["t"].lists() == expected


@given(rows_of_lists)
def test_keys_are_those_of_texts(rows: Rows) -> None:
    tokens, seed = Tokens.of(rows), seed_of("genres")
    plain = [None if row is None else Text.of(row).keys(seed).tolist() for row in as_sets(rows)]
    assert tokens.keys(seed).lists() == plain
    assert tokens.keys().keys(seed).lists() == plain
    assert keyed({"t": tokens})["t"].keys(seed).lists() == plain


@given(rows_of_lists)
def test_a_matrix_with_lists_beside(rows: Rows) -> None:
    keys = Tokens.of(rows).keys()
    matrix = np.arange(2 * len(rows), dtype=np.uint64).reshape(-1, 2)
    made = beside(matrix, [keys, keys]).lists()
    assert made == [
        [*head, *(row or ()), *(row or ())] for head, row in zip(matrix.tolist(), keys.lists(), strict=True)
    ]


def test_missing_lists() -> None:
    assert Tokens.missing(2).lists() == [None, None]
    assert Tokens.missing(0).lists() == []


# --- ftrl ---------------------------------------------------------------------------------------------------------


def events(n: int, seed: int = 0, most: int = 8) -> tuple[dict[str, Any], Floats]:
    """Rows with a category, a number and two lists of tokens that the label depends on."""
    random = np.random.default_rng(seed)
    effect = random.normal(0, 0.8, 300)
    drawn = [random.choice(300, int(random.integers(0, most + 1)), replace=False) for _ in range(n)]
    lists: list[Any] = [[f"t{k}" for k in row.tolist()] for row in drawn]
    logit = np.array([effect[row].sum() for row in drawn]) - 0.5
    for i in np.flatnonzero(random.random(n) < 0.1).tolist():
        lists[i], logit[i] = None, 0.7
    other = [[f"w{k}" for k in random.choice(20, 2).tolist()] for _ in range(n)]
    colour = random.choice(np.array(["a", "b", None], dtype=object), n)
    size = np.where(random.random(n) < 0.1, np.nan, random.normal(size=n))
    y = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    return {"genres": Tokens.of(lists), "colour": colour, "size": size, "words": Tokens.of(other)}, y


def online(model: Ftrl, X: dict[str, Any], y: Floats, cuts: int = 1_000_000) -> Floats:
    """Predict each row, then learn it, some rows a call."""
    parts = []
    for at in range(0, len(y), cuts):
        rows = slice(at, min(at + cuts, len(y)))
        prepared, n = model.prepare(take(X, rows)), rows.stop - at
        order = np.stack([np.arange(n), ~np.arange(n)], axis=1).ravel()
        parts.append(model.run(order, prepared, prepared, y[rows], np.ones(n), np.arange(rows.start, rows.stop)))
    return np.concatenate(parts)


def plainly(X: dict[str, Any], y: Floats, alpha: float, l1: float) -> Floats:
    """The paper's Algorithm 1 in dictionaries, over names and tokens."""
    state: dict[str, tuple[float, float]] = {}

    def weight(name: str) -> float:
        z, n = state.get(name, (0.0, 0.0))
        return 0.0 if abs(z) <= l1 else -(z - np.sign(z) * l1) / ((1.0 + np.sqrt(n)) / alpha)

    p = []
    columns = {name: values.lists() for name, values in X.items() if isinstance(values, Tokens)}
    for i, label in enumerate(y.tolist()):
        names = ["bias", *([f"colour={X['colour'][i]}"] if X["colour"][i] is not None else [])]
        names += [f"{name}={token}" for name, lists in columns.items() for token in lists[i] or ()]
        p.append(1 / (1 + np.exp(-sum(weight(name) for name in names))))
        g = p[-1] - label
        changed = {}
        for name in names:
            z, n = state.get(name, (0.0, 0.0))
            changed[name] = (z + g - (np.sqrt(n + g * g) - np.sqrt(n)) / alpha * weight(name), n + g * g)
        state |= changed
    return np.array(p)


@pytest.mark.parametrize(("alpha", "l1"), [(0.1, 0.0), (1.0, 0.6)])
def test_ftrl_equals_the_papers_algorithm_row_by_row(alpha: float, l1: float) -> None:
    X, y = events(1_200)
    del X["size"]
    np.testing.assert_allclose(online(Ftrl(alpha, l1=l1), X, y), plainly(X, y, alpha, l1), rtol=0, atol=1e-9)


def test_lists_of_one_token_are_categories() -> None:
    X, y = events(1_000)
    names = np.array([None if row is None or not row else row[0] for row in X["genres"].lists()], dtype=object)
    rest = {"colour": X["colour"], "size": X["size"]}
    one = Tokens.of([None if name is None else [name] for name in names.tolist()])
    as_tokens, as_category = Ftrl(bins=False), Ftrl(bins=False)
    p = online(as_category, {**rest, "genres": names}, y)
    np.testing.assert_allclose(online(as_tokens, {**rest, "genres": one}, y), p, rtol=0, atol=1e-12)
    rates = [{r.feature: r.weights for r in model.rates()} for model in (as_tokens, as_category)]
    assert rates[0] == rates[1]
    uncertain = [m.uncertainty(m.prepare({**rest, "genres": v})) for m, v in ((as_tokens, one), (as_category, names))]
    np.testing.assert_allclose(*uncertain, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"pairs": True, "admit_after": 2, "max_weights": 200, "expire_after": 100}])
def test_batches_of_any_size_give_the_same_bits(options: dict[str, Any]) -> None:
    """The room for a row is that of the widest of a call: it must not show."""
    X, y = events(700, most=5)
    lists = X["genres"].lists()
    lists[350] = [f"w{k}" for k in range(600)]
    X["genres"] = Tokens.of(lists)
    whole = Ftrl(**options)
    p = online(whole, X, y)
    for cuts in (1, 7):
        model = Ftrl(**options)
        assert online(model, X, y, cuts).tobytes() == p.tobytes()
        assert dump(*model.save()) == dump(*whole.save())
    again = Ftrl(**options)
    again.load(*parse(dump(*whole.save())))
    prepared = whole.prepare(take(X, slice(340, 360)))
    assert again.predict(again.prepare(take(X, slice(340, 360)))).tobytes() == whole.predict(prepared).tobytes()
    assert again.uncertainty(prepared).tobytes() == whole.uncertainty(prepared).tobytes()
    assert np.isfinite(whole.uncertainty(prepared)).all()


def test_room_that_is_too_large_changes_no_bit() -> None:
    X, y = events(400)
    roomy = Ftrl()
    roomy.predict(roomy.prepare({**X, "genres": Tokens.of([[str(k) for k in range(900)]] * 400)}))
    assert roomy._laid.shape[1] > 900
    assert online(roomy, X, y).tobytes() == online(Ftrl(), X, y).tobytes()


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.ftrl(),
        recipes.ftrl(pairs=True, admit_after=3, max_weights=60),
        recipes.stack(members=[recipes.ftrl(), recipes.ftrl(name="pairs", pairs=True), recipes.label_mean()]),
    ],
    ids=lambda recipe: recipe.name,
)
def test_keeps_the_contract(recipe: recipes.Recipe) -> None:
    X, y = events(200, seed=1)
    check_model(lambda: fresh(recipe, key=b""), X, y)


def test_rates_tell_tokens_apart_and_pairs_leave_them_out() -> None:
    X, y = events(600)
    model = Ftrl(pairs=True)
    online(model, X, y)
    rates = {rate.feature: rate.weights for rate in model.rates()}
    assert rates["genres"] == len({token for row in X["genres"].lists() for token in row or ()})
    assert rates["words"] == 20
    assert "pairs" not in rates, "there is one category"


def test_tokens_teach() -> None:
    X, y = events(8_000)
    rest = {name: values for name, values in X.items() if name != "genres"}
    losses = [float(-np.log(np.where(y == 1, p, 1 - p))[2_000:].mean()) for p in
              (online(Ftrl(0.3), X, y), online(Ftrl(0.3), rest, y))]  # fmt: skip
    assert losses[0] < losses[1] - 0.05


def test_columns_of_tokens_come_later() -> None:
    X, y = events(300)
    early = {"colour": X["colour"], "size": X["size"]}
    model = Ftrl()
    online(model, take(early, slice(0, 100)), y[:100])
    before = model.predict(model.prepare(early))
    model.widen({"genres": X["genres"].keys()[:0]})
    assert model.columns == (("colour",), ("size",), ("genres",))
    silent: NDArray[Any] = model.predict(model.prepare({**early, "genres": Tokens.missing(300)}))
    np.testing.assert_allclose(silent, before, rtol=0, atol=1e-12)
    online(model, {**early, "genres": X["genres"]}, y)
    again = Ftrl()
    again.load(*parse(dump(*model.save())))
    assert dump(*again.save()) == dump(*model.save())


# --- trees ----------------------------------------------------------------------------------------------------------


def test_models_with_trees_keep_the_contract() -> None:
    X, y = events(1_500, seed=2)
    time = np.arange(1_500, dtype=np.int64) * 1_000_000
    trained = train(X, y, time, time + 5_000_000, {"min_data_in_leaf": 20, "max_trees": 20})
    few = take(X, slice(0, 120)), y[:120]
    artifact = trained.ensemble.dump()
    members = [recipes.lightgbm(), recipes.gbdt_lr(offset=False), recipes.ftrl()]
    for recipe in (recipes.lightgbm(), recipes.gbdt_lr(), recipes.stack(members=members)):
        check_model(partial(fresh, recipe, key=b"", artifact=artifact), *few)


def test_gbdt_lr_learns_each_token() -> None:
    """One that no tree saw has a weight as well, and moves as a category of that value would."""
    X, y = events(1_500, seed=2)
    time = np.arange(1_500, dtype=np.int64) * 1_000_000
    ensemble = train(X, y, time, time + 5_000_000, {"min_data_in_leaf": 20, "max_trees": 5}).ensemble
    model = GbdtLr(ensemble, category_alpha=0.5)
    lists = [["new"], ["other"], [], None, ["new", "other"]]
    row = {name: v[np.zeros(5, dtype=np.intp)] for name, v in X.items()} | {"genres": Tokens.of(lists)}
    prepared = model.prepare(row)
    before = model.predict(prepared)
    one = take(prepared, slice(0, 1))
    for _ in range(30):
        model.learn(one, np.ones(1), np.empty((1, 0)), np.ones(1), np.zeros(1, dtype=np.int64))
    moved = model.predict(prepared) - before
    assert moved[0] > moved[1] + 0.05
    assert moved[4] > moved[1] + 0.05
    assert moved[2] == pytest.approx(moved[1], abs=0.02)
    again = GbdtLr(ensemble, category_alpha=0.5)
    again.load(*parse(dump(*model.save())))
    assert again.predict(prepared).tobytes() == model.predict(prepared).tobytes()
