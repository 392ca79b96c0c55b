"""A recipe on trial: its model follows a short log of rows that the stream's contract allows, before any version runs.

The rows are drawn from the definition: what the contract leaves open may come, missing values included, so a pipeline
that dies of one of them is refused here and not by the first such row of the stream. It runs in child processes only,
since it builds models. It reads no database, and says nothing about how well a model predicts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.expect import Expectation
from headrace.definition.recipes import Recipe
from headrace.definition.stream import Stream
from headrace.errors import ModelError
from headrace.events import Columns
from headrace.models.build import fresh
from headrace.models.checks import check_model
from headrace.models.contract import Floats, Model, take
from headrace.models.tokens import Tokens

_ROWS = 60
_DRAWN = 600  # of which those that the contract refuses are left out
_MISSING = 0.1  # of the values that may be
_LARGE = 1e6
_KEY = bytes(16)  # signs states that do not leave this process
_NAMES = ("a", "b", "c", "d", "A", "AB", "ABC", "ABCD", "1", "12", "123", "1234", "12345", "", "never seen before")


def try_recipe(stream: Stream, recipe: Recipe, *, artifact: bytes | None = None, seed: int = 0) -> str:
    """Raise unless a recipe's model keeps the model contract on rows that the stream's contract allows.

    Parameters
    ----------
    artifact
        `Ensemble.dump()` of a bootstrap, for recipes that bootstrap.
    seed
        Draws the rows.

    Returns
    -------
    str
        What was found, in a sentence: it says so when no rows could be drawn.

    Raises
    ------
    ModelError
        The recipe cannot be built, breaks a promise, fails on such a row, or takes no weights where the stream's
        `on_late` or `negative_rate` gives some.
    """
    X = _rows(stream, recipe, np.random.default_rng(seed))
    if X is None:
        return f"Recipe {recipe.name!r} was built, not tried: no rows are known that satisfy all of the contract."

    def factory() -> Model:
        return fresh(recipe, key=_KEY, artifact=artifact, loss=stream.loss)

    y, weighing = _labels(stream), _weighing(stream)
    try:
        if weighing:
            _try_weights(factory, X, y, weighing)
        check_model(factory, X, y, weighted=bool(weighing), beyond=False, numbers=stream.loss.regression)
    except ModelError as error:
        raise ModelError(f"recipe {recipe.name!r}: {error}") from error
    except Exception as error:  # whatever a user's pipeline raises
        raise ModelError(
            f"recipe {recipe.name!r} failed with {type(error).__name__}: {error}; it was given rows that the contract allows, "
            "values missing among them (a category's type is not known here: names of any kind), and its state was saved and "
            "restored: mend the pipeline, or let the contract refuse what it cannot take (expect.not_null, expect.in_set, "
            "expect.between, ...)"
        ) from error
    return f"Recipe {recipe.name!r} keeps the model contract on {_ROWS} rows."


def _labels(stream: Stream) -> Floats:
    """float64[_ROWS]: a third of them positive; numbers from end to end of what the contract allows, one end rarely."""
    if not stream.loss.regression:
        y: Floats = (np.arange(_ROWS) % 3 == 0).astype(np.float64)
        return y
    low, high = _bounds([e for e in stream.contract if e.kind == "label_between"])
    share: Floats = (np.arange(_ROWS) * 7 % _ROWS) / (_ROWS - 1)
    return low + (high - low) * share**3


def _weighing(stream: Stream) -> Sequence[tuple[str, str]]:
    """What of a definition gives labels weights, and what would not."""
    settings = []
    if stream.label.on_late == "reweight":
        settings.append(("label.on_late='reweight'", "on_late='learn' or 'ignore'"))
    if stream.negative_rate < 1 and stream.negatives == "weight":
        settings.append((f"negative_rate={stream.negative_rate}", "negatives='calibrate'"))
    return settings


def _try_weights(factory: Callable[[], Model], X: Columns, y: Floats, weighing: Sequence[tuple[str, str]]) -> None:
    """Raise unless weights change what is learned: river's pipelines drop them silently where a classifier takes none."""
    predicted = []
    for weight in (np.ones(len(y)), np.where(y == 1.0, 3.0, 1.0)):
        model, clock = factory(), np.zeros(len(y), dtype=np.int64)
        prepared = model.prepare(X)
        _, memo = model.ask(prepared, clock, 0)
        try:
            model.learn(prepared, y, memo, weight, clock)
        except TypeError:
            if (weight == 1.0).all():
                raise
            break
        predicted.append(model.predict(prepared))
    if len(predicted) < 2 or (predicted[0] == predicted[1]).all():
        settings, others = (" and ".join(parts) for parts in zip(*weighing, strict=True))
        raise ModelError(
            f"found a classifier that learns the same whatever a label weighs: {settings} expects one whose "
            "learn_one takes a weight w, such as river's logistic regression or Hoeffding trees; take such a one, or "
            f"{others}"
        )


