"""The supervisor's HTTP API on its unix socket: JSON bodies; an error names its exception class."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, Literal

from fastapi import FastAPI, Request  # noqa: TID253 - runs only inside the supervisor's process
from fastapi.responses import JSONResponse  # noqa: TID253 - as above
from pydantic import BaseModel, ConfigDict, PositiveInt

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, ControlledRolloutError, EndpointNotFoundError
from controlled_rollout.sizing import Load
from controlled_rollout.target.local.operations import Operations
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.target.protocol import Change, EndpointStatus, Keys, LookNote, Revision
from controlled_rollout.tokens import Token

__all__ = ["create_app"]

STATUS_CODES: Final = {EndpointNotFoundError: 404, ConflictError: 409}


class _Body(BaseModel):
    """A JSON request body; unknown fields raise a validation error."""

    model_config = ConfigDict(extra="forbid")


class _ApplyBody(_Body):
    """The body of `POST /endpoints`: the endpoint's content, and who changes it and why."""

    endpoint: dict[str, Any]
    change: Change


class _ScaleBody(_Body):
    """The body of a scale request: the number of replicas that should run, and whether more may stay."""

    replicas: int
    at_least: bool = False


class _LookBody(_Body):
    """The body of a request that notes a look: the version that is looked at."""

    version: str


class _TokenBody(_Body):
    """The body of a request for a token: for how many seconds it is to be accepted."""

    lifetime_s: float


class _SecretBody(_Body):
    """The body of a request that stores values in a secret, by key."""

    values: dict[str, str]


class _TelemetryBody(_Body):
    """The body of `POST /telemetry`: whether the telemetry store should run."""

    running: bool


def create_app(operations: Operations, *, shut_down: Callable[[], None]) -> FastAPI:
    """Return the FastAPI application of the supervisor's HTTP API.

    Args:
        operations: What the API offers.
        shut_down: Asks the supervisor to end.
    """
    app = FastAPI(title="controlled-rollout local workspace", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ControlledRolloutError, _error_response)
    _add_endpoint_routes(app, operations)
    _add_key_routes(app, operations)
    _add_version_routes(app, operations)
    _add_workspace_routes(app, operations, shut_down)
    return app


async def _error_response(request: Request, error: Exception) -> JSONResponse:
    """Return a `ControlledRolloutError` as JSON (class and message) with HTTP status 404, 409 or 400."""
    status = next((status for error_class, status in STATUS_CODES.items() if isinstance(error, error_class)), 400)
    return JSONResponse({"error": type(error).__name__, "message": str(error)}, status)


def _add_endpoint_routes(app: FastAPI, operations: Operations) -> None:
    """Add the HTTP routes of endpoints to `app`: read, apply, delete, history, status, load and keys."""

    @app.get("/endpoints")
    async def endpoints() -> list[str]:
        """Return the names of all endpoints."""
        return operations.endpoints()

    @app.get("/endpoints/{name}")
    async def endpoint(name: str) -> Endpoint:
        """Return the newest revision of one endpoint."""
        return operations.endpoint(name)

    @app.post("/endpoints")
    async def apply(body: _ApplyBody) -> Endpoint:
        """Validate an endpoint, store it as the next revision and begin to serve it."""
        return await operations.apply(Endpoint.model_validate(body.endpoint), body.change)

    @app.delete("/endpoints/{name}")
    async def delete(name: str) -> None:
        """Delete an endpoint and wait until its replicas have ended."""
        await operations.delete(name)

    @app.get("/endpoints/{name}/history")
    async def history(name: str) -> list[Revision]:
        """Return the kept revisions of an endpoint, oldest first."""
        return operations.history(name)

    @app.get("/endpoints/{name}/status")
    async def status(name: str) -> EndpointStatus:
        """Return the status of an endpoint and its versions."""
        return await operations.status(name)

    @app.get("/endpoints/{name}/load")
    async def load(name: str) -> dict[str, Load]:
        """Return the measured load of each version of an endpoint."""
        return operations.load(name)

    @app.get("/endpoints/{name}/look")
    async def last_look(name: str) -> LookNote | None:
        """Return the last look at a treatment of an endpoint that was noted."""
        return operations.last_look(name)

    @app.post("/endpoints/{name}/look")
    async def note_look(name: str, body: _LookBody) -> None:
        """Note that somebody looks at a treatment of an endpoint now."""
        operations.note_look(name, body.version)


def _add_key_routes(app: FastAPI, operations: Operations) -> None:
    """Add the HTTP routes of an endpoint's keys and tokens to `app`."""

    @app.get("/endpoints/{name}/keys")
    async def keys(name: str) -> Keys:
        """Return the two keys of an endpoint."""
        return operations.keys(name)

    @app.post("/endpoints/{name}/keys/{which}")
    async def regenerate(name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key of an endpoint and return both."""
        return await operations.regenerate_key(name, which)

    @app.post("/endpoints/{name}/token")
    async def token(name: str, body: _TokenBody) -> Token:
        """Return a new token for the callers of an endpoint."""
        return operations.token(name, timedelta(seconds=body.lifetime_s))

    @app.post("/endpoints/{name}/signing-keys")
    async def rotate_signing_keys(name: str) -> None:
        """Rotate the signing keys of an endpoint."""
        await operations.rotate_signing_keys(name)


def _add_version_routes(app: FastAPI, operations: Operations) -> None:
    """Add the HTTP routes of one version to `app`: its log and its number of replicas."""

    @app.get("/endpoints/{name}/versions/{version}/logs")
    async def logs(name: str, version: str, tail: PositiveInt = 200) -> str:
        """Return the last `tail` lines of a version's log."""
        return operations.logs(name, version, tail)

    @app.post("/endpoints/{name}/versions/{version}/scale")
    async def scale(name: str, version: str, body: _ScaleBody) -> None:
        """Set the number of replicas that a version runs."""
        operations.scale(name, version, body.replicas, at_least=body.at_least)


def _add_workspace_routes(app: FastAPI, operations: Operations, shut_down: Callable[[], None]) -> None:
    """Add the HTTP routes of the whole workspace to `app`: health, processes, secrets, telemetry and shutdown."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Return the supervisor's health and the router's address."""
        return {"status": "ok", "router_url": operations.router_url}

    @app.get("/processes")
    async def processes() -> list[ProcessStatus]:
        """Return the status of the supervisor, the router, the telemetry store and all replicas."""
        return operations.processes()

    @app.post("/secrets/{name}")
    async def store_secret(name: str, body: _SecretBody) -> None:
        """Store values in a secret."""
        operations.store_secret(name, body.values)

    @app.post("/telemetry")
    async def telemetry(body: _TelemetryBody) -> None:
        """Start or stop the telemetry store."""
        await operations.set_telemetry(body.running)

    @app.post("/shutdown")
    async def shutdown() -> None:
        """Begin to end the supervisor; return before it has ended."""
        shut_down()
