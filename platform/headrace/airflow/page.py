"""The page in Airflow's navigation: each stream's race, behind Airflow's login, rendered on the server.

Everything comes from one template with escaping on; nothing is loaded from elsewhere, and the page's own content
security policy forbids it. It only reads. A database that is down shows as one sentence, with status 503.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

import jinja2
import psycopg2
from airflow.api_fastapi.core_api.security import requires_authenticated
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse

from headrace.airflow import connections, race
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.airflow.race import Race

REFRESH_SECONDS = 3
POLICY = "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'self'"
authenticated = requires_authenticated()


def app() -> FastAPI:
    """The page as an app that Airflow mounts; anonymous requests get 401."""
    made = FastAPI(dependencies=[Depends(authenticated)], docs_url=None, redoc_url=None, openapi_url=None)
    made.get("/", response_class=HTMLResponse)(show)
    return made


def show() -> HTMLResponse:
    """The page as it is now."""
    try:
        found: Sequence[Race] = race.races(connections.platform_dsn())
        problem = None
    except HeadraceError as error:
        found, problem = (), str(error)
    except psycopg2.Error as error:
        said = " ".join(str(error).split())
        found, problem = (
            (),
            f"the platform's database failed: {said}; has `headrace migrate` brought it to this release?",
        )
    nonce = secrets.token_urlsafe(12)
    policy = f"{POLICY}; script-src 'nonce-{nonce}'"
    return HTMLResponse(
        render(found, problem, nonce),
        status_code=200 if problem is None else 503,
        headers={"Cache-Control": "no-store", "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"},
    )


def render(races: Sequence[Race], problem: str | None, nonce: str) -> str:
    """HTML of some streams, or of the sentence that says why there are none.

    Parameters
    ----------
    nonce
        Allows the page's own script to run.
    """
    return _template().render(races=races, problem=problem, nonce=nonce, refresh=REFRESH_SECONDS * 1000, chart=race)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("headrace.airflow", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["age"] = race.age
    environment.filters["span"] = race.span
    environment.filters["size"] = race.size
    environment.filters["utc"] = _utc
    return environment.get_template("page.html")


def _utc(time: datetime | None) -> str:
    """A time, to the second.

    >>> _utc(datetime(2013, 10, 1, 5, 15, tzinfo=UTC))
    '2013-10-01 05:15:00 UTC'
    """
    return "–" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
