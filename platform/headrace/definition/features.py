"""Features of a stream: columns as they are, derived columns, and streaming target means.

A `Feature` is a declaration. `headrace.flow.features` turns log columns into model columns; `headrace.models.target_mean`
keeps the means. The names below are the model columns' names, the same in river, LightGBM, SQL and the endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["category", "number", "tokens", "hour_of_day", "day_of_week", "cross", "target_mean"]

#: Half-lives of streaming target means, in microseconds of stream time, with the suffix of their columns' names.
HALF_LIVES: dict[str, int] = {
    "15m": 15 * 60 * 1_000_000,
    "1h": 3_600 * 1_000_000,
    "6h": 6 * 3_600 * 1_000_000,
    "1d": 24 * 3_600 * 1_000_000,
}


@dataclass(frozen=True)
class Feature:
    """One declaration of features over source columns."""

    kind: Kind
    columns: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """The model columns that this declaration gives.

        Examples
        --------
        >>> cross("carrier", "dest").names()
        ('carrier_x_dest',)
        >>> hour_of_day("scheduled_at").names()
        ('scheduled_at_hour',)
        """
        match self.kind:
            case "category" | "number" | "tokens":
                return self.columns
            case "hour_of_day":
                return tuple(f"{column}_hour" for column in self.columns)
            case "day_of_week":
                return tuple(f"{column}_weekday" for column in self.columns)
            case "cross":
                return ("_x_".join(self.columns),)
            case "target_mean":
                keys = ("all", *self.columns)
                return tuple(f"mean_{key}_{suffix}" for key in keys for suffix in HALF_LIVES)


def category(*columns: str) -> Feature:
    """Columns whose values are names: text, booleans, identifiers. NULL is a missing value."""
    return Feature("category", columns)


def number(*columns: str) -> Feature:
    """Numeric columns. NULL is a missing value; NaN and infinities are refused by the gate."""
    return Feature("number", columns)


def tokens(*columns: str) -> Feature:
    """Columns of lists of texts, such as genres or the words of a title: every text is a token with a weight of its own.

    Postgres's text[] or varchar[], of one dimension. NULL is a missing value, an empty list is not; NULL elements are left
    out, and a token counts once a row.
    """
    return Feature("tokens", columns)


def hour_of_day(column: str) -> Feature:
    """The hour (UTC, 0 to 23) of a time column, as a category."""
    return Feature("hour_of_day", (column,))


def day_of_week(column: str) -> Feature:
    """The weekday (UTC, 0 = Monday) of a time column, as a category."""
    return Feature("day_of_week", (column,))


def cross(*columns: str) -> Feature:
    """The combination of two or more categories, as one category. Linear models need it; trees find it."""
    return Feature("cross", columns)


def target_mean(*columns: str) -> Feature:
    """Decayed means of the label, overall and per value of each column, at half-lives 15 min, 1 h, 6 h and 1 d."""
    return Feature("target_mean", columns)
