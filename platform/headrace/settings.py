"""Settings from the environment, read when a command starts, never at import.

docs/settings.md lists every one; a test keeps the two in step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from headrace.errors import SettingsError


@dataclass(frozen=True)
class Settings:
    """Everything that a deployment sets."""

    home: Path  # HEADRACE_HOME: data directory of the embedded server, Airflow, logs, the signing key
    dsn: str | None  # HEADRACE_DSN: the platform's database; None means the embedded Postgres
    streams: Path  # HEADRACE_STREAMS: folder of stream definitions
    key_file: Path  # HEADRACE_KEY_FILE: key that signs pickled river models
    lease: timedelta  # HEADRACE_LEASE_SECONDS: how long a silent holder keeps its role
    standby: bool  # HEADRACE_STANDBY: whether `headrace up` runs a second intake and a second learner of the champion
    compare_every: timedelta | None  # HEADRACE_COMPARE_EVERY: overrides every stream's schedule, in seconds
    environment: Mapping[str, str]  # the rest, for connections


def from_env(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings as the environment has them.

    Raises
    ------
    SettingsError
        When a value cannot be read; the message names the variable, what was found and what was expected.
    """
    env = os.environ if environment is None else environment
    home = Path(env.get("HEADRACE_HOME") or Path.cwd() / ".headrace").expanduser().absolute()
    compare_every = env.get("HEADRACE_COMPARE_EVERY")
    return Settings(
        home=home,
        dsn=env.get("HEADRACE_DSN") or None,
        streams=Path(env.get("HEADRACE_STREAMS") or "dags/streams").expanduser().absolute(),
        key_file=Path(env.get("HEADRACE_KEY_FILE") or home / "signing.key").expanduser().absolute(),
        lease=_seconds("HEADRACE_LEASE_SECONDS", env.get("HEADRACE_LEASE_SECONDS") or "5"),
        standby=_switch("HEADRACE_STANDBY", env.get("HEADRACE_STANDBY") or "0"),
        compare_every=_seconds("HEADRACE_COMPARE_EVERY", compare_every) if compare_every else None,
        environment=dict(env),
    )


def _switch(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise SettingsError(f"{name}: found {text!r}, expected 0 or 1")
    return text == "1"


def _seconds(name: str, text: str) -> timedelta:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise SettingsError(f"{name}: found {text!r}, expected a positive number of seconds")
    return timedelta(seconds=seconds)


def connection(settings: Settings, conn_id: str) -> str:
    """The DSN of a connection: `HEADRACE_CONN_<ID>` in the environment, else the libpq service of that name.

    Inside an Airflow task `headrace.airflow` puts the Airflow connection of this id into the environment first.
    """
    value = settings.environment.get(f"HEADRACE_CONN_{conn_id.upper()}")
    return value if value else f"service={conn_id}"


def signing_key(settings: Settings) -> bytes:
    """The key that signs pickled models; made on first use, readable by its owner only."""
    path = settings.key_file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(32))
        with contextlib.suppress(FileExistsError):  # another process was first: then its key counts
            os.link(fresh, path)
        fresh.unlink()
    key = path.read_bytes()
    if len(key) < 16:
        raise SettingsError(
            f"{path}: found a signing key of {len(key)} bytes, expected at least 16; delete it to get a new one"
        )
    return key
