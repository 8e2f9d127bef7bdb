"""A client of a Kubernetes API server: get, list, create, apply, merge, delete, watch, and logs."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Self

from controlled_rollout.cluster.kubeconfig import open_kubeconfig
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

# Our field manager in server-side apply.
FIELD_MANAGER: Final = "controlled-rollout"
REQUEST_TIMEOUT_S: Final = 20.0
# The API server ends a watch after this time; the caller then starts the next one where it ended.
MAX_WATCH_S: Final = 300
MAX_LOG_S: Final = 3600

# Credentials that were never accepted are renewed no more often than this: who has none must not sign in all the time.
SIGN_IN_INTERVAL_S: Final = 30.0

READY_PATH: Final = "/readyz"
MAX_START_S: Final = 10.0
START_POLL_S: Final = 0.25

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
DRY_RUN: Final = {"dryRun": "All"}


@dataclass(eq=False)
class _SignedIn:
    """A client with the credentials of one sign-in.

    Attributes:
        client: An open `kubernetes_asyncio` client.
        closing: Closes it.
        requests: Requests whose response is being read.
        is_replaced: Whether there is a newer one: then the last of them closes it.
    """

    client: "ApiClient"
    closing: AsyncExitStack
    requests: int = 0
    is_replaced: bool = False

    @asynccontextmanager
    async def used(self) -> AsyncIterator["ApiClient"]:
        """Context manager: yield the client, which stays open meanwhile."""
        self.requests += 1
        try:
            yield self.client
        finally:
            self.requests -= 1
            if self.is_replaced and not self.requests:
                await self.closing.aclose()


class ApiError(ControlledRolloutError):
    """The API server refused a request.

    Attributes:
        status: The HTTP status.
        reason: Kubernetes' name for it, such as `NotFound`, `AlreadyExists`, `Conflict`, `Invalid`.
    """

    def __init__(self, message: str, *, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """An open connection to one cluster's API server.

    Every method raises `TargetUnavailableError` if the server does not answer or is overloaded, `AccessError` if this
    identity may not do it, `ConflictError` if another field manager owns a field, and `ApiError` for other refusals.

    Args:
        signed_in: An open client.
        sign_in: Opens another client of the same cluster with fresh credentials. It is called when the server no longer
            accepts credentials that it had accepted (a token may expire while a step waits), and again every half a
            minute while it refuses the new ones (an identity provider may be away for longer).
    """

    def __init__(self, signed_in: "_SignedIn", sign_in: Callable[[], Awaitable["_SignedIn"]]) -> None:
        self._signed_in = signed_in
        self._sign_in = sign_in
        self._signing_in = asyncio.Lock()
        self._was_accepted = False
        self._signed_in_at = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def open(cls, workspace: Workspace) -> AsyncIterator[Self]:
        """Context manager: sign in to a cluster and yield the connection, without a request; close it on exit.

        Raises:
            WorkspaceError: The workspace's settings do not lead to a cluster.
        """
        # At DEBUG this library logs whole responses, Secrets included.
        logging.getLogger("kubernetes_asyncio.client.rest").setLevel(logging.INFO)
        async with AsyncExitStack() as clients:

            async def sign_in() -> _SignedIn:
                """Open a client of the cluster with fresh credentials."""
                opening = workspace.open_cluster() if workspace.open_cluster else open_kubeconfig(workspace)
                closing = AsyncExitStack()
                signed_in = _SignedIn(await closing.enter_async_context(opening), closing)
                # A client that was closed before is not closed again.
                clients.push_async_callback(closing.aclose)
                return signed_in

            yield cls(await sign_in(), sign_in)

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._signed_in.client.configuration.host)

    @property
    def trust(self) -> dict[str, Any]:
        """How its certificate is checked, and the proxy on the way, by names of the connectivity check's settings."""
        settings = self._signed_in.client.configuration
        return {
            "authorities_file": str(settings.ssl_ca_cert or ""),
            "verify": bool(settings.verify_ssl),
            "proxy": str(settings.proxy or ""),
        }

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
        """Send a request and return the body of the response; raise an error if the HTTP status is 300 or above."""
        status, content = await self._request_once(method, path, body, query, content_type, accept, timeout_s)
        if status == 403:
            # An API server that has just started refuses everything until it has read its Roles.
            await self._wait_until_ready()
            status, content = await self._request_once(method, path, body, query, content_type, accept, timeout_s)
        if status >= 300:
            raise self._error_for_status(method, path, status, content)
        return content

    async def _request_once(self, method: str, path: str, *request: Any) -> tuple[int, bytes]:
        """Send a request; return the HTTP status and the body of the response."""
        async with self._response(method, path, *request) as response:
            try:
                return response.status, await response.read()
            except _transport_errors() as error:
                raise self._unavailable_error(method, path, error) from error

    async def get(self, path: str, **query: str) -> Object:
        """Return the object, or the list of objects, at a path."""
        return _json_object(await self.request("GET", path, query=query))

    async def find(self, path: str) -> Object | None:
        """Return the object at a path, or None if there is none."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def user(self) -> str:
        """Return the name of the user that the API server takes this identity for."""
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        review = _json_object(await self.request("POST", path, body=kind))
        return str(review["status"]["userInfo"]["username"])

    async def server_time(self) -> datetime:
        """Return the time of the API server's clock, to the second."""
        async with self._response("GET", "/version", None, None, JSON, JSON, REQUEST_TIMEOUT_S) as response:
            response.close()
            return parsedate_to_datetime(response.headers["Date"])

    async def items(self, path: str, **query: str) -> list[Object]:
        """Return the objects of the list at a path."""
        return list((await self.get(path, **query)).get("items") or [])

    async def create(self, path: str, body: Object, *, dry_run: bool = False) -> Object | None:
        """Create an object and return it; return None if an object of that name exists.

        Args:
            path: The list that the object is to be in.
            body: The object.
            dry_run: Whether the server only says what it would do.
        """
        query = {"fieldManager": FIELD_MANAGER, **(DRY_RUN if dry_run else {})}
        try:
            return _json_object(await self.request("POST", path, body=body, query=query))
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def apply(
        self, path: str, body: Object, *, manager: str = FIELD_MANAGER, force: bool = False, dry_run: bool = False
    ) -> Object:
        """Create an object or set its fields by server-side apply; fields of other managers stay as they are.

        Args:
            path: The object's path.
            body: The object with the fields that we set.
            manager: The field manager that owns them then.
            force: Whether fields of other managers are taken over.
            dry_run: Whether the server only says what it would do.

        Raises:
            ConflictError: Another manager owns a field that has another value here; nothing was changed.
        """
        query = {"fieldManager": manager, "force": str(force).lower(), **(DRY_RUN if dry_run else {})}
        return _json_object(await self.request("PATCH", path, body=body, query=query, content_type=APPLY))

    async def merge_patch(
        self, path: str, body: Object, *, manager: str = FIELD_MANAGER, dry_run: bool = False
    ) -> Object:
        """Change an object by a JSON merge patch and return it.

        Args:
            path: The object's path.
            body: The patch.
            manager: The field manager that the change is noted for.
            dry_run: Whether the server only says what it would do.
        """
        query = {"fieldManager": manager, **(DRY_RUN if dry_run else {})}
        return _json_object(await self.request("PATCH", path, body=body, query=query, content_type=MERGE))

    async def merge_if_unchanged(
        self, path: str, current: Object, body: Object, *, manager: str = FIELD_MANAGER
    ) -> Object | None:
        """Change an object by a JSON merge patch; return None if it is no longer as in `current`."""
        metadata = {"resourceVersion": current["metadata"]["resourceVersion"], **body.get("metadata", {})}
        try:
            return await self.merge_patch(path, {**body, "metadata": metadata}, manager=manager)
        except ApiError as error:
            if error.status != 409:
                raise
            return None

    async def delete(self, path: str, *, propagation: str = "Background") -> bool:
        """Delete an object; return whether it existed."""
        try:
            await self.request("DELETE", path, body={"propagationPolicy": propagation})
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def delete_with_uid(self, path: str, uid: str, *, grace_s: int) -> None:
        """Delete an object unless another one has its name by now.

        Args:
            path: The object's path.
            uid: The uid in its metadata.
            grace_s: Seconds that its processes have to end.
        """
        body = {"preconditions": {"uid": uid}, "gracePeriodSeconds": grace_s, "propagationPolicy": "Background"}
        try:
            await self.request("DELETE", path, body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[Object]:
        """Yield the events of a list's objects after resource version `version`, until the server ends the watch.

        Raises:
            ApiError: Status 410: the version is too old, list again.
        """
        watch_query = {**query, "watch": "true", "resourceVersion": version, "timeoutSeconds": str(MAX_WATCH_S)}
        timeout_s = MAX_WATCH_S + REQUEST_TIMEOUT_S
        async with self._stream(path, watch_query, JSON, timeout_s) as response:
            async for line in _whole_lines(response):
                event = _json_object(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(
                        f"the watch of {path} ended: {status.get('message')}",
                        status=int(status.get("code", 0)),
                        reason=str(status.get("reason", "")),
                    )
                yield event

    async def log_lines(self, path: str, **query: str) -> AsyncIterator[str]:
        """Yield the lines of a pod's log, also while it is being written, until the server ends the response.

        Raises:
            ApiError: There is no such log, or not yet.
        """
        async with self._stream(path, query, "*/*", MAX_LOG_S) as response:
            async for line in response.content:
                yield line.decode(errors="replace").rstrip("\r\n")

    @asynccontextmanager
    async def _stream(self, path: str, query: Mapping[str, str], accept: str, timeout_s: float) -> AsyncIterator[Any]:
        """Context manager: get what goes on without an end of its own; yield the response, and abort it on exit."""
        async with self._response("GET", path, None, query, JSON, accept, timeout_s) as response:
            try:
                if response.status >= 300:
                    raise self._error_for_status("GET", path, response.status, await response.read())
                yield response
            except _transport_errors() as error:
                raise self._unavailable_error("GET", path, error) from error
            finally:
                _abort_response(response)

    @asynccontextmanager
    async def _response(self, method: str, path: str, *request: Any) -> AsyncIterator[Any]:
        """Context manager: send a request and yield the response; after a 401, sign in again and send it once more."""
        async with AsyncExitStack() as in_use:
            signed_in = self._signed_in
            client = await in_use.enter_async_context(signed_in.used())
            response = await self._send_as(client, method, path, *request)
            if response.status == 401 and await self._sign_in_again(signed_in):
                response.close()
                client = await in_use.enter_async_context(self._signed_in.used())
                response = await self._send_as(client, method, path, *request)
            if response.status != 401:
                self._was_accepted = True
            yield response

    async def _sign_in_again(self, refused: "_SignedIn") -> bool:
        """Sign in again if the credentials were accepted before, or are old; return whether there is a new client now.

        Raises:
            AccessError: Signing in fails.
        """
        async with self._signing_in:
            is_due = self._was_accepted or time.monotonic() - self._signed_in_at >= SIGN_IN_INTERVAL_S
            if self._signed_in is refused and is_due:
                self._signed_in_at = time.monotonic()
                try:
                    self._signed_in, self._was_accepted = await self._sign_in(), False
                except WorkspaceError as error:
                    raise AccessError(
                        f"the API server {self.server} no longer accepts these credentials, and signing in again "
                        f"failed: {error}"
                    ) from error
                # It is used by whoever was refused, at least.
                refused.is_replaced = True
            return self._signed_in is not refused

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
        """Send a request with the credentials of `client`; return the open response with any HTTP status."""
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
            raise self._unavailable_error(method, path, error) from error

    async def _wait_until_ready(self) -> None:
        """Wait until the API server is ready, for at most `MAX_START_S`: not every identity may ask it that."""

        async def is_ready() -> bool:
            """Return whether the API server answers 200 to its readiness check."""
            status, _ = await self._request_once("GET", READY_PATH, None, None, JSON, "*/*", REQUEST_TIMEOUT_S)
            return status == 200

        await until(is_ready, MAX_START_S, interval_s=START_POLL_S)

    def _unavailable_error(self, method: str, path: str, error: BaseException) -> TargetUnavailableError:
        """Return the error for a request that the API server did not answer."""
        what = "in time" if isinstance(error, TimeoutError) else f"({str(error) or type(error).__name__})"
        return TargetUnavailableError(f"the API server {self.server} did not answer {method} {path} {what}")

    def _error_for_status(self, method: str, path: str, status: int, content: bytes) -> ControlledRolloutError:
        """Return the error for a response with an HTTP status of 300 or above; the class depends on the status."""
        try:
            document = json.loads(content)
            message, reason = str(document["message"]), str(document.get("reason", ""))
        except (ValueError, KeyError, TypeError):
            document, message, reason = {}, content[:500].decode(errors="replace").strip(), ""
        answer = f"the API server {self.server} answered {status} to {method} {path}: {message}"
        if status == 401:
            return AccessError(f"{answer}: the token or certificate is not valid, or no longer: renew the connection's")
        if status == 403:
            return AccessError(f"{answer}: {_advice_on_forbidden(message)}")
        if status == 429 or status >= 500:
            return TargetUnavailableError(answer)
        causes = (document.get("details") or {}).get("causes") or []
        fields = [cause for cause in causes if cause.get("reason") == "FieldManagerConflict"]
        if fields:
            owned = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in fields)
            return ConflictError(
                f"{method} {path} was refused because other field managers own what it would change ({owned}): nothing "
                "was changed; make them give up these fields, or set them to the endpoint's values there"
            )
        return ApiError(answer, status=status, reason=reason)


def _abort_response(response: Any) -> None:
    """End a response that is still being sent, with its connection, at once.

    To close a TLS connection takes an answer of the server, for which no one waits: the socket would stay open.
    """
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


async def _whole_lines(response: Any) -> AsyncIterator[bytes]:
    """Yield the whole lines of a response, each as long as an object may be: aiohttp's own limit is lower."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _json_object(content: bytes) -> Object:
    """Return the JSON object in the body of a response.

    Raises:
        TargetUnavailableError: It is none: something else answers in the API server's place, such as a proxy.
    """
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise TargetUnavailableError(
            "something else than an API server answers at its address: a JSON object was expected, and the answer "
            f"begins with {content[:100].decode(errors='replace')!r}"
        ) from error


def _transport_errors() -> tuple[type[BaseException], ...]:
    """Return the classes of errors that mean that the server cannot be reached."""
    import aiohttp

    return (aiohttp.ClientError, TimeoutError, OSError)


def _advice_on_forbidden(message: str) -> str:
    """Return what to do about an answer 403: only one of those who refuse requests is asked for a Role."""
    if "because it is being terminated" in message:
        return "somebody is deleting the namespace: wait until it is gone, create it again, then repeat the step"
    is_by_admission = " is forbidden: " in message or "denied the request" in message
    if is_by_admission and ' is forbidden: User "' not in message:
        return (
            "this identity may do that, and a rule of the cluster refuses it (a quota, a limit, an admission policy or "
            "webhook): let that rule allow it"
        )
    return "give this identity the Role that docs/aks.md describes, or docs/agent.md if it is the agent's"
