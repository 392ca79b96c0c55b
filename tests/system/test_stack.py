"""A real Airflow on a real database: started, used through its API, robbed of a process, stopped without a trace."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from headrace.airflow.stack import LOOPBACK, AirflowClient, AirflowStack, claim_port
from headrace.errors import ServerError
from headrace.live.process import ProcessTree
from headrace.store.embedded import EmbeddedPostgres

DAGS = '''
"""Two DAGs for the test of the stack."""
import os, subprocess, sys, time
from airflow.sdk import Param, dag, task

@dag(schedule=None, params={"n": Param(1, type="integer")})
def double():
    @task
    def twice(params):
        return 2 * params["n"]
    twice()

@dag(schedule=None, params={"pids": Param("", type="string")})
def stubborn():
    """A task that does not care for SIGTERM, with a daemon that left its session."""
    @task
    def stay(params):
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        with open(params["pids"] + ".new", "w") as file:
            file.write(f"{os.getpid()} {daemon.pid}")
        os.rename(params["pids"] + ".new", params["pids"])
        time.sleep(600)
    stay()

double()
stubborn()
'''


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    # pytest's own tmp_path is closed to other users, and for root Postgres runs as one.
    path = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def stack(room: Path) -> Iterator[AirflowStack]:
    dags = room / "dags"
    dags.mkdir()
    (dags / "two.py").write_text(DAGS)
    with EmbeddedPostgres(room) as postgres:
        postgres.create_database("airflow")
        with AirflowStack(room, metadata_dsn=postgres.dsn("airflow"), dags_folder=dags) as stack:
            stack.wait_ready()
            yield stack


def processes(wanted: Callable[[psutil.Process], bool]) -> list[str]:
    """Describe the live processes, zombies aside, for which `wanted` holds."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and wanted(process):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def within(seconds: float, holds: Callable[[], object]) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.timeout(180)
def test_a_run_triggered_through_the_api_gets_its_params_and_succeeds(stack: AirflowStack) -> None:
    client = stack.client()
    client.unpause("double")
    run_id = client.trigger_dag("double", {"n": 21})
    run = client.wait_for("double", run_id, timeout=60)
    assert (run["state"], run["run_type"], run["conf"]) == ("success", "manual", {"n": 21})
    assert [task["state"] for task in client.task_instances("double", run_id)] == ["success"]
    assert [run["dag_run_id"] for run in client.dag_runs("double")] == [run_id]
    path = f"/api/v2/dags/double/dagRuns/{run_id}/taskInstances/twice/xcomEntries/return_value"
    assert client.get(path)["value"] == 42


@pytest.mark.timeout(180)
def test_answers_only_on_loopback_and_only_with_the_password(stack: AirflowStack) -> None:
    family = {psutil.Process(stack.pids["scheduler"]).parent()}
    family |= {process for parent in tuple(family) for process in parent.children(recursive=True)}
    pids = {process.pid for process in family}
    assert len(stack.pids) == 4
    assert pids >= set(stack.pids.values())
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    }
    assert listening == {(LOOPBACK, int(stack.url.rpartition(":")[2]))}
    with pytest.raises(ServerError, match="401"):
        AirflowClient(stack.url, stack.user, "guess").get("/api/v2/dags")
    with pytest.raises(ServerError, match="no DAG nonesuch after 0 s: no import errors"):
        stack.client().unpause("nonesuch", timeout=0)
    for kept in ("secrets.json", "passwords.json"):
        assert (stack.root / kept).stat().st_mode & 0o077 == 0


@pytest.mark.timeout(180)
def test_names_what_died_and_leaves_nothing_behind_even_of_a_stubborn_task(stack: AirflowStack) -> None:
    assert stack.failed() is None
    client = stack.client()
    client.unpause("stubborn")
    pids = stack.home / "pids"
    client.trigger_dag("stubborn", {"pids": str(pids)})
    assert within(60, pids.exists)
    outlaws = [int(pid) for pid in pids.read_text().split()]
    sessions = {*stack.pids.values(), *outlaws}
    assert all(psutil.pid_exists(pid) for pid in outlaws)

    os.kill(stack.pids["dag-processor"], signal.SIGKILL)
    assert within(5, stack.failed)
    assert "Airflow's dag-processor ended with -9" in str(stack.failed())

    port = int(stack.url.rpartition(":")[2])
    stack.stop()
    assert processes(lambda process: process.pid in sessions or os.getsid(process.pid) in sessions) == []
    assert processes(lambda process: process.environ().get("AIRFLOW_HOME") == str(stack.root)) == []
    assert claim_port(port) == port


