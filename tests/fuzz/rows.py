"""Rows that are as odd as Postgres lets them be: a table with every type that headrace reads, filled from a seed.

Values are texts as Postgres reads them, for COPY and for parameters alike; None is NULL. Each column draws from a pool of
its own: the ends of its type's range and what is special about it, values that differ from a bound in the last digit
only, and plain random ones. It does no I/O.
"""

from __future__ import annotations

import io
import random
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal

Value = str | None
Pool = Callable[[random.Random], list[str]]

MEGABYTE = 1_000_000
_RANDOM = 400  # plain values of a pool

BOUNDS = ("0", "1", "10", "20", "0.1", "-7.5")  # where the tests' expectations have theirs
INTEGERS = ("-1", "2", "7", "9", "11", "19", "21", "127", "-128")
NUMERICS = (
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e400",
        "1e-400",
        "-1e-400",
        "0.000",
        "-0.0",
        "1e20",
        "1e24",
        "5e-324",
    ),
    *("9007199254740992", "9007199254740993", "9007199254740994", "9223372036854775807", "9223372036854775808"),
    *("1.7976931348623157e308", "1.7976931348623158e308", "1.79769313486231581e308", "-1.7976931348623158e308"),
    *("0.30000000000000004", "0.3", "12345678901234567890.123456789", "4.35", "100.000000000000000000001"),
)
TEXTS = (
    *(
        "",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "AA",
        "B6",
        "aa",
        "A",
        "AA ",
        " AA",
        "AA\n",
        "\nAA",
        "A\nA",
        "A.A",
        "7",
        "٣",
        "é",
    ),
    *(
        "\\N",
        "\\.",
        "\\",
        "\\x00",
        "\\0",
        "NULL",
        "null",
        "None",
        "NaN",
        "'; DROP TABLE hostile; --",
        '"{,}"',
        "%s",
        "$1",
    ),
    *(
        "\u202egnirts\u202c",
        "e\u0301\u0302\u0303",
        "é",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\u0130\u0131ß",
        "שלום",
        "مرحبا",
    ),
    *(
        "\ufeff",
        "\ufeff\u0001\u001f",
        "\uffff",
        "\ufffe",
        "\ufffd",
        "\ud7ff",
        "\ue000",
        "\U0010ffff",
        "\u2028",
        "\u0085",
        "\u00a0",
    ),
    *("\x01\x02\x7f", "\x0b\x0c\x1c\x1d", "naïve ☂ 🚕", "x" * 100, "☂" * 3000),
)
DATES = (
    *(
        "4713-01-01 BC",
        "0001-12-31 BC",
        "0001-01-01",
        "9999-12-31",
        "10000-01-01",
        "1970-01-01",
        "2000-01-01",
        "2000-02-29",
    ),
    *("infinity", "-infinity"),
)
FAR_DATES = ("4714-11-24 BC", "5874897-12-31", "5874897-12-30", "294277-01-01", "294248-01-01")
TIMES = (
    *(
        "4714-11-24 00:00:00 BC",
        "4714-11-24 00:00:00.000001 BC",
        "294276-12-31 23:59:59.999999",
        "294276-12-31 23:59:59.999998",
    ),
    *("294247-01-10 04:00:54.775806", "294247-01-10 04:00:54.775807", "294247-01-10 04:00:54.775808"),
    *(
        "1999-12-31 23:59:59.999999",
        "2000-01-01 00:00:00",
        "1970-01-01 00:00:00",
        "0001-01-01 00:00:00",
        "infinity",
        "-infinity",
    ),
)


