"""Every SQL statement that the docs show runs on a platform where the demo's stream is registered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest
from tests.conftest import ENGINE

from headrace.definition.load import load_file
from headrace.store import db, registry, source
from headrace.store.migrate import migrate

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "platform" / "headrace" / "airflow" / "docs.py",
]


def statements() -> Iterator[tuple[str, str]]:
    """(page, statement) of every SQL block."""
    for path in PAGES:
        for block in re.findall(r"^ *```sql\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL):
            for statement in block.replace("{stream}", "flights").split(";"):
                if statement.strip():
                    yield path.name, statement.strip()


@pytest.fixture(scope="module")
def flights(fresh_database: Callable[..., str], migrated: str) -> str:
    """A platform with the flights stream; its source was prepared by what docker/ runs there."""
    origin, platform = fresh_database("flights"), fresh_database("platform", migrated)
    stream = load_file(ROOT / "dags" / "streams" / "flights.py")
    with closing(psycopg2.connect(origin)) as conn, conn, conn.cursor() as cursor:
        cursor.execute((ROOT / "sql" / "demo" / "flights.sql").read_text())
        with suppress(psycopg2.errors.DuplicateObject):
            cursor.execute("SAVEPOINT before")
            cursor.execute("CREATE ROLE headrace LOGIN REPLICATION")
        cursor.execute((ROOT / "docker" / "source" / "30_publication.sql").read_text())
    with closing(psycopg2.connect(origin)) as conn:
        columns = source.log_columns(conn, stream)
        assert all(finding.ok for finding in source.check_publication(conn, stream))
    with closing(db.connect(platform)) as conn, db.transaction(conn):
        registry.register(conn, stream, columns, ENGINE)
    migrate(platform)
    return platform


def test_the_docs_show_statements() -> None:
    assert len({page for page, _ in statements()}) >= 4


@pytest.mark.parametrize(("page", "statement"), list(statements()))
def test_it_runs(flights: str, page: str, statement: str) -> None:
    if statement.startswith("ALTER SYSTEM"):
        return  # would change the server of all tests
    assert statement.startswith("SELECT"), f"{page} shows {statement!r}: say here how to test it"
    with closing(db.connect(flights, autocommit=True)) as conn, conn.cursor() as cursor:
        cursor.execute(statement)
        assert cursor.description is not None
