"""A real Airflow on this machine for demos, tests and `headrace up`, and a small client of its REST API.

`AirflowStack` runs api-server, scheduler, dag-processor and triggerer as four processes, reachable on 127.0.0.1 only,
with a generated password and keys that are kept per home. `wait_ready` believes a health check only when it comes from
the api-server that this object started and reports heartbeats newer than the start. `stop` leaves no process behind,
and neither does a kill -9 of the process that holds the object (see `headrace.live.process`). Log servers are not
started, since they bind all interfaces: the api-server reads the task logs from the same disk.

The metadata database must exist; it is migrated here. Nothing of this is needed beside an Airflow that runs already,
and it is no way to run Airflow in production. The metadata is read and written without an asynchronous driver, so
`GET dagRuns/{run}/wait` does not work; `AirflowClient.wait_for` polls.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import psutil  # type: ignore[import-untyped]

from headrace.errors import ServerError
from headrace.live.process import ProcessTree

LOOPBACK = "127.0.0.1"
USER = "admin"
MIGRATE_SECONDS = 180
STOP_GRACE = 5.0  # seconds for the scheduler to wait for running tasks
COMPONENTS = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}

# Everything here may be overridden through `env`. Intervals are short: a person is watching, on one small machine.
SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "headrace.airflow.stack.hostname",  # the default one asks the DNS
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
    "AIRFLOW__API__HOST": LOOPBACK,
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "",  # or Airflow wants asyncpg
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",  # tasks of a killed stack fail soon after a restart
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",  # or the end of a skipped task is noticed 5 s late
}


def hostname() -> str:
    """What Airflow's jobs and tasks call this machine."""
    return LOOPBACK


