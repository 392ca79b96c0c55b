"""A stream: one prediction problem, defined in one Python file.

The dataclasses only hold what the user wrote. `problems` lists every mistake in it at once; `headrace.definition.load`
refuses a definition that has any. What must be checked against a live database is `headrace doctor`'s work.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from headrace.definition.columns import Expression
from headrace.definition.expect import ROW_KINDS, Expectation
from headrace.definition.features import Feature
from headrace.definition.loss import LARGEST, LOG_LOSS, Loss, Task
from headrace.definition.recipes import Recipe

#: Names that the log gives to its own columns.
RESERVED_COLUMNS = frozenset(
    {"seq", "key", "event_time", "y", "kind", "label_time", "label_seq", "watermark", "rejected"}
)
_ODD_IN_POSTGRES = re.compile(r"\\[bBx]|\(\?P|\(\?[a-z]*m")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_RESERVED_STREAMS = ("headrace", "metrics", "public", "information_schema", "airflow")


_OF_VERSIONS = ("champion", "challengers", "policy", "negative_rate", "negatives")  # what the log does not depend on
_FARTHEST_AHEAD = timedelta(days=1)
_LEAST_SLOT = 64 * 2**20  # bytes: four WAL segments


@dataclass(frozen=True)
class Source:
    """Where events come from."""

    conn_id: str  # resolved to a DSN, see docs/settings.md
    table: str  # schema.table
    key: str  # primary key of an event
    event_time: str  # timestamptz: when the prediction is needed
    max_ahead: timedelta | None = (
        None  # a row whose time lies further beyond its commit is quarantined, see Stream.max_ahead
    )


@dataclass(frozen=True)
class Label:
    """What is to be predicted, and when it is known.

    Labels have a table of their own, or live in the event's own row (no `table`, no `key`): set when it is inserted, or
    by an UPDATE later. There a row is labelled once both `label_time` and the value's column are not NULL.

    A label is a yes or no, or, with `task="regression"`, the number in the value's column as it is.
    """

    value: Expression
    label_time: str  # timestamptz: when the label became known
    window: timedelta  # how long to wait for a label, in stream time, after its event
    if_missing: Literal["negative", "drop"]  # what no label within the window means
    table: str | None = None  # schema.table that holds the labels; None: the event's own row
    key: str | None = None  # its column that names the event
    on_late: Literal["ignore", "learn", "reweight"] = (
        "ignore"  # a label that comes, or changes, after the event's first
    )
    task: Task = "classification"
    loss: Literal["absolute", "squared"] | None = None  # regression: what a prediction costs, in every verdict
    cap: float | None = None  # squared: the most that one label may cost, in squared units of the label

    @property
    def scored_by(self) -> Loss:
        """What a prediction costs."""
        if self.task != "regression":
            return LOG_LOSS
        return Loss(self.loss or "absolute", math.inf if self.cap is None else self.cap)

    def as_json(self) -> dict[str, Any]:
        """As JSON values. What only regression has is left out elsewhere."""
        own = {**vars(self), "value": str(self.value), "window": self.window.total_seconds()}
        only = ("task", "loss", "cap") if self.task == "classification" else ()
        return {name: value for name, value in own.items() if name not in only}


@dataclass(frozen=True)
class Policy:
    """How champions are compared and replaced."""

    compare_every: timedelta = timedelta(hours=1)
    season: timedelta = timedelta(days=1)  # the cycle that evidence must see twice
    min_gain: float = 0.005  # relative gain in loss that a challenger must prove
    challenger_slots: int = 2  # challengers at a time; fixed in advance, since the evidence needed depends on it
    epoch_labels: int = 500  # labels of an epoch at most
    epoch_time: timedelta = timedelta(days=1)  # stream time of an epoch at most
    max_slot_bytes: int = 20_000_000_000  # of WAL that the slot may keep at the source; before that it is given up
    keep: timedelta | None = None  # age, in stream time, at which a whole partition of the log may go; None keeps all
    keep_bytes: int | None = None  # size of the log's tables beyond which its oldest partitions may go; None: no bound
    guards: Sequence[Literal["calibration"]] = ()  # what else a challenger must not be worse in


@dataclass(frozen=True)
class Stream:
    """One prediction problem."""

    name: str
    source: Source
    label: Label
    features: Sequence[Feature]
    champion: Recipe
    contract: Sequence[Expectation] = ()
    challengers: Sequence[Recipe] = ()
    slices: Sequence[str] = ()  # category columns whose values get metrics of their own
    policy: Policy = field(default_factory=Policy)
    negative_rate: float = 1.0  # share of the negative labels that teach; all of them are scored
    negatives: Literal["weight", "calibrate"] = "weight"  # what makes up for those that do not

    @property
    def slot(self) -> str:
        """Name of its replication slot at the source."""
        return f"headrace_{self.name}"

    @property
    def publication(self) -> str:
        """Name of its publication at the source."""
        return f"headrace_{self.name}"

    @property
    def own_row(self) -> bool:
        """Whether labels live in the event's own row."""
        return self.label.table is None

    @property
    def label_table(self) -> str:
        """The table that holds the labels."""
        return self.label.table or self.source.table

    @property
    def label_key(self) -> str:
        """The label table's column that names the event."""
        return self.label.key or self.source.key

    @property
    def loss(self) -> Loss:
        """What a prediction costs: every metric, training and verdict of the stream goes by it."""
        return self.label.scored_by

    @property
    def max_ahead(self) -> timedelta:
        """How far a row's time may lie beyond its commit: a day, but no more than a quarter of the label window, unless said.

        A row that is accepted moves the stream's clock to its time. It takes as much from the wait of every open event, so
        one row of a clock that is wrong must never end all of them.
        """
        return (
            self.source.max_ahead if self.source.max_ahead is not None else min(_FARTHEST_AHEAD, self.label.window / 4)
        )

    def columns(self) -> tuple[str, ...]:
        """Source columns that the log keeps beside key and event time, in order of first mention."""
        fixed = (self.source.key, self.source.event_time)
        mentioned = [c for f in self.features for c in f.columns] + [c for e in self.contract for c in e.columns]
        return tuple(dict.fromkeys(c for c in mentioned if c not in fixed))

    def log_column(self, column: str) -> str:
        """The log's name of a source column: key and event time have fixed names there."""
        return {self.source.key: "key", self.source.event_time: "event_time"}.get(column, column)

    def recipes(self) -> tuple[Recipe, ...]:
        """The champion's recipe, then the challengers'."""
        return (self.champion, *self.challengers)

    def recipe(self, name: str) -> Recipe | None:
        """The recipe of this name, if it is among them."""
        return next((r for r in self.recipes() if r.name == name), None)

    def config_of(self, recipe: Recipe) -> dict[str, Any]:
        """What a version is registered with, and keeps: its recipe's configuration, and which negatives teach it if not all."""
        some = {"negatives": {"rate": self.negative_rate, "by": self.negatives}} if self.negative_rate < 1 else {}
        return {**recipe.config(), **some}

    def feature_columns(self, kind: str) -> tuple[str, ...]:
        """Source columns named by features of one kind, without repeats."""
        return tuple(dict.fromkeys(c for f in self.features if f.kind == kind for c in f.columns))

    def as_json(self) -> dict[str, Any]:
        """The definition as JSON values: what is hashed, stored and shown."""
        seconds = timedelta.total_seconds
        return {
            "name": self.name,
            "source": {**vars(self.source), "max_ahead": seconds(self.max_ahead)},
            "label": self.label.as_json(),
            "features": [[f.kind, *f.columns] for f in self.features],
            "contract": [e.name for e in self.contract],
            "champion": self.champion.config(),
            "challengers": [r.config() for r in self.challengers],
            "slices": list(self.slices),
            "policy": {k: seconds(v) if isinstance(v, timedelta) else v for k, v in vars(self.policy).items()},
            "negative_rate": self.negative_rate,
            "negatives": self.negatives,
        }

    def hash(self) -> str:
        """Hash of what the log depends on: source, label, features, contract, slices and epochs, not the recipes."""
        log = {k: v for k, v in self.as_json().items() if k not in _OF_VERSIONS}
        log["epochs"] = [self.policy.epoch_labels, self.policy.epoch_time.total_seconds()]
        return hashlib.sha256(json.dumps(log, sort_keys=True).encode()).hexdigest()[:16]

    def problems(self) -> list[str]:
        """Every mistake that can be seen without a database, one sentence each; empty when there is none."""
        parts = (_names, _label, _task, _features, _contract, _recipes, _policy)
        return [problem for part in parts for problem in part(self)]


