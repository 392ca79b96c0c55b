"""Definitions: every mistake is named, all of them at once, and nothing heavy is imported to find them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from headrace import Policy, category, col, cross, expect, number, recipes, target_mean, tokens
from headrace.definition.load import load_file, load_folder
from headrace.definition.stream import Stream
from headrace.errors import DefinitionError


def _stacked(stream: Stream, *members: recipes.Recipe) -> Stream:
    return replace(stream, challengers=[recipes.stack(members=members)])


def _numbers(stream: Stream, **more: Any) -> Stream:
    own: dict[str, Any] = {"value": col("score"), "task": "regression", "loss": "absolute", **more}
    regression = replace(stream, label=replace(stream.label, **own))
    return replace(regression, challengers=[recipes.lightgbm(), recipes.gbdt_lr()])


MISTAKES: list[tuple[Callable[[Stream], Stream], str]] = [
    (lambda s: replace(s, name="Big Name"), "name: found 'Big Name', expected lower-case letters"),
    (lambda s: replace(s, name="metrics"), "name: found 'metrics'"),
    (lambda s: replace(s, name="pg_stream"), "name: found 'pg_stream'"),
    (lambda s: replace(s, name="s" * 42), "at most 41 of them"),
    (
        lambda s: replace(s, source=replace(s.source, table="visits")),
        "source.table: found 'visits', expected schema.table",
    ),
    (
        lambda s: replace(s, label=replace(s.label, table="public.")),
        "label.table: found 'public.', expected schema.table",
    ),
    (lambda s: replace(s, label=replace(s.label, table="public.visits")), "expected a table of its own, or neither"),
    (lambda s: replace(s, source=replace(s.source, key="")), "source.key: found nothing"),
    (lambda s: replace(s, source=replace(s.source, event_time="")), "source.event_time: found nothing"),
    (lambda s: replace(s, source=replace(s.source, conn_id="")), "source.conn_id: found nothing"),
    (lambda s: replace(s, features=[category("colour", "seq")]), "column 'seq': the log uses this name for its own"),
    (
        lambda s: replace(s, label=replace(s.label, value="score > 15")),  # type: ignore[arg-type]
        "label.value: found 'score > 15', expected an expression",
    ),
    (lambda s: replace(s, label=replace(s.label, value=col("score") > "x")), "expected a number beside >"),  # type: ignore[operator]
    (
        lambda s: replace(s, label=replace(s.label, window=timedelta(0))),
        "label.window: found 0:00:00, expected a positive time",
    ),
    (
        lambda s: replace(s, source=replace(s.source, max_ahead=timedelta(hours=6))),
        "source.max_ahead: found 6:00:00, expected less than label.window, 6:00:00",
    ),
    (
        lambda s: replace(s, source=replace(s.source, max_ahead=timedelta(-1))),
        "source.max_ahead: found -1 day, 0:00:00, expected less than",
    ),
    (
        lambda s: replace(s, label=replace(s.label, if_missing="ignore")),  # type: ignore[arg-type]
        "label.if_missing: found 'ignore', expected 'negative'",
    ),
    (lambda s: replace(s, label=replace(s.label, label_time="")), "label.label_time: found nothing"),
    (lambda s: replace(s, label=replace(s.label, key="")), "label.key: found nothing"),
    (lambda s: replace(s, features=[]), "features: found none, expected at least one"),
    (lambda s: replace(s, features=[category("colour"), number("colour")]), "features: 'colour' is declared 2 times"),
    (lambda s: replace(s, features=[category()]), "features: category() names no column"),
    (lambda s: replace(s, features=[category("colour"), cross("colour")]), "needs at least two columns"),
    (lambda s: replace(s, features=[category("colour"), cross("colour", "x")]), "cross('x') needs category('x')"),
    (
        lambda s: replace(s, features=[number("size"), target_mean("colour")]),
        "target_mean('colour') needs category('colour')",
    ),
    (lambda s: replace(s, label=replace(s.label, table=None)), "label.key: found 'visit_id' without a table"),
    (lambda s: replace(s, label=replace(s.label, key=None)), "label.key: found nothing"),
    (lambda s: replace(s, label=replace(s.label, on_late="never")), "label.on_late: found 'never'"),  # type: ignore[arg-type]
    (lambda s: replace(s, label=replace(s.label, on_late="reweight")), "'reweight' weighs the negatives"),
    (lambda s: replace(s, negative_rate=0.0), "negative_rate: found 0.0, expected a share above 0"),
    (lambda s: replace(s, negative_rate=1.1), "negative_rate: found 1.1, expected a share above 0"),
    (lambda s: replace(s, negatives="both"), "negatives: found 'both', expected 'weight' or 'calibrate'"),  # type: ignore[arg-type]
    (lambda s: replace(_numbers(s), negative_rate=0.5), "negative_rate: found 0.5 for labels that are numbers"),
    (
        lambda s: replace(s, policy=replace(s.policy, guards=["auc"])),
        "policy.guards: found 'auc', expected 'calibration'",
    ),  # type: ignore[list-item]
    (
        lambda s: replace(_numbers(s), policy=replace(s.policy, guards=["calibration"])),
        "policy.guards: found 'calibration' for labels that are numbers",
    ),
    (
        lambda s: replace(s, label=replace(s.label, table=None, key=None, value=col("size") > 5)),
        "'size' is the label's: it would leak",
    ),
    (lambda s: _numbers(s, task="ranking"), "label.task: found 'ranking', expected 'classification' or 'regression'"),
    (lambda s: _numbers(s, task="classification"), "label.loss: found 'absolute' for a yes or no, which has log loss"),
    (lambda s: _numbers(s, task="classification", loss=None, cap=4.0), "label.cap: found 4.0 for a yes or no"),
    (
        lambda s: _numbers(s, value=col("score") > 15),
        "label.value: found score > 15, which is a yes or no; expected a column of numbers",
    ),
    (
        lambda s: _numbers(s, value=col("score").is_present()),
        "label.value: found score is present, which is a yes or no",
    ),
    (lambda s: _numbers(s, loss=None), "label.loss: found None, expected 'absolute' or 'squared'"),
    (lambda s: _numbers(s, loss="log"), "label.loss: found 'log', expected 'absolute' or 'squared'"),
    (lambda s: _numbers(s, loss="squared"), "label.cap: found None, expected the most that one label may cost"),
    (lambda s: _numbers(s, loss="squared", cap=-1.0), "label.cap: found -1.0, expected the most"),
    (lambda s: _numbers(s, loss="squared", cap=float("inf")), "label.cap: found inf, expected the most"),
    (lambda s: _numbers(s, cap=4.0), "label.cap: found 4.0 for absolute errors, expected none"),
    (lambda s: _numbers(s, if_missing="negative"), "a number that did not come is not 0; expected 'drop'"),
    (lambda s: _numbers(s, on_late="reweight"), "label.on_late: found 'reweight', which weighs negatives"),
    (
        lambda s: replace(_numbers(s), contract=[expect.label_rate(0.1, 0.2)]),
        "label_rate(0.1, 0.2) is a share of positive labels; expected label_between(...)",
    ),
    (
        lambda s: replace(s, contract=[expect.label_between(1, 2)]),
        "label_between(1, 2) bounds numbers; expected label_rate(...)",
    ),
    (lambda s: replace(_numbers(s), contract=[expect.label_between(2, 1)]), "has its minimum above its maximum"),
    (lambda s: replace(_numbers(s), contract=[expect.label_between()]), "has neither a minimum nor a maximum"),
    (lambda s: replace(_numbers(s), challengers=[recipes.stack()]), "recipes: 'stack': stacks combine logits"),
    (
        lambda s: replace(_numbers(s), challengers=[recipes.gbdt_lr(offset=False)]),
        "recipes: 'gbdt_lr': found offset=False, whose leaves fade towards 0",
    ),
    (
        lambda s: replace(s, features=[category("colour"), tokens("tags"), cross("colour", "tags")]),
        "features: cross('tags'): a list of tokens is no category; name categories only",
    ),
    (
        lambda s: replace(s, features=[tokens("tags"), target_mean("tags")]),
        "features: target_mean('tags'): a list of tokens is no category",
    ),
    (
        lambda s: replace(s, features=[category("colour"), tokens("tags")], slices=["tags"]),
        "slices: 'tags' is a list of tokens, which has no single value",
    ),
    (
        lambda s: replace(s, features=[category("colour"), tokens("tags")], contract=[expect.length("tags", 1, 3)]),
        "contract: length(tags, 1, 3) is for single values, 'tags' is a list of tokens; expected not_null or immutable",
    ),
    (lambda s: replace(s, slices=["size"]), "slices: 'size' is not a declared category"),
    (lambda s: replace(s, contract=[expect.between("size", 2, 1)]), "has its minimum above its maximum"),
    (lambda s: replace(s, contract=[expect.between("size")]), "has neither a minimum nor a maximum"),
    (lambda s: replace(s, contract=[expect.length("place")]), "has neither a minimum nor a maximum"),
    (lambda s: replace(s, contract=[expect.between("size", 0, float("inf"))]), "expected finite numbers"),
    (lambda s: replace(s, contract=[expect.regex("place", r"\bA")]), r"Postgres reads \b in another way"),
    (lambda s: replace(s, contract=[expect.regex("place", "(?P<a>A)")]), "Postgres reads (?P in another way"),
    (lambda s: replace(s, contract=[expect.label_rate(0.1, 1.2)]), "expected rates between 0 and 1"),
    (lambda s: replace(s, contract=[expect.regex("place", "(")]), "not a regular expression"),
    (lambda s: replace(s, contract=[expect.regex("size", "1")]), "is for texts, 'size' is a number"),
    (lambda s: replace(s, contract=[expect.length("size", 1)]), "is for texts, 'size' is a number"),
    (lambda s: replace(s, contract=[expect.in_set("colour", set())]), "has no values"),
    (lambda s: replace(s, contract=[expect.not_null()]), "contract: not_null() names no column"),
    (lambda s: replace(s, contract=[expect.not_null("size")] * 2), "not_null(size) is declared 2 times"),
    (lambda s: replace(s, challengers=[s.champion]), "recipes: 2 are named 'river'; give each a name of its own"),
    (
        lambda s: replace(s, champion=recipes.lightgbm(name="trees")),
        "champion: 'trees' must be trained before it can serve",
    ),
    (
        lambda s: replace(s, features=[category("colour", "place"), number("size")]),
        "'slow' uses target means, but features declare no",
    ),
    (
        lambda s: replace(s, challengers=[recipes.gbdt_lr(depth=object())]),
        "'gbdt_lr' has a parameter that is not a JSON value",
    ),
    (
        lambda s: replace(s, champion=recipes.ftrl(alpha=0, expire_after=timedelta(-1))),
        "recipes: 'ftrl': found alpha=0, expected a positive number",
    ),
    (lambda s: _stacked(s, recipes.ftrl()), "recipes: 'stack': found 1 member(s), expected at least two"),
    (lambda s: _stacked(s, recipes.ftrl(), recipes.ftrl()), "recipes: 'stack': 2 members are named 'ftrl'"),
    (lambda s: _stacked(s, recipes.ftrl(), s.champion), "recipes: 'stack': member 'river' is of kind river, expected"),
    (
        lambda s: _stacked(s, recipes.ftrl(), recipes.stack()),
        "member 'stack' is of kind stack, expected ftrl, lightgbm",
    ),
    (
        lambda s: replace(s, challengers=[recipes.calibrated(recipes.ftrl(), by=["shade"])]),
        "recipes: 'ftrl_calibrated' calibrates by shade, expected names of categories among the features: colour",
    ),
    (
        lambda s: replace(s, challengers=[recipes.calibrated(s.champion, by=["colour"])]),
        "member 'river' is of kind river, expected",
    ),
    (
        lambda s: replace(s, challengers=[recipes.stack(calibrate_by=["colour", "colour"])]),
        "recipes: 'stack': found calibrate_by=colour, colour, expected each category once",
    ),
    (
        lambda s: replace(s, challengers=[recipes.ftrl(alpha="much")]),
        "'ftrl': found alpha=much, expected a positive number",
    ),  # type: ignore[arg-type]
    (lambda s: replace(s, challengers=[recipes.lightgbm(boosting="rf")]), "found boosting='rf', expected 'gbdt'"),
    (
        lambda s: replace(s, challengers=[recipes.lightgbm(scale=-1.0)]),
        "'lightgbm': found scale=-1.0, expected 0 or more",
    ),
    (lambda s: _stacked(s, recipes.lightgbm(num_leaves=7)), "member 'lightgbm' sets num_leaves, but the trees"),
    (lambda s: _stacked(s, recipes.label_mean(labels=0)), "member 'label_mean': found labels=0, expected at least 1"),
    (lambda s: _stacked(s, recipes.gbdt_lr(), recipes.gbdt_lr(name="b", table_bits=9)), "gbdt_lr differ in table_bits"),
    (lambda s: _stacked(s, recipes.lightgbm(scale=object())), "'stack' has a parameter that is not a JSON value"),
    (
        lambda s: replace(s, challengers=[recipes.stack(members=[recipes.ftrl(), recipes.label_mean()], num_leaves=7)]),
        "found num_leaves for trees, expected a member that has trees",
    ),
    (lambda s: replace(s, policy=Policy(challenger_slots=1)), "policy.challenger_slots: found 1 for 3 challengers"),
    (lambda s: replace(s, policy=replace(s.policy, min_gain=2.0)), "policy.min_gain: found 2.0, expected a share"),
    (
        lambda s: replace(s, policy=replace(s.policy, epoch_labels=1)),
        "policy.epoch_labels: found 1, expected at least 10",
    ),
    (
        lambda s: replace(s, policy=replace(s.policy, season=timedelta(0))),
        "policy.season: found 0:00:00, expected a positive time",
    ),
    (lambda s: replace(s, policy=replace(s.policy, compare_every=timedelta(-1))), "policy.compare_every: found -1 day"),
    (lambda s: replace(s, policy=replace(s.policy, epoch_time=timedelta(0))), "policy.epoch_time: found 0:00:00"),
    (
        lambda s: replace(s, policy=replace(s.policy, max_slot_bytes=10**6)),
        "policy.max_slot_bytes: found 1,000,000, expected at least 67,108,864",
    ),
    (
        lambda s: replace(s, policy=replace(s.policy, keep=timedelta(days=2, hours=6))),
        "policy.keep: found 2 days, 6:00:00, expected more than the label window and two seasons, 2 days, 6:00:00",
    ),
    (lambda s: replace(s, policy=replace(s.policy, keep_bytes=0)), "policy.keep_bytes: found 0, expected a positive"),
]


@pytest.mark.parametrize(("change", "said"), MISTAKES)
def test_each_mistake_is_named(small: Stream, change: Callable[[Stream], Stream], said: str) -> None:
    assert small.problems() == []
    found = change(small).problems()
    assert any(said in problem for problem in found), found


def test_a_stack_is_what_its_members_are() -> None:
    stack = recipes.stack()
    assert stack.bootstraps
    assert not recipes.stack(members=[recipes.ftrl(), recipes.label_mean()]).bootstraps
    assert stack.mistakes() == recipes.stack(members=recipes.lean_members()).mistakes() == []
    plain = recipes.stack(target_means=False)
    assert [member.target_means for member in plain.members] == [False] * len(stack.members)
    other = recipes.stack(members=[*stack.members[:-1], recipes.label_mean(name=stack.members[-1].name, labels=100)])
    assert stack.config() == recipes.stack().config() != other.config()


def test_all_mistakes_are_listed_at_once(definitions: Path, tmp_path: Path) -> None:
    text = (definitions / "small.py").read_text()
    for old, new in (
        ('name="small"', 'name="Small"'),
        ('table="public.visits"', 'table="visits"'),
        ("timedelta(hours=6)", "timedelta(0)"),
        ('slices=["colour"]', 'slices=["colour", "size"]'),
        ("epoch_labels=50", "epoch_labels=5"),
        ('value=col("score") > 15', 'value="score > 15"'),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load_file(tmp_path / "wrong.py")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("wrong.py: the definition of 'Small' has 6 mistake(s):")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  - name", "  - source.table", "  - label.value", "  - label.window", "  - slices", "  - policy.epoch_labels"
    ]  # fmt: skip


FILES = {
    "import nothing_of_this_name": "running the definition raised ModuleNotFoundError: No module named 'nothing_of_this_name'",
    "stream = (": "running the definition raised SyntaxError",
    "1 / 0": "running the definition raised ZeroDivisionError: division by zero",
    "from headrace import col\nx = col('a') == None": "running the definition raised TypeError: found None beside col('a') ==",
    "streams = 1": "found no `stream = Stream(...)`; expected one of that name",
    "stream = 'flights'": "found no `stream = Stream(...)`",
}


@pytest.mark.parametrize("content", FILES)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.py").write_text(content)
    with pytest.raises(DefinitionError) as caught:
        load_file(tmp_path / "broken.py")
    assert str(caught.value).startswith(f"{tmp_path / 'broken.py'}: {FILES[content]}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('number("size"),', '"size",'),
        ("champion=recipes.river(logistic)", "champion=logistic"),
        ('name="small"', "name=5"),
        ("window=timedelta(hours=6)", "window=6"),
        ('contract=[', 'contract=["not null", '),
    ],
)  # fmt: skip
def test_a_value_of_a_wrong_type_is_a_mistake_not_a_crash(
    definitions: Path, tmp_path: Path, old: str, new: str
) -> None:
    text = (definitions / "small.py").read_text()
    assert old in text
    (tmp_path / "wrong.py").write_text(text.replace(old, new))
    with pytest.raises(
        DefinitionError, match=r"wrong.py: the definition holds a value of a wrong type: .*mypy --strict wrong.py"
    ):
        load_file(tmp_path / "wrong.py")


def test_a_folder_gives_its_streams_and_every_files_mistakes(definitions: Path, tmp_path: Path) -> None:
    text = (definitions / "small.py").read_text()
    (tmp_path / "b.py").write_text(text)
    (tmp_path / "a.py").write_text(text.replace('name="small"', 'name="other"'))
    (tmp_path / "_shared.py").write_text("1 / 0")
    (tmp_path / "notes.txt").write_text("no Python")
    assert list(load_folder(tmp_path)) == ["other", "small"]
    (tmp_path / "c.py").write_text(text)
    (tmp_path / "d.py").write_text("1 / 0")
    (tmp_path / "e.py").write_text(text.replace("hours=6", "hours=-6"))
    with pytest.raises(DefinitionError) as caught:
        load_folder(tmp_path)
    message = str(caught.value)
    assert all(
        said in message for said in ("the name 'small' is taken", "ZeroDivisionError", "label.window: found -1 day")
    )
    with pytest.raises(
        DefinitionError, match=r"found no folder .*nowhere, expected stream definitions there; set HEADRACE_STREAMS"
    ):
        load_folder(tmp_path / "nowhere")


def test_nothing_heavy_is_imported(definitions: Path) -> None:
    """Airflow parses these files every few seconds."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom headrace.definition.load import load_folder\n"
        f"load_folder(Path({str(definitions)!r}))\n"
        "heavy = {'airflow', 'great_expectations', 'lightgbm', 'numba', 'numpy', 'pandas', 'psycopg2', 'pyarrow', 'river',"
        " 'scipy',"
        " 'sklearn', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


