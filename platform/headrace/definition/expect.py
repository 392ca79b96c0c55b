"""Expectations of a stream's contract, declared once.

The same declaration is compiled to a gate for single rows (`headrace.flow.gate`) and to a Great Expectations suite for
windows of the log (`headrace.batch.quality`). Row-level kinds judge a row by itself and may quarantine it; window-level
kinds judge many rows and stop what depends on a quality run. NULL satisfies every row-level kind but `not_null`, as it
does in SQL and Great Expectations; NaN satisfies `not_null` and lies beyond every maximum. Numbers compare exactly,
without rounding; a character(n) without its padding, but for regular expressions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "not_null",
    "finite",
    "between",
    "in_set",
    "not_in_set",
    "regex",
    "length",
    "less_than",
    "immutable",
    "label_rate",
    "label_between",
    "row_count",
    "unique",
]
ROW_KINDS: frozenset[str] = frozenset(
    {"not_null", "finite", "between", "in_set", "not_in_set", "regex", "length", "less_than"}
)
LABEL_KINDS: frozenset[str] = frozenset({"label_between"})  # judge single labels, where those are numbers
UPDATE_KINDS: frozenset[str] = frozenset({"immutable"})  # judge how a row changes: no window of the log shows that


@dataclass(frozen=True)
class Expectation:
    """One expectation: a kind, its columns and its parameters."""

    kind: Kind
    columns: tuple[str, ...]
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A short name, as quarantine and quality results show it.

        Examples
        --------
        >>> between("distance", 10, 6000).name
        'between(distance, 10, 6000)'
        """
        values = [
            f"{v}" if not isinstance(v, tuple) else "{" + ", ".join(map(str, v)) + "}" for v in self.params.values()
        ]
        return f"{self.kind}({', '.join([*self.columns, *values])})"

    @property
    def per_row(self) -> bool:
        """Whether a single row can break it."""
        return self.kind in ROW_KINDS


def not_null(*columns: str) -> Expectation:
    """Each column has a value."""
    return Expectation("not_null", columns)


def finite(*columns: str) -> Expectation:
    """Each numeric column is neither NaN nor infinite. Every `number` feature has it without being asked."""
    return Expectation("finite", columns)


def between(column: str, minimum: float | None = None, maximum: float | None = None) -> Expectation:
    """`minimum <= column <= maximum`, either of them open when None."""
    return Expectation("between", (column,), {"minimum": minimum, "maximum": maximum})


def in_set(column: str, values: set[str] | set[int]) -> Expectation:
    """The column's value is one of `values`."""
    return Expectation("in_set", (column,), {"values": tuple(sorted(values, key=str))})


def not_in_set(column: str, values: set[str] | set[int]) -> Expectation:
    """The column's value is none of `values`."""
    return Expectation("not_in_set", (column,), {"values": tuple(sorted(values, key=str))})


def regex(column: str, pattern: str) -> Expectation:
    r"""The text matches the regular expression somewhere; anchor it with ^ and $ to match it whole.

    As Postgres reads it: `$` is the very end, `.` any character, `\d`, `\w` and `\s` are ASCII's (in a database with
    another locale than C Great Expectations may find more: write `[0-9]`).
    """
    return Expectation("regex", (column,), {"pattern": pattern})


def length(column: str, minimum: int | None = None, maximum: int | None = None) -> Expectation:
    """The text's number of characters lies between `minimum` and `maximum`."""
    return Expectation("length", (column,), {"minimum": minimum, "maximum": maximum})


def less_than(column: str, other: str) -> Expectation:
    """`column < other` on every row where both have a value."""
    return Expectation("less_than", (column, other))


def immutable(*columns: str) -> Expectation:
    """An UPDATE leaves these columns of an event as they were; it needs REPLICA IDENTITY FULL on the events' table."""
    return Expectation("immutable", columns)


def label_rate(minimum: float, maximum: float) -> Expectation:
    """The share of positive labels in a window lies between `minimum` and `maximum`."""
    return Expectation("label_rate", (), {"minimum": minimum, "maximum": maximum})


def label_between(minimum: float | None = None, maximum: float | None = None) -> Expectation:
    """`minimum <= label <= maximum`, either of them open when None; of a stream whose labels are numbers."""
    return Expectation("label_between", (), {"minimum": minimum, "maximum": maximum})


def row_count(minimum: int, maximum: int | None = None) -> Expectation:
    """A window has at least `minimum` (and at most `maximum`) labelled events. An empty window passes most other kinds."""
    return Expectation("row_count", (), {"minimum": minimum, "maximum": maximum})


def unique(column: str) -> Expectation:
    """No two events of a window share a value of this column."""
    return Expectation("unique", (column,))
