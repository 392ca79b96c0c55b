"""Brings the platform's database to this release's shape: numbered migrations through Alembic, then the views.

Everything happens in one transaction under an advisory lock, so two processes may call it at once and a failure leaves
nothing half done. A second call changes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from headrace.errors import ServerError
from headrace.store import db
from headrace.store.queries import SQL

_LOCK = 0x4EAD2ACE
_EACH = "-- each stream\n"


@dataclass(frozen=True)
class Migrated:
    """What a migrate changed."""

    before: str | None  # schema version found
    after: str  # schema version now
    views: int  # views that were written


def migrate(dsn: str) -> Migrated:
    """Apply what is missing.

    Raises
    ------
    ServerError
        When the server cannot be reached, or its schema is newer than this release.
    """
    db.connect(dsn).close()  # a wrong DSN gets its message here
    engine = create_engine("postgresql+psycopg2://", creator=lambda: db.connect(dsn), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS headrace"))
        before = _version(connection)
        config = Config()
        config.set_main_option("script_location", str(SQL / "migrations").replace("%", "%%"))
        config.attributes["connection"] = connection
        known = {revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()}
        if before is not None and before not in known:
            raise ServerError(
                f"the database has schema version {before}, newer than this release; install the newer headrace"
            )
        command.upgrade(config, "head")
        after = _version(connection)
        return Migrated(before, after or "", refresh_views(connection))


def _version(connection: Connection) -> str | None:
    if connection.execute(text("SELECT to_regclass('headrace.schema_version')")).scalar() is None:
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM headrace.schema_version")).scalar()
    return version


def refresh_views(connection: Connection) -> int:
    """Write the views whose text changed, in the order of their files; gives how many."""
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS metrics"))
    streams = list(connection.execute(text("SELECT stream FROM headrace.streams ORDER BY stream")).scalars())
    known = connection.execute(text("SELECT name, sha256 FROM headrace.repeatable"))
    applied = {row[0]: row[1] for row in known}
    written = 0
    for path in sorted((SQL / "views").glob("*.sql")):
        rendered = render_view(path.read_text(), streams)
        sha = hashlib.sha256(rendered.encode()).hexdigest()
        if applied.get(path.stem) == sha:
            continue
        connection.exec_driver_sql(rendered.replace("%", "%%"))
        connection.execute(
            text(
                "INSERT INTO headrace.repeatable (name, sha256) VALUES (:name, :sha) "
                "ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, applied_at = now()"
            ),
            {"name": path.stem, "sha": sha},
        )
        written += 1
    if written:
        connection.execute(
            text("GRANT USAGE ON SCHEMA metrics TO headrace_intake, headrace_learner, headrace_steer, headrace_reader")
        )
        connection.execute(
            text(
                "GRANT SELECT ON ALL TABLES IN SCHEMA metrics "
                "TO headrace_intake, headrace_learner, headrace_steer, headrace_reader"
            )
        )
    return written


def render_view(template: str, streams: list[str]) -> str:
    """A view's SQL: the part after `-- each stream`, up to its semicolon, repeated for every stream.

    >>> print(render_view("SELECT 1 -- each stream\\nUNION SELECT {stream} FROM {schema}.t; rest", ["ads"]))
    SELECT 1 UNION SELECT 'ads' FROM "ads".t; rest
    >>> print(render_view("0 -- each stream\\n+ {stream};", ["a", "b"]))
    0 + 'a'
    + 'b';
    """
    head, marker, rest = template.partition(_EACH)
    if not marker:
        return template
    body, semicolon, tail = rest.partition(";")
    # Stream names are letters, digits and underscores (the definition refuses others): safe as identifier and literal.
    branches = [body.replace("{schema}", f'"{name}"').replace("{stream}", f"'{name}'") for name in streams]
    return head + "\n".join(branches) + semicolon + tail