HASHED: list[Callable[[Stream], Stream]] = [
    lambda s: replace(s, contract=[]),
    lambda s: replace(s, slices=[]),
    lambda s: replace(s, features=s.features[:-1]),
    lambda s: replace(s, label=replace(s.label, value=col("score") > 16)),
    lambda s: replace(s, label=replace(s.label, window=timedelta(hours=7))),
    lambda s: replace(s, source=replace(s.source, max_ahead=timedelta(hours=5))),
    lambda s: replace(s, policy=replace(s.policy, epoch_labels=51)),
]
NOT_HASHED: list[Callable[[Stream], Stream]] = [
    lambda s: replace(s, challengers=[]),
    lambda s: replace(s, policy=replace(s.policy, min_gain=0.1, compare_every=timedelta(days=3))),
    lambda s: replace(s, policy=replace(s.policy, keep=timedelta(days=9), keep_bytes=10**9)),
    lambda s: replace(s, source=replace(s.source, max_ahead=s.label.window / 4)),
]


def test_the_hash_covers_what_the_log_depends_on(small: Stream) -> None:
    hashes = {change(small).hash() for change in HASHED} | {small.hash()}
    assert len(hashes) == len(HASHED) + 1
    assert {change(small).hash() for change in NOT_HASHED} == {small.hash()}


