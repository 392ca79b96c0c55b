"""The gate against Great Expectations on SQL: 100,000 hostile rows, every row-level expectation, the very same rows refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from numpy.typing import NDArray
from psycopg2 import sql
from tests.conftest import database_of
from tests.fuzz import rows
from tests.fuzz.contract import STREAM

from headrace.batch import history
from headrace.definition.expect import ROW_KINDS
from headrace.flow.gate import Gate, Rows, compile_expectation
from headrace.store import source
from headrace.store.changes import Large, Reader

ROWS = 100_000
Refused = dict[str, NDArray[np.int64]]  # name of an expectation -> keys of the rows that break it


@pytest.fixture(scope="module")
def hostile(fresh_database: Callable[..., str]) -> Iterator[str]:
    """DSN of a database with the rows, all of them in one transaction behind a slot."""
    dsn = fresh_database("hostile")
    zone = sql.SQL("ALTER DATABASE {} SET timezone TO 'Asia/Tokyo'").format(sql.Identifier(database_of(dsn)))
    types = ", ".join(f"{name} {type_}" for name, (type_, _) in rows.COLUMNS.items())
    values = rows.columns(7, ROWS)
    with closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(zone)
            cursor.execute(
                "CREATE TABLE public.hostile (key bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, "
                f"event_time timestamptz NOT NULL DEFAULT '2020-03-01 00:00+00', {types})"
            )
            cursor.execute("CREATE TABLE public.answers (key bigint PRIMARY KEY, score integer, known_at timestamptz)")
            cursor.execute(source.statements(STREAM, role="postgres"))
            cursor.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (STREAM.slot,))
            cursor.copy_expert(f"COPY public.hostile ({', '.join(values)}) FROM STDIN", rows.copy_text(values))
            yield dsn
            cursor.execute("SELECT pg_drop_replication_slot(%s)", (STREAM.slot,))


@pytest.fixture(scope="module")
def expected(hostile: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[int]]:
    """What Great Expectations finds."""
    file = tmp_path_factory.mktemp("gx") / "found.json"
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'platform'}:{root}", "GX_ANALYTICS_ENABLED": "false"}
    subprocess.run([sys.executable, "-m", "tests.fuzz.gx", hostile, "hostile", str(file)], env=environment, check=True)
    found: Mapping[str, list[int] | str] = json.loads(file.read_text())
    assert {name: why for name, why in found.items() if isinstance(why, str)} == {}
    return found


def from_history(dsn: str, folder: Path) -> Iterator[Rows]:
    """The rows as the history import reads them."""
    with closing(psycopg2.connect(dsn)) as conn, conn.cursor() as cursor:
        cursor.execute("SELECT pg_export_snapshot()")
        ((snapshot,),) = cursor.fetchall()
        (events, _), total = history.spool(dsn, STREAM, snapshot, folder, lambda *_: None)
        assert total == ROWS
        yield from events.chunks()


def from_stream(dsn: str, folder: Path) -> Iterator[Rows]:
    """The rows as the intake reads them."""
    with source.replication(dsn) as cursor:
        source.start(cursor, STREAM.slot, STREAM.publication, "0/0")
        with closing(Reader(cursor)) as reader:
            large = reader.read(wait=20)
        assert isinstance(large, Large)
        for messages, _ in large.parts():
            for changes in messages.changes:
                yield Rows(changes.filled(), {c.name: (i, c.type_oid) for i, c in enumerate(changes.relation.columns)})
        large.close()


def refused(parts: Iterator[Rows]) -> Refused:
    """What the gate refuses, one rule at a time."""
    rules = [rule for expectation in STREAM.contract for rule in compile_expectation(expectation)]
    found: dict[str, list[NDArray[np.int64]]] = {rule.name: [] for rule in rules}
    for part in parts:
        keys, now = part["key"].values, np.zeros(len(part), dtype=np.int64)
        for rule in rules:
            found[rule.name].append(keys[Gate([rule], (), 0).check(part, now) == 0])
    return {name: np.concatenate(keys) for name, keys in found.items()}


@pytest.mark.parametrize("reader", [from_history, from_stream])
def test_gate_and_great_expectations_refuse_the_same_rows(
    hostile: str, expected: Mapping[str, list[int]], reader: Any, tmp_path: Path
) -> None:
    ours = refused(reader(hostile, tmp_path))
    assert set(ours) == set(expected)
    assert {name.partition("(")[0] for name in ours} == ROW_KINDS
    kinds: dict[str, list[int]] = {}
    differences = {}
    for name, keys in ours.items():
        different = sorted(set(keys.tolist()) ^ set(expected[name]))
        sums = kinds.setdefault(name.partition("(")[0], [0, 0, 0, 0])
        for i, count in enumerate((1, ROWS, len(keys), len(different))):
            sums[i] += count
        if different:
            differences[name] = (len(different), different[:5])
    print(f"\n{'kind':12}{'expectations':>14}{'rows':>12}{'refused':>12}{'difference':>12}")
    for kind, sums in sorted(kinds.items()):
        print(f"{kind:12}{sums[0]:14}{sums[1]:12,}{sums[2]:12,}{sums[3]:12}")
    assert differences == {}
    assert all(sums[2] > 0 for sums in kinds.values())
