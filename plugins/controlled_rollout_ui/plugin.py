"""The plugin that Airflow loads by the entry point `airflow.plugins`.

Every process of Airflow loads it, workers for each task too: what needs time to be imported is imported at the first
request.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from airflow.plugins_manager import AirflowPlugin

from controlled_rollout_ui import page_files

__all__ = ["URL_PREFIX", "ControlledRolloutPlugin", "LazyApp"]

# Where Airflow's API server mounts the API.
URL_PREFIX: Final = "/controlled-rollout/api"
PAGE_PREFIX: Final = "/controlled-rollout/page"
# Where Airflow's UI finds the page's files: relative, so that it is right under a base path as well.
PAGE: Final = PAGE_PREFIX.removeprefix("/")
BUNDLE: Final = f"{PAGE}/main.js?v={page_files.version()}"

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class LazyApp:
    """An ASGI application that is built at its first request.

    Args:
        build: Builds the application.
    """

    def __init__(self, build: Callable[[], App]) -> None:
        self._build = build
        self._app: App | None = None

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Answer a request."""
        if self._app is None:
            self._app = self._build()
        await self._app(scope, receive, send)


def _build_api() -> App:
    """Return the API; imports FastAPI."""
    from controlled_rollout_ui.api.app import create_app

    return create_app()


def _build_page() -> App:
    """Return the server of the page's files; imports Starlette."""
    return page_files.create_app()


class ControlledRolloutPlugin(AirflowPlugin):
    """Adds the page of endpoints and rollouts to Airflow's UI, and its API to the API server."""

    name = "controlled_rollout"
    # Airflow declares its attributes so, and reads them from the class.
    fastapi_apps: list[Any] = [  # noqa: RUF012
        {"app": LazyApp(_build_api), "url_prefix": URL_PREFIX, "name": "Controlled Rollout"},
        {"app": LazyApp(_build_page), "url_prefix": PAGE_PREFIX, "name": "Controlled Rollout, page"},
    ]
    # The bundle has a global variable for each of these names. Without icons: Airflow shows them without a text for
    # those who cannot see them.
    react_apps: list[Any] = [  # noqa: RUF012
        {
            "name": "Rollouts",
            "bundle_url": BUNDLE,
            "destination": "nav",
            "url_route": "controlled-rollout",
            "nav_top_level": True,
        },
        {"name": "Rollout", "bundle_url": BUNDLE, "destination": "dag_run", "url_route": "rollout"},
    ]
