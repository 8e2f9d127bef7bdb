"""The API server, as few calls as the target needs: get, list, create, apply, patch, delete, watch."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from controlled_rollout.errors import (
    AccessError,
    ConflictError,
    ControlledRolloutError,
    TargetUnavailableError,
    WorkspaceError,
)
from controlled_rollout.polling import until
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

__all__ = ["FIELD_MANAGER", "Api", "ApiError", "Object"]

Object = dict[str, Any]

# What server-side apply calls us; fields that another manager owns are never taken from it.
FIELD_MANAGER: Final = "controlled-rollout"
REQUEST_TIMEOUT_S: Final = 20.0
# The API server ends a watch after this time; it is then begun again where it ended.
WATCH_S: Final = 300
LINES_S: Final = 3600

READY: Final = "/readyz"
START_S: Final = 10.0
START_POLL_S: Final = 0.25

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"


class ApiError(ControlledRolloutError):
    """The API server refused a request.

    Attributes:
        status: The HTTP status.
        reason: Kubernetes' word for it, such as `NotFound`, `AlreadyExists`, `Conflict`, `Invalid`.
    """

    def __init__(self, message: str, *, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """An open connection to one cluster's API server.

    Every method raises `TargetUnavailableError` when the server does not answer or is overloaded, `AccessError` when
    it does not let us, `ConflictError` when somebody else holds a field, and `ApiError` for every other refusal.

    Args:
        client: An open `kubernetes_asyncio` client.
        sign_in: Opens another client of the same cluster with fresh credentials. It is called once when the server no
            longer accepts credentials that it has accepted before: a token may expire while a step waits.
    """

    def __init__(self, client: "ApiClient", sign_in: Callable[[], Awaitable["ApiClient"]]) -> None:
        self._client = client
        self._sign_in = sign_in
        self._signing_in = asyncio.Lock()
        self._was_accepted = False

    @classmethod
    @asynccontextmanager
    async def open(cls, workspace: Workspace) -> AsyncIterator[Self]:
        """Open the cluster of a workspace: sign in, but send no request yet.

        Raises:
            WorkspaceError: The workspace does not lead to a cluster.
        """
        # At DEBUG this library writes whole answers into the log, Secrets too.
        logging.getLogger("kubernetes_asyncio.client.rest").setLevel(logging.INFO)
        async with AsyncExitStack() as clients:

            async def sign_in() -> "ApiClient":
                opening = workspace.open_cluster() if workspace.open_cluster else _from_kubeconfig(workspace)
                client: ApiClient = await clients.enter_async_context(opening)
                return client

            yield cls(await sign_in(), sign_in)

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._client.configuration.host)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> bytes:
        """Send one request and return the answer's body."""
        status, content = await self._ask(method, path, body, query, content_type, accept, timeout_s)
        if status == 403:
            # A server that has only just started does not know its own Roles yet.
            await self._until_ready()
            status, content = await self._ask(method, path, body, query, content_type, accept, timeout_s)
        if status >= 300:
            raise self._refusal(method, path, status, content)
        return content

    async def _ask(self, method: str, path: str, *how: Any) -> tuple[int, bytes]:
        response = await self._send(method, path, *how)
        try:
            return response.status, await response.read()
        except _transport_errors() as error:
            raise self._unavailable(method, path, error) from None

    async def get(self, path: str, **query: str) -> Object:
        """Return the object, or the list of objects, at a path."""
        return _document(await self.request("GET", path, query=query))

    async def find(self, path: str) -> Object | None:
        """Return the object at a path, or None if there is none."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def items(self, path: str, **query: str) -> list[Object]:
        """Return the objects of a list, without their list."""
        return list((await self.get(path, **query)).get("items") or [])

    async def create(self, path: str, body: Object) -> Object | None:
        """Create an object; return None if one of that name exists."""
        try:
            return _document(
                await self.request("POST", path, body=body, query={"fieldManager": FIELD_MANAGER}),
            )
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def apply(self, path: str, body: Object) -> Object:
        """Make an object's fields so by server-side apply: fields that others own stay theirs.

        Raises:
            ConflictError: Another manager owns a field that we want otherwise; nothing was changed.
        """
        return _document(
            await self.request("PATCH", path, body=body, query={"fieldManager": FIELD_MANAGER}, content_type=APPLY)
        )

    async def merge(self, path: str, body: Object, *, manager: str = FIELD_MANAGER) -> Object:
        """Change an object by a merge patch."""
        return _document(
            await self.request("PATCH", path, body=body, query={"fieldManager": manager}, content_type=MERGE)
        )

    async def merge_if_unchanged(self, path: str, found: Object, body: Object) -> Object | None:
        """Change an object as it was found; return None, and change nothing, if somebody was faster."""
        metadata = {"resourceVersion": found["metadata"]["resourceVersion"], **body.get("metadata", {})}
        try:
            return await self.merge(path, {**body, "metadata": metadata})
        except ApiError as error:
            if error.status != 409:
                raise
            return None

    async def delete(self, path: str, *, propagation: str = "Background") -> bool:
        """Delete an object; return whether there was one."""
        try:
            await self.request("DELETE", path, body={"propagationPolicy": propagation})
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def delete_only(self, path: str, uid: str, *, grace_s: int) -> None:
        """Delete the object with that uid, and none that has its name since.

        Args:
            path: The object.
            uid: What the API server called it when it was made.
            grace_s: How long its processes may take, in seconds.
        """
        body = {"preconditions": {"uid": uid}, "gracePeriodSeconds": grace_s, "propagationPolicy": "Background"}
        try:
            await self.request("DELETE", path, body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[Object]:
        """Yield what happens to the objects of a list after resource version `version`, until the server ends it.

        Raises:
            ApiError: Status 410: the version is too old, list again.
        """
        asked = {**query, "watch": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)}
        response = await self._send("GET", path, None, asked, JSON, JSON, WATCH_S + REQUEST_TIMEOUT_S)
        try:
            if response.status >= 300:
                raise self._refusal("GET", path, response.status, await response.read())
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    found = event["object"]
                    raise ApiError(
                        f"the watch of {path} ended: {found.get('message')}",
                        status=int(found.get("code", 0)),
                        reason=str(found.get("reason", "")),
                    )
                yield event
        except _transport_errors() as error:
            raise self._unavailable("GET", path, error) from None
        finally:
            response.close()

    async def lines(self, path: str, **query: str) -> AsyncIterator[str]:
        """Yield the lines of a text that is being written, such as a running container's log, until the server ends it.

        Raises:
            ApiError: There is no such text, or not yet.
        """
        response = await self._send("GET", path, None, query, JSON, "*/*", LINES_S)
        try:
            if response.status >= 300:
                raise self._refusal("GET", path, response.status, await response.read())
            async for line in response.content:
                yield line.decode(errors="replace").rstrip("\r\n")
        except _transport_errors() as error:
            raise self._unavailable("GET", path, error) from None
        finally:
            response.close()

    async def _send(self, method: str, path: str, *request: Any) -> Any:
        """Send a request; when the server no longer accepts our credentials, sign in again and send it once more."""
        client = self._client
        response = await self._send_as(client, method, path, *request)
        if response.status != 401:
            self._was_accepted = True
        elif await self._renew(client):
            response.close()
            response = await self._send_as(self._client, method, path, *request)
        return response

    async def _renew(self, refused: "ApiClient") -> bool:
        """Sign in again, unless another request has done so or credentials were never accepted; return if it helps."""
        async with self._signing_in:
            if self._client is refused and self._was_accepted:
                # The old client stays open until the end: other requests may still be reading from it.
                self._client, self._was_accepted = await self._sign_in(), False
            return self._client is not refused

    async def _send_as(
        self,
        client: "ApiClient",
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, str] | None,
        content_type: str,
        accept: str,
        timeout_s: float,
    ) -> Any:
        headers = {"Content-Type": content_type, "Accept": accept}
        try:
            await client.update_params_for_auth(headers, [], ["BearerToken"])
            return await client.rest_client.request(
                method,
                self.server + path,
                query_params=dict(query or {}),
                headers=headers,
                body=body,
                _preload_content=False,
                _request_timeout=timeout_s,
            )
        except _transport_errors() as error:
            raise self._unavailable(method, path, error) from None

    async def _until_ready(self) -> None:
        """Wait until the API server says that it is ready; for a moment only: not everybody may ask it that."""

        async def is_ready() -> bool:
            status, _ = await self._ask("GET", READY, None, None, JSON, "*/*", REQUEST_TIMEOUT_S)
            return status == 200

        await until(is_ready, START_S, interval_s=START_POLL_S)

    def _unavailable(self, method: str, path: str, error: BaseException) -> TargetUnavailableError:
        what = "in time" if isinstance(error, TimeoutError) else f"({error or type(error).__name__})"
        return TargetUnavailableError(f"the API server {self.server} did not answer {method} {path} {what}")

    def _refusal(self, method: str, path: str, status: int, content: bytes) -> ControlledRolloutError:
        try:
            document = json.loads(content)
            message, reason = str(document["message"]), str(document.get("reason", ""))
        except (ValueError, KeyError, TypeError):
            document, message, reason = {}, content[:500].decode(errors="replace").strip(), ""
        asked = f"the API server {self.server} answered {status} to {method} {path}: {message}"
        if status == 401:
            return AccessError(f"{asked}: the token or certificate is not valid (any more), renew the connection's")
        if status == 403:
            return AccessError(f"{asked}: give this identity the Role that docs/aks.md describes")
        if status == 429 or status >= 500:
            return TargetUnavailableError(asked)
        causes = (document.get("details") or {}).get("causes") or []
        fields = [cause for cause in causes if cause.get("reason") == "FieldManagerConflict"]
        if fields:
            held = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in fields)
            return ConflictError(
                f"{method} {path} was refused because others manage fields that are to be changed ({held}): nothing "
                "was changed; let them give the fields up, or set them there as the endpoint has them"
            )
        return ApiError(asked, status=status, reason=reason)


def _document(content: bytes) -> Object:
    return dict(json.loads(content))


def _transport_errors() -> tuple[type[BaseException], ...]:
    import aiohttp

    return (aiohttp.ClientError, TimeoutError, OSError)


@asynccontextmanager
async def _from_kubeconfig(workspace: Workspace) -> AsyncIterator["ApiClient"]:
    """Open a cluster as kubectl would: the given file, $KUBECONFIG, ~/.kube/config, or the pod's service account."""
    try:
        from kubernetes_asyncio import client, config
    except ImportError:
        raise WorkspaceError(
            f"workspace {workspace.name!r} is on Kubernetes and the package kubernetes_asyncio is missing: install "
            "the extra kubernetes"
        ) from None
    settings = client.Configuration()
    try:
        await config.load_kube_config(
            config_file=str(workspace.kubeconfig) if workspace.kubeconfig else None,
            context=workspace.kube_context,
            client_configuration=settings,
        )
    except (config.ConfigException, OSError, TypeError) as error:
        if workspace.kubeconfig is None and workspace.kube_context is None and await asyncio.to_thread(_in_pod):
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            # The library quotes whole entries of the file, tokens too.
            told = str(error).partition("{")[0].rstrip(" /:")
            raise WorkspaceError(
                f"workspace {workspace.name!r} does not lead to a cluster ({told or type(error).__name__}): set "
                "kubeconfig to a file that kubectl can use, or run in a pod with a service account"
            ) from None
    async with client.ApiClient(settings) as opened:
        yield opened


def _in_pod() -> bool:
    from pathlib import Path

    return Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
