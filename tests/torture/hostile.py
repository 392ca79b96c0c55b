"""Rows that no application should send, and some do: each with the reason why the gate must refuse it, or none."""

from __future__ import annotations

import random
from datetime import datetime
from typing import Any

Row = tuple[Any, ...]

HUGE = "x" * 100_000
_TEXTS = (
    "",
    " ",
    "\\N",
    "\t\r\n",
    "\\",
    "'; DROP TABLE visits; --",
    '"{,}"',
    "\u202egnirts\u202c",
    "e\u0301\u0302\u0303",
    "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\ufeff\u0001\u001f",
    "\uffff",
    "NULL",
    "\u0130\u0131ß",
    HUGE,
)
_TIMES = ("infinity", "-infinity", "294276-12-31 23:59:59+00", "4714-11-24 00:00:00+00 BC", "2100-01-01 00:00:00+00")
_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e308", "-0.001", "1000.0000001")


def visit(dice: random.Random, row: Row) -> tuple[str, Row]:
    """(why it must be refused or "", a hostile version of the row)."""
    key, at, colour, place, size = row
    choice = dice.randrange(10)
    if choice < 2:
        time = dice.choice((None, *_TIMES))
        return f"seen_at {time}", (key, time, colour, place, size)
    if choice < 4:
        odd = dice.choice((None, "none such", *_TEXTS))
        return f"colour {odd!s:.20}", (key, at, odd, place, size)
    if choice < 6:
        number = dice.choice(_NUMBERS)
        return f"size {number}", (key, at, colour, place, number)
    if choice < 7:
        return "", (key, "0001-01-01 00:00:00+00", colour, place, size)
    if choice < 8:
        return "", (key, at, colour, place, dice.choice((None, "-0.0", "5e-324", "1000")))
    return "", (key, at, colour, dice.choice((None, *_TEXTS)), size)


def payment(dice: random.Random, row: Row) -> tuple[str, Row]:
    """The same for a payment."""
    key, at, card, amount, *_ = row
    choice = dice.randrange(6)
    if choice == 0:
        time = dice.choice((None, *_TIMES))
        return f"paid_at {time}", (key, time, card, amount, None, None)
    if choice == 1:
        return "card None", (key, at, None, amount, None, None)
    if choice == 2:
        number = dice.choice(("NaN", "-0.01", "9999999999.99"))
        return f"amount {number}", (key, at, card, number, None, None)
    if choice == 3:
        return "labeled_at 2100", (key, at, card, amount, True, "2100-01-01 00:00:00+00")
    if choice == 4:
        return "", (key, at, card, None, None, None)
    return "", (key, at, dice.choice(_TEXTS), amount, None, None)


def outcome(dice: random.Random, key: int) -> Row:
    """A label that must be refused, or that says nothing."""
    if dice.random() < 0.3:
        return key, None, "2020-03-01 00:00:00+00"
    time: Any = dice.choice((None, *_TIMES))
    return key, dice.randrange(30), time


def heartbeat(dice: random.Random, at: datetime) -> str:
    """The stream's time as a heartbeat tells it, or nonsense."""
    if dice.random() < 0.7:
        return at.isoformat()
    return dice.choice(
        ("", "now", "9999-12-31T23:59:59+00:00", "2020-03-01T00:00:00", "\u0663", "2100-01-01T00:00:00Z")
    )
