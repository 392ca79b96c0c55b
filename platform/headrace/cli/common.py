"""What commands share: the platform's database, stream definitions, signals, printing."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headrace.definition.load import definition_files, load_file
from headrace.definition.stream import Stream
from headrace.errors import DefinitionError
from headrace.live.supervisor import PINNED
from headrace.settings import Settings
from headrace.store.embedded import EmbeddedPostgres

DATABASE = "headrace"


@contextmanager
def platform(settings: Settings) -> Iterator[str]:
    """The DSN of the platform's database; the embedded server is started when it is down, and left as it was found."""
    if settings.dsn is not None:
        yield settings.dsn
        return
    with EmbeddedPostgres(settings.home) as server:
        server.create_database(DATABASE)
        yield server.dsn(DATABASE)


def stream_of(settings: Settings, name: str) -> Stream:
    """A stream's definition by name.

    Raises
    ------
    DefinitionError
        When no file defines it; the message lists those that are defined.
    """
    mistakes: list[str] = []
    known: list[str] = []
    for path in definition_files(settings.streams):
        try:
            stream = load_file(path)
        except DefinitionError as error:  # another stream's mistakes do not stop this one
            mistakes.append(str(error))
            continue
        if stream.name == name:
            return stream
        known.append(stream.name)
    if mistakes:
        raise DefinitionError("\n".join(mistakes))
    raise DefinitionError(f"found no stream {name!r} in {settings.streams}, only {', '.join(known) or 'none'}")


def pin(words: Sequence[str]) -> None:
    """Start this command again with the environment that models need, unless it has it: the hash seed is fixed at start."""
    if all(os.environ.get(name) == value for name, value in PINNED.items()):
        return
    os.execve(sys.executable, [sys.executable, "-P", "-m", "headrace", *words], os.environ | PINNED)  # noqa: S606


def until_signalled() -> Callable[[], bool]:
    """A function that says whether SIGTERM or SIGINT came."""
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return lambda: came


def show_json(document: Any) -> None:
    """Print a document as JSON."""
    print(json.dumps(document, indent=2, default=str))
