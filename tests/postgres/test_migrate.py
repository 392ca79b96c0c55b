"""Migrations and views on a real server: twice, at once, too new; and every view explains itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from headrace.errors import HeadraceError, ServerError
from headrace.store import db, queries
from headrace.store.migrate import Migrated, migrate

SHAPE = """
SELECT c.oid, c.xmin::text, n.nspname, c.relname, obj_description(c.oid) FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname IN ('headrace', 'metrics', 'small') ORDER BY 1
"""


def query(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with closing(db.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def execute(dsn: str, statement: str) -> None:
    with closing(db.connect(dsn)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(statement)


def test_a_second_migrate_changes_nothing(registered: Any) -> None:
    """Not a view, not a comment, not a grant is written again."""
    before = query(registered.dsn, SHAPE)
    assert migrate(registered.dsn) == Migrated("0001", "0001", 0)
    assert query(registered.dsn, SHAPE) == before
    assert len(before) > 60


def test_a_new_stream_rewrites_only_the_views_that_name_streams(platform: str, origin: Any, small: Any) -> None:
    first = migrate(platform)
    assert first.views == 0
    execute(
        platform,
        "INSERT INTO headrace.streams (stream, definition, definition_hash, columns) VALUES ('small', '{}', '', '[]')",
    )
    execute(platform, "CREATE SCHEMA small")
    for table, columns in {
        "events": "seq bigint, key bigint, event_time timestamptz",
        "labels": "seq bigint, event_seq bigint, kind headrace.label_kind, y float8, y_before float8, label_time timestamptz",
        "quarantine": "quarantine_id bigint, relation text, key text, expectation text, found text, reason text, content jsonb,"
        " lsn pg_lsn, origin text, received_at timestamptz",
    }.items():
        execute(platform, f"CREATE TABLE small.{table} ({columns})")
    templates = [p for p in (queries.SQL / "views").glob("*.sql") if "-- each stream" in p.read_text()]
    assert migrate(platform).views == len(templates) > 0


def test_two_at_once(database: Callable[..., str]) -> None:
    dsn, done = database("at_once"), []
    threads = [threading.Thread(target=lambda: done.append(migrate(dsn))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((m.before or "", m.views > 0) for m in done) == [("", True), ("0001", False), ("0001", False)]


def test_a_newer_schema_is_refused(platform: str) -> None:
    execute(platform, "UPDATE headrace.schema_version SET version_num = '9999'")
    with pytest.raises(ServerError, match="schema version 9999, newer than this release; install the newer headrace"):
        migrate(platform)


def test_a_failure_leaves_nothing_half_done(
    database: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dsn = database("half")
    folder = tmp_path / "sql with 100% odd name"
    (folder / "views").mkdir(parents=True)
    (folder / "migrations").symlink_to(queries.SQL / "migrations")
    (folder / "views" / "10_broken.sql").write_text("CREATE VIEW metrics.broken AS SELECT nothing_of_this_name;")
    monkeypatch.setattr("headrace.store.migrate.SQL", folder)
    with pytest.raises(Exception, match="nothing_of_this_name"):
        migrate(dsn)
    assert query(dsn, "SELECT nspname FROM pg_namespace WHERE nspname IN ('headrace', 'metrics')") == []
    (folder / "views" / "10_broken.sql").unlink()
    assert migrate(dsn) == Migrated(None, "0001", 0)


def test_a_wrong_dsn_says_so() -> None:
    with pytest.raises(HeadraceError, match="cannot connect to nobody@localhost:1/nowhere"):
        migrate("postgresql://nobody:secret@localhost:1/nowhere")
    with pytest.raises(HeadraceError, match="the DSN cannot be read"):
        migrate("this is no dsn")


def test_every_view_and_column_has_a_comment(registered: Any) -> None:
    views = query(
        registered.dsn,
        "SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_class AS c WHERE c.relnamespace = 'metrics'::regnamespace"
        " AND c.relkind IN ('v', 'm', 'r')",
    )
    assert len(views) >= 16
    assert [name for name, comment in views if not comment] == []
    columns = query(
        registered.dsn,
        "SELECT attrelid::regclass::text || '.' || attname, col_description(attrelid, attnum) FROM pg_attribute AS a"
        " JOIN pg_class AS c ON c.oid = a.attrelid WHERE c.relnamespace = 'metrics'::regnamespace AND attnum > 0"
        " AND NOT attisdropped AND c.relkind IN ('v', 'm', 'r')",
    )
    assert [name for name, comment in columns if not comment] == []


def test_every_table_has_a_comment(registered: Any) -> None:
    tables = query(
        registered.dsn,
        "SELECT c.oid::regclass::text, obj_description(c.oid, 'pg_class') FROM pg_class AS c"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname IN ('headrace', 'small') AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition",
    )
    assert len(tables) > 20
    assert [name for name, comment in tables if not comment] == []


def test_roles_can_do_their_work_and_no_more(registered: Any) -> None:
    """The reader reads; a learner cannot write the log; the intake cannot write metrics."""
    attempts: dict[db.Role, tuple[str, ...]] = {
        "headrace_reader": (
            "INSERT INTO headrace.accounting (stream, origin) VALUES ('small', 'stream')",
            "DELETE FROM headrace.versions",
        ),
        "headrace_learner": (
            "DELETE FROM small.events",
            "UPDATE headrace.intake_positions SET seq = 1",
            "DELETE FROM headrace.decisions",
        ),
        "headrace_intake": ("DELETE FROM headrace.epoch_metrics", "UPDATE headrace.versions SET status = 'champion'"),
        "headrace_steer": ("DELETE FROM small.labels", "DELETE FROM headrace.serving_history"),
    }
    views = query(
        registered.dsn, "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'metrics'::regnamespace"
    )
    for role, statements in attempts.items():
        with closing(db.connect(registered.dsn, role=role)) as conn, conn.cursor() as cursor:
            for statement in statements:
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    cursor.execute(statement)
                conn.rollback()
            for (view,) in [*views, ("small.examples",)]:
                cursor.execute(f"SELECT * FROM {view}")
