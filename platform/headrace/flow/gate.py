"""The gate: a stream's contract, compiled to checks on columns of source rows.

The intake and the history import send every row through it. A row that breaks an expectation is refused with the first
one that it breaks, what was found and what was expected; nothing else about the row matters then. Semantics agree with
Great Expectations on SQL: NULL satisfies everything but `not_null`; NaN satisfies `not_null` and lies beyond every
maximum. Window-level expectations (label rate, row count, unique) are the quality run's work, not the gate's.
"""

from __future__ import annotations

import math
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.definition.columns import Expression
from headrace.definition.expect import LABEL_KINDS, Expectation
from headrace.definition.loss import LARGEST
from headrace.definition.stream import Stream
from headrace.events import moment
from headrace.flow.arrays import MOST_TOKENS, counts
from headrace.flow.exact import DIGITS, coarse, exact, numeric_text
from headrace.flow.pgtypes import BPCHAR, ELEMENTS, NEGATIVE_INFINITY, POSITIVE_INFINITY, SUPPORTED, Column, decode
from headrace.flow.wire import Cells
from headrace.models.text import NULL

Mask = NDArray[np.bool_]
_NUMBERS = ("int", "float", "numeric")
LONGEST_KEY = 1024  # bytes: what an index entry holds (2,704) whatever else stands beside the key
EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999  # years 1 to 9999: what datetime holds