def _names(stream: Stream) -> Iterator[str]:
    if not _NAME.fullmatch(stream.name) or stream.name in _RESERVED_STREAMS or stream.name.startswith("pg_"):
        yield (
            f"name: found {stream.name!r}, expected lower-case letters, digits and underscores, starting with a letter, "
            f"at most 41 of them, not with pg_, and none of {', '.join(_RESERVED_STREAMS)}"
        )
    for where, table in (("source.table", stream.source.table), ("label.table", stream.label_table)):
        if not table or table.count(".") != 1 or not all(table.split(".")):
            yield f"{where}: found {table!r}, expected schema.table"
    if stream.label.table == stream.source.table:
        yield (
            f"label.table: found {stream.label.table!r}, the events' own table; expected a table of its own, or neither "
            "table nor key for labels in the event's own row"
        )
    for where, value in (("key", stream.source.key), ("event_time", stream.source.event_time)):
        if not value:
            yield f"source.{where}: found nothing, expected the name of a column"
    if not stream.source.conn_id:
        yield "source.conn_id: found nothing, expected the name of a connection"
    for column in stream.columns():
        if column in RESERVED_COLUMNS:
            yield f"column {column!r}: the log uses this name for its own; rename the column, or publish it through a view"


def _label(stream: Stream) -> Iterator[str]:
    label = stream.label
    if not isinstance(label.value, Expression):
        yield f'label.value: found {label.value!r}, expected an expression such as col("arr_delay") > 15'
    elif label.value.operator in (">", ">=", "<", "<=") and not isinstance(label.value.constant, float | int):
        yield f"label.value: found {label.value}, expected a number beside {label.value.operator}"
    if label.window <= timedelta(0):
        yield f"label.window: found {label.window}, expected a positive time"
    elif not timedelta(0) <= stream.max_ahead < label.window:
        yield (
            f"source.max_ahead: found {stream.max_ahead}, expected less than label.window, {label.window}: one row that lies "
            "so far ahead would end the wait of every open event; leave it out for a quarter of the window, or wait longer"
        )
    if label.if_missing not in ("negative", "drop"):
        yield f"label.if_missing: found {label.if_missing!r}, expected 'negative' or 'drop'"
    if not label.label_time:
        yield "label.label_time: found nothing, expected the column that says when the label became known"
    if label.table is not None and not label.key:
        yield "label.key: found nothing, expected the label table's column that names the event"
    if label.table is None and label.key is not None:
        yield f"label.key: found {label.key!r} without a table; expected both, or neither for labels in the event's own row"
    if label.on_late not in ("ignore", "learn", "reweight"):
        yield f"label.on_late: found {label.on_late!r}, expected 'ignore', 'learn' or 'reweight'"
    if label.on_late == "reweight" and label.if_missing != "negative":
        yield (
            "label.on_late: 'reweight' weighs the negatives that a missing label became; found if_missing='drop', expected "
            "'negative', or on_late='learn'"
        )


