"""A client of the OCI distribution protocol: looks up, copies and pushes images in registries.

Source: OCI distribution specification 1.1; token authentication as Docker's registries specify it.
"""

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from controlled_rollout.addresses import is_loopback, is_this_machine, transport_for
from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.oci.manifest import ACCEPTED, INDEX, Descriptor, Manifest

if TYPE_CHECKING:
    import httpx

__all__ = ["Credentials", "RegistryClient", "Repository"]

CONNECT_TIMEOUT_S: Final = 10.0
# A registry in front of an object store ends an upload only when it has moved the blob.
RESPONSE_TIMEOUT_S: Final = 300.0
MAX_DOCUMENT_BYTES: Final = 8_000_000
CHUNK_BYTES: Final = 1 << 20
LOOK_UP_AGAIN_S: Final = 1.0

PATH: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?")
CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_API: Final = "registry-1.docker.io"

Content = Callable[[], AsyncIterator[bytes]]
"""Opens the content of a request; called again when the request has to be repeated."""


@dataclass(frozen=True)
class Credentials:
    """A user of a registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Repository:
    """A repository: the images of one name in a registry.

    Attributes:
        host: The registry, with its port if it has one.
        path: The repository's name there.
    """

    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a repository written as `registry.example/some/name`.

        Raises:
            ImageError: It is not of that form.
        """
        host, _, path = text.partition("/")
        if not HOST.fullmatch(host) or not ("." in host or ":" in host or host == "localhost"):
            raise ImageError(f"repository {text!r} does not begin with a registry: write registry.example/{text}")
        if not PATH.fullmatch(path):
            raise ImageError(
                f"repository {text!r} is not valid: use lower-case letters and digits, inside a part also '.', '_' "
                "and '-', and '/' between parts; no tag"
            )
        return cls(host, path)

    @property
    def url(self) -> str:
        """The repository's base URL. It is http for a registry on this machine, and https for all others."""
        scheme = "http" if is_loopback(self.host) else "https"
        return f"{scheme}://{DOCKER_HUB_API if self.host == DOCKER_HUB else self.host}/v2/{self.path}"


