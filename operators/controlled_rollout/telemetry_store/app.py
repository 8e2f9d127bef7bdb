"""The store's HTTP interface: OTLP and App Insights uploads, and the Log Analytics query API."""

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from google.rpc import code_pb2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controlled_rollout.addresses import is_loopback
from controlled_rollout.telemetry_store import otlp, track
from controlled_rollout.telemetry_store.intake import Intake, IntakeFullError
from controlled_rollout.telemetry_store.item_bounds import TooManyItemsError
from controlled_rollout.telemetry_store.request_body import BodyError, is_packed, read_body, unpack
from controlled_rollout.telemetry_store.responses import RETRY_AFTER, ApiResponse, error_response
from controlled_rollout.telemetry_store.store import TelemetryStore
from controlled_rollout.telemetry_store.user_hash import UserHash
from controlled_rollout.telemetry_store.values import MalformedError
from controlled_rollout.telemetry_store.writer import BufferFullError

__all__ = ["create_app"]

MAX_QUERY_BODY_BYTES: Final = 1 * 2**20
MAX_BATCH: Final = 100
MAX_BATCH_BYTES: Final = 100 * 2**20
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]
# A browser sends one of these with everything that a page asks it to post.
BROWSER_HEADERS: Final = ("origin", "sec-fetch-site", "sec-fetch-mode")
NOT_THE_ROUTER: Final = "only the router may send spans and requests here: they need its token"
RESOURCE_ID: Final = re.compile(r"subscriptions/[^/]+(/resourcegroups/[^/]+(/providers/[^/]+(/[^/]+/[^/]+)+)?)?", re.I)


def create_app(
    store: TelemetryStore,
    *,
    token: str | None,
    upload_token: str | None = None,
    instrumentation_key: str = "",
    users: UserHash | None = None,
) -> Starlette:
    """Return the HTTP application of a store.

    Args:
        store: The store; the caller starts and stops its writer.
        token: The bearer token that queries must bring; None accepts any, from this machine only.
        upload_token: The bearer token that spans and requests must bring, which only the router has; None accepts them
            from everybody.
        instrumentation_key: With an upload token: the key that all other App Insights items must have.
        users: Makes hashes of callers' keys in spans; None leaves callers out.
    """
    endpoints = _Endpoints(store, token, upload_token, instrumentation_key, users)
    return Starlette(
        routes=[
            Route("/healthz", endpoints.health, methods=["GET"]),
            Route("/v1/traces", endpoints.for_programs(endpoints.traces), methods=["POST"]),
            Route("/v2/track", endpoints.for_programs(endpoints.track), methods=["POST"]),
            Route("/v2.1/track", endpoints.for_programs(endpoints.track), methods=["POST"]),
            Route("/v1/$batch", endpoints.with_authorization(endpoints.batch), methods=["POST"]),
            Route(
                "/v1/workspaces/{workspace_id}/query",
                endpoints.with_authorization(endpoints.query_workspace),
                methods=["GET", "POST"],
            ),
            Route(
                "/v1/{resource_id:path}/query",
                endpoints.with_authorization(endpoints.query_resource),
                methods=["GET", "POST"],
            ),
        ],
        exception_handlers={404: _path_not_found},
    )


async def _path_not_found(request: Request, error: Exception) -> Response:
    """Return the HTTP 404 response for a path that no route serves."""
    message = f"The requested path {request.url.path} does not exist"
    return _starlette_response(error_response(404, "PathNotFoundError", message))


def _starlette_response(response: ApiResponse) -> Response:
    """Convert an `ApiResponse` to a Starlette response with a JSON body."""
    return Response(response.body, response.status, response.headers, "application/json")