def _task(stream: Stream) -> Iterator[str]:
    """A number as label says what a mistake costs; what only a yes or no has is refused."""
    label = stream.label
    if label.task == "classification":
        for name in ("loss", "cap"):
            if (found := getattr(label, name)) is not None:
                yield f"label.{name}: found {found!r} for a yes or no, which has log loss; leave it out, or set task='regression'"
        return
    if label.task != "regression":
        yield f"label.task: found {label.task!r}, expected 'classification' or 'regression'"
        return
    if isinstance(label.value, Expression) and label.value.operator != "value":
        yield (
            f"label.value: found {label.value}, which is a yes or no; expected a column of numbers as it is, such as "
            f'col("{label.value.column}"), or task="classification"'
        )
    if label.loss not in ("absolute", "squared"):
        yield f"label.loss: found {label.loss!r}, expected 'absolute' or 'squared': what a prediction costs, in every verdict"
    capped = label.cap is not None and 0 < label.cap < LARGEST
    if label.loss == "squared" and not capped:
        yield (
            f"label.cap: found {label.cap!r}, expected the most that one label may cost, in squared units of {label.value}: "
            "declared in advance, so that a few wild labels decide nothing"
        )
    if label.loss == "absolute" and label.cap is not None:
        yield f"label.cap: found {label.cap!r} for absolute errors, expected none: squared errors have one"
    if label.if_missing == "negative":
        yield "label.if_missing: found 'negative', but a number that did not come is not 0; expected 'drop' for regression"
    if label.on_late == "reweight":
        yield "label.on_late: found 'reweight', which weighs negatives; expected 'ignore' or 'learn' for regression"


