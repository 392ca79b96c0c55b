"""Columns of the log as lists, whatever form they have."""

from __future__ import annotations

from typing import Any

from headrace.flow.pgtypes import Column
from headrace.models.text import Text
from headrace.models.tokens import Tokens


def listed(values: Any) -> list[Any]:
    """The values of an array, a `Text`, `Tokens` or a `Column`; None where one is missing."""
    if isinstance(values, Text):
        return list(values.names())
    if isinstance(values, Tokens):
        return values.lists()
    if isinstance(values, Column):
        return [None if null else value for value, null in zip(values.values.tolist(), values.null, strict=True)]
    return list(values.tolist())