class _Endpoints:
    """The handlers of the routes.

    Args:
        store: The store.
        token: The bearer token that queries must bring; None accepts any.
        upload_token: The bearer token that spans and requests must bring; None accepts all.
        instrumentation_key: With an upload token: the key that all other items must have.
        users: Makes hashes of callers' keys in spans; None leaves callers out.
    """

    def __init__(
        self,
        store: TelemetryStore,
        token: str | None,
        upload_token: str | None,
        instrumentation_key: str,
        users: UserHash | None,
    ) -> None:
        self._store = store
        self._token = token
        self._upload_token = upload_token
        self._instrumentation_key = instrumentation_key
        self._users = users
        self._intake = Intake()

    async def health(self, request: Request) -> Response:
        """Handle `GET /healthz`: respond HTTP 200 with the Log Analytics workspace id."""
        return JSONResponse({"status": "ok", "workspace_id": self._store.workspace_id})

    # Uploads

    def for_programs(self, handler: Handler) -> Handler:
        """Return a handler that refuses web pages: whatever a browser sends says where the page is from."""

        async def handle(request: Request) -> Response:
            """Refuse a request of a browser, and pass every other one on."""
            if any(name in request.headers for name in BROWSER_HEADERS):
                return JSONResponse({"message": "a web page may not send telemetry"}, 403)
            host = _host(request)
            if self._token is None and self._upload_token is None and not is_loopback(host):
                return JSONResponse({"message": f"host {host!r}: without a token only loopback is served"}, 403)
            return await handler(request)

        return handle

    def _may_upload_requests(self, request: Request) -> bool:
        """Return whether the sender may write what callers saw: only the router may, where there is an upload token."""
        return self._upload_token is None or _has_token(request, self._upload_token)

    async def _take_upload(self, request: Request, decode: Callable[[bytes], T]) -> T:
        """Read and decode an upload; the router's come first where an upload token tells them from others."""
        is_routers = None if self._upload_token is None else self._may_upload_requests(request)
        return await self._intake.read_upload(request, decode, is_routers=is_routers)

    async def traces(self, request: Request) -> Response:
        """Handle `POST /v1/traces`: store the spans of an OTLP export, which is protobuf or JSON."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = media_type == "application/json"
        response_type = "application/json" if is_json else otlp.PROTOBUF

        def error_reply(status: int, message: str, code: int = code_pb2.INVALID_ARGUMENT) -> Response:
            """Return an error response with a google.rpc.Status body, in the encoding of the request."""
            body = otlp.status_body(message, code=code, is_json=is_json)
            return Response(body, status, RETRY_AFTER if status == 503 else None, response_type)

        if not self._may_upload_requests(request):
            return error_reply(401, NOT_THE_ROUTER, code_pb2.UNAUTHENTICATED)
        if not is_json and media_type != otlp.PROTOBUF:
            return error_reply(415, f"content-type {media_type!r}: send {otlp.PROTOBUF} or application/json")
        try:
            spans = await self._take_upload(request, partial(otlp.rows_of_export, is_json=is_json, users=self._users))
            self._store.accept(spans.rows, spans.size)
        except BodyError as error:
            return error_reply(error.status, str(error))
        except TooManyItemsError as error:
            return error_reply(413, str(error))
        except MalformedError as error:
            return error_reply(400, str(error))
        except (BufferFullError, IntakeFullError) as error:
            return error_reply(503, str(error), code_pb2.UNAVAILABLE)
        return Response(otlp.success_body(spans, is_json=is_json), 200, None, response_type)

    async def track(self, request: Request) -> Response:
        """Handle `POST /v2/track`: store App Insights envelopes and report each invalid one by its index."""

        def error_reply(status: int, message: str) -> Response:
            """Return an App Insights error response for an upload of which nothing was stored."""
            error = {"index": 0, "statusCode": status, "message": message}
            headers = RETRY_AFTER if status == 503 else None
            return JSONResponse({"itemsReceived": 0, "itemsAccepted": 0, "errors": [error]}, status, headers)

        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type and media_type not in track.MEDIA_TYPES:
            return error_reply(415, f"content-type {media_type!r}: send one of {', '.join(track.MEDIA_TYPES)}")
        try:
            key = None if self._may_upload_requests(request) else self._instrumentation_key
            envelopes = await self._take_upload(request, partial(track.rows_of_upload, key=key))
            if not envelopes.received:
                return error_reply(400, "the upload holds no item")
            self._store.accept(envelopes.rows, envelopes.size, may_fill=key is None)
        except BodyError as error:
            return error_reply(error.status, str(error))
        except TooManyItemsError as error:
            return error_reply(413, str(error))
        except (BufferFullError, IntakeFullError) as error:
            return error_reply(503, str(error))
        return JSONResponse(envelopes.response(), envelopes.status)

    # Queries

    def with_authorization(
        self, handler: Callable[[Request], Awaitable[ApiResponse]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that first checks the bearer token, and turns a `BodyError` into an error response."""

        async def handle(request: Request) -> Response:
            """Check the caller, call the wrapped handler and convert its result to a Starlette response."""
            refusal = self._authorization_error(request)
            if refusal is not None:
                return _starlette_response(refusal)
            try:
                return _starlette_response(await handler(request))
            except BodyError as error:
                return _starlette_response(error_response(error.status, "BadArgumentError", str(error)))

        return handle

    def _authorization_error(self, request: Request) -> ApiResponse | None:
        """Return the error response for a caller without the right bearer token; None if it may query.

        Without a token of our own, the request must name a loopback host: else a web page could reach the store by
        letting its own host name resolve to this machine (DNS rebinding).
        """
        host = _host(request)
        if self._token is None and not is_loopback(host):
            message = f"host {host!r}: without a token only loopback is served"
            return error_response(403, "InsufficientAccessError", message)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            message = "Valid authentication was not provided: send a bearer token"
            return error_response(401, "AuthorizationRequiredError", message)
        if self._token is not None and not _has_token(request, self._token):
            message = "The provided authentication is not valid for this store"
            return error_response(401, "InvalidTokenError", message)
        return None

    async def query_workspace(self, request: Request) -> ApiResponse:
        """Run the KQL query of a request to `/v1/workspaces/{workspace_id}/query`; HTTP 404 for another workspace."""
        workspace_id = request.path_params["workspace_id"]
        if not self._store.is_workspace(workspace_id):
            return self._store.unknown_workspace_response(workspace_id)
        return await self._query_from_request(request)

    async def query_resource(self, request: Request) -> ApiResponse:
        """Run the KQL query of a request for an Azure resource. Every resource id gives the same rows."""
        resource_id = request.path_params["resource_id"]
        if not RESOURCE_ID.fullmatch(resource_id.strip("/")):
            return error_response(404, "PathNotFoundError", f"{resource_id!r} is no Azure resource id")
        return await self._query_from_request(request)

    async def _query_from_request(self, request: Request) -> ApiResponse:
        """Run the KQL query in a request's URL parameters (GET) or JSON body (POST)."""
        document = dict(request.query_params) if request.method == "GET" else await _read_json_body(request)
        return await _while_connected(request, self._store.query(document, request.headers.get("prefer", "")))

    async def batch(self, request: Request) -> ApiResponse:
        """Handle `POST /v1/$batch`: run several KQL queries concurrently and return their responses by id."""
        try:
            queries: list[dict[str, Any]] = (await _read_json_body(request))["requests"]
            ids = [str(query["id"]) for query in queries]
        except (KeyError, TypeError) as error:
            return error_response(400, "BadArgumentError", f"not a batch of queries with ids: {error!r}")
        if len(queries) > MAX_BATCH:
            return error_response(400, "BadArgumentError", f"{len(queries)} queries: {MAX_BATCH} at most")
        size = 0

        async def run(query: Mapping[str, Any]) -> ApiResponse:
            """Run one query of the batch; refuse it once the answers before it are large enough together."""
            nonlocal size
            response = await self._run_batched_query(query)
            size += len(response.body)
            if size > MAX_BATCH_BYTES:
                size -= len(response.body)
                message = f"the batch's answers exceed {MAX_BATCH_BYTES} bytes: send smaller batches"
                return error_response(413, "ResponseSizeError", message)
            return response

        async def run_all() -> list[ApiResponse]:
            """Run all queries of the batch."""
            return await asyncio.gather(*map(run, queries))

        responses = await _while_connected(request, run_all())
        parts = (
            b'{"id":%b,"status":%d,"body":%b}' % (json.dumps(query_id).encode(), response.status, response.body)
            for query_id, response in zip(ids, responses, strict=True)
        )
        return ApiResponse(200, b'{"responses":[' + b",".join(parts) + b"]}")

    async def _run_batched_query(self, query: Mapping[str, Any]) -> ApiResponse:
        """Run one KQL query of a batch; return an error response if it names another workspace."""
        workspace_id = query.get("workspace", "")
        if not self._store.is_workspace(workspace_id):
            return self._store.unknown_workspace_response(workspace_id)
        headers = query.get("headers")
        headers = (
            {str(name).lower(): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {}
        )
        return await self._store.query(query.get("body"), headers.get("prefer", ""))


async def _while_connected(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine; cancel it when the client of a request, whose body was read, disconnects.

    Raises:
        BodyError: It has disconnected.
    """

    async def disconnected() -> None:
        """Return when the client has disconnected."""
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, watch = asyncio.create_task(answer), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
    finally:
        watch.cancel()
        work.cancel()
    raise BodyError(400, "the client has disconnected")


def _host(request: Request) -> str:
    """Return the host that a request was sent to, without its port; empty if it names none."""
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _has_token(request: Request, wanted: str) -> bool:
    """Return whether a request brings a bearer token; takes as long for a wrong one as for the right one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), wanted.encode())


async def _read_json_body(request: Request) -> Any:
    """Read a query request's body and return it parsed from JSON.

    Raises:
        BodyError: It is none.
    """
    packed = is_packed(request)
    body = await read_body(request, limit=MAX_QUERY_BODY_BYTES)
    if packed:
        body = unpack(body, MAX_QUERY_BODY_BYTES)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BodyError(400, f"the body is not JSON: {error}") from error
