"""The table against a dictionary: keys come and go in any order, and nothing but the bound drops one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ModelError
from headrace.models.snapshot import dump, parse
from headrace.models.table import COUNT, EVICTED, EXPIRED, OWN, Table, find, insert, must_grow, remove

_NEVER = -(2**63)


def put(table: Table, key: int, now: int, value: float, oldest: int = _NEVER) -> None:
    if must_grow(table.cells, table.state, 1):
        table.grow()
    row = find(table.cells, np.uint64(key))
    if row < 0:
        row = insert(table.cells, table.state, np.uint64(key), now, oldest)
    table.floats[row, OWN] = value


def content(table: Table) -> dict[int, float]:
    return {int(table.cells[row, 0]): float(table.floats[row, OWN]) for row in table.used()}


# Few different low bits, so that rows probe far and removing has to move many.
keys = st.builds(lambda low, high: low + 1024 * 4096 * high, st.integers(1, 6), st.integers(0, 300))


@given(st.lists(st.tuples(st.booleans(), keys, st.floats(0, 1)), max_size=300))
def test_equals_a_dictionary(steps: list[tuple[bool, int, float]]) -> None:
    table, expected = Table(1, 10_000), dict[int, float]()
    for now, (enters, key, value) in enumerate(steps):
        if enters:
            put(table, key, now, value)
            expected[key] = value
        elif (row := find(table.cells, np.uint64(key))) >= 0:
            remove(table.cells, table.state, row)
            del expected[key]
    assert content(table) == expected
    assert len(table) == len(expected)
    assert all(find(table.cells, np.uint64(key)) >= 0 for key in expected)
    restored = Table(1, 10_000)
    restored.load("t", *parse(dump(*table.save("t"))))
    assert restored.cells.tobytes() == table.cells.tobytes()


def test_many_keys_make_it_grow() -> None:
    table, random = Table(2, 1 << 20), np.random.default_rng(1)
    some = random.integers(1, 2**63, 20_000).tolist()
    for now, key in enumerate(some):
        put(table, key, now, float(now))
    assert content(table) == {key: float(now) for now, key in enumerate(some)}
    assert len(table.cells) == 65_536


def test_a_full_table_drops_what_was_not_used_for_long() -> None:
    table, random = Table(1, 500), np.random.default_rng(1)
    some = random.integers(1, 2**63, 5_000).tolist()
    for now, key in enumerate(some):
        put(table, key, now, 1.0)
    assert (int(table.state[COUNT]), int(table.state[EVICTED])) == (500, 4_500)
    assert len(table.cells) == 1_024
    ages = [5_000 - some.index(key) for key in content(table)]
    assert np.median(ages) < 500, "most of what stays is new"


def test_old_rows_go_a_few_at_a_time() -> None:
    table, random = Table(1, 10_000), np.random.default_rng(1)
    some = random.integers(1, 2**63, 6_000).tolist()
    for now, key in enumerate(some):
        put(table, key, now, 1.0, oldest=now - 100)
    assert 100 <= len(table) < 100 + len(table.cells) // 2, "each insertion looks at two rows"
    assert int(table.state[EXPIRED]) == 6_000 - len(table)
    assert set(some[-100:]) <= set(content(table))


def test_another_form_is_refused() -> None:
    arrays, meta = Table(1, 10).save("t")
    for other in (Table(2, 10), Table(1, 11)):
        with pytest.raises(ModelError, match="the recipe has changed"):
            other.load("t", arrays, meta)
    with pytest.raises(ModelError, match="found a table of at most 0 keys"):
        Table(1, 0)
