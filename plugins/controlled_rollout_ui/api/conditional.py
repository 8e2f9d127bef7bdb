"""Answers that a page which asks again and again gets only if they have changed: a weak `ETag` and 304. Pure."""

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["READ_OF_DETAIL", "READ_OF_OVERVIEW", "conditional_answer"]

# As pydantic's `exclude`.
Fields = dict[str, Any]

NOT_MODIFIED: Final = 304
# The tag without the mark of a weak one, and without what Apache's mod_deflate and mod_brotli append to tags.
OPAQUE_TAG: Final = re.compile(r'(?:W/)?"([0-9a-f]+)(?:-gzip|-br)?"')
# Each user sees what their permission allows, and the newest state counts.
CACHE: Final = "private, no-cache"
# When something was read is shown only beside why it cannot be read now, which makes another value in any case.
READ_OF_OVERVIEW: Final[Fields] = {
    "workspaces": {"__all__": {"read": True, "endpoints": {"__all__": {"read"}}}},
}
READ_OF_DETAIL: Final[Fields] = {"overview": {"read"}}


def conditional_answer(content: BaseModel, if_none_match: str | None, *, but: Fields | None = None) -> "Response":
    """Return a value as JSON with its `ETag`; an empty 304 if the caller has it already.

    Args:
        content: The value.
        if_none_match: What the caller sent as `If-None-Match`; None if nothing.
        but: The fields that do not make another value of it, as pydantic's `exclude`.
    """
    from starlette.responses import Response

    body = content.model_dump_json().encode()
    compared = body if but is None else content.model_dump_json(exclude=but).encode()
    digest = hashlib.blake2b(compared, digest_size=12).hexdigest()
    # Weak: answers with the same tag may differ in the time of the reading, and in how a proxy compresses them.
    headers = {"ETag": f'W/"{digest}"', "Cache-Control": CACHE, "X-Content-Type-Options": "nosniff"}
    known = (if_none_match or "").strip()
    if known == "*" or digest in OPAQUE_TAG.findall(known):
        return Response(status_code=NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type="application/json")
