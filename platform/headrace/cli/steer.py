"""Commands that steer: quality, bootstrap, admit, compare, promote, rollback, rebuild, housekeep, erase.

Airflow's tasks call them too.
"""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

from psycopg2.extensions import connection as Connection

from headrace.cli.common import platform, show_json, stream_of
from headrace.errors import DefinitionError, InvariantError
from headrace.settings import Settings, signing_key
from headrace.store import db, registry


def add_commands(commands: Any) -> None:
    """Add this module's commands to the command line."""
    quality = _command(
        commands, "quality", run_quality, "check the log against the stream's contract with Great Expectations"
    )
    quality.add_argument("--run-id", default="manual", help="who asks: an Airflow run's id")
    quality.add_argument("--seq-first", type=int, default=1, metavar="N", help="first entry of the window")
    quality.add_argument("--seq-last", type=int, metavar="N", help="last entry; the newest complete epoch's by default")
    bootstrap = _command(commands, "bootstrap", run_bootstrap, "train a candidate offline on the log and register it")
    bootstrap.add_argument("--recipe", required=True, help="name of a challenger's recipe")
    bootstrap.add_argument(
        "--seq-last", type=int, metavar="N", help="end of the window; the newest complete epoch by default"
    )
    bootstrap.add_argument("--threads", type=int, default=1, help="threads for training")
    bootstrap.add_argument("--run-id", help="the Airflow run that asks")
    admit = _command(commands, "admit", run_admit, "let candidates that pass the held-out gate catch up and shadow")
    admit.add_argument("versions", nargs="+", metavar="VERSION")
    compare = _command(
        commands, "compare", run_compare, "look at the evidence; promote, keep, retire or roll back by the rule"
    )
    compare.add_argument("--run-id", help="the Airflow run that asks")
    compare.add_argument("--run-type", help="its type: scheduled or manual")
    promote = _command(commands, "promote", run_promote, "let a version in shadow serve, because you say so")
    promote.add_argument("version")
    promote.add_argument("--reason", required=True)
    rollback = _command(commands, "rollback", run_rollback, "let the former champion serve again")
    rollback.add_argument("--to", metavar="VERSION", help="another version than the former champion")
    rollback.add_argument("--reason", required=True)
    rollback.add_argument("--by", default=getpass.getuser(), help="who decides")
    rollback.add_argument("--run-id", help="the Airflow run that asks")

    rebuild = _command(commands, "rebuild", run_rebuild, "learn a version again from its base and compare every digest")
    rebuild.add_argument("version")
    rebuild.add_argument("--batch", type=int, default=100_000, metavar="N", help="entries read at a time")
    rebuild.add_argument(
        "--since", type=int, metavar="SEQ", help="begin at its checkpoint at this seq, where its base is gone"
    )
    housekeep = _command(
        commands, "housekeep", run_housekeep, "drop what the policy lets go and nothing needs; thin checkpoints"
    )
    housekeep.add_argument("--dry-run", action="store_true", help="only say what would go, and what needs the rest")
    erase = _command(commands, "erase", run_erase, "blank what the platform has under one key, see docs/erasure.md")
    erase.add_argument("--key", required=True, help="key of the event")
    erase.add_argument("--reason", default="asked for", help="for the record; without the key or anything personal")


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text)
    command.add_argument("stream")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run)
    return command


@contextmanager
def _steering(settings: Settings, name: str) -> Iterator[tuple[str, Connection]]:
    with (
        platform(settings) as dsn,
        closing(db.connect(dsn, role="headrace_steer", application=f"headrace {name}")) as conn,
    ):
        yield dsn, conn


def _show(arguments: argparse.Namespace, document: dict[str, Any]) -> int:
    if arguments.json:
        show_json(document)
    else:
        print(document["sentence"])
    return 0


