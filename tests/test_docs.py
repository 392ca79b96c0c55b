"""The docs say what is true: commands, targets, settings, names, files and messages that they mention exist.

What needs a server, the SQL in them, is tested in tests/postgres/test_docs_sql.py.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import headrace
from headrace import errors
from headrace.airflow.stack import COMPONENTS
from headrace.cli import parser
from headrace.definition import expect, recipes, stream
from headrace.definition.features import HALF_LIVES
from headrace.definition.load import load_file
from headrace.store import source

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = "\n".join(path.read_text() for path in sorted((ROOT / "platform" / "headrace").rglob("*.py")))
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    return [inspect.cleandoc(body) for found, body in BLOCK.findall(text) if found == language]


def spans(text: str) -> list[str]:
    """Inline code outside of blocks."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


def typed(program: str) -> list[tuple[str, list[str]]]:
    """(page, words) of every command line that a page shows: prompts in console blocks, and inline code."""
    found = []
    for path in PAGES:
        text = path.read_text()
        lines = [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
        for line in [*lines, *spans(text)]:
            words = shlex.split(line.replace("...", ""), comments=True) if line.startswith(f"{program} ") else []
            if words:
                found.append((path.name, words[1:]))
    return found


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def test_the_pages_show_enough_to_test() -> None:
    assert len(typed("headrace")) > 30
    assert len(typed("make")) > 5


@pytest.mark.parametrize(("where", "words"), typed("headrace"), ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_every_command_and_option_exists(where: str, words: list[str]) -> None:
    name, *rest = words
    known = commands()
    assert name in known, f"{where} shows `headrace {name}`, which does not exist"
    options = {option for action in known[name]._actions for option in action.option_strings}
    assert {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)} <= options


def test_every_command_is_documented() -> None:
    shown = {words[0] for _, words in typed("headrace")}
    # Airflow's tasks call these; people see their DAGs.
    assert set(commands()) - shown <= {"admit", "quality", "compare", "bootstrap"}


@pytest.mark.parametrize(("where", "words"), typed("make"), ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_every_make_target_exists(where: str, words: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE)
    assert words[0] in targets, f"{where} shows `make {words[0]}`, which does not exist"


def links() -> Iterator[tuple[Path, str]]:
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                yield path, target


@pytest.mark.parametrize(("path", "target"), list(links()), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_every_link_leads_somewhere(path: Path, target: str) -> None:
    assert (path.parent / target).exists()


def test_the_map_of_the_rooms_is_complete() -> None:
    (rooms,) = (b for b in blocks(page("README.md"), "text") if b.startswith("dags/"))
    shown = re.findall(r"^ *([a-z]+)/ ", rooms, re.MULTILINE)
    there = [
        p.name
        for p in (ROOT / "platform" / "headrace").iterdir()
        if p.is_dir() and p.name[0] != "_" and p.name != "sql"
    ]
    top = [p.name for p in ROOT.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in ("build", "platform")]
    assert set(there) - {"demo"} | set(top) <= set(shown) <= set(there) | set(top)


def test_the_definition_in_the_docs_loads(tmp_path: Path) -> None:
    code, numbers, *pieces = blocks(page("docs/stream-definition.md"), "python")
    (rare,) = (piece for piece in pieces if "negative_rate" in piece)
    pieces.remove(rare)
    (tmp_path / "ads.py").write_text(rare)
    assert load_file(tmp_path / "ads.py").negative_rate == 0.1
    (tmp_path / "delays.py").write_text(numbers)
    assert load_file(tmp_path / "delays.py").loss.name == "absolute error"
    shown = [statement for piece in pieces for statement in ast.parse(piece).body]
    assert len(shown) >= 3
    for statement in shown:
        assert eval(ast.unparse(statement), {"recipes": recipes}).mistakes() == []
    (tmp_path / "orders.py").write_text(code)
    assert load_file(tmp_path / "orders.py").name == "orders"


def test_the_example_with_river_runs() -> None:
    (code,) = blocks(page("docs/river.md"), "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert 0.2 < names["score"].get() < 0.3


def test_every_estimator_of_river_is_documented() -> None:
    from headrace.models import estimators

    text = page("docs/river.md")
    public = [n for n, made in vars(estimators).items() if inspect.getmodule(made) is estimators and n[0] != "_"]
    assert {name for name in public if name not in text} == {
        "ArrayEstimator",
        "ArrayClassifier",
        "FtrlEstimator",
        "TreesClassifier",
    }


def test_the_lines_for_an_existing_airflow_are_the_ones_that_run() -> None:
    (code,) = blocks(page("README.md"), "python")
    assert code in page("dags/headrace_dags.py")


def test_every_setting_is_documented() -> None:
    table = set(re.findall(r"^\| `(HEADRACE_\w+|HEADRACE_CONN_<ID>)`", page("docs/settings.md"), re.MULTILINE))
    read = set(re.findall(r"\bHEADRACE_[A-Z_]+[A-Z]\b", page("platform/headrace/settings.py")))
    assert table == read - {"HEADRACE_CONN"} | {"HEADRACE_CONN_<ID>"}


def test_nothing_but_the_settings_reads_headraces_variables() -> None:
    known = set(re.findall(r"\bHEADRACE_[A-Z_]+[A-Z]\b", page("docs/settings.md"))) | {"HEADRACE_QUALITY_URL"}
    assert set(re.findall(r"\bHEADRACE_[A-Z_]+[A-Z]\b", CODE)) <= known


def test_every_name_of_a_definition_is_documented() -> None:
    text = page("docs/stream-definition.md")
    shown = set(re.findall(r"\w+", " ".join([*spans(text), *blocks(text, "python")])))
    classes = (stream.Stream, stream.Source, stream.Label, stream.Policy)
    fields = {field.name for made in classes for field in dataclasses.fields(made)}
    assert set(headrace.__all__) | fields <= shown
    for module in (expect, recipes):
        names = [n for n, made in vars(module).items() if inspect.getmodule(made) is module and n[0] != "_"]
        assert [n for n in names if f"{module.__name__.rpartition('.')[2]}.{n}" not in text] == []
    assert set(stream.RESERVED_COLUMNS) <= shown


def test_documented_expectations_have_the_level_that_they_have() -> None:
    rows = re.findall(
        r"^\| `expect\.(\w+)\(.*` \| (row|update|window) \|", page("docs/stream-definition.md"), re.MULTILINE
    )
    assert dict(rows) == {
        kind: "row"
        if kind in expect.ROW_KINDS | expect.LABEL_KINDS
        else "update"
        if kind in expect.UPDATE_KINDS
        else "window"
        for kind in expect.Kind.__args__  # type: ignore[attr-defined]
    }


def test_documented_defaults_of_the_policy_are_the_defaults() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+(?: [hd])?) \|", page("docs/stream-definition.md"), re.MULTILINE))
    hours = {"h": 1, "d": 24}

    def plain(value: Any) -> str:
        return f"{value.total_seconds() / 3600:g}" if hasattr(value, "total_seconds") else f"{value:g}"

    shown = {
        k: f"{float(v.split()[0]) * hours[v.split()[1]]:g}" if " " in v else f"{float(v):g}" for k, v in rows.items()
    }
    defaults = {field.name: field.default for field in dataclasses.fields(stream.Policy)}
    assert shown == {name: plain(default) for name, default in defaults.items() if default not in (None, ())}
    (table,) = re.findall(r"^\| field of `Policy`.*\n((?:\|.*\n)+)", page("docs/stream-definition.md"), re.MULTILINE)
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(defaults)


def test_half_lives_are_the_documented_ones() -> None:
    stated = re.search(r"half-lives (.*?) of stream time", page("docs/stream-definition.md"))
    assert stated is not None
    assert re.findall(r"(\d+) ?(m|h|d)", stated[1]) == re.findall(r"(\d+)(m|h|d)", " ".join(HALF_LIVES))


def test_every_view_has_its_place_in_the_tour() -> None:
    views = {path.stem.split("_", 1)[1] for path in (ROOT / "sql" / "views").glob("*.sql")}
    assert views <= set(re.findall(r"metrics\.(\w+)", page("docs/sql.md")))


def messages() -> list[str]:
    table = page("docs/operations.md").partition("| message has |")[2]
    return [m for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for m in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("message", messages())
def test_every_message_in_the_docs_is_one_that_headrace_says(message: str) -> None:
    said = re.sub(r'" *\n\s*f?"', "", CODE)  # texts that run over lines
    parts = [re.escape(part.strip()).replace("N", r"\{.*\}") for part in message.split("...")]
    assert re.search("[^\n]*".join(parts), said), f"nothing says {message!r}"


def test_exit_codes_are_the_documented_ones() -> None:
    stated = re.search(r"exit code: (.*?)\. A traceback", page("docs/operations.md"), re.DOTALL)
    assert stated is not None
    codes = {made.exit_code for made in vars(errors).values() if inspect.isclass(made)}
    assert {int(n) for n in re.findall(r"\d", stated[1])} == codes


COMPOSE = yaml.safe_load(page("docker/compose.yaml"))


@pytest.mark.parametrize("name", [n for n, s in COMPOSE["services"].items() if "headrace" in s["image"]])
def test_every_service_runs_a_command_that_exists(name: str) -> None:
    program, *words = COMPOSE["services"][name]["command"]
    if program == "headrace":
        parser().parse_args(words)
    else:
        assert program == "airflow"
        assert tuple(words) in {(component,) for component in COMPONENTS} | {("db", "migrate")}


def test_the_compose_file_has_every_process_and_every_secret() -> None:
    services = COMPOSE["services"]
    assert set(COMPONENTS) | {"up", "serve", "migrate", "source", "platform"} <= set(services)
    for service in services.values():
        waited = service.get("depends_on", {})
        assert all(
            "healthcheck" in services[n] or n == "up"
            for n, how in waited.items()
            if how["condition"] == "service_healthy"
        )
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            assert place in COMPOSE["volumes"] or (ROOT / "docker" / place).exists()
    wanted = set(re.findall(r"\$\{(\w+)", page("docker/compose.yaml")))
    assert wanted == set(re.findall(r"^(\w+)=$", page("docker/example.env"), re.MULTILINE))


def test_the_image_copies_what_is_there() -> None:
    allowed = {line[1:] for line in page(".dockerignore").splitlines() if line.startswith("!")}
    copied = [words.split()[:-1] for words in re.findall(r"^COPY ((?!--).*)$", page("docker/Dockerfile"), re.MULTILINE)]
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists()
        assert name in allowed


def test_the_example_source_is_prepared_as_headrace_says() -> None:
    flights = load_file(ROOT / "dags" / "streams" / "flights.py")
    assert page("docker/source/30_publication.sql") == source.statements(flights)
