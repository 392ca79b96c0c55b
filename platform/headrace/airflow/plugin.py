"""The Airflow plugin: headrace's page in the navigation of the web UI.

Every process of Airflow loads every plugin, so this module stays light: the page's app is made at its first request, in
the api-server.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/headrace"


class LazyApp:
    """An ASGI app that imports the page's one when somebody asks for it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _app()(scope, receive, send)


@cache
def _app() -> ASGIApp:
    from headrace.airflow.page import app

    return app()


def _below_base(path: str) -> str:
    """The path as browsers see it, where Airflow is served below one of its own."""
    return urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/") + path


class HeadracePlugin(AirflowPlugin):
    """Adds one page, behind Airflow's login."""

    name = "headrace"
    fastapi_apps: list[Any] = [{"app": LazyApp(), "url_prefix": PREFIX, "name": "headrace"}]  # noqa: RUF012 - as its base
    external_views: list[Any] = [  # noqa: RUF012
        {
            "name": "headrace",
            "href": _below_base(f"{PREFIX}/"),
            "destination": "nav",
            "category": "browse",
            "url_route": "headrace",
            "nav_top_level": True,
        }
    ]
