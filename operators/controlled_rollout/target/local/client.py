"""The local target: `Target` over the supervisor's unix socket."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import TypeAdapter

from controlled_rollout import errors
from controlled_rollout.endpoint import Endpoint, check_name
from controlled_rollout.errors import ControlledRolloutError, TargetUnavailableError
from controlled_rollout.sizing import Load
from controlled_rollout.target.local.state import State
from controlled_rollout.target.protocol import Change, EndpointStatus, Keys, Revision
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    import httpx

__all__ = ["LocalTarget"]

TIMEOUT_S: Final = 30.0
# Less than the supervisor keeps an unused connection (5 s): it must not close one that is about to be used.
KEEP_ALIVE_S: Final = 2.0
# Deleting waits for answers that replicas still owe; the supervisor bounds that itself.
DELETE_TIMEOUT_S: Final = 900.0

# A split is served within milliseconds, a model is loaded within seconds or minutes: whoever watches looks often at
# first, and rarely once nothing has changed for a while.
LOOK_OFTEN_S: Final = 0.05
LOOK_RARELY_S: Final = 0.25
OFTEN_FOR_S: Final = 5.0

_HISTORY: Final = TypeAdapter(list[Revision])
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
        """Open the target of a workspace; whether its supervisor runs shows at the first call."""
        target = cls(workspace)
        try:
            yield target
        finally:
            target._is_open = False
            for client in target._clients.values():
                await client.aclose()

    async def endpoints(self) -> list[str]:
        """Return the names of all endpoints, sorted."""
        return list((await self._ask("GET", "/endpoints")).json())

    async def endpoint(self, name: str) -> Endpoint:
        """Return the newest revision of an endpoint."""
        return Endpoint.model_validate_json((await self._ask("GET", _path(name))).content)

    async def history(self, name: str) -> list[Revision]:
        """Return all kept revisions of an endpoint, oldest first."""
        return _HISTORY.validate_json((await self._ask("GET", _path(name, "history"))).content)

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store `endpoint` as the next revision and begin to make it so; see `Target.apply`."""
        body = {"endpoint": endpoint.model_dump(mode="json"), "change": change.model_dump()}
        return Endpoint.model_validate_json((await self._ask("POST", "/endpoints", body)).content)

    async def status(self, name: str) -> EndpointStatus:
        """Return how the endpoint and its versions are now."""
        return EndpointStatus.model_validate_json((await self._ask("GET", _path(name, "status"))).content)

    async def watch(self, name: str, *, carry_on: bool = False) -> AsyncGenerator[EndpointStatus, None]:
        """Yield how the endpoint is: once at once, then whenever something but its requests has changed."""
        before: EndpointStatus | None = None
        changed = time.monotonic()
        while True:
            now = _without_requests(await self.status(name))
            if now != before:
                before, changed = now, time.monotonic()
                yield now
            often = time.monotonic() - changed < OFTEN_FOR_S
            await asyncio.sleep(LOOK_OFTEN_S if often else LOOK_RARELY_S)

    async def load(self, name: str) -> Mapping[str, Load]:
        """Return the load of each version that the router knows, measured over the last seconds."""
        return _LOADS.validate_json((await self._ask("GET", _path(name, "load"))).content)

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        """Return the last `tail` lines of a version's log, also of one that is deleted or failed."""
        return str((await self._ask("GET", _path(name, "versions", check_name(version), f"logs?tail={tail}"))).json())

    async def keys(self, name: str) -> Keys:
        """Return the endpoint's two keys."""
        return Keys.model_validate_json((await self._ask("GET", _path(name, "keys"))).content)

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key; the other keeps working the whole time."""
        return Keys.model_validate_json((await self._ask("POST", _path(name, "keys", which))).content)

    async def scale(self, name: str, version: str, replicas: int) -> None:
        """Set the number of replicas that run now, without a new revision."""
        await self._ask("POST", _path(name, "versions", check_name(version), "scale"), {"replicas": replicas})

    async def delete(self, name: str, change: Change) -> None:
        """Delete the endpoint, its versions and its keys; deleting what is not there is no error."""
        await self._ask("DELETE", _path(name), timeout_s=DELETE_TIMEOUT_S)

    async def set_telemetry(self, running: bool) -> None:
        """Start or stop the telemetry store; the router goes on serving either way."""
        await self._ask("POST", "/telemetry", {"running": running})

    async def processes(self) -> dict[str, int]:
        """Return the process ids of what the supervisor runs, by name."""
        return dict((await self._ask("GET", "/processes")).json())

    async def shut_down(self) -> None:
        """Ask the supervisor to end; it answers before it has."""
        await self._ask("POST", "/shutdown")

    async def check_health(self) -> None:
        """Return if a supervisor answers.

        Raises:
            TargetUnavailableError: None does.
        """
        await self._ask("GET", "/healthz")

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> "httpx.Response":
        import httpx

        client = self._client()
        try:
            answer = await client.request(method, path, json=body, timeout=timeout_s)
        except httpx.TimeoutException:
            raise self._unavailable(f"did not answer {method} {path} within {timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise self._unavailable(f"does not answer ({error or type(error).__name__})") from None
        if answer.is_error:
            raise _as_raised_there(answer)
        return answer

    def _client(self) -> "httpx.AsyncClient":
        """Return the client of the supervisor that runs now: one that was started again has another socket."""
        import httpx

        if not self._is_open:
            raise RuntimeError("this target is closed: call it inside `async with connect(workspace) as target`")
        state = State.read(self._workspace)
        if state is None:
            raise self._unavailable("is not running")
        if state.socket not in self._clients:
            limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE_S)
            transport = httpx.AsyncHTTPTransport(uds=str(state.socket), verify=False, limits=limits)
            self._clients[state.socket] = httpx.AsyncClient(transport=transport, base_url="http://supervisor")
        return self._clients[state.socket]

    def _unavailable(self, what: str) -> TargetUnavailableError:
        return TargetUnavailableError(
            f"the supervisor of the local workspace in {self._workspace.root} {what}: "
            "start it with `controlled-rollout local up`"
        )


def _without_requests(status: EndpointStatus) -> EndpointStatus:
    still = {name: version.model_copy(update={"requests": 0, "active": 0}) for name, version in status.versions.items()}
    return status.model_copy(update={"versions": still})


def _path(name: str, *parts: str) -> str:
    return "/".join(["/endpoints", check_name(name), *parts])


def _as_raised_there(answer: "httpx.Response") -> ControlledRolloutError:
    try:
        document = answer.json()
        kind = getattr(errors, document["error"], ControlledRolloutError)
        return kind(document["message"])
    except (ValueError, KeyError, TypeError):
        return TargetUnavailableError(
            f"the local supervisor answered {answer.status_code} to {answer.request.method} {answer.request.url.path}: "
            f"{answer.text[:500]}; its log is supervisor.log in the workspace's logs folder"
        )
