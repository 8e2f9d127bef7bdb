"""The store's HTTP face: OTLP and App Insights uploads in, the Log Analytics query API out."""

import asyncio
import hmac
import json
import logging
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controlled_rollout.addresses import is_loopback
from controlled_rollout.telemetry_store import otlp, track
from controlled_rollout.telemetry_store.answer import Answer, error_answer
from controlled_rollout.telemetry_store.body import BodyError, read_body
from controlled_rollout.telemetry_store.database import Database
from controlled_rollout.telemetry_store.faults import Faults
from controlled_rollout.telemetry_store.query import QueryLimits, run_query
from controlled_rollout.telemetry_store.values import MalformedError
from controlled_rollout.telemetry_store.writer import BufferFullError, NotWrittenError, Writer

__all__ = ["Store", "create_app"]

log = logging.getLogger(__name__)

RETRY_AFTER: Final = {"Retry-After": "2"}
UNAVAILABLE: Final = 14  # google.rpc.Code
MAX_QUERY_BODY: Final = 1 * 2**20
MAX_BATCH: Final = 100
RESOURCE_ID: Final = re.compile(r"subscriptions/[^/]+(/resourcegroups/[^/]+(/providers/[^/]+(/[^/]+/[^/]+)+)?)?", re.I)


@dataclass(slots=True)
class Store:
    """What the handlers need.

    Attributes:
        database: The rows on disk.
        writer: The way there.
        workspace_id: Which workspace's queries are answered.
        token: What a query's bearer token must be; None takes any.
        limits: Limits of one query.
        faults: What the store was told to do wrong.
        queries: The threads that queries run on: as many at once as Azure allows one caller.
        max_waiting: Queries beyond those running that may wait; more are told to come later.
    """

    database: Database
    writer: Writer
    workspace_id: str
    token: str | None = field(default=None, repr=False)
    limits: QueryLimits = field(default_factory=QueryLimits)
    faults: Faults = field(default_factory=Faults)
    queries: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(5, "query"))
    max_waiting: int = 100
    active: int = 0


def create_app(store: Store) -> Starlette:
    """Return the application; the caller starts and stops the writer."""

    def route(path: str, handler: Callable[[Store, Request], Awaitable[Response]], *methods: str) -> Route:
        async def handle(request: Request) -> Response:
            return await handler(store, request)

        return Route(path, handle, methods=list(methods))

    return Starlette(
        routes=[
            route("/healthz", _health, "GET"),
            route("/v1/traces", _traces, "POST"),
            route("/v2/track", _track, "POST"),
            route("/v2.1/track", _track, "POST"),
            route("/v1/$batch", _batch, "POST"),
            route("/v1/workspaces/{workspace_id}/query", _workspace_query, "GET", "POST"),
            route("/v1/{resource_id:path}/query", _resource_query, "GET", "POST"),
        ],
        exception_handlers={404: _not_found},
    )


async def _not_found(request: Request, error: Exception) -> Response:
    return _response(error_answer(404, "PathNotFoundError", f"The requested path {request.url.path} does not exist"))


async def _health(store: Store, request: Request) -> Response:
    return JSONResponse({"status": "ok", "workspace_id": store.workspace_id})


# Uploads.


async def _traces(store: Store, request: Request) -> Response:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json"
    answer_type = "application/json" if is_json else otlp.PROTOBUF

    def refuse(status: int, message: str, code: int = otlp.INVALID_ARGUMENT) -> Response:
        body = otlp.status_body(message, is_json=is_json, code=code)
        return Response(body, status, RETRY_AFTER if status == 503 else None, answer_type)

    if not is_json and media_type != otlp.PROTOBUF:
        return refuse(415, f"content-type {media_type!r}: send {otlp.PROTOBUF} or application/json")
    try:
        body = await read_body(request)
        result = otlp.rows_of(otlp.read_request(body, is_json=is_json))
        store.writer.add(result.rows, len(body))
    except BodyError as error:
        return refuse(error.status, str(error))
    except MalformedError as error:
        return refuse(400, str(error))
    except BufferFullError as error:
        return refuse(503, str(error), UNAVAILABLE)
    return Response(otlp.success_body(result, is_json=is_json), 200, None, answer_type)


async def _track(store: Store, request: Request) -> Response:
    def refuse(status: int, message: str) -> Response:
        error = {"index": 0, "statusCode": status, "message": message}
        headers = RETRY_AFTER if status == 503 else None
        return JSONResponse({"itemsReceived": 0, "itemsAccepted": 0, "errors": [error]}, status, headers)

    try:
        body = await read_body(request)
        result = track.rows_of(track.read_envelopes(body))
        if not result.received:
            return refuse(400, "the upload holds no item")
        store.writer.add(result.rows, len(body))
    except BodyError as error:
        return refuse(error.status, str(error))
    except BufferFullError as error:
        return refuse(503, str(error))
    return JSONResponse(result.answer(), result.status)


# Queries.


async def _workspace_query(store: Store, request: Request) -> Response:
    refused = _refused_caller(store, request)
    if refused is None and request.path_params["workspace_id"].lower() != store.workspace_id:
        refused = _unknown_workspace(request.path_params["workspace_id"])
    return _response(refused) if refused else await _query(store, request)