def _numbers(low: int, high: int, *more: str) -> Pool:
    def pool(dice: random.Random) -> list[str]:
        plain = [str(dice.randrange(max(-30, low), 40)) for _ in range(_RANDOM)]
        wide = [str(dice.randrange(low, high + 1)) for _ in range(_RANDOM // 4)]
        return [*plain, *wide, *(more + INTEGERS + (str(low), str(high), str(low + 1), str(high - 1))) * 4]

    return pool


def _floats(digits: int, *ends: str) -> Pool:
    def pool(dice: random.Random) -> list[str]:
        plain = [f"{dice.uniform(-30, 40):.{digits}g}" for _ in range(_RANDOM)]
        wide = [f"{dice.uniform(-1, 1):.{digits}g}e{dice.randrange(-30, 30)}" for _ in range(_RANDOM // 4)]
        return [*plain, *wide, *(*BOUNDS, *ends, "NaN", "Infinity", "-Infinity", "-0", "1e-30") * 6]

    return pool


def _numerics(dice: random.Random) -> list[str]:
    plain = [f"{dice.uniform(-30, 40):.{dice.randrange(0, 30)}f}" for _ in range(_RANDOM)]
    wide = [f"{dice.randrange(-(10**40), 10**40)}e{dice.randrange(-300, 300)}" for _ in range(_RANDOM // 4)]
    tiny = Decimal("1e-40")
    close = [f"{Decimal(bound) + sign * tiny:f}" for bound in BOUNDS for sign in (-1, 1)]
    return [*plain, *wide, *(*BOUNDS, *close, *NUMERICS) * 6]


def _prices(dice: random.Random) -> list[str]:
    return [*(f"{dice.uniform(-30, 40):.2f}" for _ in range(_RANDOM)), *(*BOUNDS, "NaN", "-0.00", "99999999.99") * 6]


def _texts(characters: int | None = None, size: int | None = None) -> Pool:
    """Texts of at most so many characters, or bytes."""

    def pool(dice: random.Random) -> list[str]:
        plain = ["".join(dice.choices("AB6 ab", k=dice.randrange(5))) for _ in range(_RANDOM)]
        wild = [_wild(dice) for _ in range(_RANDOM // 4)]
        return [v[:characters].encode()[:size].decode(errors="ignore") for v in (*plain, *wild, *TEXTS * 3)]

    return pool


def _wild(dice: random.Random) -> str:
    """Any characters that Postgres can hold: neither zero nor surrogates."""
    planes = ((1, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
    return "".join(chr(dice.randint(*dice.choice(planes))) for _ in range(dice.randrange(1, 12)))


def _letters(dice: random.Random) -> list[str]:
    return [*(chr(n) for n in range(1, 127)), "", *("\\200", "\\377", "a", "A", "6") * 20]


def _lists(dice: random.Random) -> list[str]:
    """Arrays: of odd texts, with NULLs and repeats, empty, of other bounds, of two dimensions, and a long one."""
    plain = [dice.choices([f"t{n}" for n in range(40)], k=dice.randrange(9)) for _ in range(_RANDOM)]
    wild = [dice.choices((*TEXTS, _wild(dice)), k=dice.randrange(1, 5)) for _ in range(_RANDOM // 4)]
    quoted = [["NULL" if dice.random() < 0.1 else _quoted(token) for token in row] for row in plain + wild]
    odd = (
        "{{a,b},{c,d}}",
        "[-3:-2]={a,b}",
        "[0:0][5:6]={{a,NULL}}",
        "{NULL}",
        "{{{a}}}",
        f"{{{','.join(map(str, range(1100)))}}}",
    )
    return [*(f"{{{','.join(row)}}}" for row in quoted), *odd * 6]


def _quoted(token: str) -> str:
    escaped = token.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _times(fixed: tuple[str, ...], zone: str = "", *, day: bool = False) -> Pool:
    def pool(dice: random.Random) -> list[str]:
        plain = []
        for _ in range(_RANDOM):
            date = f"2020-03-{dice.randrange(1, 29):02d}"
            plain.append(date if day else f"{date} {dice.randrange(24):02d}:00:00{zone}")
        ends = [
            t if "infinity" in t or day else f"{t}{zone}" if "BC" not in t else t.replace(" BC", f"{zone} BC")
            for t in fixed
        ]
        return [*plain, *ends * 5]

    return pool


def _uuids(dice: random.Random) -> list[str]:
    return [
        *(str(uuid.UUID(int=dice.getrandbits(128))) for _ in range(_RANDOM)),
        *(str(uuid.UUID(int=n)) for n in (0, 1, 2**128 - 1)),
    ]


_INT8 = ("9007199254740992", "9007199254740993", "9007199254740994", "-9007199254740993")
_DAYS = _times(DATES + FAR_DATES, day=True)
COLUMNS: dict[str, tuple[str, Pool]] = {  # name -> type, values
    "flag": ("boolean", lambda dice: ["true", "false"]),
    "flag2": ("boolean", lambda dice: ["true", "false"]),
    "letter": ('"char"', _letters),
    "ident": ("name", _texts(size=63)),
    "small": ("smallint", _numbers(-(2**15), 2**15 - 1)),
    "whole": ("integer", _numbers(-(2**31), 2**31 - 1)),
    "big": ("bigint", _numbers(-(2**63), 2**63 - 1, *_INT8)),
    "big2": ("bigint", _numbers(-(2**63), 2**63 - 1, *_INT8)),
    "single": ("real", _floats(7, "3.4028235e38", "-3.4028235e38", "1e-45", "16777217")),
    "ratio": (
        "double precision",
        _floats(17, "1.7976931348623157e308", "-1.7976931348623157e308", "1.75e308", "5e-324", "9007199254740993"),
    ),
    "ratio2": ("double precision", _floats(17, "1.7976931348623157e308", "5e-324", "9007199254740993")),
    "amount": ("numeric", _numerics),
    "amount2": ("numeric", _numerics),
    "price": ("numeric(12,2)", _prices),
    "note": ("text", _texts()),
    "note2": ("text", _texts()),
    "word": ("character varying", _texts()),
    "code": ("character(5)", _texts(5)),
    "code2": ("character(5)", _texts(5)),
    "day": ("date", _DAYS),
    "day2": ("date", _DAYS),
    "local": ("timestamp without time zone", _times(TIMES)),
    "local2": ("timestamp without time zone", _times(TIMES)),
    "moment": ("timestamp with time zone", _times(TIMES, "+00")),
    "moment2": ("timestamp with time zone", _times(TIMES, "+00")),
    "token": ("uuid", _uuids),
    "names": ("text[]", _lists),
    "names2": ("character varying[]", _lists),
}
GIANTS = {  # values too large to be frequent: each of them is in one row
    "amount": ("9" * 131072, "-" + "9" * 131072 + "." + "9" * 16383, "1" + "0" * 131071, "0." + "3" * 16383),
    "note": ("x" * MEGABYTE, "☂" * (MEGABYTE // 3), "".join(chr(33 + n * n % 89) for n in range(MEGABYTE)) + "\n"),
    "word": ("AA" * (MEGABYTE // 2),),
}


def columns(seed: int, count: int, nulls: float = 0.08) -> Mapping[str, list[Value]]:
    """Values of `count` rows, by column; the same seed gives the same ones."""
    made: dict[str, list[Value]] = {}
    for name, (_, pool) in COLUMNS.items():
        dice = random.Random(f"{seed} {name}")
        values: list[Value] = list(pool(dice))
        values += [None] * round(len(values) * nulls)
        made[name] = dice.choices(values, k=count)
        for row, giant in zip(dice.sample(range(count), len(GIANTS.get(name, ()))), GIANTS.get(name, ()), strict=True):
            made[name][row] = giant
    return made


def copy_text(values: Mapping[str, list[Value]]) -> io.StringIO:
    """Rows in COPY's text format."""
    escaped = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
    written = [["\\N" if v is None else v.translate(escaped) for v in column] for column in values.values()]
    return io.StringIO("".join("\t".join(row) + "\n" for row in zip(*written, strict=True)), newline="")
