"""Text in one buffer reads as Python's own strings do; keys are the same for ever."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.models.text import Text, as_names, as_text, is_category, keys_of, seed_of

values = st.lists(st.none() | st.text(max_size=20), max_size=30)


@given(values, st.data())
def test_rows_are_what_they_were(names: list[str | None], data: st.DataObject) -> None:
    text = Text.of(names)
    assert text.names().tolist() == names
    assert as_names(text).tolist() == names
    rows = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=10)) if names else []
    assert text[np.array(rows, dtype=np.intp)].names().tolist() == [names[row] for row in rows]
    assert text[1:3].names().tolist() == names[1:3]


@given(values)
def test_equal_values_have_equal_keys_and_others_others(names: list[str | None]) -> None:
    seed = seed_of("origin")
    keys = Text.of(names).keys(seed)
    known = dict(zip(names, keys.tolist(), strict=True))
    assert len(set(known.values())) == len(known)
    assert [known[name] for name in names] == keys.tolist()
    assert all((key == 0) == (name is None) for name, key in known.items())
    objects = np.array([*names, None], dtype=object)[:-1]
    assert keys_of(objects, seed).tolist() == keys.tolist()
    assert keys_of(keys_of(objects), seed).tolist() == keys.tolist()


def test_keys_are_the_same_for_ever() -> None:
    """States remember them: a change of these numbers makes every stored model forget."""
    text = Text.of(["JFK", "", "a text of more than sixteen bytes", None])
    assert text.keys().tolist() == [KEYS[0], KEYS[1], KEYS[2], 0]
    assert text.keys(seed_of("origin")).tolist() == [KEYS[3], KEYS[4], KEYS[5], 0]


KEYS = [
    0x276D1FFB1946D9EF,
    0xE220A8397B1DCDAF,
    0x5CB85B6FF665C264,
    0x0CD133BA0D2C0ACE,
    0xEC08B162A494539D,
    0xBC0242A084BC6F90,
]


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=20))
def test_integers(numbers: list[int | None]) -> None:
    known = np.array([number is not None for number in numbers], dtype=np.bool_)
    whole = np.array([number or 0 for number in numbers], dtype=np.int64)
    assert Text.integers(whole, known).names().tolist() == [None if n is None else str(n) for n in numbers]


@given(st.lists(st.tuples(*[st.none() | st.text(max_size=9)] * 3), max_size=20))
def test_join(rows: list[tuple[str | None, ...]]) -> None:
    joined = Text.join([Text.of(column) for column in zip(*rows, strict=True)] if rows else [Text.of([])] * 3)
    assert joined.names().tolist() == [None if None in row else "|".join(map(str, row)) for row in rows]


def test_choose() -> None:
    chosen = Text.choose(Text.of(["a", "b"]), np.array([1, -1, 0]))
    assert chosen.names().tolist() == ["b", None, "a"]


def test_what_is_a_category() -> None:
    text = Text.of(["a"])
    assert as_text(text) is text
    assert is_category(text)
    assert is_category(text.names())
    assert is_category(text.keys())
    assert not is_category(np.ones(1))
