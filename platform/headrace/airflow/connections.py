"""Airflow connections as headrace's own settings, for tasks, triggers and pages of the web UI.

A child process and `headrace.settings` know connections by environment variables only; this module puts Airflow's
connections there. The platform's database is HEADRACE_DSN, or else the Airflow connection `headrace_platform`; a
stream's source is the Airflow connection of its `conn_id`, or else HEADRACE_CONN_<ID>. Nothing is stored or logged.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from headrace import settings
from headrace.errors import SettingsError
from headrace.settings import Settings

PLATFORM = "headrace_platform"
#: Extras that only Airflow's own Postgres hook understands. Any other extra must be one of libpq's parameters.
_AIRFLOW_ONLY = frozenset(
    {"cursor", "iam", "redshift", "sqlalchemy_query", "sqlalchemy_scheme", "aws_conn_id", "azure_conn_id"}
)


def libpq(connection: Connection) -> str:
    """An Airflow connection of type Postgres as a libpq connection string.

    Raises
    ------
    SettingsError
        When an extra is no parameter of libpq: a misspelt `sslmode` must not be dropped silently.

    >>> libpq(Connection(conn_id="shop", conn_type="postgres", host="db", login="ada", password="a b", schema="shop"))
    "host=db user=ada password='a b' dbname=shop"
    """
    import psycopg2
    from psycopg2.extensions import make_dsn

    parts: dict[str, Any] = {
        "host": connection.host,
        "port": connection.port,
        "user": connection.login,
        "password": connection.password,
        "dbname": connection.schema,
    }
    known = {name: value for name, value in parts.items() if value not in (None, "")}
    for name, value in connection.extra_dejson.items():
        if name in _AIRFLOW_ONLY:
            continue
        try:
            make_dsn(**{name: str(value)})
        except psycopg2.ProgrammingError as error:
            raise SettingsError(
                f"the Airflow connection {connection.conn_id!r} has the extra {name!r}, expected one of libpq's parameters, "
                "such as sslmode; correct or remove it"
            ) from error
        known[name] = str(value)
    return str(make_dsn(**known))


def find(conn_id: str) -> str | None:
    """The libpq connection string of an Airflow connection, or None when Airflow has none of this id."""
    try:
        return libpq(Connection.get(conn_id))
    except AirflowNotFoundException:
        return None


def platform_dsn() -> str:
    """Where the platform's database is, seen from a task or from the web server.

    Raises
    ------
    SettingsError
        When neither the environment nor Airflow knows.
    """
    dsn = settings.from_env().dsn or find(PLATFORM)
    if dsn is None:
        raise _unknown()
    return dsn


async def async_platform_dsn() -> str:
    """The same, seen from a trigger: its event loop must not wait for the database of Airflow."""
    if (dsn := settings.from_env().dsn) is not None:
        return dsn
    try:
        connection = await Connection.async_get(PLATFORM)
    except AirflowNotFoundException:
        raise _unknown() from None
    return await asyncio.to_thread(libpq, connection)


def _unknown() -> SettingsError:
    return SettingsError(
        f"found neither HEADRACE_DSN in the environment nor an Airflow connection {PLATFORM!r}, expected one of them to name "
        "the platform's database"
    )


def task_settings(conn_id: str | None = None) -> Settings:
    """Settings for the child of a task: with the platform's DSN, and with the source's connection if Airflow has it.

    Raises
    ------
    SettingsError
        When the platform's database is not known, or a connection cannot be read.
    """
    # What trains and judges models needs none of Airflow's own secrets.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "_AIRFLOW_"))}
    env["HEADRACE_DSN"] = platform_dsn()
    if conn_id is not None and (dsn := find(conn_id)) is not None:
        env[f"HEADRACE_CONN_{conn_id.upper()}"] = dsn
    return settings.from_env(env)
