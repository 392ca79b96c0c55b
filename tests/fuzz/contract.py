"""Every row-level expectation that a contract offers, on every type that takes it, with bounds that values come close to."""

from __future__ import annotations

from datetime import timedelta

from tests.fuzz.rows import COLUMNS

from headrace import Label, Source, Stream, category, col, expect, recipes
from headrace.definition.expect import Expectation

NUMBERS = ("small", "whole", "big", "single", "ratio", "amount", "price")
TEXTS = ("ident", "note", "word", "code")
INT8 = 2**53 + 1  # no float64 has this value
PATTERNS = (
    *(
        "A",
        "^A",
        "A$",
        "^[A-Z0-9]{2}$",
        "^$",
        "^.$",
        "^.{2,3}$",
        "A.A",
        "^(AA|B6)$",
        "☂",
        "[^ -~]",
        r"\.",
        r"\\",
        "^[^A]*$",
    ),
    *(r"^\d+$", r"^\w*$", r"\s", r"[\d.]", r"^\W", r"\D$", r"\S", "(?i)^aa$", "A(?=A)", "a*?b", r"(A)\1", "\t|\n"),
)
PAIRS = (
    *(
        ("small", "whole"),
        ("whole", "big"),
        ("big", "big2"),
        ("big", "single"),
        ("whole", "ratio"),
        ("single", "ratio"),
    ),
    *(("ratio", "ratio2"), ("amount", "amount2"), ("amount2", "amount"), ("big", "amount"), ("amount", "small")),
    *(
        ("price", "ratio"),
        ("price", "amount"),
        ("note", "note2"),
        ("word", "note"),
        ("code", "code2"),
        ("code", "note"),
    ),
    *(
        ("note", "code"),
        ("ident", "note"),
        ("letter", "word"),
        ("day", "day2"),
        ("local", "local2"),
        ("moment", "moment2"),
    ),
    *(
        ("day", "local"),
        ("local", "day"),
        ("day", "moment"),
        ("local", "moment"),
        ("moment", "local"),
        ("flag", "flag2"),
    ),
)


def expectations() -> list[Expectation]:
    """All of them."""
    made = [expect.not_null(*COLUMNS), expect.finite(*NUMBERS)]
    for column in NUMBERS:
        made += [expect.between(column, 0, 20), expect.between(column, 0.1), expect.between(column, maximum=20)]
        made += [expect.between(column, 10, 10), expect.between(column, -7.5, 0.1), expect.between(column, INT8, INT8)]
        made += [expect.in_set(column, {0, 1, 7, INT8}), expect.not_in_set(column, {0, 10, 20, INT8})]
    for column in TEXTS:
        made += [
            expect.in_set(column, {"AA", "B6", "A", "", "☂", "7"}),
            expect.not_in_set(column, {"AA ", "A", "", "\\N"}),
        ]
        made += [expect.length(column, 1), expect.length(column, maximum=2), expect.length(column, 2, 5)]
        made += [expect.regex(column, pattern) for pattern in (PATTERNS if column == "note" else PATTERNS[:4])]
    # SQL cuts what it compares with a "char" to its first byte, so only single letters mean the same to both.
    made += [expect.in_set("letter", {"A", "a", "6", "", "\\200"}), expect.not_in_set("letter", {"A", "\\"})]
    made += [expect.regex("letter", pattern) for pattern in PATTERNS[:4]] + [expect.length("letter", 1, 1)]
    zero = "00000000-0000-0000-0000-000000000000"
    made += [expect.in_set("token", {zero, "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"}), expect.not_in_set("token", {zero})]
    return made + [expect.less_than(*pair) for pair in PAIRS]


STREAM = Stream(
    name="hostile",
    source=Source(conn_id="hostile_db", table="public.hostile", key="key", event_time="event_time"),
    label=Label(
        table="public.answers",
        key="key",
        value=col("score") > 15,
        label_time="known_at",
        window=timedelta(hours=6),
        if_missing="drop",
    ),
    features=[category("letter")],
    contract=expectations(),
    champion=recipes.river(dict),
)