def test_health_by_the_word_of_an_earlier_run_does_not_count(room: Path) -> None:
    stack = AirflowStack(room / "late", metadata_dsn="postgresql:///none", dags_folder=room / "dags")

    def health(beat: datetime) -> dict[str, dict[str, str]]:
        parts = ("scheduler", "triggerer", "dag_processor")
        beats = {part: {"status": "healthy", f"latest_{part}_heartbeat": beat.isoformat()} for part in parts}
        return {"metadatabase": {"status": "healthy"}} | beats

    assert stack._unhealthy(health(datetime.now(UTC))) == ""
    earlier = health(datetime.now(UTC) - timedelta(seconds=20))
    assert stack._unhealthy(earlier) == "scheduler is not up, triggerer is not up, dag_processor is not up"


def test_a_taken_port_is_refused_with_its_owner_before_anything_is_made(room: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        stack = AirflowStack(room / "other", metadata_dsn="postgresql:///none", dags_folder=room / "dags", port=port)
        with pytest.raises(ServerError, match=rf"port {port} .* taken by process {os.getpid()} "):
            stack.start()
        assert not (room / "other").exists()


def test_a_failed_migration_shows_its_log_and_leaves_no_process(room: Path) -> None:
    missing = f"postgresql://postgres@/none?host={room}/nowhere"
    stack = AirflowStack(room / "broken", metadata_dsn=missing, dags_folder=room / "dags")
    with pytest.raises(ServerError, match=r"(?s)airflow db migrate ended with 1:.*nowhere"):
        stack.start()
    assert processes(lambda process: process.environ().get("AIRFLOW_HOME") == str(stack.root)) == []


HOLDER = """
import os, sys, time
from pathlib import Path
from headrace.live.process import ProcessTree
tree = ProcessTree(grace=1)
here = Path(sys.argv[1])
stay = "trap '' TERM; echo ready; while :; do sleep 1; done"
script = f'(setsid sh -c "{stay}" &); {stay}'
tree.spawn("stubborn", ["sh", "-c", script], env={**os.environ, "MARK": sys.argv[1]}, log=here / "log", cwd=here)
tree.spawn("plain", ["sleep", "600"], env={**os.environ, "MARK": sys.argv[1]}, log=here / "log2", cwd=here)
print("up", flush=True)
time.sleep(600)
"""


def test_a_killed_holder_takes_its_whole_tree_along(tmp_path: Path) -> None:
    def marked() -> list[str]:
        return processes(lambda process: process.environ().get("MARK") == str(tmp_path))

    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        assert within(10, lambda: (tmp_path / "log").read_text().count("ready") == 2)
        assert len(marked()) >= 3
        holder.kill()
    assert within(15, lambda: not marked()), marked()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
def test_a_killed_guard_takes_its_children_along_and_is_reported(tmp_path: Path) -> None:
    tree = ProcessTree(grace=1)
    pid = tree.spawn("child", ["sleep", "600"], env=dict(os.environ), log=tmp_path / "log", cwd=tmp_path)
    guard = psutil.Process(pid).parent()
    guard.kill()
    assert within(5, lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert within(5, lambda: "child" in tree.ended())
    with pytest.raises(ServerError, match="ended with -9"):
        tree.stop()


def test_a_tree_reports_ends_and_programs_that_do_not_exist(tmp_path: Path) -> None:
    tree = ProcessTree(grace=1)
    try:
        tree.spawn("brief", ["sh", "-c", "echo said; exit 3"], env={}, log=tmp_path / "log", cwd=tmp_path)
        assert tree.wait("brief", 10) == 3
        assert (tmp_path / "log").read_text() == "said\n"
        with pytest.raises(ServerError, match=r"cannot run /no/such: .*No such file"):
            tree.spawn("none", ["/no/such"], env={}, log=tmp_path / "log", cwd=tmp_path)
        assert tree.ended() == {"brief": 3}
    finally:
        tree.stop()
    tree.stop()
    assert tree.ended() == {}