async def _resource_query(store: Store, request: Request) -> Response:
    refused = _refused_caller(store, request)
    resource_id = request.path_params["resource_id"]
    if refused is None and not RESOURCE_ID.fullmatch(resource_id.strip("/")):
        refused = error_answer(404, "PathNotFoundError", f"{resource_id!r} is no Azure resource id")
    return _response(refused) if refused else await _query(store, request)


async def _query(store: Store, request: Request) -> Response:
    if request.method == "GET":
        body: object = dict(request.query_params)
    else:
        try:
            body = json.loads(await read_body(request, limit=MAX_QUERY_BODY, unpacked_limit=MAX_QUERY_BODY))
        except BodyError as error:
            return _response(error_answer(error.status, "BadArgumentError", str(error)))
        except (ValueError, RecursionError) as error:
            return _response(error_answer(400, "BadArgumentError", f"the body is not JSON: {error}"))
    return _response(await _run(store, body, request.headers.get("prefer", "")))


async def _batch(store: Store, request: Request) -> Response:
    refused = _refused_caller(store, request)
    if refused:
        return _response(refused)
    try:
        document = json.loads(await read_body(request, limit=MAX_QUERY_BODY, unpacked_limit=MAX_QUERY_BODY))
        queries = document["requests"]
        identifiers = [str(query["id"]) for query in queries]
    except BodyError as error:
        return _response(error_answer(error.status, "BadArgumentError", str(error)))
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        return _response(error_answer(400, "BadArgumentError", f"not a batch of queries with ids: {error!r}"))
    if len(queries) > MAX_BATCH:
        return _response(error_answer(400, "BadArgumentError", f"{len(queries)} queries: {MAX_BATCH} at most"))
    answers = await asyncio.gather(*(_batched(store, query) for query in queries))
    responses = (
        b'{"id":%b,"status":%d,"body":%b}' % (json.dumps(identifier).encode(), answer.status, answer.body)
        for identifier, answer in zip(identifiers, answers, strict=True)
    )
    return Response(b'{"responses":[' + b",".join(responses) + b"]}", 200, None, "application/json")


async def _batched(store: Store, query: dict[str, Any]) -> Answer:
    workspace_id = str(query.get("workspace", ""))
    if workspace_id.lower() != store.workspace_id:
        return _unknown_workspace(workspace_id)
    headers = query.get("headers") or {}
    found = {str(name).lower(): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {}
    return await _run(store, query.get("body"), found.get("prefer", ""))


async def _run(store: Store, body: object, prefer: str) -> Answer:
    if not isinstance(body, dict):
        return error_answer(400, "BadArgumentError", "the body is not a JSON object with a query")
    others = [other for other in body.get("workspaces") or () if str(other).lower() != store.workspace_id]
    if others:
        return _unknown_workspace(str(others[0]))
    wishes = dict(pair.strip().lower().partition("=")[::2] for pair in prefer.split(","))
    wait = wishes.get("wait", "")
    timeout_s = min(float(wait), store.limits.max_timeout_s) if wait.isdecimal() else store.limits.timeout_s
    if store.active >= store.max_waiting:
        return error_answer(429, "ThrottledError", f"{store.active} queries are running or waiting: try again later")
    store.active += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(store.queries, _flush_and_run, store, body, timeout_s,
                                                                wishes.get("include-statistics") == "true")  # fmt: skip
    finally:
        store.active -= 1


def _flush_and_run(store: Store, body: dict[str, Any], timeout_s: float, statistics: bool) -> Answer:
    """A query sees everything that was answered 200 before it came."""
    try:
        fault = store.faults.now()
    except ValueError as error:
        return error_answer(500, "InternalError", str(error))
    if (refusal := fault.refusal(body.get("query"))) is not None:
        return refusal
    try:
        store.writer.flush(timeout_s)
    except NotWrittenError as error:
        return error_answer(503, "ServiceUnavailable", str(error))
    return run_query(
        store.database,
        body.get("query"),
        timespan=body.get("timespan"),
        workspace_id=store.workspace_id,
        timeout_s=timeout_s,
        limits=store.limits,
        fault=fault,
        statistics=statistics,
    )


def _refused_caller(store: Store, request: Request) -> Answer | None:
    """Who may not ask: no bearer token, the wrong one, or a web page that made its own name point at this machine."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    if store.token is None and not is_loopback(host or ""):
        return error_answer(403, "InsufficientAccessError", f"host {host!r}: without a token only loopback is served")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        return error_answer(
            401, "AuthorizationRequiredError", "Valid authentication was not provided: send a bearer token"
        )
    if store.token is not None and not hmac.compare_digest(given.strip().encode(), store.token.encode()):
        return error_answer(401, "InvalidTokenError", "The provided authentication is not valid for this store")
    return None


def _unknown_workspace(workspace_id: str) -> Answer:
    return error_answer(404, "WorkspaceNotFoundError", f"The workspace {workspace_id!r} could not be found")


def _response(answer: Answer) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if answer.status == 401 else None
    if answer.status in (429, 503):
        headers = RETRY_AFTER if answer.retry_after is None else {"Retry-After": answer.retry_after}
    return Response(answer.body, answer.status, headers, "application/json")
