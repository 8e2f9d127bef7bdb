"""Responses of the query API in Azure's shape."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["RETRY_AFTER", "ApiResponse", "error_response", "low_memory_response", "timeout_response"]

RETRY_AFTER: Final = {"Retry-After": "2"}
_HEADERS: Final = {401: {"WWW-Authenticate": "Bearer"}, 429: RETRY_AFTER, 503: RETRY_AFTER}


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """An HTTP response.

    Attributes:
        status: The HTTP status.
        body: A JSON document.
        headers: Headers besides those of every response.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def error_response(status: int, code: str, message: str, inner_error: Mapping[str, Any] | None = None) -> ApiResponse:
    """Return an HTTP error response with Azure's JSON error object.

    Args:
        status: The HTTP status.
        code: Azure's code of the error, such as `BadArgumentError`.
        message: A sentence for people.
        inner_error: Azure's `innererror`, which tells more about a query that cannot be run.
    """
    error: dict[str, Any] = {"message": message, "code": code, "correlationId": str(uuid.uuid4())}
    if inner_error:
        error["innererror"] = inner_error
    return ApiResponse(status, json.dumps({"error": error}).encode(), _HEADERS.get(status, {}))


def low_memory_response(message: str) -> ApiResponse:
    """Return the error response for a query that needs more memory than it may use."""
    inner = {"code": "E_LOW_MEMORY_CONDITION", "message": message}
    return error_response(400, "BadArgumentError", "The query needs more memory than the store may use", inner)


def timeout_response(timeout_s: float) -> ApiResponse:
    """Return the error response for a query that was stopped after so many seconds."""
    return error_response(504, "GatewayTimeout", f"The query was stopped after {timeout_s:g} s, see Prefer: wait=N")
