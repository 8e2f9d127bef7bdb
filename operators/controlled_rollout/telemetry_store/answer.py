"""Answers of the query API, in Azure's shape."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "error_answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status and a JSON body, already encoded.

    Attributes:
        status: The status.
        body: The body.
        retry_after: What the header Retry-After says; None for the store's own.
    """

    status: int
    body: bytes
    retry_after: str | None = None


def error_answer(status: int, code: str, message: str, inner: dict[str, Any] | None = None) -> Answer:
    """Return an error of Azure's shape."""
    error: dict[str, Any] = {"message": message, "code": code, "correlationId": str(uuid.uuid4())}
    if inner:
        error["innererror"] = inner
    return Answer(status, json.dumps({"error": error}).encode())
