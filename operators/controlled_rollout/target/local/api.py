"""The supervisor's HTTP API on its unix socket: JSON bodies; an error names its exception class."""

from collections.abc import Callable
from typing import Any, Final, Literal

from fastapi import FastAPI, Request  # noqa: TID253 - runs only inside the supervisor's process
from fastapi.responses import JSONResponse  # noqa: TID253 - as above
from pydantic import BaseModel, ConfigDict, PositiveInt

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, ControlledRolloutError, EndpointNotFoundError
from controlled_rollout.sizing import Load
from controlled_rollout.target.local.operations import Operations
from controlled_rollout.target.protocol import Change, EndpointStatus, Keys, Revision

__all__ = ["create_app"]

STATUS_CODES: Final = {EndpointNotFoundError: 404, ConflictError: 409}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ApplyBody(_Body):
    endpoint: dict[str, Any]
    change: Change


class _ScaleBody(_Body):
    replicas: int


class _TelemetryBody(_Body):
    running: bool


def create_app(operations: Operations, *, shut_down: Callable[[], None]) -> FastAPI:
    """Return the API's application.

    Args:
        operations: What the API offers.
        shut_down: Asks the supervisor to end.
    """
    app = FastAPI(title="controlled-rollout local workspace", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ControlledRolloutError, _error_response)
    _add_endpoint_routes(app, operations)
    _add_version_routes(app, operations)
    _add_workspace_routes(app, operations, shut_down)
    return app


async def _error_response(request: Request, error: Exception) -> JSONResponse:
    status = next((status for error_class, status in STATUS_CODES.items() if isinstance(error, error_class)), 400)
    return JSONResponse({"error": type(error).__name__, "message": str(error)}, status)


def _add_endpoint_routes(app: FastAPI, operations: Operations) -> None:
    @app.get("/endpoints")
    async def endpoints() -> list[str]:
        return operations.endpoints()

    @app.get("/endpoints/{name}")
    async def endpoint(name: str) -> Endpoint:
        return operations.endpoint(name)

    @app.post("/endpoints")
    async def apply(body: _ApplyBody) -> Endpoint:
        return await operations.apply(Endpoint.model_validate(body.endpoint), body.change)

    @app.delete("/endpoints/{name}")
    async def delete(name: str) -> None:
        await operations.delete(name)

    @app.get("/endpoints/{name}/history")
    async def history(name: str) -> list[Revision]:
        return operations.history(name)

    @app.get("/endpoints/{name}/status")
    async def status(name: str) -> EndpointStatus:
        return await operations.status(name)

    @app.get("/endpoints/{name}/load")
    async def load(name: str) -> dict[str, Load]:
        return operations.load(name)

    @app.get("/endpoints/{name}/keys")
    async def keys(name: str) -> Keys:
        return operations.keys(name)

    @app.post("/endpoints/{name}/keys/{which}")
    async def regenerate(name: str, which: Literal["primary", "secondary"]) -> Keys:
        return await operations.regenerate_key(name, which)


def _add_version_routes(app: FastAPI, operations: Operations) -> None:
    @app.get("/endpoints/{name}/versions/{version}/logs")
    async def logs(name: str, version: str, tail: PositiveInt = 200) -> str:
        return operations.logs(name, version, tail)

    @app.post("/endpoints/{name}/versions/{version}/scale")
    async def scale(name: str, version: str, body: _ScaleBody) -> None:
        operations.scale(name, version, body.replicas)


def _add_workspace_routes(app: FastAPI, operations: Operations, shut_down: Callable[[], None]) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "router_url": operations.router_url}

    @app.get("/processes")
    async def processes() -> dict[str, int]:
        return operations.processes()

    @app.post("/telemetry")
    async def telemetry(body: _TelemetryBody) -> None:
        await operations.set_telemetry(body.running)

    @app.post("/shutdown")
    async def shutdown() -> None:
        shut_down()
