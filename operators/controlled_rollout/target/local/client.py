"""The local target: implements `Target` with requests to the supervisor's unix socket."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from controlled_rollout import errors
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.environment_variables import check_secret_values
from controlled_rollout.errors import ControlledRolloutError, TargetUnavailableError, WorkspaceError
from controlled_rollout.sizing import Load
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.target.local.supervisor_state import SupervisorState
from controlled_rollout.target.protocol import Change, EndpointStatus, Keys, LookNote, Revision
from controlled_rollout.target.transition import sends_more
from controlled_rollout.tokens import DEFAULT_LIFETIME, Token, check_lifetime
from controlled_rollout.version import check_name
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    import httpx

__all__ = ["LocalTarget"]

TIMEOUT_S: Final = 30.0
# Shorter than the supervisor keeps an idle connection (5 s), so that it never closes one that is about to be used.
KEEP_ALIVE_S: Final = 2.0
# Deleting waits until replicas have answered their requests; the supervisor bounds that wait.
DELETE_TIMEOUT_S: Final = 900.0

# A split is served within milliseconds, a model is loaded within seconds or minutes: a watch polls often after a change
# and less often later.
POLL_OFTEN_S: Final = 0.05
POLL_RARELY_S: Final = 0.25
POLL_OFTEN_FOR_S: Final = 5.0

Answer = TypeVar("Answer")

_HISTORY: Final = TypeAdapter(list[Revision])
_PROCESSES: Final = TypeAdapter(list[ProcessStatus])
_LOOK: Final = TypeAdapter[LookNote | None](LookNote | None)
_LOADS: Final = TypeAdapter(dict[str, Load])


class LocalTarget:
    """The endpoints of a local workspace, through its supervisor.

    Args:
        workspace: A workspace whose target is `local`.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._clients: dict[Path, httpx.AsyncClient] = {}
        self._is_open = True

    @classmethod
    @asynccontextmanager
    async def open(cls, workspace: Workspace) -> AsyncIterator[Self]:
        """Context manager: yield the target of a workspace; close its connections on exit. It sends no request yet."""
        target = cls(workspace)
        try:
            yield target
        finally:
            target._is_open = False
            for client in target._clients.values():
                await client.aclose()

    async def endpoints(self) -> list[str]:
        """Return the names of all endpoints, sorted."""
        return list((await self._request("GET", "/endpoints")).json())

    async def endpoint(self, name: str) -> Endpoint:
        """Return the newest revision of an endpoint."""
        return self._read_response(Endpoint.model_validate_json, await self._request("GET", _endpoint_path(name)))

    async def history(self, name: str) -> list[Revision]:
        """Return all kept revisions of an endpoint, oldest first."""
        return self._read_response(_HISTORY.validate_json, await self._request("GET", _endpoint_path(name, "history")))

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store `endpoint` as the next revision and begin to serve it; see `Target.apply`."""
        if self._workspace.has_tls:
            await self._check_tls(endpoint)
        body = {"endpoint": endpoint.model_dump(mode="json"), "change": change.model_dump()}
        return self._read_response(Endpoint.model_validate_json, await self._request("POST", "/endpoints", body))

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        """Return the state of the endpoint and its versions now; the supervisor has inspected its files anyway."""
        return self._read_response(
            EndpointStatus.model_validate_json, await self._request("GET", _endpoint_path(name, "status"))
        )

    async def watch(self, name: str, *, reconcile: bool = False) -> AsyncGenerator[EndpointStatus, None]:
        """Yield the endpoint's status now, and again whenever something but its request counts has changed."""
        last_status: EndpointStatus | None = None
        changed_at = time.monotonic()
        while True:
            status = _without_requests(await self.status(name))
            if status != last_status:
                last_status, changed_at = status, time.monotonic()
                yield status
            is_recent = time.monotonic() - changed_at < POLL_OFTEN_FOR_S
            await asyncio.sleep(POLL_OFTEN_S if is_recent else POLL_RARELY_S)

    async def load(self, name: str) -> Mapping[str, Load]:
        """Return the load of each version that the router knows, measured over the last seconds."""
        return self._read_response(_LOADS.validate_json, await self._request("GET", _endpoint_path(name, "load")))

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        """Return the last `tail` lines of a version's log, also of one that is deleted or failed."""
        return str(
            (
                await self._request("GET", _endpoint_path(name, "versions", check_name(version), f"logs?tail={tail}"))
            ).json()
        )

    async def keys(self, name: str) -> Keys:
        """Return the endpoint's two API keys, with which callers authenticate."""
        return self._read_response(Keys.model_validate_json, await self._request("GET", _endpoint_path(name, "keys")))

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key; the other keeps working the whole time."""
        return self._read_response(
            Keys.model_validate_json, await self._request("POST", _endpoint_path(name, "keys", which))
        )

    async def token(self, name: str, *, lifetime: timedelta = DEFAULT_LIFETIME) -> Token:
        """Return a new token for the endpoint's callers; see `Target.token`."""
        body = {"lifetime_s": check_lifetime(lifetime).total_seconds()}
        return self._read_response(
            Token.model_validate_json, await self._request("POST", _endpoint_path(name, "token"), body)
        )

    async def rotate_signing_keys(self, name: str) -> None:
        """Rotate the endpoint's signing keys; no caller is interrupted."""
        await self._request("POST", _endpoint_path(name, "signing-keys"))

    async def scale(self, name: str, version: str, replicas: int, *, at_least: bool = False) -> None:
        """Change how many replicas of a version run; see `Target.scale`."""
        path = _endpoint_path(name, "versions", check_name(version), "scale")
        await self._request("POST", path, {"replicas": replicas, "at_least": at_least})

    async def store_secret(self, name: str, values: Mapping[str, str]) -> None:
        """Store values in a secret; other keys of it stay."""
        check_secret_values(name, values)
        await self._request("POST", f"/secrets/{name}", {"values": dict(values)})

    async def note_look(self, name: str, version: str) -> None:
        """Write down that somebody looks at a treatment now."""
        await self._request("POST", _endpoint_path(name, "look"), {"version": version})

    async def last_look(self, name: str) -> LookNote | None:
        """Return what `note_look` has written down last."""
        return self._read_response(_LOOK.validate_json, await self._request("GET", _endpoint_path(name, "look")))

    async def delete(self, name: str, change: Change) -> None:
        """Delete the endpoint, its versions and its keys; deleting what is not there is no error."""
        await self._request("DELETE", _endpoint_path(name), timeout_s=DELETE_TIMEOUT_S)

    async def set_telemetry(self, running: bool) -> None:
        """Start or stop the telemetry store; the router serves requests in both cases."""
        await self._request("POST", "/telemetry", {"running": running})

    async def processes(self) -> dict[str, int]:
        """Return the process ids of the router, the telemetry store and all replicas that run, by name."""
        statuses = await self.process_statuses()
        return {status.name: status.pid for status in statuses if status.pid and status.name != "supervisor"}

    async def process_statuses(self) -> list[ProcessStatus]:
        """Return the status of the supervisor, the router, the telemetry store and all replicas, running or not."""
        return self._read_response(_PROCESSES.validate_json, await self._request("GET", "/processes"))

    async def _check_tls(self, endpoint: Endpoint) -> None:
        """Raise WorkspaceError if a version would get more traffic by a router that speaks plain http."""
        state = SupervisorState.read(self._workspace)
        if state is None or state.router_url.startswith("https:"):
            return
        former = await self.history(endpoint.name) if endpoint.name in await self.endpoints() else []
        if not former or sends_more(former[-1].endpoint, endpoint):
            raise WorkspaceError(
                f"the workspace asks for TLS, and its router was started without at {state.router_url}: nothing was "
                f"changed; start it anew with `{self._workspace.local_command('down')}` and "
                f"`{self._workspace.local_command('up')} --tls`"
            )

    async def shut_down(self) -> None:
        """Send the supervisor the request to end; return before it has ended."""
        await self._request("POST", "/shutdown")

    async def check_health(self) -> None:
        """Send a health check to the supervisor; return nothing if it answers.

        Raises:
            TargetUnavailableError: No supervisor answers.
        """
        await self._request("GET", "/healthz")

    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> "httpx.Response":
        """Send a request to the supervisor's socket; return the response, or raise the error that it reports."""
        import httpx

        client = self._client_of_running_supervisor()
        try:
            response = await client.request(method, path, json=body, timeout=timeout_s)
        except httpx.TimeoutException as error:
            raise self._unavailable_error(f"did not answer {method} {path} within {timeout_s:g} s") from error
        except httpx.TransportError as error:
            problem = f"does not answer ({str(error) or type(error).__name__})"
            raise self._unavailable_error(problem) from error
        if response.is_error:
            raise self._error_from_response(response)
        return response

    def _read_response(self, read: Callable[[bytes], Answer], response: "httpx.Response") -> Answer:
        """Return what an answer of the supervisor means; raise WorkspaceError if it is one of another release."""
        try:
            return read(response.content)
        except (ValidationError, errors.EndpointError) as error:
            raise self._other_release_error(f"what it answers to {response.request.url.path} is not known") from error

    def _error_from_response(self, response: "httpx.Response") -> ControlledRolloutError:
        """Return the error that the supervisor has raised, as an exception of the same class."""
        try:
            document = response.json()
            error_class = getattr(errors, document["error"], ControlledRolloutError)
            return error_class(document["message"])
        except (ValueError, KeyError, TypeError):
            request = f"{response.request.method} {response.request.url.path}"
            if response.is_client_error:
                return self._other_release_error(f"it answered {response.status_code} to {request}")
            return TargetUnavailableError(
                f"the local supervisor answered {response.status_code} to {request}: {response.text[:500]}; "
                "its log is supervisor.log in the workspace's logs folder"
            )

    def _other_release_error(self, found: str) -> WorkspaceError:
        """Return the error for a supervisor that an earlier or later release of this package has started."""
        return WorkspaceError(
            f"the supervisor of the local workspace in {self._workspace.root} is of another release than this program: "
            f"{found}; end it with `{self._workspace.local_command('down')}`, then start it with "
            f"`{self._workspace.local_command('up')}`"
        )

    def _client_of_running_supervisor(self) -> "httpx.AsyncClient":
        """Return the HTTP client for the supervisor that runs now; a restarted supervisor has another socket."""
        import httpx

        if not self._is_open:
            raise RuntimeError("this target is closed: call it inside `async with connect(workspace) as target`")
        state = SupervisorState.read(self._workspace)
        if state is None:
            raise self._unavailable_error("is not running", f"start it with `{self._workspace.local_command('up')}`")
        if state.socket not in self._clients:
            limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE_S)
            transport = httpx.AsyncHTTPTransport(uds=str(state.socket), verify=False, limits=limits)
            self._clients[state.socket] = httpx.AsyncClient(transport=transport, base_url="http://supervisor")
        return self._clients[state.socket]

    def _unavailable_error(self, problem: str, remedy: str = "") -> TargetUnavailableError:
        """Return the error for a supervisor that cannot be reached; `problem` completes its sentence.

        Without a remedy it is one that holds its folder and gives no answer: only `local down` ends it.
        """
        remedy = remedy or (
            f"unless it answers again, end it with `{self._workspace.local_command('down')}`, then start it with "
            f"`{self._workspace.local_command('up')}`"
        )
        return TargetUnavailableError(
            f"the supervisor of the local workspace in {self._workspace.root} {problem}: {remedy}"
        )


def _without_requests(status: EndpointStatus) -> EndpointStatus:
    """Return the status with all request counts at 0, so that two statuses compare without them."""
    versions = {
        name: version.model_copy(update={"requests": 0, "active": 0}) for name, version in status.versions.items()
    }
    return status.model_copy(update={"versions": versions})


def _endpoint_path(name: str, *parts: str) -> str:
    """Return the API path of an endpoint, or of a part below it, such as `/endpoints/NAME/keys`."""
    return "/".join(["/endpoints", check_name(name), *parts])
