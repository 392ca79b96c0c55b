"""Named queries from sql/queries: each starts with a line `-- name: what it does`.

A query is SQL with psycopg2 parameters `%(name)s` and, where it touches one stream's own schema, the identifier
`{schema}`. Identifiers are composed by psycopg2.sql, never pasted.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from psycopg2 import sql

SQL = Path(__file__).parent.parent / "sql"
_HEAD = re.compile(r"^-- ([a-z_]+): (.+)$", re.MULTILINE)


@cache
def all_queries() -> dict[str, str]:
    """Every named query's text by name."""
    found: dict[str, str] = {}
    for path in sorted((SQL / "queries").glob("*.sql")):
        parts = _HEAD.split(path.read_text())
        for name, text in zip(parts[1::3], parts[3::3], strict=True):
            if name in found:
                raise KeyError(f"{path}: the query name {name!r} is taken")
            found[name] = text.strip().rstrip(";")
    return found


def query(name: str, schema: str | None = None) -> sql.Composable:
    """The query of this name, its `{schema}` set to a stream's schema."""
    text = sql.SQL(all_queries()[name])
    return text if schema is None else text.format(schema=sql.Identifier(schema))
