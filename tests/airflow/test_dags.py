"""What Airflow's dag-processor sees: the DAGs of sound definitions, the mistakes of others, nothing heavy imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("great_expectations", "lightgbm", "river", "numba", "numpy", "scipy", "pandas", "pyarrow", "sklearn")

# In a process of its own, as Airflow's own parsing is: what this one has imported does not count.
PARSE = """
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
began = time.perf_counter()
bag = DagBag(sys.argv[1])
seconds = time.perf_counter() - began
heavy = [name for name in sys.argv[2].split(",") if name in sys.modules]
dags = {
    dag_id: {
        "tasks": {
            task.task_id: {
                "down": sorted(task.downstream_task_ids),
                "doc": task.doc_md or "",
                "owner": task.owner,
                "retries": task.retries,
                "timeout": None if task.execution_timeout is None else task.execution_timeout.total_seconds(),
                "outlets": [asset.uri for asset in task.outlets],
                "at_once": task.max_active_tis_per_dagrun,
            }
            for task in dag.tasks
        },
        "doc": dag.doc_md or "",
        "tags": sorted(dag.tags),
        "catchup": dag.catchup,
        "runs": dag.max_active_runs,
        "timetable": type(dag.timetable).__name__,
        "every": getattr(getattr(dag.timetable, "delta", None), "total_seconds", lambda: None)(),
        "params": {name: param.schema | {"default": str(param.value)} for name, param in
                   ((name, dag.params.get_param(name)) for name in dag.params)},
        "serialized": len(json.dumps(DagSerialization.to_dict(dag))) > 0,
    }
    for dag_id, dag in bag.dags.items()
}
print(json.dumps({"seconds": seconds, "heavy": heavy, "errors": bag.import_errors, "dags": dags}))
"""


def parse(streams: Path, home: Path, **env: str) -> dict[str, Any]:
    """What Airflow finds in dags/ with these stream definitions."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW_", "HEADRACE_"))}
    own = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "HEADRACE_STREAMS": str(streams),
    }
    argv = [sys.executable, "-c", PARSE, str(REPOSITORY / "dags"), ",".join(HEAVY)]
    done = subprocess.run(argv, env=inherited | own | env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return parse(REPOSITORY / "dags" / "streams", tmp_path_factory.mktemp("airflow"))


def test_parses_without_errors_and_imports_nothing_heavy(found: dict[str, Any]) -> None:
    assert found["errors"] == {}
    assert found["heavy"] == []
    assert found["seconds"] < 5
    assert set(found["dags"]) == {
        f"flights__{what}" for what in ("quality", "bootstrap", "compare", "rollback", "housekeeping")
    }


def test_bootstrap_leads_from_checked_data_to_the_shadow(found: dict[str, Any]) -> None:
    tasks = found["dags"]["flights__bootstrap"]["tasks"]
    assert {name: task["down"] for name, task in tasks.items()} == {
        "quality": ["candidates", "recipes"],
        "recipes": ["candidates"],
        "candidates": ["admit"],
        "admit": ["catch_up"],
        "catch_up": ["shadow"],
        "shadow": [],
    }
    assert tasks["candidates"]["at_once"] is None, "side by side"
    recipes = found["dags"]["flights__bootstrap"]["params"]["recipes"]
    assert recipes["items"]["enum"] == ["gbdt_lr", "stack"]
    assert recipes["examples"] == recipes["items"]["enum"], "without examples the form is a text field"
    assert recipes["default"] == "['gbdt_lr', 'stack']"


def test_people_find_out_what_every_dag_and_task_does(found: dict[str, Any]) -> None:
    for dag_id, dag in found["dags"].items():
        assert "flights" in dag["doc"], dag_id
        assert "FROM metrics." in dag["doc"], dag_id
        assert "{" not in dag["doc"], dag_id
        assert dag["tags"] == ["flights", "headrace"]
        for name, task in dag["tasks"].items():
            assert len(task["doc"].strip()) > 20, (dag_id, name)
            assert task["owner"] == "headrace"


def test_schedules_retries_and_forms(found: dict[str, Any]) -> None:
    dags = found["dags"]
    assert {dag["catchup"] for dag in dags.values()} == {False}
    assert {dag["runs"] for dag in dags.values()} == {1}
    assert (dags["flights__compare"]["timetable"], dags["flights__compare"]["every"]) == ("DeltaTriggerTimetable", 3600)
    assert (dags["flights__quality"]["timetable"], dags["flights__quality"]["every"]) == (
        "DeltaTriggerTimetable",
        86400,
    )
    assert (dags["flights__housekeeping"]["timetable"], dags["flights__housekeeping"]["every"]) == (
        "DeltaTriggerTimetable",
        86400,
    )
    assert dags["flights__compare"]["tasks"]["compare"]["retries"] == 0
    assert dags["flights__quality"]["tasks"]["quality"]["retries"] == 1
    commands = ("quality", "compare", "rollback", "candidates", "admit", "catch_up", "housekeeping")
    timeouts = [task["timeout"] for dag in dags.values() for name, task in dag["tasks"].items() if name in commands]
    assert len(timeouts) == 8
    assert all(timeouts)
    rollback = dags["flights__rollback"]["params"]
    assert rollback["reason"]["minLength"] > 0
    assert rollback["to"]["type"] == ["null", "string"]


def test_assets_link_the_dags(found: dict[str, Any]) -> None:
    outlets = {
        (dag_id.partition("__")[2], name): task["outlets"]
        for dag_id, dag in found["dags"].items()
        for name, task in dag["tasks"].items()
        if task["outlets"]
    }
    assert outlets == {
        ("quality", "quality"): ["headrace://flights/quality"],
        ("bootstrap", "quality"): ["headrace://flights/quality"],
        ("bootstrap", "shadow"): ["headrace://flights/challengers"],
        ("compare", "promoted"): ["headrace://flights/champion"],
        ("rollback", "rollback"): ["headrace://flights/champion"],
    }


def test_a_broken_definition_is_an_import_error_with_all_mistakes_and_hides_no_other_stream(tmp_path: Path) -> None:
    streams = tmp_path / "streams"
    streams.mkdir()
    good = REPOSITORY / "dags" / "streams" / "flights.py"
    shutil.copy(good, streams / "flights.py")
    text = good.read_text().replace('name="flights"', 'name="Flights!"').replace("timedelta(hours=36)", "timedelta(0)")
    (streams / "broken.py").write_text(text)
    alone = re.sub(r"challengers=\[.*\],\n", "", good.read_text()).replace('"flights"', '"alone"')
    (streams / "alone.py").write_text(alone)
    found = parse(streams, tmp_path / "airflow", HEADRACE_COMPARE_EVERY="10")
    assert {dag_id for dag_id in found["dags"] if dag_id.startswith("flights__")} == {
        f"flights__{what}" for what in ("quality", "bootstrap", "compare", "rollback", "housekeeping")
    }
    assert {dag_id for dag_id in found["dags"] if dag_id.startswith("alone__")} == {
        f"alone__{what}" for what in ("quality", "compare", "rollback", "housekeeping")
    }, "nothing to bootstrap"
    ((path, message),) = found["errors"].items()
    assert Path(path).name == "headrace_mistakes.py"
    assert "broken.py" in message
    assert "name: found 'Flights!'" in message
    assert "label.window" in message
    assert found["dags"]["flights__compare"]["every"] == 10, "HEADRACE_COMPARE_EVERY overrides the policy"