class RegistryClient:
    """A client of registries; used as an asynchronous context manager.

    Every method raises `RegistryUnavailableError` if the registry does not answer, and `ImageError` if it refuses.

    Args:
        credentials: A user for each registry that needs one, by host.
    """

    def __init__(self, credentials: Mapping[str, Credentials] | None = None) -> None:
        self._credentials = dict(credentials or {})
        self._authorizations: dict[tuple[str, frozenset[str]], str] = {}
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clients.clear()
        await self._stack.aclose()

    async def digest(self, repository: Repository, tag: str) -> str | None:
        """Return the digest `sha256:…` that a tag points to, or None if the tag does not exist."""
        response = await self._request("HEAD", repository, f"manifests/{tag}", headers={"Accept": ", ".join(ACCEPTED)})
        if response.status_code == 404:
            return None
        _check_status(response, 200, f"look up {repository}:{tag}")
        if "docker-content-digest" in response.headers:
            return str(response.headers["docker-content-digest"])
        manifest = await self.manifest(repository, tag)
        return manifest.digest if manifest else None

    async def manifest(self, repository: Repository, reference: str) -> Manifest | None:
        """Download the manifest of a tag or digest and check its digest; None if it does not exist.

        Raises:
            ImageError: The content does not fit the digest.
        """
        response = await self._request(
            "GET", repository, f"manifests/{reference}", headers={"Accept": ", ".join(ACCEPTED)}
        )
        if response.status_code == 404:
            return None
        _check_status(response, 200, f"read {repository}:{reference}")
        manifest = Manifest(response.content, response.headers.get("content-type", "").partition(";")[0])
        if reference.startswith("sha256:"):
            _check_digest(repository, reference, manifest.digest)
        return manifest

    async def blob(self, repository: Repository, blob: Descriptor) -> bytes:
        """Download a small blob, such as a configuration, and check its digest.

        Raises:
            ImageError: It is missing, too big, or does not fit its digest.
        """
        if blob.size > MAX_DOCUMENT_BYTES:
            raise ImageError(f"{repository}@{blob.digest} has {blob.size:,} bytes: more than a configuration may have")
        content = b"".join([chunk async for chunk in self.chunks(repository, blob)])
        _check_digest(repository, blob.digest, Descriptor.of(blob.media_type, content).digest)
        return content

    async def has_blob(self, repository: Repository, blob: Descriptor) -> bool:
        """Whether the repository has a blob (HEAD request)."""
        response = await self._request("HEAD", repository, f"blobs/{blob.digest}")
        if response.status_code >= 500:
            # Docker's registry answers so while another client's upload of the same blob is being stored.
            await asyncio.sleep(LOOK_UP_AGAIN_S)
            response = await self._request("HEAD", repository, f"blobs/{blob.digest}")
        if response.status_code == 404:
            return False
        _check_status(response, 200, f"look up {repository}@{blob.digest}")
        return True

    async def put_blob(self, repository: Repository, blob: Descriptor, content: Content | bytes) -> bool:
        """Upload a blob unless the repository has it; return whether it was uploaded.

        Raises:
            ImageError: The content does not fit the digest.
        """
        if await self.has_blob(repository, blob):
            return False
        await self._upload(repository, await self._begin_upload(repository, blob), blob, content)
        return True

    async def copy_blob(self, source: Repository, target: Repository, blob: Descriptor) -> None:
        """Copy a blob to another repository if it is missing there. Within one registry nothing is transferred."""
        if source == target or await self.has_blob(target, blob):
            return
        location = await self._begin_upload(target, blob, source=source if source.host == target.host else None)
        if location is not None:
            await self._upload(target, location, blob, lambda: self.chunks(source, blob))

    async def referrers(self, repository: Repository, digest: str) -> Manifest | None:
        """Return the registry's index of the referrers of a digest, or None if it has no referrers API."""
        response = await self._request("GET", repository, f"referrers/{digest}", headers={"Accept": INDEX})
        if response.status_code == 404:
            return None
        _check_status(response, 200, f"list the referrers of {repository}@{digest}")
        return Manifest(response.content, response.headers.get("content-type", "").partition(";")[0])

    async def put_manifest(self, repository: Repository, tag: str, manifest: Manifest) -> bool:
        """Upload a manifest under a tag or its digest. This is the last step of a push: the image becomes visible.

        Returns:
            Whether the registry itself lists the manifest among the referrers of its subject.
        """
        response = await self._request(
            "PUT",
            repository,
            f"manifests/{tag}",
            push=True,
            headers={"Content-Type": manifest.media_type},
            content=manifest.content,
        )
        _check_status(response, 201, f"push {repository}:{tag}")
        _check_digest(repository, manifest.digest, response.headers.get("docker-content-digest", manifest.digest))
        return "oci-subject" in response.headers

    async def _begin_upload(
        self, repository: Repository, blob: Descriptor, source: Repository | None = None
    ) -> str | None:
        """Start a blob upload and return its URL; None if the registry mounted the blob from `source`."""
        mount = {"mount": blob.digest, "from": source.path} if source else {}
        response = await self._request("POST", repository, "blobs/uploads/", push=True, source=source, params=mount)
        if source and response.status_code == 201:
            return None
        _check_status(response, 202, f"push to {repository}")
        return _upload_location(response)

    async def _upload(
        self, repository: Repository, location: str | None, blob: Descriptor, content: Content | bytes
    ) -> None:
        """Upload a blob's content to an upload URL, and finish the upload with its digest."""
        what = f"push {blob.digest[:19]} ({blob.size / 1e6:,.1f} MB) to {repository}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        response = await self._request("PATCH", repository, location or "", push=True, headers=headers, content=content)
        _check_status(response, 202, what)
        response = await self._request(
            "PUT", repository, _upload_location(response), push=True, params={"digest": blob.digest}
        )
        _check_status(response, 201, what)

    async def chunks(self, repository: Repository, blob: Descriptor) -> AsyncGenerator[bytes]:
        """Download a blob of any size and yield it in chunks. The caller checks the digest."""
        headers = {"Accept-Encoding": "identity"}
        async with self._stream("GET", repository, f"blobs/{blob.digest}", headers=headers) as response:
            if response.status_code != 200:
                await response.aread()
            _check_status(response, 200, f"read {repository}@{blob.digest[:19]}")
            with _transport_errors(repository):
                async for chunk in response.aiter_raw(CHUNK_BYTES):
                    yield chunk

    async def _request(self, method: str, repository: Repository, path: str, **options: Any) -> "httpx.Response":
        """Send an authorized request, and return the response with its whole body read."""
        async with self._stream(method, repository, path, **options) as response:
            with _transport_errors(repository):
                await response.aread()
            return response

    @contextlib.asynccontextmanager
    async def _stream(
        self,
        method: str,
        repository: Repository,
        path: str,
        *,
        push: bool = False,
        source: Repository | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        content: Content | bytes | None = None,
    ) -> "AsyncIterator[httpx.Response]":
        """Context manager: send an authorized request and yield the response, whose body is not read yet."""
        import httpx

        url = httpx.URL(path if "://" in path else f"{repository.url}/{path}").copy_merge_params(dict(params or {}))
        scopes = [f"repository:{repository.path}:{'pull,push' if push else 'pull'}"]
        scopes += [f"repository:{source.path}:pull"] if source else []
        key = repository.host, frozenset(scopes)
        client = await self._http_client(repository)
        # An upload may continue on another host, which must not get the authorization.
        trusted = url.host == httpx.URL(repository.url).host
        for attempt in (1, 2):
            all_headers = dict(headers or {})
            if trusted and key in self._authorizations:
                all_headers["Authorization"] = self._authorizations[key]
            body = content() if callable(content) else content
            with _transport_errors(repository, uploading=callable(content)):
                response = await client.send(
                    client.build_request(method, url, headers=all_headers, content=body),
                    stream=True,
                    follow_redirects=True,
                )
            try:
                if response.status_code == 401 and trusted and attempt == 1:
                    self._authorizations[key] = await self._authorization_header(repository, response, scopes)
                    continue
                yield response
            finally:
                await response.aclose()
            return

    async def _http_client(self, repository: Repository) -> "httpx.AsyncClient":
        """Return the HTTP client for a registry; create it on first use. Loopback registries use no proxy."""
        import httpx

        local = is_this_machine(repository.url)
        if local not in self._clients:
            timeout = httpx.Timeout(RESPONSE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            client = httpx.AsyncClient(timeout=timeout, transport=transport_for(repository.url))
            self._clients[local] = await self._stack.enter_async_context(client)
        return self._clients[local]

    async def _authorization_header(self, repository: Repository, response: "httpx.Response", scopes: list[str]) -> str:
        """Return the `Authorization` header for a registry's 401 response: Basic, or Bearer with a new token."""
        scheme, _, parameters = response.headers.get("www-authenticate", "").partition(" ")
        user = self._credentials.get(repository.host)
        if scheme.lower() == "bearer":
            return f"Bearer {await self._request_token(repository, dict(CHALLENGE.findall(parameters)), user, scopes)}"
        if user is None:
            raise ImageError(
                f"registry {repository.host} needs a user name and a password, and none are given: name a "
                "connection in the workspace's settings"
            )
        pair = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
        return f"Basic {pair}"

    async def _request_token(
        self, repository: Repository, challenge: dict[str, str], user: Credentials | None, scopes: list[str]
    ) -> str:
        """Request a bearer token for some scopes from the registry's token service."""
        realm = challenge.get("realm", "")
        address = urlsplit(realm)
        if address.scheme != "https" and not is_loopback(address.netloc):
            raise ImageError(
                f"registry {repository.host} refers to {realm!r} for a token: only https is allowed for that"
            )
        client = await self._http_client(repository)
        query: list[tuple[str, str | int | float | bool | None]] = [("scope", scope) for scope in scopes]
        query += [("service", challenge["service"])] if "service" in challenge else []
        with _transport_errors(repository):
            response = await client.get(realm, params=query, auth=(user.username, user.password) if user else None)
        _check_status(response, 200, f"let {user.username if user else 'anybody'} use {repository}")
        try:
            document = response.json()
            return str(document.get("token") or document["access_token"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(f"registry {repository.host}: {realm} answers without a token") from error


@contextlib.contextmanager
def _transport_errors(repository: Repository, *, uploading: bool = False) -> Iterator[None]:
    """Context manager: convert connection errors to a `RegistryUnavailableError`."""
    import httpx

    try:
        yield
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError) as error:
        if not uploading:
            raise _unavailable_error(repository, error) from error
        # A registry that refuses an upload resets the connection, and its response is lost.
        raise RegistryUnavailableError(
            f"registry {repository.host} ended the connection in the middle of an upload "
            f"({str(error) or type(error).__name__}): its disk may be full, or something on the way limits uploads"
        ) from error
    except (httpx.TransportError, httpx.TooManyRedirects) as error:
        raise _unavailable_error(repository, error) from error


def _unavailable_error(repository: Repository, error: Exception) -> RegistryUnavailableError:
    """Return the `RegistryUnavailableError` for a connection error, with advice."""
    detail = str(error) or type(error).__name__
    advice = (
        "set SSL_CERT_FILE to the certificates of its authority"
        if "CERTIFICATE" in detail
        else "check that it runs, and the address in the workspace's settings"
    )
    return RegistryUnavailableError(f"registry {repository.host} does not answer ({detail}): {advice}")


def _upload_location(response: "httpx.Response") -> str:
    """Return the URL of a response's `Location` header, at which an upload continues."""
    return str(response.url.join(response.headers.get("location", "")))


def _check_digest(repository: Repository, expected: str, actual: str) -> None:
    """Raise `ImageError` if downloaded content does not have the expected digest."""
    if expected != actual:
        raise ImageError(
            f"registry {repository.host}: {expected} of {repository} was asked for, {actual} came: "
            "the registry or something on the way to it changed the content"
        )


def _check_status(response: "httpx.Response", expected: int, what: str) -> None:
    """Raise an error unless a response has the expected HTTP status; `what` names the failed action.

    Args:
        response: The response.
        expected: The status.
        what: What was asked for, as a verb with its object, for the message.
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
    """Return a response's HTTP status and the registry's error messages as text."""
    try:
        faults = response.json()["errors"]
        words = "; ".join(f"{fault['code']}: {fault.get('message', '')}".rstrip(": ") for fault in faults)
    except (ValueError, KeyError, TypeError):
        words = response.reason_phrase
    return f"{response.status_code} {words}".strip()