@dataclass
class Rows:
    """Rows of one source table: wire fields, decoded column by column on demand.

    Attributes
    ----------
    cells
        The fields.
    columns
        For each column's name its index in `cells` and its type's oid.
    before
        The same rows before an UPDATE, where all of them were sent.
    """

    cells: Cells
    columns: Mapping[str, tuple[int, int]]
    before: Rows | None = None
    _decoded: dict[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.cells.rows

    def __getitem__(self, name: str) -> Column:
        if name not in self._decoded:
            index, oid = self.columns[name]
            self._decoded[name] = decode(self.cells, index, oid)
        return self._decoded[name]

    def take(self, index: NDArray[np.intp]) -> Rows:
        """Some of the rows."""
        before = None if self.before is None else self.before.take(index)
        return Rows(self.cells.take(index), self.columns, before)

    def null(self, name: str) -> Mask:
        """Where there is no value; of lists nothing more is read for it."""
        index, oid = self.columns[name]
        missing: Mask = self.cells.length[index] == NULL if oid in ELEMENTS else self[name].null
        return missing

    def unsent(self, name: str) -> Mask:
        """Where a value was not sent: TOASTed, and unchanged by the UPDATE."""
        unsent: Mask = self.cells.length[self.columns[name][0]] < NULL
        return unsent

    def kind(self, name: str) -> str:
        """How a column's type is decoded."""
        return SUPPORTED[self.columns[name][1]].kind

    def texts(self, name: str) -> list[str | None]:
        """Texts as SQL compares them: a character(n) without its padding."""
        values: list[str | None] = self[name].values.tolist()
        return [v and v.rstrip(" ") for v in values] if self.columns[name][1] == BPCHAR else values

    def coarse(self, name: str) -> Mask:
        """Where decoding may have rounded."""
        index, oid = self.columns[name]
        return coarse(self.cells.column(index), self[name], oid)

    def exact(self, name: str, row: int) -> Any:
        """One number or time that is not NULL, unrounded."""
        index, oid = self.columns[name]
        return exact(self.cells.column(index), row, oid)

    def against(self, name: str, number: float) -> NDArray[np.int8]:
        """-1, 0 or 1 for values below, at or above a number, as SQL has it: exactly, and NaN above all."""
        values, written = self[name].values, Decimal(repr(number))
        if self.kind(name) == "int" and written.is_finite():  # integers, however large, compare as such
            low, high = math.floor(written), math.ceil(written)
            sign: NDArray[np.int8] = (values > low).astype(np.int8) - (values < high)
            return sign
        sign = ((values > float(number)) | np.isnan(values)).astype(np.int8) - (values < float(number))
        if self.kind(name) == "numeric":
            rounded = len(written.normalize().as_tuple().digits) > DIGITS or self.coarse(name)
            for row in np.flatnonzero((sign == 0) & ~self[name].null & rounded).tolist():
                value = self.exact(name, row)
                sign[row] = int(value > written) - int(value < written)
        return sign

    def shown(self, name: str) -> list[str | None]:
        """A column for people; None for NULL."""
        unsent, kind = self.unsent(name), self.kind(name)
        if unsent.any():
            sent = iter(self.take(np.flatnonzero(~unsent)).shown(name))
            return ["(unchanged, not sent)" if gone else next(sent) for gone in unsent.tolist()]
        if self.columns[name][1] == BPCHAR:  # as a cast to text gives it
            return self.texts(name)
        column = self[name]
        if kind == "numeric":  # whole, as it was written
            fields = self.cells.column(self.columns[name][0])
            return [None if null else numeric_text(fields, row) for row, null in enumerate(column.null.tolist())]
        texts = map(_time_text if kind in ("timestamp", "date") else str, column.values.tolist())
        return [None if null else text for null, text in zip(column.null.tolist(), texts, strict=True)]

    def contents(self, index: NDArray[np.intp]) -> list[dict[str, str | None]]:
        """Some rows for people, whole but for columns of types that cannot be read."""
        rows = self.take(index)
        names = [name for name, (_, oid) in self.columns.items() if oid in SUPPORTED]
        if not names:
            return [{} for _ in index]
        return [dict(zip(names, row, strict=True)) for row in zip(*map(rows.shown, names), strict=True)]


def _time_text(value: int) -> str:
    if value in (POSITIVE_INFINITY, NEGATIVE_INFINITY):
        return "infinity" if value > 0 else "-infinity"
    if EARLIEST <= value <= LATEST:
        return moment(value).isoformat()
    return f"{np.datetime64(value, 'us')}+00:00"  # beyond what datetime holds


@dataclass(frozen=True)
class Rule:
    """One check: which rows break it, and what it expected."""

    name: str
    column: str
    expected: str
    broken: Callable[[Rows], Mask]


class Gate:
    """The checks of one source table.

    Parameters
    ----------
    rules
        In the order in which they are tried.
    times
        Its event and label times: must not lie beyond their commit by more than `max_ahead` microseconds.
    """

    def __init__(self, rules: list[Rule], times: Sequence[str], max_ahead: int) -> None:
        self.rules = rules
        self._times, self._max_ahead = tuple(times), max_ahead

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it looks at."""
        return tuple(dict.fromkeys([*(rule.column for rule in self.rules), *self._times]))

    def check(self, rows: Rows, commit_time: NDArray[np.int64]) -> NDArray[np.int32]:
        """For each row the index of the first rule that it breaks, or -1; from len(rules) on: too far ahead of its commit.

        Parameters
        ----------
        rows
            n rows.
        commit_time
            int64[n], microseconds.
        """
        verdict = np.full(len(rows), -1, dtype=np.int32)
        for index, rule in enumerate(self.rules):
            if np.count_nonzero(broken := rule.broken(rows)):
                verdict[(verdict < 0) & broken] = index
        for index, time in enumerate(self._times, start=len(self.rules)):
            ahead = ~rows[time].null & (rows[time].values > commit_time + self._max_ahead)
            if np.count_nonzero(ahead):
                verdict[(verdict < 0) & ahead] = index
        return verdict

    def explain(self, content: Mapping[str, str | None], rule: int) -> tuple[str, str | None, str]:
        """(expectation, value found, reason) for a refused row, given as `Rows.contents` does."""
        if rule >= len(self.rules):
            time = self._times[rule - len(self.rules)]
            found, hours = content[time], self._max_ahead / 3.6e9
            return (
                "not_ahead",
                found,
                f"{time} is {found}, expected at most {hours:g} h after its commit (source.max_ahead)",
            )
        broken = self.rules[rule]
        found = content[broken.column]
        shown = "NULL" if found is None else repr(found) if len(found) <= 80 else f"{found[:80]!r}..."
        return broken.name, found, f"{broken.column} is {shown}, expected {broken.expected}"


def event_gate(stream: Stream) -> Gate:
    """The gate of the events' table: key, time, numbers and lists first, then the contract, then the label in the same row."""
    source = stream.source
    rules = [
        _not_null(source.key),
        _short(source.key),
        _not_null(source.event_time),
        _finite_time(source.event_time),
        *(_finite(column) for column in stream.feature_columns("number")),
        *(_list(column) for column in stream.feature_columns("tokens")),
        *(rule for expectation in stream.contract if expectation.per_row for rule in compile_expectation(expectation)),
    ]
    times = [source.event_time]
    if stream.own_row:
        rules += _label_rules(stream)
        times.append(stream.label.label_time)
    return Gate(rules, times, stream.max_ahead // timedelta(microseconds=1))


def label_gate(stream: Stream) -> Gate:
    """The gate of the labels' table: key, time, and a value that is 0 or 1, or a number where those are labels."""
    rules = [_not_null(stream.label_key)]
    if not stream.own_row:
        rules.append(_not_null(stream.label.label_time))
    return Gate(rules + _label_rules(stream), [stream.label.label_time], stream.max_ahead // timedelta(microseconds=1))


def update_gate(stream: Stream) -> Gate:
    """The gate of updates of the events' table: what may not change, then the label if it is in the same row."""
    rules = [_not_null(stream.source.key)]
    rules += [_unchanged(c) for e in stream.contract if e.kind == "immutable" for c in e.columns]
    if not stream.own_row:
        return Gate(rules, [], stream.max_ahead // timedelta(microseconds=1))
    return Gate(rules + _label_rules(stream), [stream.label.label_time], stream.max_ahead // timedelta(microseconds=1))


def _label_rules(stream: Stream) -> list[Rule]:
    """A label's key, time and value; rows without a label time have no label yet, where it is in the event's own row."""
    label = stream.label
    rules = [_short(stream.label_key), _finite_time(label.label_time)]
    if stream.loss.regression:
        rules += [
            _number(label.value.column),
            *(_label_between(stream, e) for e in stream.contract if e.kind in LABEL_KINDS),
        ]
    elif label.value.operator == "value":
        column = label.value.column
        rules.append(Rule("label", column, "0, 1, false, true or NULL", lambda rows: ~_binary(rows[column])))
    elif label.value.operator in (">", ">=", "<", "<="):
        rules.append(_finite(label.value.column))
    if not stream.own_row:
        return rules
    return [replace(rule, broken=_where_labelled(label.label_time, rule.broken)) for rule in rules]


def _number(column: str) -> Rule:
    """A label that is a number which can be learned from."""
    check, _ = _between(column, -LARGEST, LARGEST)

    def broken(rows: Rows) -> Mask:
        null = rows[column].null
        return ~null & check(rows) if rows.kind(column) in _NUMBERS else ~null

    return Rule("label", column, f"a finite number of at most {LARGEST:g} in size, or NULL", broken)


def _label_between(stream: Stream, expectation: Expectation) -> Rule:
    column, params = stream.label.value.column, expectation.params
    check, expected = _between(column, params["minimum"], params["maximum"])

    def broken(rows: Rows) -> Mask:
        null = rows[column].null
        return ~null & check(rows) if rows.kind(column) in _NUMBERS else np.zeros(len(null), dtype=np.bool_)

    return Rule(expectation.name, column, expected, broken)


def _where_labelled(time: str, broken: Callable[[Rows], Mask]) -> Callable[[Rows], Mask]:
    return lambda rows: ~rows[time].null & broken(rows)


def _unchanged(column: str) -> Rule:
    def broken(rows: Rows) -> Mask:
        assert rows.before is not None  # rows whose state before is unknown do not come this far
        old, new = rows.before[column], rows[column]
        differs = np.asarray(old.values != new.values, dtype=np.bool_)
        if new.values.dtype == np.float64:
            differs &= ~(np.isnan(old.values) & np.isnan(new.values))
        mask: Mask = (old.null != new.null) | (~old.null & ~new.null & differs)
        return mask

    return Rule(f"immutable({column})", column, "the value that it had before this UPDATE", broken)


def label_values(expression: Expression, column: Column) -> NDArray[np.float64]:
    """Labels as 0.0 and 1.0, a bare column of numbers as float64; NaN where there is no value.

    Examples
    --------
    >>> from headrace.definition.columns import col
    >>> delays = Column(np.array([20, 3, 0]), np.array([False, False, True]))
    >>> label_values(col("arr_delay") > 15, delays)
    array([ 1.,  0., nan])
    """
    if expression.operator == "is_present":
        return (~column.null).astype(np.float64)
    if expression.operator == "value":
        if column.values.dtype == np.object_:  # a column that became a text: the gate refuses all of its rows
            return np.full(len(column.null), np.nan)
        return column.to_float()
    compare: Callable[[Any, Any], Any] = _COMPARE[expression.operator]
    y = np.asarray(compare(column.values, expression.constant)).astype(np.float64)
    y[column.null] = np.nan
    return y


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
    "==": lambda values, constant: np.array([v == constant for v in values.tolist()], dtype=np.bool_),
    "!=": lambda values, constant: np.array([v != constant for v in values.tolist()], dtype=np.bool_),
}


def compile_expectation(expectation: Expectation) -> list[Rule]:
    """The checks of one row-level expectation, one for each column it names."""
    params, name = expectation.params, expectation.name
    match expectation.kind:
        case "not_null":
            return [_not_null(column) for column in expectation.columns]
        case "finite":
            return [_finite(column) for column in expectation.columns]
        case "less_than":
            return [_less_than(name, *expectation.columns)]
    column = expectation.columns[0]
    match expectation.kind:
        case "between":
            check, expected = _between(column, params["minimum"], params["maximum"])
        case "in_set" | "not_in_set":
            check, expected = _membership(column, params["values"], inside=expectation.kind == "in_set")
        case "regex":
            check, expected = _regex(column, params["pattern"])
        case "length":
            check, expected = _length(column, params["minimum"], params["maximum"])
        case _:
            raise ValueError(f"{expectation.kind} judges windows, not rows")
    return [Rule(name, column, expected, lambda rows: ~rows[column].null & check(rows))]


def _not_null(column: str) -> Rule:
    return Rule(f"not_null({column})", column, "a value", lambda rows: rows.null(column))


def _short(column: str) -> Rule:
    def broken(rows: Rows) -> Mask:
        mask: Mask = rows.cells.length[rows.columns[column][0]] > LONGEST_KEY
        return mask

    expected = f"a key of at most {LONGEST_KEY:,} bytes, since events are found by it: give the row a shorter one"
    return Rule(f"key_bytes({column})", column, expected, broken)


def _list(column: str) -> Rule:
    def broken(rows: Rows) -> Mask:
        index, oid = rows.columns[column]
        count = counts(rows.cells.column(index), ELEMENTS[oid])
        mask: Mask = (count < NULL) | (count > MOST_TOKENS)
        return mask

    return Rule(f"tokens({column})", column, f"a list of one dimension, of at most {MOST_TOKENS:,} tokens", broken)


def _finite(column: str) -> Rule:
    check, _ = _between(column, -sys.float_info.max, sys.float_info.max)

    def broken(rows: Rows) -> Mask:
        null = rows[column].null
        return ~null & check(rows) if rows.kind(column) in ("float", "numeric") else np.zeros(len(null), dtype=np.bool_)

    return Rule(f"finite({column})", column, "a finite number", broken)


def _finite_time(column: str) -> Rule:
    return Rule(
        f"finite({column})",
        column,
        "a time between the years 1 and 9999",
        # Times that Python's datetime cannot hold would break every reader of the log.
        lambda rows: ~rows[column].null & ((rows[column].values < EARLIEST) | (rows[column].values > LATEST)),
    )


def _less_than(name: str, column: str, other: str) -> Rule:
    def broken(rows: Rows) -> Mask:
        a, b = rows[column], rows[other]
        mask: Mask = ~a.null & ~b.null
        kinds = {rows.kind(column), rows.kind(other)}
        if kinds <= {"text", "char"}:
            pairs = zip(mask.tolist(), rows.texts(column), rows.texts(other), strict=True)
            return np.array([both and not left < right for both, left, right in pairs], dtype=np.bool_)  # type: ignore[operator]
        fine: Mask = a.values < b.values
        if b.values.dtype == np.float64:  # NaN lies beyond every number
            fine |= np.isnan(b.values) & ~np.isnan(a.values.astype(np.float64))
        if kinds <= {"int", "numeric"} or kinds <= {"timestamp", "date"}:
            rounded = (a.values == b.values) & (rows.coarse(column) | rows.coarse(other))
            for row in np.flatnonzero(mask & rounded).tolist():
                fine[row] = rows.exact(column, row) < rows.exact(other, row)
        mask &= ~fine
        return mask

    return Rule(name, column, f"less than {other}", broken)


def _between(column: str, minimum: float | None, maximum: float | None) -> tuple[Callable[[Rows], Mask], str]:
    least = -np.inf if minimum is None else float(minimum)
    most = np.inf if maximum is None else float(maximum)

    def broken(rows: Rows) -> Mask:
        out: Mask = np.zeros(len(rows), dtype=np.bool_)
        values, null = rows[column].values, rows[column].null
        if np.count_nonzero((values > least) & (values < most) | null) == len(out):
            return out  # rounding keeps the order: what lies inside does so exactly, too
        if minimum is not None:
            out |= rows.against(column, float(minimum)) < 0
        if maximum is not None:
            out |= rows.against(column, float(maximum)) > 0
        return out

    low = "-infinity" if minimum is None else minimum
    return broken, f"between {low} and {'infinity' if maximum is None else maximum}"


def _membership(column: str, values: Sequence[Any], *, inside: bool) -> tuple[Callable[[Rows], Mask], str]:
    members = frozenset(values)
    unpadded = frozenset(v.rstrip(" ") if isinstance(v, str) else v for v in values)
    uuids = frozenset(_written_as_uuid(values))

    def broken(rows: Rows) -> Mask:
        kind = rows.kind(column)
        if kind in ("float", "numeric"):
            found: Mask = np.zeros(len(rows), dtype=np.bool_)
            for value in members:
                found |= rows.against(column, value) == 0
            return ~found if inside else found
        known = uuids if kind == "uuid" else unpadded if rows.columns[column][1] == BPCHAR else members
        return np.array([(v in known) != inside for v in rows.texts(column)], dtype=np.bool_)

    return broken, f"{'one of' if inside else 'none of'} {', '.join(sorted(map(str, members)))}"


def _written_as_uuid(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        try:
            yield str(uuid.UUID(str(value)))
        except ValueError:
            yield str(value)


_END = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$", re.DOTALL)


def _regex(column: str, pattern: str) -> tuple[Callable[[Rows], Mask], str]:
    # As Postgres reads it: $ is the very end, . any character, and classes are ASCII's.
    only_end = _END.sub(lambda found: r"\Z" if found[0] == "$" else found[0], pattern)
    search = re.compile(only_end, re.ASCII | re.DOTALL).search
    return (
        lambda rows: np.array(
            [v is not None and search(v) is None for v in rows[column].values.tolist()], dtype=np.bool_
        ),
        f"a text that matches {pattern}",
    )


def _length(column: str, minimum: int | None, maximum: int | None) -> tuple[Callable[[Rows], Mask], str]:
    low, high = minimum or 0, float("inf") if maximum is None else maximum
    return (
        lambda rows: np.array(
            [v is not None and not low <= len(v) <= high for v in rows.texts(column)], dtype=np.bool_
        ),
        f"{low} to {'any number of' if maximum is None else maximum} characters",
    )


def _binary(column: Column) -> Mask:
    if column.values.dtype == np.object_:
        return column.null
    values = column.values.astype(np.float64)
    mask: Mask = column.null | (values == 0) | (values == 1)
    return mask
