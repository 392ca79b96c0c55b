"""The command line: `headrace COMMAND`. Each command is a thin adapter over `headrace.live` and `headrace.batch`.

A failure prints one line that says what was found, what was expected and what to do, and exits non-zero; only a bug
shows a traceback. Heavy libraries are imported by the commands that need them.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

import psycopg2

from headrace import __version__, settings
from headrace.cli import look, run, serve, steer, worth
from headrace.cli.common import pin
from headrace.errors import HeadraceError

MODEL_COMMANDS = (
    "learn",
    "serve",
    "bootstrap",
    "rebuild",
    "worth",
    "try",
)  # they compute what must be the same to the bit everywhere
Command = Callable[[settings.Settings, argparse.Namespace], int]


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    top = argparse.ArgumentParser(
        prog="headrace", description="Online training on the Postgres and Airflow that you run."
    )
    top.add_argument("--version", action="version", version=f"headrace {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (run, serve, look, steer, worth):
        module.add_commands(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("headrace").setLevel(logging.INFO)
    try:
        if arguments.command in MODEL_COMMANDS:
            pin(sys.argv[1:] if argv is None else argv)
        command: Command = arguments.run
        return command(settings.from_env(), arguments)
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return error.exit_code
    except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName) as error:
        print(f"headrace: {_line(error)}: the database is not prepared; run `headrace migrate`", file=sys.stderr)
        return 3
    except psycopg2.errors.InsufficientPrivilege as error:
        print(f"headrace: {_line(error)}; connect as the platform's owner, or grant its role", file=sys.stderr)
        return 3
    except psycopg2.OperationalError as error:
        print(f"headrace: the database connection failed: {_line(error)}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe is gone
        return 0


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
