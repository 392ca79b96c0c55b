"""The command that answers HTTP: serve."""

from __future__ import annotations

import argparse
from contextlib import closing
from functools import partial
from typing import Any

from headrace.cli.common import platform, stream_of, until_signalled
from headrace.settings import Settings, signing_key
from headrace.store import db, registry


def add_commands(commands: Any) -> None:
    """Add this module's commands to the command line."""
    serve = commands.add_parser("serve", help="answer HTTP with the champion's predictions")
    serve.add_argument("stream")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8400, help="port; 0 takes a free one (default: %(default)s)")
    serve.set_defaults(run=run_serve)


def run_serve(settings: Settings, arguments: argparse.Namespace) -> int:
    """`headrace serve`"""
    stop = until_signalled()
    stream = stream_of(settings, arguments.stream)
    with platform(settings) as dsn:
        with closing(db.connect(dsn, role="headrace_reader", application=f"headrace serve {stream.name}")) as conn:
            columns = registry.registered(conn, stream)
        from headrace.live import endpoint  # after what may go wrong: it takes seconds

        definition = partial(stream_of, settings, stream.name)
        endpoint.serve(dsn, definition, columns, signing_key(settings), arguments.host, arguments.port, stop)
    return 0