def _features(stream: Stream) -> Iterator[str]:
    if not stream.features:
        yield "features: found none, expected at least one"
    names = [name for feature in stream.features for name in feature.names()]
    for name, count in Counter(names).items():
        if count > 1:
            yield f"features: {name!r} is declared {count} times, expected once"
    categories, lists = set(stream.feature_columns("category")), set(stream.feature_columns("tokens"))
    for feature in stream.features:
        if not feature.columns:
            yield f"features: {feature.kind}() names no column"
        if feature.kind == "cross" and len(feature.columns) < 2:
            yield f"features: cross{feature.columns!r} needs at least two columns"
        if feature.kind in ("cross", "target_mean"):
            for column in feature.columns:
                if column in lists:
                    yield f"features: {feature.kind}({column!r}): a list of tokens is no category; name categories only"
                elif column not in categories:
                    yield f"features: {feature.kind}({column!r}) needs category({column!r}), which is not declared"
    value = stream.label.value
    for column in (value.column, stream.label.label_time) if stream.own_row and isinstance(value, Expression) else ():
        if column in stream.columns():
            yield f"features, contract: {column!r} is the label's: it would leak"
    for column in stream.slices:
        if column in lists:
            yield f"slices: {column!r} is a list of tokens, which has no single value; name categories only"
        elif column not in categories:
            yield f"slices: {column!r} is not a declared category"


def _contract(stream: Stream) -> Iterator[str]:
    numbers, lists = set(stream.feature_columns("number")), set(stream.feature_columns("tokens"))
    for expectation in stream.contract:
        for column in expectation.columns:
            if column in lists and expectation.kind not in ("not_null", "immutable"):
                yield (
                    f"contract: {expectation.name} is for single values, {column!r} is a list of tokens; expected not_null or "
                    "immutable"
                )
        if not expectation.columns and expectation.kind in ROW_KINDS:
            yield f"contract: {expectation.kind}() names no column"
        low, high = expectation.params.get("minimum"), expectation.params.get("maximum")
        if low is not None and high is not None and low > high:
            yield f"contract: {expectation.name} has its minimum above its maximum"
        if expectation.kind in ("between", "length", "label_between") and low is None and high is None:
            yield f"contract: {expectation.name} has neither a minimum nor a maximum"
        if expectation.kind in ("between", "label_between") and not all(
            math.isfinite(b) for b in (low, high) if b is not None
        ):
            yield f"contract: {expectation.name}: expected finite numbers; leave a bound out, or add finite(...)"
        if expectation.kind == "label_rate" and stream.loss.regression:
            yield f"contract: {expectation.name} is a share of positive labels; expected label_between(...) for regression"
        elif expectation.kind == "label_between" and not stream.loss.regression:
            yield f"contract: {expectation.name} bounds numbers; expected label_rate(...) for a yes or no"
        elif expectation.kind == "label_rate" and not all(0 <= rate <= 1 for rate in expectation.params.values()):
            yield f"contract: {expectation.name}: expected rates between 0 and 1"
        if expectation.kind == "regex":
            try:
                re.compile(expectation.params["pattern"])
            except re.error as error:
                yield f"contract: {expectation.name}: not a regular expression: {error}"
            if odd := _ODD_IN_POSTGRES.search(expectation.params["pattern"].replace(r"\\", "")):
                yield f"contract: {expectation.name}: Postgres reads {odd[0]} in another way than Python; write it without"
        if expectation.kind in ("regex", "length") and expectation.columns[0] in numbers:
            yield f"contract: {expectation.name} is for texts, {expectation.columns[0]!r} is a number"
        if expectation.kind in ("in_set", "not_in_set") and not expectation.params["values"]:
            yield f"contract: {expectation.name} has no values"
    for name, count in Counter(e.name for e in stream.contract).items():
        if count > 1:
            yield f"contract: {name} is declared {count} times, expected once"


