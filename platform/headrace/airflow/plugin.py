"""The Airflow plugin: headrace's page in the navigation of the web UI.

Every process of Airflow loads every plugin, so this module stays light: the page's app is made at its first request, in
the api-server.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

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


def _icon(colour: str) -> str:
    """The mill wheel as a data URL."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="none" stroke="{colour}" stroke-width="2.4" '
        'stroke-linecap="round"><circle cx="16" cy="12" r="9"/><path d="M16 3v18M7 12h18M9.6 5.6l12.8 12.8'
        'M22.4 5.6L9.6 18.4" stroke-width="1.6"/><path d="M2 27c2.3-2 4.7-2 7 0s4.7 2 7 0 4.7-2 7 0 4.7 2 7 0"/></svg>'
    )
    return f"data:image/svg+xml,{quote(svg)}"


class HeadracePlugin(AirflowPlugin):
    """Adds one page, behind Airflow's login."""

    name = "headrace"
    fastapi_apps: list[Any] = [{"app": LazyApp(), "url_prefix": PREFIX, "name": "headrace"}]  # noqa: RUF012 - as its base
    external_views: list[Any] = [  # noqa: RUF012
        {
            "name": "headrace",
            "href": _below_base(f"{PREFIX}/"),
            "destination": "nav",
            "url_route": "headrace",
            "nav_top_level": True,  # and no category, or it would hide in a menu
            "icon": _icon("#0e7c86"),
            "icon_dark_mode": _icon("#35b8c4"),
        }
    ]