def _rows(stream: Stream, recipe: Recipe, random: np.random.Generator) -> Columns | None:
    """`_ROWS` rows of model columns, as the learner would hand them to `prepare`; None where the contract allows too few."""
    numbers = set(stream.feature_columns("number"))
    source: dict[str, Any] = {}
    for column in dict.fromkeys((*numbers, *stream.feature_columns("category"))):
        rules = [e for e in stream.contract if column in e.columns and e.per_row]
        drawn = _numbers(rules, random) if column in numbers else _names(rules, random)
        if drawn is None:
            return None
        if not any(rule.kind == "not_null" for rule in rules):
            drawn[random.random(_DRAWN) < _MISSING] = np.nan if column in numbers else None
        source[column] = drawn
    for column in stream.feature_columns("tokens"):
        missing = 0.0 if any(e.kind == "not_null" and column in e.columns for e in stream.contract) else _MISSING
        source[column] = _lists(missing, random)
    fine = np.ones(_DRAWN, dtype=np.bool_)
    for rule in stream.contract:
        if rule.kind == "less_than" and numbers.issuperset(rule.columns):
            fine &= ~(source[rule.columns[0]] >= source[rule.columns[1]])
    allowed = np.flatnonzero(fine)
    if len(allowed) < _ROWS:
        return None
    X: dict[str, Any] = {}
    for feature in stream.features:
        match feature.kind:
            case "category" | "number" | "tokens":
                X |= {name: source[name] for name in feature.columns}
            case "hour_of_day" | "day_of_week":
                X[feature.names()[0]] = _objects(
                    random.integers(24 if feature.kind == "hour_of_day" else 7, size=_DRAWN).astype(str)
                )
            case "cross":
                parts = zip(*(source[column] for column in feature.columns), strict=True)
                X[feature.names()[0]] = _objects(None if None in part else " ".join(part) for part in parts)
            case "target_mean":
                X |= {name: random.random(_DRAWN) for name in feature.names() if recipe.target_means}
    return take(X, allowed[:_ROWS])


def _numbers(rules: Sequence[Expectation], random: np.random.Generator) -> NDArray[np.float64] | None:
    """float64[_DRAWN] with both ends of what is allowed among them; None when nothing is known that satisfies the rules."""
    low, high = _bounds(rules)
    pool = [low, high, *random.uniform(low, high, _DRAWN).tolist()]
    for rule in rules:
        if rule.kind == "in_set":
            pool = [float(value) for value in rule.params["values"]]
    pool = [value for value in pool if all(_holds(rule, value) for rule in rules)]
    return np.resize(np.array(pool), _DRAWN) if pool else None


def _names(rules: Sequence[Expectation], random: np.random.Generator) -> NDArray[Any] | None:
    """object[_DRAWN] of str: of the set that is allowed, else some names; whole numbers where the contract bounds them."""
    pool: Sequence[Any] = _NAMES
    for rule in rules:
        if rule.kind == "between":
            low, high = _bounds(rules)
            pool = sorted({int(np.ceil(low)), int(np.floor(high)), *random.uniform(low, high, 20).astype(int).tolist()})
        elif rule.kind == "in_set":
            pool = rule.params["values"]
    pool = [value for value in pool if all(_holds(rule, value) for rule in rules)]
    if not pool:
        return None
    shown = [str(value).lower() if isinstance(value, bool) else str(value) for value in pool]
    return _objects(shown[i] for i in random.integers(len(shown), size=_DRAWN))


def _lists(missing: float, random: np.random.Generator) -> Tokens:
    """Lists of up to four of the names that categories have; some are missing, if they may be."""
    sizes, drawn = random.integers(5, size=_DRAWN).tolist(), random.integers(len(_NAMES), size=(_DRAWN, 4)).tolist()
    lists = [[_NAMES[i] for i in row[:size]] for size, row in zip(sizes, drawn, strict=True)]
    gone = (random.random(_DRAWN) < missing).tolist()
    return Tokens.of(None if away else names for away, names in zip(gone, lists, strict=True))


def _objects(values: Any) -> NDArray[Any]:
    made = np.empty(_DRAWN, dtype=object)
    made[:] = list(values)
    return made


def _bounds(rules: Sequence[Expectation]) -> tuple[float, float]:
    """The interval that all of `between` allow, as far as it is of interest.

    >>> from headrace.definition import expect
    >>> _bounds([expect.between("amount", 0.0)])
    (0.0, 1000000.0)
    """
    between = [e.params for e in rules if e.kind in ("between", "label_between")]
    low = max((b["minimum"] for b in between if b["minimum"] is not None), default=None)
    high = min((b["maximum"] for b in between if b["maximum"] is not None), default=None)
    if low is None:
        low = -_LARGE if high is None else high - 2 * _LARGE
    return float(low), float(low + _LARGE if high is None else high)


def _holds(rule: Expectation, value: Any) -> bool:
    """Whether a value satisfies an expectation, roughly as the gate has it: enough to draw from.

    >>> from headrace.definition import expect
    >>> [_holds(expect.regex("tail", "^[A-Z]{2}$"), name) for name in ("AB", "ab")]
    [True, False]
    """
    low, high = rule.params.get("minimum"), rule.params.get("maximum")
    match rule.kind:
        case "between" | "length":
            size = len(str(value)) if rule.kind == "length" else value
            return bool((low is None or low <= size) and (high is None or size <= high))
        case "in_set":
            return value in rule.params["values"]
        case "not_in_set":
            return value not in rule.params["values"]
        case "regex":
            return re.search(rule.params["pattern"], str(value)) is not None
        case _:
            return True
