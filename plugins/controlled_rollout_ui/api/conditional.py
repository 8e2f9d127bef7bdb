"""Answers that a page which asks again and again gets only if they have changed: `ETag` and 304. Pure."""

import hashlib
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["conditional_answer"]

NOT_MODIFIED: Final = 304
# Each user sees what their permission allows, and the newest state counts.
CACHE: Final = "private, no-cache"


def conditional_answer(content: BaseModel, if_none_match: str | None) -> "Response":
    """Return a value as JSON with its `ETag`; an empty 304 if the caller has it already.

    Args:
        content: The value.
        if_none_match: What the caller sent as `If-None-Match`; None if nothing.
    """
    from starlette.responses import Response

    body = content.model_dump_json().encode()
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": CACHE, "X-Content-Type-Options": "nosniff"}
    known = {one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type="application/json")
