"""A client of the OCI distribution protocol: looks up, copies and pushes images in registries.

Source: OCI distribution specification 1.1; token authentication as Docker's registries specify it.
"""

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from controlled_rollout.addresses import is_loopback, is_this_machine, transport_for
from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.oci.manifest import ACCEPTED, INDEX, MEDIA_TYPE, Descriptor, Manifest, check_digest
from controlled_rollout.image.oci.responses import (
    check_status,
    parse_json,
    read_document,
    refuse_encoding,
    transport_errors,
)

if TYPE_CHECKING:
    import httpx

__all__ = ["Credentials", "RegistryClient", "Repository"]

CONNECT_TIMEOUT_S: Final = 10.0
# A registry in front of an object store ends an upload only when it has moved the blob.
RESPONSE_TIMEOUT_S: Final = 300.0
MAX_CONFIGURATION_BYTES: Final = 8_000_000
MAX_CHALLENGE_LENGTH: Final = 4096
MAX_REDIRECTS: Final = 10
CHUNK_BYTES: Final = 1 << 20
LOOK_UP_AGAIN_S: Final = 1.0

PATH: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?")
CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
TOKEN: Final = re.compile(r"[\x21-\x7e]{1,65536}")
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
        check_status(response, 200, f"look up {repository}:{tag}")
        if "docker-content-digest" in response.headers:
            return check_digest(response.headers["docker-content-digest"], f"registry {repository.host}")
        manifest = await self.manifest(repository, tag)
        return manifest.digest if manifest else None

    async def manifest(self, repository: Repository, reference: str) -> Manifest | None:
        """Download the manifest of a tag or digest and check its digest; None if it does not exist.

        Raises:
            ImageError: The content does not fit the digest, or is bigger than a manifest may be.
        """
        response = await self._request(
            "GET", repository, f"manifests/{reference}", headers={"Accept": ", ".join(ACCEPTED)}
        )
        if response.status_code == 404:
            return None
        check_status(response, 200, f"read {repository}:{reference}")
        manifest = Manifest(response.content, _media_type(repository, response))
        if reference.startswith("sha256:"):
            _check_content(repository, reference, manifest.digest)
        return manifest

    async def blob(self, repository: Repository, blob: Descriptor) -> bytes:
        """Download a small blob, such as a configuration, and check its digest.

        Raises:
            ImageError: It is missing, too big, or does not fit its digest.
        """
        if blob.size > MAX_CONFIGURATION_BYTES:
            raise ImageError(f"{repository}@{blob.digest} has {blob.size:,} bytes: more than a configuration may have")
        return b"".join([chunk async for chunk in self.chunks(repository, blob)])

    async def has_blob(self, repository: Repository, blob: Descriptor) -> bool:
        """Whether the repository has a blob (HEAD request)."""
        response = await self._request("HEAD", repository, f"blobs/{blob.digest}")
        if response.status_code >= 500:
            # Docker's registry answers so while another client's upload of the same blob is being stored.
            await asyncio.sleep(LOOK_UP_AGAIN_S)
            response = await self._request("HEAD", repository, f"blobs/{blob.digest}")
        if response.status_code == 404:
            return False
        check_status(response, 200, f"look up {repository}@{blob.digest}")
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
        check_status(response, 200, f"list the referrers of {repository}@{digest}")
        return Manifest(response.content, _media_type(repository, response))

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
        check_status(response, 201, f"push {repository}:{tag}")
        _check_content(repository, manifest.digest, response.headers.get("docker-content-digest", manifest.digest))
        return "oci-subject" in response.headers

    async def _begin_upload(
        self, repository: Repository, blob: Descriptor, source: Repository | None = None
    ) -> str | None:
        """Start a blob upload and return its URL; None if the registry mounted the blob from `source`."""
        mount = {"mount": blob.digest, "from": source.path} if source else {}
        response = await self._request("POST", repository, "blobs/uploads/", push=True, source=source, params=mount)
        if source and response.status_code == 201:
            return None
        check_status(response, 202, f"push to {repository}")
        return _upload_location(repository, response)

    async def _upload(
        self, repository: Repository, location: str | None, blob: Descriptor, content: Content | bytes
    ) -> None:
        """Upload a blob's content to an upload URL, and finish the upload with its digest."""
        what = f"push {blob.digest[:19]} ({blob.size / 1e6:,.1f} MB) to {repository}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        response = await self._request("PATCH", repository, location or "", push=True, headers=headers, content=content)
        check_status(response, 202, what)
        response = await self._request(
            "PUT", repository, _upload_location(repository, response), push=True, params={"digest": blob.digest}
        )
        check_status(response, 201, what)

    async def chunks(self, repository: Repository, blob: Descriptor) -> AsyncGenerator[bytes]:
        """Download a blob of any size and yield it in chunks. More than its size is never yielded.

        Raises:
            ImageError: It is missing, or does not have its size and its digest: what was yielded must not be used.
        """
        digest, size = hashlib.sha256(), 0
        async with self._stream("GET", repository, f"blobs/{blob.digest}") as response:
            if response.status_code != 200:
                with transport_errors(repository.host):
                    async with _within_timeout(repository.host):
                        response = await read_document(response, repository.host)
            check_status(response, 200, f"read {repository}@{blob.digest[:19]}")
            refuse_encoding(response, repository.host)
            parts = response.aiter_raw(CHUNK_BYTES)
            while True:
                with transport_errors(repository.host):
                    async with _within_timeout(repository.host):
                        chunk = await anext(parts, b"")
                size += len(chunk)
                if not chunk or size > blob.size:
                    break
                digest.update(chunk)
                yield chunk
        if size != blob.size:
            sent = f"more than {blob.size:,}" if size > blob.size else f"{size:,} of {blob.size:,}"
            raise ImageError(
                f"registry {repository.host} sends {sent} bytes of {blob.digest}: the registry or something on the way "
                "to it cut or changed the content"
            )
        _check_content(repository, blob.digest, f"sha256:{digest.hexdigest()}")

    async def _request(self, method: str, repository: Repository, path: str, **options: Any) -> "httpx.Response":
        """Send an authorized request, and return the response with its whole body read.

        Raises:
            RegistryUnavailableError: It takes too long, be it byte by byte. An upload takes as long as it needs.
            ImageError: The body is bigger than a manifest may be.
        """
        async with self._stream(method, repository, path, **options) as response:
            with transport_errors(repository.host):
                async with _within_timeout(repository.host):
                    return await read_document(response, repository.host)

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
        # An upload may continue at another host or port, which must not get the authorization.
        trusted = _origin(url) == _origin(httpx.URL(repository.url))
        for attempt in (1, 2):
            all_headers = {"Accept-Encoding": "identity", **(headers or {})}
            if trusted and key in self._authorizations:
                all_headers["Authorization"] = self._authorizations[key]
            body = content() if callable(content) else content
            request = httpx.Request(method, url, headers=all_headers, content=body)
            with transport_errors(repository.host, uploading=callable(content)):
                async with _within_timeout(repository.host, uploading=callable(content)):
                    response = await self._send(repository, request, content)
            try:
                if response.status_code == 401 and trusted and attempt == 1:
                    async with _within_timeout(repository.host):
                        self._authorizations[key] = await self._authorization_header(repository, response, scopes)
                    continue
                yield response
            finally:
                await response.aclose()
            return

    async def _send(
        self, repository: Repository, request: "httpx.Request", content: Content | bytes | None
    ) -> "httpx.Response":
        """Send a request and follow redirects; return the response, whose body is not read yet.

        Another host, port or scheme gets no authorization (httpx takes it away). A body is opened anew for each.

        Raises:
            ImageError: The registry leads to an address that it must not lead to, or to too many.
        """
        import httpx

        for _ in range(MAX_REDIRECTS):
            _check_address(repository, request.url)
            client = await self._http_client(str(request.url))
            response = await client.send(request, stream=True)
            if response.next_request is None:
                return response
            await response.aclose()
            keeps_body = response.next_request.method == request.method
            request = response.next_request
            if keeps_body and callable(content):
                request = httpx.Request(request.method, request.url, headers=request.headers, content=content())
        raise ImageError(f"registry {repository.host} redirects more than {MAX_REDIRECTS} times: check its settings")

    async def _http_client(self, url: str) -> "httpx.AsyncClient":
        """Return the HTTP client for a URL; create it on first use. What is on this machine is reached without proxy.

        It keeps no cookies: a cookie does not tell the ports of a host apart.
        """
        import httpx

        local = is_this_machine(url)
        if local not in self._clients:
            client = httpx.AsyncClient(
                timeout=httpx.Timeout(RESPONSE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                transport=transport_for(url),
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
            self._clients[local] = await self._stack.enter_async_context(client)
        return self._clients[local]

    async def _authorization_header(self, repository: Repository, response: "httpx.Response", scopes: list[str]) -> str:
        """Return the `Authorization` header for a registry's 401 response: Basic, or Bearer with a new token."""
        challenge = response.headers.get("www-authenticate", "")[:MAX_CHALLENGE_LENGTH]
        scheme, _, parameters = challenge.partition(" ")
        user = self._credentials.get(repository.host)
        if scheme.lower() == "bearer":
            # Another scheme may be offered behind it, with a realm of its own.
            bearer = dict(reversed(CHALLENGE.findall(parameters)))
            return f"Bearer {await self._request_token(repository, bearer, user, scopes)}"
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
        import httpx

        realm = _next_url(repository, challenge.get("realm", ""))
        query: list[tuple[str, str | int | float | bool | None]] = [("scope", scope) for scope in scopes]
        query += [("service", challenge["service"])] if "service" in challenge else []
        client = await self._http_client(str(realm))
        request = client.build_request("GET", realm, params=query, headers={"Accept-Encoding": "identity"})
        user_auth = httpx.BasicAuth(user.username, user.password) if user else None
        with transport_errors(repository.host):
            # A redirect would take the password elsewhere: it is not followed.
            answer = await client.send(request, stream=True, auth=user_auth)
            try:
                response = await read_document(answer, repository.host)
            finally:
                await answer.aclose()
        check_status(response, 200, f"let {user.username if user else 'anybody'} use {repository}")
        try:
            document = parse_json(response.content)
            token = document.get("token") or document["access_token"]
            if TOKEN.fullmatch(token):
                return str(token)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(f"registry {repository.host}: {realm} answers without a token") from error
        raise ImageError(f"registry {repository.host}: {realm} answers with a token that is not text of one line")


@contextlib.asynccontextmanager
async def _within_timeout(host: str, *, uploading: bool = False) -> AsyncIterator[None]:
    """Context manager: give up what a registry sends byte by byte. An upload takes as long as it needs."""
    try:
        async with asyncio.timeout(None if uploading else RESPONSE_TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise RegistryUnavailableError(
            f"registry {host} does not answer within {RESPONSE_TIMEOUT_S:g} s: try again later"
        ) from error


def _media_type(repository: Repository, response: "httpx.Response") -> str:
    """Return the media type of a response; raise `ImageError` if its header has none."""
    media_type = str(response.headers.get("content-type", "")).partition(";")[0].strip()
    if not MEDIA_TYPE.fullmatch(media_type):
        raise ImageError(f"registry {repository.host} sends a manifest of the media type {media_type[:100]!r}")
    return media_type


def _origin(url: "httpx.URL") -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL: who must be the same to get the same credentials."""
    return url.scheme, url.host, url.port


def _next_url(repository: Repository, address: str, base: "httpx.URL | None" = None) -> "httpx.URL":
    """Return the URL that a registry leads to, relative to `base`.

    Raises:
        ImageError: It is not a URL, or one that the registry must not lead to.
    """
    import httpx

    try:
        url = base.join(address) if base else httpx.URL(address)
    except (httpx.InvalidURL, ValueError) as error:
        raise ImageError(f"registry {repository.host} leads to {address[:200]!r}, which is no URL: {error}") from error
    _check_address(repository, url)
    return url


def _check_address(repository: Repository, url: "httpx.URL") -> None:
    """Raise `ImageError` if a registry leads to plain http, or from elsewhere to this machine."""
    import httpx

    is_encrypted = url.scheme == "https"
    if is_loopback(repository.host):
        allowed = is_encrypted or (is_loopback(url.host) and url.scheme == "http")
    else:
        # A registry may have a name or an address of this machine itself.
        is_registry = url.host == httpx.URL(repository.url).host
        allowed = is_encrypted and (is_registry or not is_this_machine(str(url)))
    if not allowed:
        raise ImageError(
            f"registry {repository.host} leads to {url.scheme}://{url.netloc.decode()[:200]}: only https is allowed "
            "for that, and no address of this machine"
        )


def _upload_location(repository: Repository, response: "httpx.Response") -> str:
    """Return the URL of a response's `Location` header, at which an upload continues."""
    return str(_next_url(repository, response.headers.get("location", ""), response.url))


def _check_content(repository: Repository, expected: str, actual: str) -> None:
    """Raise `ImageError` if downloaded content does not have the expected digest."""
    if expected != actual:
        raise ImageError(
            f"registry {repository.host}: the digest {expected} of {repository} was asked for, {actual} came: "
            "the registry or something on the way to it changed the content"
        )