def run_quality(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace quality`"""
    from headrace.batch.quality import check

    stream = stream_of(settings, arguments.stream)
    with _steering(settings, "quality") as (dsn, conn):
        registry.registered(conn, stream)
        done = check(conn, dsn, stream, arguments.run_id, seq_first=arguments.seq_first, seq_last=arguments.seq_last)
    failed = [{"expectation": r.expectation, "reason": r.reason} for r in done.results if not r.success]
    window = {"seq_first": done.seq_first, "seq_last": done.seq_last, "checked": len(done.results)}
    return _show(arguments, {"success": done.success, **window, "failed": failed, "sentence": done.sentence})


def run_bootstrap(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace bootstrap`"""
    from headrace.batch.bootstrap import bootstrap
    from headrace.models.engine import engine

    stream = stream_of(settings, arguments.stream)
    recipe = stream.recipe(arguments.recipe)
    if recipe is None:
        known = ", ".join(r.name for r in stream.recipes())
        raise DefinitionError(f"{stream.name!r} has no recipe {arguments.recipe!r}, only {known}")
    with _steering(settings, "bootstrap") as (_, conn):
        columns = registry.registered(conn, stream)
        made = bootstrap(
            conn,
            stream,
            recipe,
            columns,
            engine(),
            signing_key(settings),
            seq_last=arguments.seq_last,
            dag_run_id=arguments.run_id,
            threads=arguments.threads,
        )
    return _show(arguments, asdict(made))


def run_admit(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace admit`"""
    from headrace.batch.bootstrap import admit

    stream = stream_of(settings, arguments.stream)
    with _steering(settings, "admit") as (_, conn):
        admitted, rejected, sentence = admit(conn, stream, arguments.versions)
    return _show(arguments, {"admitted": admitted, "rejected": rejected, "sentence": sentence})


def run_compare(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace compare`"""
    from headrace.batch.compare import compare, sentence_of

    stream = stream_of(settings, arguments.stream)
    with _steering(settings, "compare") as (_, conn):
        outcomes, promoted = compare(conn, stream, dag_run_id=arguments.run_id, run_type=arguments.run_type)
        champion = registry.champion(conn, stream.name)
    verdicts = [
        {
            "challenger": o.challenger,
            "verdict": o.verdict,
            "reason": o.reason,
            **{name: o.evidence.get(name) for name in ("log_e", "log_e_needed", "gain", "labels")},
        }
        for o in outcomes
    ]
    return _show(
        arguments, {"champion": champion, "verdicts": verdicts, "promoted": promoted, "sentence": sentence_of(outcomes)}
    )


def run_promote(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace promote`"""
    from headrace.batch.compare import promote

    stream = stream_of(settings, arguments.stream)
    with _steering(settings, "promote") as (_, conn):
        champion, former = promote(
            conn, stream, version=arguments.version, reason=arguments.reason, by=getpass.getuser()
        )
    return _show(
        arguments,
        {"champion": champion, "former": former, "sentence": f"{champion} serves from now on, after {former}."},
    )


def run_rollback(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace rollback`"""
    from headrace.batch.compare import rollback

    stream = stream_of(settings, arguments.stream)
    with _steering(settings, "rollback") as (_, conn):
        champion, former = rollback(
            conn, stream, to=arguments.to, reason=arguments.reason, by=arguments.by, dag_run_id=arguments.run_id
        )
    return _show(
        arguments,
        {"champion": champion, "former": former, "sentence": f"{champion} serves again, {former} learns on in shadow."},
    )


def run_rebuild(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace rebuild`"""
    from headrace.batch.rebuild import rebuild
    from headrace.models.engine import engine

    stream, key = stream_of(settings, arguments.stream), signing_key(settings)
    with _steering(settings, "rebuild") as (_, conn):
        columns = registry.registered(conn, stream)
        done = rebuild(
            conn, stream, columns, arguments.version, engine(), key, batch=arguments.batch, since=arguments.since
        )
    _show(arguments, {**asdict(done), "sentence": done.sentence})
    if done.different:
        raise InvariantError(f"{arguments.version} could not be rebuilt: {len(done.different)} epochs differ")
    return 0


def run_housekeep(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace housekeep`"""
    from headrace.batch.housekeeping import housekeep, plan

    stream = stream_of(settings, arguments.stream)
    with _steering(settings, "housekeep") as (_, conn):
        registry.registered(conn, stream)
        if not arguments.dry_run:
            done = housekeep(conn, stream)
            return _show(arguments, asdict(done))
        parts = plan(conn, stream)
    lines = [
        f"partition {p.partition}, seq {p.seq_first:,} to {p.seq_last:,}, {p.bytes / 1e6:,.1f} MB: "
        + (f"goes, {p.asked}" if p.goes else f"stays, {p.needed}")
        for p in parts
    ]
    return _show(arguments, {"plan": [asdict(p) | {"goes": p.goes} for p in parts], "sentence": "\n".join(lines)})


def run_erase(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace erase`"""
    from headrace.batch.erasure import erase

    stream = stream_of(settings, arguments.stream)
    with _steering(settings, "erase") as (_, conn):
        columns = registry.registered(conn, stream)
        done = erase(conn, stream, columns, arguments.key, reason=arguments.reason, by=getpass.getuser())
    return _show(arguments, asdict(done))