def test_a_changed_build_function_is_another_recipe(definitions: Path, tmp_path: Path, small: Stream) -> None:
    text = (definitions / "small.py").read_text()
    (tmp_path / "small.py").write_text(text.replace("alpha=0.1", "alpha=0.2"))
    changed = load_file(tmp_path / "small.py")
    assert changed.hash() == small.hash()
    assert changed.champion.config() != small.champion.config()
    assert changed.recipe("slow") is not None
    assert changed.recipe("none") is None


def test_columns_of_the_log(small: Stream) -> None:
    assert small.columns() == ("colour", "place", "size")
    assert [small.log_column(c) for c in ("visit_id", "seen_at", "size")] == ["key", "event_time", "size"]
    assert (small.slot, small.publication) == ("headrace_small", "headrace_small")


@pytest.mark.parametrize("value", [None, [1], col("b")])
def test_a_column_compares_with_constants_only(value: Any) -> None:
    with pytest.raises(TypeError, match=r"beside col\('a'\) ==, expected a number, a text or a boolean"):
        _ = col("a") == value
    with pytest.raises(TypeError, match="unhashable"):
        hash(col("a"))


@pytest.mark.parametrize(
    ("window", "said", "bound"),
    [
        (timedelta(minutes=30), None, timedelta(minutes=7.5)),
        (timedelta(days=60), None, timedelta(days=1)),
        (timedelta(minutes=30), timedelta(minutes=20), timedelta(minutes=20)),
        (timedelta(days=60), timedelta(days=3), timedelta(days=3)),
    ],
)
def test_a_row_may_lie_ahead_by_a_part_of_the_window(
    small: Stream, window: timedelta, said: timedelta | None, bound: timedelta
) -> None:
    made = replace(small, label=replace(small.label, window=window), source=replace(small.source, max_ahead=said))
    assert made.max_ahead == bound
    assert not [problem for problem in made.problems() if "max_ahead" in problem]


def test_numbers_as_labels_change_the_hash_and_nothing_else_does(small: Stream) -> None:
    """What only regression has is no part of what a yes or no is stored as: its log goes on."""
    assert not {"task", "loss", "cap"} & set(small.as_json()["label"])
    regression = _numbers(small)
    assert regression.problems() == []
    squared = _numbers(small, loss="squared", cap=100.0)
    assert squared.problems() == []
    hashes = {s.hash() for s in (small, regression, squared, _numbers(small, loss="squared", cap=101.0))}
    assert len(hashes) == 4
    assert (small.loss.name, regression.loss.name, squared.loss.name) == ("log loss", "absolute error", "squared error")
    assert squared.loss.cap == 100.0 and not small.loss.regression


def test_which_negatives_teach_belongs_to_versions_and_not_to_the_log(small: Stream) -> None:
    some = replace(small, negative_rate=0.1, negatives="calibrate")
    assert some.problems() == []
    assert some.hash() == small.hash()
    assert small.config_of(small.champion) == small.champion.config()
    assert some.config_of(some.champion) == {
        **small.champion.config(),
        "negatives": {"rate": 0.1, "by": "calibrate"},
    }