def _recipes(stream: Stream) -> Iterator[str]:
    for name, count in Counter(r.name for r in stream.recipes()).items():
        if count > 1:
            yield f"recipes: {count} are named {name!r}; give each a name of its own with name=..."
    if stream.champion.bootstraps:
        yield (
            f"champion: {stream.champion.name!r} must be trained before it can serve; expected a recipe that learns from "
            "the first event, such as recipes.river(...), with this one among the challengers"
        )
    kinds = ("category", "hour_of_day", "day_of_week", "cross")
    named = [name for feature in stream.features if feature.kind in kinds for name in feature.names()]
    for recipe in stream.recipes():
        if recipe.target_means and not stream.feature_columns("target_mean"):
            yield f"recipes: {recipe.name!r} uses target means, but features declare no target_mean(...)"
        if strange := [c for c in recipe.params.get("calibrate_by", ()) if c not in named]:
            yield (
                f"recipes: {recipe.name!r} calibrates by {', '.join(strange)}, expected names of categories among the "
                f"features: {', '.join(named)}"
            )
        yield from (f"recipes: {recipe.name!r}: {mistake}" for mistake in recipe.mistakes(stream.loss))
        try:
            json.dumps([recipe.params, *(member.params for member in recipe.members)])
        except TypeError as error:
            yield f"recipes: {recipe.name!r} has a parameter that is not a JSON value: {error}"
    if not 0 < stream.negative_rate <= 1:
        yield f"negative_rate: found {stream.negative_rate}, expected a share above 0, such as 0.10, or 1 for all"
    if stream.negatives not in ("weight", "calibrate"):
        yield f"negatives: found {stream.negatives!r}, expected 'weight' or 'calibrate'"
    if stream.loss.regression and stream.negative_rate != 1:
        yield f"negative_rate: found {stream.negative_rate} for labels that are numbers, which have no negatives; expected 1"


def _policy(stream: Stream) -> Iterator[str]:
    policy = stream.policy
    if not 0 <= policy.min_gain < 1:
        yield f"policy.min_gain: found {policy.min_gain}, expected a share between 0 and 1, such as 0.005"
    if policy.challenger_slots < max(1, len(stream.challengers)):
        yield (
            f"policy.challenger_slots: found {policy.challenger_slots} for {len(stream.challengers)} challengers, "
            "expected at least one slot for each"
        )
    if policy.epoch_labels < 10:
        yield f"policy.epoch_labels: found {policy.epoch_labels}, expected at least 10"
    for name in ("compare_every", "season", "epoch_time"):
        if getattr(policy, name) <= timedelta(0):
            yield f"policy.{name}: found {getattr(policy, name)}, expected a positive time"
    if policy.max_slot_bytes < _LEAST_SLOT:
        yield (
            f"policy.max_slot_bytes: found {policy.max_slot_bytes:,}, expected at least {_LEAST_SLOT:,}: a slot that is read "
            "all the time keeps a few WAL segments"
        )
    needed = (
        stream.label.window + 2 * policy.season
    )  # a comparison, and a probation, see two seasons of labelled events
    if policy.keep is not None and policy.keep <= needed:
        yield (
            f"policy.keep: found {policy.keep}, expected more than the label window and two seasons, {needed}: a comparison "
            "and a probation need as much"
        )
    if policy.keep_bytes is not None and policy.keep_bytes <= 0:
        yield f"policy.keep_bytes: found {policy.keep_bytes}, expected a positive number of bytes"
    for guard in policy.guards:
        if guard != "calibration":
            yield f"policy.guards: found {guard!r}, expected 'calibration'"
        elif stream.loss.regression:
            yield "policy.guards: found 'calibration' for labels that are numbers, which have no share of positives; leave it out"
