"""Commands that look: status, check, ledger, doctor, try, source-sql, psql. They change nothing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.cli.common import platform, show_json, stream_of
from headrace.definition.load import load_folder
from headrace.definition.loss import Loss
from headrace.errors import InvariantError, ServerError, SourceError
from headrace.settings import Settings, connection
from headrace.store import db, log, source

_NOTHING = "no stream is registered here yet; `headrace up` or `headrace demo` begins"


def add_commands(commands: Any) -> None:
    """Add this module's commands to the command line."""
    status = commands.add_parser("status", help="what runs, where it is, who is champion, the last verdict")
    status.add_argument("--json", action="store_true", help="print the result as JSON")
    status.set_defaults(run=run_status)
    check = commands.add_parser("check", help="audit every invariant that the tables can show; non-zero on a breach")
    check.add_argument("streams", nargs="*", help="streams to check; all that are registered when none is named")
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    check.add_argument("--ledger", type=Path, metavar="FILE", help="what `headrace ledger` counted, for one stream")
    check.add_argument("--without-source", action="store_true", help="do not ask the source database")
    check.set_defaults(run=run_check)
    ledger = commands.add_parser(
        "ledger", help="count what a second slot delivers up to the log's position, as JSON for check"
    )
    ledger.add_argument("stream")
    ledger.add_argument(
        "--slot", required=True, help="a slot made when or before the stream's own was; it is not moved"
    )
    ledger.set_defaults(run=run_ledger)
    doctor = commands.add_parser("doctor", help="try everything that a stream needs of its source database")
    doctor.add_argument("dsn", nargs="?", help="the source; that of the stream's connection by default")
    doctor.add_argument("--stream", help="the stream; needed when several are defined")
    doctor.add_argument("--json", action="store_true", help="print the result as JSON")
    doctor.set_defaults(run=run_doctor)
    trial = commands.add_parser(
        "try", help="try a stream's recipes on rows that its contract allows; needs no database"
    )
    trial.add_argument("stream")
    trial.set_defaults(run=run_try)
    source_sql = commands.add_parser(
        "source-sql", help="print the statements that prepare a source database, for its owner to run"
    )
    source_sql.add_argument("stream")
    source_sql.add_argument("--role", default="headrace", help="role that headrace connects as")
    source_sql.set_defaults(run=run_source_sql)
    psql = commands.add_parser("psql", help="psql on the platform's database")
    psql.add_argument(
        "-c", dest="sql", action="append", default=[], metavar="SQL", help="run this and end; may be repeated"
    )
    psql.set_defaults(run=run_psql)


