"""Every named query is sound on a real server, and so are those that the documentation of streams promises."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql

from headrace.events import Engine
from headrace.flow.copybinary import HEADER, TRAILER
from headrace.store import db, queries, registry, source
from headrace.store.queries import SQL, all_queries, query

COLUMNS = sql.SQL("key, event_time, colour, place, size")
PARTS: dict[str, sql.Composable] = {
    "schema": sql.Identifier("small"),
    "stream": sql.Literal("small"),
    "columns": COLUMNS,
    "key_type": sql.SQL("bigint"),
    "name": sql.Identifier("events_000009"),
    "parent": sql.Identifier("events"),
    "first": sql.Literal(9_000_000),
    "last": sql.Literal(10_000_000),
    "column": sql.Identifier("key"),
    "view": sql.Identifier("a_window"),
    "since": sql.Literal("2020-03-01+00"),
    "after": sql.Literal(0),
    "upto": sql.Literal(10),
    "before": sql.Literal(10),
    "remembered": sql.Literal(5),
    "seqs": sql.SQL("'{1,2}'::bigint[]"),
    "features": sql.SQL(", colour = NULL"),
}
SOURCE_PARTS = {
    "table": sql.Identifier("public", "visits"),
    "columns": sql.SQL("visit_id, seen_at"),
    "time": sql.Identifier("seen_at"),
    "key": sql.Identifier("visit_id"),
}
NEEDS = {
    "attach_partition": ["create_partition"],
    "index_closed_partition": ["create_partition"],
    "detach_partition": ["create_partition", "attach_partition"],
    "drop_partition": ["create_partition"],
    "drop_window": ["create_window"],
    "write_resync_keys": ["make_resync_keys"],
    "labels_gone": ["make_resync_keys"],
    "labels_unset": ["make_resync_keys"],
}
AT_THE_SOURCE = set(re.findall(r"^-- ([a-z_]+):", (SQL / "queries" / "source.sql").read_text(), re.MULTILINE))


def text_of(conn: Any, name: str, parts: dict[str, sql.Composable]) -> str:
    text = all_queries()[name]
    found = set(re.findall(r"\{([a-z_]+)\}", text))
    return sql.SQL(text).format(**{k: parts[k] for k in found}).as_string(conn) if found else text


def numbered(text: str) -> str:
    """psycopg2's named parameters as the server's own."""
    names: dict[str, int] = {}
    text = re.sub(r"%\(([a-z_0-9]+)\)s", lambda m: f"${names.setdefault(m[1], len(names) + 1)}", text)
    assert re.search(r"%(?!%)", text.replace("%%", "")) is None, "a parameter without a name, or a lone %"
    return text.replace("%%", "%")


def try_out(cursor: Any, text: str) -> None:
    """Prepare a query, or what a COPY selects; run what cannot be prepared."""
    if match := re.fullmatch(r"COPY \((.*)\) TO STDOUT \(FORMAT binary\)", text, re.DOTALL):
        cursor.execute(f"PREPARE tried AS {numbered(match[1])}")
    elif text.startswith("COPY"):
        cursor.copy_expert(text, io.BytesIO(b"" if "text" in text else bytes(HEADER) + bytes(TRAILER)))
    elif text.split()[0] in ("CREATE", "ALTER", "DROP", "LOCK"):
        cursor.execute(text)
    else:
        cursor.execute(f"PREPARE tried AS {numbered(text)}")


@pytest.mark.parametrize("name", sorted(all_queries()))
def test_every_query_is_sound(name: str, prepared: tuple[Any, Any]) -> None:
    at_source = name in AT_THE_SOURCE
    conn = prepared[at_source]
    try:
        with conn.cursor() as cursor:
            for before in NEEDS.get(name, []):
                cursor.execute(text_of(conn, before, PARTS))
            try_out(cursor, text_of(conn, name, SOURCE_PARTS if at_source else PARTS))
    finally:
        conn.rollback()
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute("DEALLOCATE ALL")
        conn.autocommit = False


@pytest.fixture(scope="module")
def prepared(module_platform: Any) -> Any:
    with closing(psycopg2.connect(module_platform[0])) as ours, closing(psycopg2.connect(module_platform[1])) as theirs:
        yield ours, theirs


@pytest.mark.parametrize("name", sorted(all_queries()))
def test_every_query_is_used(name: str) -> None:
    package = Path(queries.__file__).parent.parent
    assert any(f'"{name}"' in path.read_text() for path in package.rglob("*.py")), f"nobody runs {name!r}"


def test_every_query_says_what_it_does() -> None:
    for path in (SQL / "queries").glob("*.sql"):
        statements = [part for part in path.read_text().split(";\n") if part.strip()]
        heads = re.findall(r"^-- [a-z_]+: .+$", path.read_text(), re.MULTILINE)
        assert len(statements) == len(heads), path.name


def test_identifiers_are_quoted(module_platform: Any) -> None:
    with closing(psycopg2.connect(module_platform[0])) as conn:
        assert 'FROM "odd ""name""".held' in query("read_held", 'odd "name"').as_string(conn)


