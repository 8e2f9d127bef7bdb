"""The FastAPI application: every route needs a user who may see Airflow's plugins, and no route changes anything.

What people do on the page is done by DAGs, which it triggers through Airflow's own API as the signed-in user.
"""

from typing import TYPE_CHECKING

from controlled_rollout import __version__

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["create_app"]


def create_app() -> "FastAPI":
    """Return the application with all its routes."""
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.core_api.security import requires_access_view
    from fastapi import Depends, FastAPI

    app = FastAPI(
        title="Controlled Rollout",
        version=__version__,
        # An anonymous reader could see them, and they load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
    )

    @app.get("/health")
    def health() -> dict[str, str]:
        """Say that the plugin answers, and its version."""
        return {"status": "ok", "version": __version__}

    return app