def run_status(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace status`"""
    with platform(settings) as dsn, closing(db.connect(dsn, autocommit=True)) as conn:
        if not _migrated(conn):
            raise ServerError(_NOTHING)
        streams = [_stream_status(conn, name) for (name,) in db.rows(conn, "list_streams")]
    if not streams:
        raise ServerError(_NOTHING)
    if arguments.json:
        show_json({"streams": streams})
    else:
        for one in streams:
            _print_status(one)
    return 0


def _migrated(conn: Any) -> bool:
    with conn.cursor() as cursor:
        cursor.execute("SELECT to_regclass('metrics.leaderboard') IS NOT NULL")
        return bool(cursor.fetchone()[0])


def _stream_status(conn: Any, name: str) -> dict[str, Any]:
    intake = db.row(conn, "status_intake", {"stream": name})
    keys = (
        "version",
        "recipe",
        "status",
        "position",
        "behind",
        "phase",
        "message",
        "reported_at",
        "running",
        "loss",
        "labels",
        "silent",
        "loss_kind",
    )
    verdict = db.rows(conn, "last_decisions", {"stream": name, "many": 1})
    workers = [dict(zip(keys, row, strict=True)) for row in db.rows(conn, "status_versions", {"stream": name})]
    names = (
        "running",
        "phase",
        "message",
        "seq",
        "lsn",
        "watermark",
        "slot_wal_bytes",
        "safe_wal_bytes",
        "reported_at",
        "silent",
    )
    incidents = [
        dict(zip(("role", "state", "message", "since"), row, strict=True))
        for row in db.rows(conn, "status_incidents", {"stream": name})
    ]
    standbys = [
        dict(zip(("role", "holder", "behind"), row, strict=True))
        for row in db.rows(conn, "status_standbys", {"stream": name})
    ]
    return {
        "stream": name,
        "intake": dict(zip(names, intake, strict=True)) if intake else None,
        "champion": next((w["version"] for w in workers if w["status"] == "champion"), None),
        "versions": workers,
        "standbys": standbys,
        "last_verdict": dict(zip(("at", "verdict", "champion", "challenger", "reason"), verdict[0][:5], strict=True))
        if verdict
        else None,
        "incidents": incidents,
    }


def _print_status(one: dict[str, Any]) -> None:
    console, intake = Console(width=None if sys.stdout.isatty() else 140), one["intake"]
    console.print(f"[bold]{one['stream']}[/bold]  champion {one['champion']}")
    if intake is None:
        console.print("  intake: never ran")
    else:
        state = _state(intake, f"runs ({intake['phase']})")
        clock = f", stream time {intake['watermark']:%Y-%m-%d %H:%M} UTC" if intake["watermark"] else ""
        wal = (
            f", slot keeps {intake['slot_wal_bytes'] / 1e6:.1f} MB of WAL"
            if intake["slot_wal_bytes"] is not None
            else ""
        )
        console.print(f"  intake {state}: log at seq {intake['seq'] or 0:,}{clock}{wal}; {intake['message'] or ''}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2))
    loss_name = Loss(next((w["loss_kind"] for w in one["versions"] if w["loss_kind"]), "log")).name
    for column in ("version", "recipe", "status", "learner", "position", "behind", loss_name, "labels"):
        table.add_column(column, justify="right" if column in ("position", "behind", loss_name, "labels") else "left")
    for w in one["versions"]:
        learner = _state(w, f"runs, {w['phase'] or ''}")
        loss = "" if w["loss"] is None else f"{w['loss']:.4f}"
        labels = "" if w["labels"] is None else f"{w['labels']:,}"
        table.add_row(
            w["version"], w["recipe"], w["status"], learner, f"{w['position']:,}", f"{w['behind']:,}", loss, labels
        )
    console.print(table)
    if standbys := one["standbys"]:
        found = ", ".join(f"{s['role']} ({s['holder']}, {s['behind']:,} behind)" for s in standbys)
        console.print(f"  standing by: {found}", soft_wrap=True)
    if verdict := one["last_verdict"]:
        ago = datetime.now(UTC) - verdict["at"]
        console.print(
            f"  last verdict ({int(ago.total_seconds())} s ago): {verdict['verdict']}. {verdict['reason']}",
            soft_wrap=True,
        )
    for incident in one["incidents"]:
        console.print(f"  [red]{incident['role']}: {incident['state']}: {incident['message']}[/red]", soft_wrap=True)


def _state(worker: dict[str, Any], well: str) -> str:
    """In a word: a process that hangs keeps its connection, and so the role's lock."""
    if not worker["running"]:
        return "does not run"
    return "hangs" if worker["silent"] else well


def run_check(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace check`"""
    from headrace.batch.audit import audit

    broken: list[str] = []
    document: dict[str, Any] = {}
    with platform(settings) as dsn, closing(db.connect(dsn, autocommit=True)) as conn:
        if not _migrated(conn):
            raise ServerError(_NOTHING)
        for name in arguments.streams or [name for (name,) in db.rows(conn, "list_streams")]:
            stream = stream_of(settings, name)
            origin = None if arguments.without_source else _reachable(settings, dsn, stream)
            ledger = None if arguments.ledger is None else json.loads(arguments.ledger.read_text())
            invariants = audit(conn, stream, origin, ledger)
            document[name] = {
                i.name: {"ok": i.ok, "promise": i.promise, "counts": i.counts, "breaches": i.breaches}
                for i in invariants
            }
            broken += [f"{name}: {i.name}: {'; '.join(i.breaches)}" for i in invariants if not i.ok]
    if not document:
        raise ServerError(_NOTHING)
    if arguments.json:
        show_json(document)
    else:
        for name, found in document.items():
            for invariant, result in found.items():
                counts = ", ".join(f"{k} {_short(v)}" for k, v in result["counts"].items())
                print(f"{'ok    ' if result['ok'] else 'BROKEN'} {name} {invariant}: {result['promise']} ({counts})")
    if broken:
        raise InvariantError("broken: " + " | ".join(broken))
    return 0


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "[" + ", ".join(f"{k} {_short(v)}" for k, v in value.items()) + "]"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _reachable(settings: Settings, dsn: str, stream: Any) -> str | None:
    """The source's DSN, or None with a line on stderr when it cannot be reached."""
    origin = connection(settings, stream.source.conn_id)
    if origin.startswith("service=") and settings.dsn is None:
        origin = db.with_database(dsn, stream.name)  # the demo's source lies on the embedded server
    try:
        db.connect(origin).close()
    except ServerError as error:
        print(f"headrace: the source is left out: {error}", file=sys.stderr)
        return None
    return origin


def run_ledger(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace ledger`"""
    from headrace.store.changes import tally

    stream = stream_of(settings, arguments.stream)
    with platform(settings) as dsn:
        with closing(db.connect(dsn, role="headrace_reader", autocommit=True)) as conn:
            at = log.position(conn, stream.name)
            gaps = [(first, last) for first, last, _ in db.rows(conn, "gaps", {"stream": stream.name})]
        if at is None:
            raise ServerError(f"stream {stream.name!r} has no log yet: there is nothing to count up to")
        origin = connection(settings, stream.source.conn_id)
        counted = tally(origin, stream, arguments.slot, at.consistent_lsn, at.lsn, gaps)
    show_json(vars(counted))
    return 0


def run_doctor(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace doctor`"""
    streams = load_folder(settings.streams)
    name = arguments.stream or (next(iter(streams)) if len(streams) == 1 else None)
    if name is None:
        raise SourceError(f"several streams are defined ({', '.join(streams)}); say which one with --stream")
    stream = stream_of(settings, name)
    findings = source.doctor(arguments.dsn or connection(settings, stream.source.conn_id), stream)
    if arguments.json:
        show_json({"stream": name, "findings": [vars(f) for f in findings]})
    else:
        for f in findings:
            print(
                f"{'ok     ' if f.ok else 'MISSING'} {f.what}: {f.found}"
                + ("" if f.ok or not f.remedy else f"\n        do: {f.remedy}")
            )
    missing = [f.what for f in findings if not f.ok]
    if missing:
        raise SourceError(f"the source is not ready for {name!r}: {', '.join(missing)}")
    return 0


def run_try(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace try`"""
    from headrace.models.trial import try_recipe

    stream = stream_of(settings, arguments.stream)
    for recipe in stream.recipes():
        if recipe.has_trees:
            print(f"Recipe {recipe.name!r} is tried once a bootstrap has trained it.")
        else:
            print(try_recipe(stream, recipe))
    return 0


def run_source_sql(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace source-sql`"""
    stream = stream_of(settings, arguments.stream)
    identity = None
    try:
        with closing(db.connect(connection(settings, stream.source.conn_id), autocommit=True)) as origin:
            identity = source.identity_columns(origin, stream)
    except ServerError as error:
        print(
            f"headrace: the tables' primary keys are taken to be the ones that the definition names, since the source could "
            f"not be asked: {error}",
            file=sys.stderr,
        )
    print(source.statements(stream, arguments.role, identity), end="")
    return 0


def run_psql(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace psql`"""
    from headrace.store.embedded import find_binaries

    own = find_binaries() / "psql"
    program = shutil.which("psql") or (str(own) if own.exists() else None)
    if program is None:
        raise ServerError("found no psql; install it (Debian, Ubuntu: apt-get install postgresql-client)")
    words = [program, "--no-psqlrc", "-v", "ON_ERROR_STOP=1"]
    for statement in arguments.sql:
        words += ["-c", statement]
    with platform(settings) as dsn:
        return subprocess.run(
            [*words, "-d", dsn], env={**os.environ, "PGAPPNAME": "headrace psql"}, check=False
        ).returncode
