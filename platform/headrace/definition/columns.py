"""Expressions over source columns, for a label's value: `col("arr_delay") > 15`.

An expression is data: a column, an operator and a constant. It is evaluated by the intake on decoded columns and
rendered into SQL for people; it never runs user code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["value", ">", ">=", "<", "<=", "==", "!=", "is_present"]
Constant = float | int | str | bool | None


@dataclass(frozen=True, eq=False)
class Expression:
    """One column compared with a constant, or the column itself.

    Examples
    --------
    >>> str(col("arr_delay") > 15)
    'arr_delay > 15'
    >>> str(col("impression_id").is_present())
    'impression_id is present'
    """

    column: str
    operator: Operator = "value"
    constant: Constant = None

    def _with(self, operator: Operator, constant: Constant) -> Expression:
        return Expression(self.column, operator, constant)

    def __gt__(self, other: float) -> Expression:
        return self._with(">", other)

    def __ge__(self, other: float) -> Expression:
        return self._with(">=", other)

    def __lt__(self, other: float) -> Expression:
        return self._with("<", other)

    def __le__(self, other: float) -> Expression:
        return self._with("<=", other)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]  # builds an expression, as SQL toolkits do
        if not isinstance(other, float | int | str | bool):
            raise TypeError(f"found {other!r} beside col({self.column!r}) ==, expected a number, a text or a boolean")
        return self._with("==", other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        if not isinstance(other, float | int | str | bool):
            raise TypeError(f"found {other!r} beside col({self.column!r}) !=, expected a number, a text or a boolean")
        return self._with("!=", other)

    __hash__ = None  # type: ignore[assignment]  # equality builds an expression, so a hash would lie

    def is_present(self) -> Expression:
        """Whether the column is not NULL: for labels that exist or not, such as clicks."""
        return self._with("is_present", None)

    def __str__(self) -> str:
        if self.operator == "value":
            return self.column
        if self.operator == "is_present":
            return f"{self.column} is present"
        return f"{self.column} {self.operator} {self.constant!r}"


def col(name: str) -> Expression:
    """The source column `name`, to be compared or taken as it is."""
    return Expression(name)
