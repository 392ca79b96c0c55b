"""Loads stream definitions from files: every `stream = Stream(...)` of a folder, all mistakes at once.

A definition file is the user's own code and runs with the user's rights, as a DAG file does. Loading it needs no
database and imports none of river, LightGBM, numba or Airflow.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from headrace.definition.stream import Stream
from headrace.errors import DefinitionError


def load_file(path: Path) -> Stream:
    """The stream that one file defines.

    Raises
    ------
    DefinitionError
        When the file cannot be run, defines no `stream`, or its definition has mistakes; the message lists them all.
    """
    name = f"headrace_stream_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that inspect finds the source of the recipes' functions
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code may raise anything
        raise DefinitionError(f"{path}: running the definition raised {type(error).__name__}: {error}") from error
    stream = getattr(module, "stream", None)
    if not isinstance(stream, Stream):
        raise DefinitionError(f"{path}: found no `stream = Stream(...)`; expected one of that name")
    try:
        problems = stream.problems()
    except (TypeError, AttributeError) as error:  # a value of a wrong type, which checks stumble over
        raise DefinitionError(
            f"{path}: the definition holds a value of a wrong type: {error}; `mypy --strict {path.name}` shows where"
        ) from error
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise DefinitionError(f"{path}: the definition of {stream.name!r} has {len(problems)} mistake(s):\n{lines}")
    return stream


def definition_files(folder: Path) -> list[Path]:
    """The definition files of a folder, in the order of their names.

    Raises
    ------
    DefinitionError
        When there is no such folder.
    """
    if not folder.is_dir():
        raise DefinitionError(f"found no folder {folder}, expected stream definitions there; set HEADRACE_STREAMS")
    return [path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]


def load_folder(folder: Path) -> dict[str, Stream]:
    """All streams of a folder by name, in the order of their files' names.

    Raises
    ------
    DefinitionError
        When the folder is missing, two files define the same name, or any definition has mistakes.
    """
    streams: dict[str, Stream] = {}
    mistakes: list[str] = []
    for path in definition_files(folder):
        try:
            stream = load_file(path)
        except DefinitionError as error:
            mistakes.append(str(error))
            continue
        if stream.name in streams:
            mistakes.append(f"{path}: the name {stream.name!r} is taken by another file of {folder}")
        streams[stream.name] = stream
    if mistakes:
        raise DefinitionError("\n".join(mistakes))
    return streams