def test_a_name_is_taken_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "a.sql").write_text("-- same: one\nSELECT 1;\n-- same: two\nSELECT 2;\n")
    monkeypatch.setattr(queries, "SQL", tmp_path)
    with pytest.raises(KeyError, match="the query name 'same' is taken"):
        all_queries.__wrapped__()


PROMISED = """
SELECT * FROM metrics.leaderboard WHERE stream = 'fraud' ORDER BY log_loss;
SELECT date_trunc('day', event_time) AS day, version, sum(loss_sum) / sum(labels) AS log_loss FROM metrics.progressive WHERE stream = 'fraud' GROUP BY 1, 2 ORDER BY 1, 3;
SELECT * FROM metrics.lag WHERE time_behind > '10 s' OR slot_wal_bytes > 0.5 * safe_wal_bytes;
SELECT challenger, gain, gain_low, gain_high, log_e, log_e_needed, missing FROM metrics.comparisons WHERE closed_at IS NULL;
SELECT decided_at, verdict, champion, challenger, reason, approved_by, dag_run_id FROM metrics.decisions ORDER BY 1 DESC LIMIT 20;
SELECT slice, value, labels, relative_change FROM metrics.slices WHERE challenger = 'fraud-7' AND labels > 1000 ORDER BY 4 DESC LIMIT 10;
SELECT expectation, count(*), min(received_at), max(found) FROM metrics.quarantine WHERE received_at > now() - interval '1 day' GROUP BY 1 ORDER BY 2 DESC;
SELECT day, p50, p99, timeout_share, late_share, open_events FROM metrics.label_delay WHERE stream = 'fraud' ORDER BY day DESC;
SELECT recipe, 1e6 * sum(cpu_seconds) / sum(labels) AS cpu_s_per_million, max(peak_rss_bytes) FROM metrics.cost GROUP BY 1;
SELECT *, received - logged - held - quarantined - ignored AS lost FROM metrics.accounting;
SELECT h.version, h.why, v.code_sha, v.rebuildable FROM metrics.serving_history h JOIN metrics.versions v USING (stream, version) WHERE stream = 'fraud' AND timestamptz '2026-11-20 14:03Z' <@ during;
SELECT version, seq, kind, served FROM metrics.learned_from WHERE stream = 'fraud' AND key = '8371';
"""  # noqa: E501


@pytest.mark.parametrize("statement", PROMISED.strip().splitlines())
def test_the_promised_queries_run(statement: str, registered: Any, origin: Any) -> None:
    origin.add(*origin.rows(0, 60))
    registered.import_history(origin)
    with closing(psycopg2.connect(registered.dsn)) as conn, conn.cursor() as cursor:
        cursor.execute(statement.replace("'fraud'", "'small'"))
        rows = cursor.fetchall()
    table = re.findall(r"metrics\.([a-z_]+)", statement)[0]
    if table == "accounting":
        assert rows[0][-1] == 0
        assert rows[0][2] > 100
    if table == "label_delay":
        (day, p50, p99, timeouts, late, waiting) = rows[0]
        assert str(day) == "2020-03-01"
        assert p50 < p99
        assert (late, timeouts) == (0, 0)
        assert waiting > 0
    if table == "leaderboard":
        assert [row[1:4] for row in rows] == [("small-1", "river", "champion")]


@pytest.fixture(scope="module")
def module_platform(fresh_database: Callable[..., str], migrated: str, small: Any) -> tuple[str, str]:
    """A platform with a registered stream, and its source, for tests that change neither."""
    ours, theirs = fresh_database("platform", migrated), fresh_database("source")
    with closing(db.connect(theirs)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE visits (visit_id bigint PRIMARY KEY, seen_at timestamptz, colour text, place text, size float8);"
            "CREATE TABLE outcomes (visit_id bigint PRIMARY KEY, score integer, known_at timestamptz)"
        )
    with closing(db.connect(theirs)) as conn:
        columns = source.log_columns(conn, small)
    with closing(db.connect(ours)) as conn, db.transaction(conn):
        registry.register(conn, small, columns, Engine("test", "", {}))
    return ours, theirs
