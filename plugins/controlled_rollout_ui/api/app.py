"""The FastAPI application: every route needs a user who may see Airflow's plugins, and no route changes anything.

What people do on the page is done by DAGs, which it triggers through Airflow's own API as the signed-in user.
"""

from typing import TYPE_CHECKING, Annotated, Final

from controlled_rollout import __version__
from controlled_rollout.errors import ControlledRolloutError, EndpointError, EndpointNotFoundError
from controlled_rollout.view.actions import DEFAULT_PERCENTILE
from controlled_rollout.view.models import Overview
from controlled_rollout.view.reading import LogNotFoundError
from controlled_rollout_ui.api.conditional import READ_OF_DETAIL, READ_OF_OVERVIEW, conditional_answer
from controlled_rollout_ui.api.watched_workspace import POLL_S
from controlled_rollout_ui.api.workspaces import UnknownWorkspaceError, Workspaces

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["create_app"]

MAX_LOG_LINES: Final = 1_000


# Long because the routes are functions inside it: FastAPI is imported at the first request only.
def create_app() -> "FastAPI":
    """Return the application with all its routes."""
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.core_api.security import requires_access_view
    from fastapi import Depends, FastAPI, Header, Path, Query, Request
    from starlette.responses import JSONResponse, Response

    app = FastAPI(
        title="Controlled Rollout",
        version=__version__,
        # An anonymous reader could see them, and they load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
    )
    workspaces = Workspaces()
    Name = Annotated[str, Path(max_length=250)]
    # The id of a connection may have slashes, which servers before this one may have decoded.
    of_endpoint = "/workspaces/{workspace:path}/endpoints/{endpoint}"
    Known = Annotated[str | None, Header(alias="If-None-Match", max_length=1_000)]

    def refused(_: Request, error: Exception) -> Response:
        """Return what cannot be answered as a sentence, with the status code of its kind."""
        is_missing = isinstance(error, UnknownWorkspaceError | EndpointNotFoundError | LogNotFoundError)
        code = 404 if is_missing else 422 if isinstance(error, EndpointError) else 503
        return JSONResponse({"detail": str(error)}, code, {"Cache-Control": "no-store"})

    app.add_exception_handler(ControlledRolloutError, refused)

    @app.get("/health")
    def health() -> dict[str, str]:
        """Say that the plugin answers, and its version."""
        return {"status": "ok", "version": __version__}

    @app.get("/overview")
    async def overview(known: Known = None) -> Response:
        """Return every endpoint of every workspace."""
        shown = Overview(workspaces=await workspaces.overviews(), poll_seconds=POLL_S)
        return conditional_answer(shown, known, but=READ_OF_OVERVIEW)

    @app.get(of_endpoint + "/versions/{version}/log")
    async def log(
        workspace: Name,
        endpoint: Name,
        version: Name,
        tail: Annotated[int, Query(ge=1, le=MAX_LOG_LINES)] = 200,
        known: Known = None,
    ) -> Response:
        """Return the last lines of a version's log."""
        return conditional_answer(await workspaces.log_tail(workspace, endpoint, version, tail=tail), known)

    @app.get(of_endpoint + "/actions")
    async def actions(
        workspace: Name,
        endpoint: Name,
        percentile: Annotated[float, Query(ge=0, le=100, allow_inf_nan=False)] = DEFAULT_PERCENTILE,
        known: Known = None,
    ) -> Response:
        """Return what may be done to an endpoint now, and what it would do."""
        return conditional_answer(await workspaces.actions(workspace, endpoint, percentile=percentile), known)

    # After the longer addresses: the log of a version called `endpoints` is no workspace with an endpoint `log`.
    @app.get(of_endpoint)
    async def detail(workspace: Name, endpoint: Name, known: Known = None) -> Response:
        """Return an endpoint with all that its page shows."""
        return conditional_answer(await workspaces.detail(workspace, endpoint), known, but=READ_OF_DETAIL)

    @app.get("/runs/{dag_id}/{run_id:path}")
    async def run(dag_id: Name, run_id: Annotated[str, Path(max_length=250)], known: Known = None) -> Response:
        """Return the endpoint that a DAG run rolls out on, or has rolled out on."""
        return conditional_answer(await workspaces.detail_of_run(dag_id, run_id), known, but=READ_OF_DETAIL)

    return app