class AirflowStack:
    """One Airflow whose files lie under `home/airflow` and whose processes log to `home/logs`.

    Parameters
    ----------
    home : Path
        Made when missing; keys and password are kept in it, readable by its owner only.
    metadata_dsn : str
        URL of an existing Postgres database for Airflow's metadata alone.
    dags_folder, plugins_folder : Path
        As in Airflow; without `plugins_folder` there are no plugins.
    port : int, optional
        Port of web UI and API; a free one is chosen when it is not given.
    env : Mapping[str, str]
        Added to the processes' environment, over the settings made here. AIRFLOW__ variables of this process's own
        environment are not passed on: they belong to another Airflow.
    """

    def __init__(
        self,
        home: Path,
        *,
        metadata_dsn: str,
        dags_folder: Path,
        plugins_folder: Path | None = None,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home.absolute()
        self.root = self.home / "airflow"
        self.logs = self.home / "logs"
        # SQLAlchemy 2.1 takes a bare postgresql:// for psycopg 3.
        self.metadata_dsn = metadata_dsn.replace("postgresql://", "postgresql+psycopg2://", 1)
        self.dags_folder = dags_folder.absolute()
        self.plugins_folder = plugins_folder.absolute() if plugins_folder else self.root / "plugins"
        self.user = USER
        self._wanted_port = port
        self._port: int | None = port
        self._env = dict(env or {})
        self._tree = ProcessTree(grace=STOP_GRACE)
        self._started_at = datetime.now(UTC)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where people and clients find it, e.g. http://127.0.0.1:8080; the port is known after `start`."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def password(self) -> str:
        """The password of `user`, generated once per home."""
        return str(self._kept_secrets()["password"])

    @property
    def pids(self) -> dict[str, int]:
        """The components' process ids, which are also the ids of their sessions."""
        return {name: pid for name, pid in self._tree.pids.items() if name in COMPONENTS}

    def environment(self) -> dict[str, str]:
        """The environment the components run in; good for `python -m airflow` by hand, too."""
        kept = self._kept_secrets()
        inherited = {
            name: value
            for name, value in os.environ.items()
            # Without bytecode every component starts ten seconds later.
            if not name.startswith(("AIRFLOW_", "_AIRFLOW_")) and name != "PYTHONDONTWRITEBYTECODE"
        }
        own = {
            "AIRFLOW_HOME": str(self.root),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.metadata_dsn,
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags_folder),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.plugins_folder),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.root / "passwords.json"),
            "AIRFLOW__CORE__FERNET_KEY": kept["fernet_key"],
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__PORT": str(self._port),
            "AIRFLOW__API__SECRET_KEY": kept["secret_key"],
            "AIRFLOW__API_AUTH__JWT_SECRET": kept["jwt_secret"],
        }
        # Tasks call the api-server; a proxy could not.
        direct = {
            name: ",".join(filter(None, (inherited.get(name), LOOPBACK, "localhost")))
            for name in ("NO_PROXY", "no_proxy")
        }
        return inherited | direct | SETTINGS | own | self._env

    def client(self) -> AirflowClient:
        """A client that logs in as the generated user."""
        return AirflowClient(self.url, self.user, self.password)

    def start(self) -> None:
        """Migrate the metadata database and start the four processes; returns before they are ready.

        Does nothing when they were started already; after a failure, `stop` first.

        Raises
        ------
        ServerError
            The port is taken, or the migration failed; the message ends with the tail of its log.
        """
        if self._tree.pids:
            return
        self._port = claim_port(self._wanted_port)
        for directory in (self.root, self.logs, self.plugins_folder):
            directory.mkdir(parents=True, exist_ok=True)
        _write_private(self.root / "passwords.json", json.dumps({self.user: self.password}))
        self._started_at = datetime.now(UTC)
        try:
            self._spawn("db-migrate", "db", "migrate")
            if (code := self._tree.wait("db-migrate", MIGRATE_SECONDS)) != 0:
                how = f"ended with {code}" if code is not None else f"did not end within {MIGRATE_SECONDS} s"
                raise ServerError(f"airflow db migrate {how}:\n{self._log_tail('db-migrate')}")
            for name, arguments in COMPONENTS.items():
                self._spawn(name, *arguments)
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, timeout: float = 120) -> None:
        """Return when all four are healthy, by our own api-server's word, and a task could run at once.

        Raises
        ------
        ServerError
            One of them died, or they were not healthy within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        client = self.client()
        while True:
            if sentence := self.failed():
                raise ServerError(sentence)
            try:
                client.login()  # only our api-server knows the password
                # What tasks talk to is built at its first request, which takes seconds: now, while the others start.
                client.get("/execution/health")
                missing = self._unhealthy(client.get("/api/v2/monitor/health"))
            except ServerError as error:
                missing = str(error)
            if not missing:
                return
            if time.monotonic() > deadline:
                raise ServerError(f"Airflow was not ready within {timeout:.0f} s: {missing}; see {self.logs}")
            time.sleep(0.1)

    def failed(self) -> str | None:
        """A sentence about a component that died, with the tail of its log, or None when all live."""
        for name, code in self._tree.ended().items():
            if name in COMPONENTS:
                return f"Airflow's {name} ended with {code}; the end of {self._log(name)}:\n{self._log_tail(name)}"
        return None

    def stop(self) -> None:
        """Stop everything: SIGTERM, then SIGKILL to what is left after a bound. May be called again.

        Raises
        ------
        ServerError
            A process is left even so.
        """
        self._tree.stop()

    def _unhealthy(self, health: Mapping[str, Any]) -> str:
        """Name what is not healthy, or healthy only by the word of an earlier run; empty when all is well."""
        stale = []
        for part in ("scheduler", "triggerer", "dag_processor"):
            beat = health[part][f"latest_{part}_heartbeat"]
            fresh = beat is not None and datetime.fromisoformat(beat) >= self._started_at
            if health[part]["status"] != "healthy" or not fresh:
                stale.append(f"{part} is {health[part]['status'] if fresh else 'not up'}")
        if health["metadatabase"]["status"] != "healthy":
            stale.append("metadatabase is unhealthy")
        return ", ".join(stale)

    def _spawn(self, name: str, *arguments: str) -> None:
        argv = [sys.executable, "-P", "-m", "airflow", *arguments]
        self._log(name).unlink(missing_ok=True)  # of an earlier run
        self._tree.spawn(name, argv, env=self.environment(), log=self._log(name), cwd=self.root)

    def _log(self, name: str) -> Path:
        return self.logs / f"airflow-{name}.log"

    def _log_tail(self, name: str, lines: int = 15) -> str:
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-lines:])

    def _kept_secrets(self) -> dict[str, str]:
        path = self.root / "secrets.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = {
                "password": secrets.token_urlsafe(9),
                "jwt_secret": secrets.token_urlsafe(64),
                "secret_key": secrets.token_urlsafe(32),
                "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            }
            _write_private(path, json.dumps(fresh))
        kept: dict[str, str] = json.loads(path.read_text())
        return kept


class AirflowClient:
    """Logs in to an Airflow 3 and calls its REST API; paths are relative to the server, e.g. /api/v2/dags.

    Parameters
    ----------
    url : str
        The server, without a path.
    user, password : str
        Of Airflow's SimpleAuthManager; a token is fetched at the first call and again when it has expired.
    timeout : float
        Seconds for each call.

    Every method raises ServerError when the server cannot be reached or refuses, with what it said.
    """

    def __init__(self, url: str, user: str, password: str, *, timeout: float = 30) -> None:
        self.url = url.rstrip("/")
        self.user = user
        self.password = password
        self.timeout = timeout
        self._token: str | None = None
        # The environment's proxies are not for a server on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def login(self) -> None:
        """Fetch a token unless there is one."""
        if self._token is None:
            answer = self._send("POST", "/auth/token", {"username": self.user, "password": self.password})
            self._token = answer["access_token"]

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("POST", path, body)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("PATCH", path, body)

    def unpause(self, dag_id: str, timeout: float = 60) -> None:
        """Unpause a DAG, waiting up to `timeout` seconds for the dag-processor to have read it."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.patch(_dag(dag_id), {"is_paused": False})
            except NotFoundError as error:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"Airflow has no DAG {dag_id} after {timeout:.0f} s: {self._import_errors()}"
                    ) from error
                time.sleep(0.2)
            else:
                return

    def trigger_dag(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a manual run, with `conf` as its params, and return its run id."""
        run = self.post(f"{_dag(dag_id)}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run, as the API returns it: state, run_type, conf, start_date, end_date and so on."""
        return self.get(f"{_dag(dag_id)}/dagRuns/{quote(run_id, safe='')}")

    def dag_runs(self, dag_id: str, limit: int = 100) -> list[dict[str, Any]]:
        """The newest runs of a DAG, newest first; of all DAGs with the id `~`."""
        runs: list[dict[str, Any]] = self.get(f"{_dag(dag_id)}/dagRuns", limit=limit, order_by="-id")["dag_runs"]
        return runs

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """All task instances of a run, a mapped one once per map index."""
        path = f"{_dag(dag_id)}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(path, limit=100, offset=len(found))
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return found

    def wait_for(self, dag_id: str, run_id: str, timeout: float, poll: float = 0.25) -> dict[str, Any]:
        """Return the run once it has succeeded or failed; see its `state`."""
        deadline = time.monotonic() + timeout
        while (run := self.dag_run(dag_id, run_id))["state"] not in ("success", "failed"):
            if time.monotonic() > deadline:
                states = {task["task_id"]: task["state"] for task in self.task_instances(dag_id, run_id)}
                raise ServerError(f"run {run_id} of {dag_id} is {run['state']} after {timeout:.0f} s; tasks: {states}")
            time.sleep(poll)
        return run

    def _import_errors(self) -> str:
        found = self.get("/api/v2/importErrors")["import_errors"]
        return "; ".join(f"{one['filename']}: {one['stack_trace'].strip()}" for one in found) or "no import errors"

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.login()
        try:
            return self._send(method, path, body)
        except UnauthorizedError:
            self._token = None  # expired
            self.login()
            return self._send(method, path, body)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, method=method)  # noqa: S310 - the caller's own server
        request.add_header("Accept", "application/json")
        if self._token is not None:
            request.add_header("Authorization", f"Bearer {self._token}")
        if body is not None:
            request.add_header("Content-Type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                answer: dict[str, Any] = json.loads(response.read() or b"{}")
                return answer
        except urllib.error.HTTPError as error:
            kind = {401: UnauthorizedError, 404: NotFoundError}.get(error.code, ServerError)
            said = error.read().decode(errors="replace")[:500]
            raise kind(f"Airflow answered {method} {path} with {error.code} {error.reason}: {said}") from error
        except (OSError, ValueError) as error:
            raise ServerError(f"no answer from Airflow at {self.url}: {error}") from error


class UnauthorizedError(ServerError):
    """The token or the password was not accepted."""


class NotFoundError(ServerError):
    """There is no such DAG, run or task."""


def claim_port(wanted: int | None) -> int:
    """A port on loopback that nothing listens on: the wanted one, or a free one that the system chooses.

    Raises
    ------
    ServerError
        The wanted port is taken; the message says by whom, where the system tells.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no listener
        try:
            probe.bind((LOOPBACK, wanted or 0))
        except OSError as error:
            assert wanted is not None
            raise ServerError(
                f"port {wanted} cannot be used ({error.strerror}): taken by {_port_owner(wanted)}; stop that, or "
                "choose another port, or none to get a free one"
            ) from error
        port: int = probe.getsockname()[1]
        return port


def _port_owner(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                return f"process {connection.pid} ({' '.join(psutil.Process(connection.pid).cmdline())[:120]})"
    except psutil.Error:  # macOS tells root only, or it has just ended
        pass
    return "a process of another user"


def _dag(dag_id: str) -> str:
    return f"/api/v2/dags/{quote(dag_id, safe='~')}"


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, never readable by others in between."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text)
