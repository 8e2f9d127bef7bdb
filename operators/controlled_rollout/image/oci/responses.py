"""Read what a registry answers: bounded in size, with its error messages as text for one line."""

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import ImageError, RegistryUnavailableError

if TYPE_CHECKING:
    import httpx

__all__ = ["check_status", "parse_json", "read_document", "refuse_encoding", "transport_errors"]

# The distribution specification lets registries refuse bigger manifests.
MAX_DOCUMENT_BYTES: Final = 4 << 20
MAX_ERROR_BYTES: Final = 64 << 10
MAX_MESSAGE_LENGTH: Final = 500


def parse_json(content: bytes | str) -> Any:
    """Parse JSON that may be hostile.

    Raises:
        ValueError: It is not JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


async def read_document(response: "httpx.Response", host: str) -> "httpx.Response":
    """Read a response's body, and return a response that has it. Of an error's body, the beginning is enough.

    Args:
        response: The response, of which nothing was read.
        host: The registry, for the message.

    Raises:
        ImageError: The body is bigger than a manifest may be, or compressed although that was not asked for.
    """
    import httpx

    is_error = response.status_code >= 400
    limit = MAX_ERROR_BYTES if is_error else MAX_DOCUMENT_BYTES
    if not is_error:
        refuse_encoding(response, host)
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > limit:
            if is_error:
                break
            raise ImageError(f"registry {host} sends a document of more than {limit:,} bytes: more than it may have")
    headers = [(name, value) for name, value in response.headers.multi_items() if name != "content-encoding"]
    return httpx.Response(
        response.status_code, headers=headers, content=bytes(content[:limit]), request=response.request
    )


def refuse_encoding(response: "httpx.Response", host: str) -> None:
    """Raise `ImageError` if a response's body is compressed: its size would no longer bound what it unpacks to."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ImageError(
            f"registry {host} compresses what it sends ({_printable(encoding)}), which was not asked for: something on "
            "the way changes its answers"
        )


@contextlib.contextmanager
def transport_errors(host: str, *, uploading: bool = False) -> Iterator[None]:
    """Context manager: convert connection errors to a `RegistryUnavailableError` that names the registry's host."""
    import httpx

    try:
        yield
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError) as error:
        if not uploading:
            raise _unavailable_error(host, error) from error
        # A registry that refuses an upload resets the connection, and its response is lost.
        raise RegistryUnavailableError(
            f"registry {host} ended the connection in the middle of an upload "
            f"({str(error) or type(error).__name__}): its disk may be full, or something on the way limits uploads"
        ) from error
    except httpx.TransportError as error:
        raise _unavailable_error(host, error) from error


def _unavailable_error(host: str, error: Exception) -> RegistryUnavailableError:
    """Return the `RegistryUnavailableError` for a connection error, with advice."""
    detail = str(error) or type(error).__name__
    advice = (
        "set SSL_CERT_FILE to the certificates of its authority"
        if "CERTIFICATE" in detail
        else "check that it runs, and the address in the workspace's settings"
    )
    return RegistryUnavailableError(f"registry {host} does not answer ({detail}): {advice}")


def check_status(response: "httpx.Response", expected: int, what: str) -> None:
    """Raise an error unless a response has the expected HTTP status; `what` names the failed action.

    Args:
        response: The response.
        expected: The status.
        what: What was asked for, as a verb with its object, for the message.

    Raises:
        RegistryUnavailableError: The registry cannot do it now.
        ImageError: The registry refuses.
    """
    if response.status_code == expected:
        return
    host, status = response.url.netloc.decode(), response.status_code
    message = _error_message(response)
    if status in (401, 403):
        raise ImageError(
            f"registry {host} does not {what}: {message}: check the user, the password and its permissions"
        )
    if status == 429 or status >= 500:
        raise RegistryUnavailableError(
            f"registry {host} cannot {what} now: {message}: its disk may be full, or it is busy"
        )
    hint = ": is it read-only?" if status == 405 else ""
    raise ImageError(f"registry {host} does not {what}: {message}{hint}")


def _error_message(response: "httpx.Response") -> str:
    """Return a response's HTTP status and the registry's error messages as text for one line."""
    try:
        faults = parse_json(response.content)["errors"]
        words = "; ".join(f"{fault['code']}: {fault.get('message', '')}".rstrip(": ") for fault in faults)
    except (ValueError, KeyError, TypeError, AttributeError):
        words = response.reason_phrase
    return _printable(f"{response.status_code} {words}".strip())


def _printable(text: str) -> str:
    """Return a text from outside, shortened, and with control characters replaced, for a message."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:MAX_MESSAGE_LENGTH])
    return shown if len(text) <= MAX_MESSAGE_LENGTH else f"{shown} …"
