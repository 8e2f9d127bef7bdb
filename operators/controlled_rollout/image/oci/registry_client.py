"""A client of the OCI distribution protocol: what is asked of a registry to look up, copy and push images.

Source: OCI distribution specification 1.1; token authentication as Docker's registries specify it.
"""

import base64
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from controlled_rollout.addresses import is_loopback, is_this_machine
from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.oci.manifest import ACCEPTED, INDEX, Descriptor, Manifest

if TYPE_CHECKING:
    import httpx

__all__ = ["Credentials", "Registry", "RegistryUnavailableError", "Repository"]

CONNECT_TIMEOUT_S: Final = 10.0
# A registry in front of an object store answers the end of an upload only when it has moved the blob.
ANSWER_TIMEOUT_S: Final = 300.0
MAX_DOCUMENT_BYTES: Final = 8_000_000
CHUNK_BYTES: Final = 1 << 20

PATH: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
HOST: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?")
CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_API: Final = "registry-1.docker.io"

Content = Callable[[], AsyncIterator[bytes]]
"""Begins to read what is sent; called again when a request has to be repeated."""


@dataclass(frozen=True)
class Credentials:
    """A user of a registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Repository:
    """Where the images of one name are.

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
        """Return the repository written as `registry.example/some/name`.

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
        """The repository's base address. Plain http is spoken with this machine only."""
        scheme = "http" if is_loopback(self.host) else "https"
        return f"{scheme}://{DOCKER_HUB_API if self.host == DOCKER_HUB else self.host}/v2/{self.path}"


class Registry:
    """Asks registries; used as an asynchronous context manager.

    Every method raises `RegistryUnavailableError` if the registry does not answer, and `ImageError` if it refuses.

    Args:
        credentials: A user for each registry that asks for one, by host.
    """

    def __init__(self, credentials: Mapping[str, Credentials] | None = None) -> None:
        self._credentials = dict(credentials or {})
        self._authorizations: dict[tuple[str, frozenset[str]], str] = {}
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clients.clear()
        await self._open.aclose()

    async def digest(self, repository: Repository, tag: str) -> str | None:
        """Return the digest `sha256:…` of a tag's image, or None if there is none."""
        answer = await self._ask("HEAD", repository, f"manifests/{tag}", headers={"Accept": ", ".join(ACCEPTED)})
        if answer.status_code == 404:
            return None
        _check(answer, 200, f"look up {repository}:{tag}")
        if "docker-content-digest" in answer.headers:
            return str(answer.headers["docker-content-digest"])
        manifest = await self.manifest(repository, tag)
        return manifest.digest if manifest else None

    async def manifest(self, repository: Repository, reference: str) -> Manifest | None:
        """Return the manifest of a tag or a digest, or None if there is none.

        Raises:
            ImageError: What came is not what the digest asked for.
        """
        answer = await self._ask("GET", repository, f"manifests/{reference}", headers={"Accept": ", ".join(ACCEPTED)})
        if answer.status_code == 404:
            return None
        _check(answer, 200, f"read {repository}:{reference}")
        manifest = Manifest(answer.content, answer.headers.get("content-type", "").partition(";")[0])
        if reference.startswith("sha256:"):
            _check_digest(repository, reference, manifest.digest)
        return manifest

    async def blob(self, repository: Repository, blob: Descriptor) -> bytes:
        """Return a small blob, such as a configuration.

        Raises:
            ImageError: It is missing, or is not what its digest says.
        """
        if blob.size > MAX_DOCUMENT_BYTES:
            raise ImageError(f"{repository}@{blob.digest} has {blob.size:,} bytes: that is no configuration")
        content = b"".join([chunk async for chunk in self.chunks(repository, blob)])
        _check_digest(repository, blob.digest, Descriptor.of(blob.media_type, content).digest)
        return content

    async def has_blob(self, repository: Repository, blob: Descriptor) -> bool:
        """Whether the repository has a blob."""
        answer = await self._ask("HEAD", repository, f"blobs/{blob.digest}")
        if answer.status_code == 404:
            return False
        _check(answer, 200, f"look up {repository}@{blob.digest}")
        return True

    async def put_blob(self, repository: Repository, blob: Descriptor, content: Content | bytes) -> bool:
        """Send a blob unless it is there; return whether it was sent.

        Raises:
            ImageError: What was sent is not what its digest says.
        """
        if await self.has_blob(repository, blob):
            return False
        await self._upload(repository, await self._begin(repository, blob), blob, content)
        return True

    async def copy_blob(self, source: Repository, target: Repository, blob: Descriptor) -> None:
        """Give a repository a blob of another one unless it has it: within a registry, without sending it."""
        if source == target or await self.has_blob(target, blob):
            return
        location = await self._begin(target, blob, source=source if source.host == target.host else None)
        if location is not None:
            await self._upload(target, location, blob, lambda: self.chunks(source, blob))

    async def referrers(self, repository: Repository, digest: str) -> Manifest | None:
        """Return the registry's own list of what refers to a digest, or None if it keeps none."""
        answer = await self._ask("GET", repository, f"referrers/{digest}", headers={"Accept": INDEX})
        if answer.status_code == 404:
            return None
        _check(answer, 200, f"list what refers to {repository}@{digest}")
        return Manifest(answer.content, answer.headers.get("content-type", "").partition(";")[0])

    async def put_manifest(self, repository: Repository, tag: str, manifest: Manifest) -> bool:
        """Send a manifest under a tag or its digest: the last step of a push, only then is the image there.

        Returns:
            Whether the registry itself lists the manifest among what refers to its subject.
        """
        answer = await self._ask(
            "PUT",
            repository,
            f"manifests/{tag}",
            push=True,
            headers={"Content-Type": manifest.media_type},
            content=manifest.content,
        )
        _check(answer, 201, f"push {repository}:{tag}")
        _check_digest(repository, manifest.digest, answer.headers.get("docker-content-digest", manifest.digest))
        return "oci-subject" in answer.headers

    async def _begin(self, repository: Repository, blob: Descriptor, source: Repository | None = None) -> str | None:
        """Begin an upload and return where to; None if the registry took the blob from `source`."""
        mount = {"mount": blob.digest, "from": source.path} if source else {}
        answer = await self._ask("POST", repository, "blobs/uploads/", push=True, source=source, params=mount)
        if source and answer.status_code == 201:
            return None
        _check(answer, 202, f"push to {repository}")
        return _location(answer)

    async def _upload(
        self, repository: Repository, location: str | None, blob: Descriptor, content: Content | bytes
    ) -> None:
        what = f"push {blob.digest[:19]} ({blob.size / 1e6:,.1f} MB) to {repository}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        answer = await self._ask("PATCH", repository, location or "", push=True, headers=headers, content=content)
        _check(answer, 202, what)
        answer = await self._ask("PUT", repository, _location(answer), push=True, params={"digest": blob.digest})
        _check(answer, 201, what)

    async def chunks(self, repository: Repository, blob: Descriptor) -> AsyncGenerator[bytes]:
        """Read a blob of any size, piece by piece. Whether it is what its digest says is the reader's to check."""
        what = f"read {repository}@{blob.digest[:19]}"
        asked = {"Accept-Encoding": "identity"}
        async with self._stream("GET", repository, f"blobs/{blob.digest}", headers=asked) as answer:
            if answer.status_code != 200:
                await answer.aread()
            _check(answer, 200, what)
            with _transport_errors(repository):
                async for chunk in answer.aiter_raw(CHUNK_BYTES):
                    yield chunk

    async def _ask(self, method: str, repository: Repository, path: str, **request: Any) -> "httpx.Response":
        async with self._stream(method, repository, path, **request) as answer:
            with _transport_errors(repository):
                await answer.aread()
            return answer

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
        """Send a request, with the authorization that the registry asks for; the answer's body is still to be read."""
        import httpx

        url = httpx.URL(path if "://" in path else f"{repository.url}/{path}").copy_merge_params(dict(params or {}))
        scopes = [f"repository:{repository.path}:{'pull,push' if push else 'pull'}"]
        scopes += [f"repository:{source.path}:pull"] if source else []
        key = repository.host, frozenset(scopes)
        client = await self._client(repository)
        # An upload may go on elsewhere, which needs no authorization of ours and must not be told it.
        trusted = url.host == httpx.URL(repository.url).host
        for attempt in (1, 2):
            sent = dict(headers or {})
            if trusted and key in self._authorizations:
                sent["Authorization"] = self._authorizations[key]
            body = content() if callable(content) else content
            with _transport_errors(repository, uploading=callable(content)):
                answer = await client.send(
                    client.build_request(method, url, headers=sent, content=body), stream=True, follow_redirects=True
                )
            try:
                if answer.status_code == 401 and trusted and attempt == 1:
                    self._authorizations[key] = await self._authorize(repository, answer, scopes)
                    continue
                yield answer
            finally:
                await answer.aclose()
            return

    async def _client(self, repository: Repository) -> "httpx.AsyncClient":
        import httpx

        # A proxy that the environment names leads out of this machine.
        local = is_this_machine(repository.url)
        if local not in self._clients:
            timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            client = httpx.AsyncClient(timeout=timeout, trust_env=not local)
            self._clients[local] = await self._open.enter_async_context(client)
        return self._clients[local]

    async def _authorize(self, repository: Repository, answer: "httpx.Response", scopes: list[str]) -> str:
        """Return the authorization that a registry's challenge asks for."""
        kind, _, rest = answer.headers.get("www-authenticate", "").partition(" ")
        user = self._credentials.get(repository.host)
        if kind.lower() == "bearer":
            return f"Bearer {await self._token(repository, dict(CHALLENGE.findall(rest)), user, scopes)}"
        if user is None:
            raise ImageError(f"registry {repository.host} asks for a user name and a password, and none are given")
        pair = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
        return f"Basic {pair}"

    async def _token(
        self, repository: Repository, challenge: dict[str, str], user: Credentials | None, scopes: list[str]
    ) -> str:
        realm = challenge.get("realm", "")
        address = urlsplit(realm)
        if address.scheme != "https" and not is_loopback(address.netloc):
            raise ImageError(
                f"registry {repository.host} sends to {realm!r} for a token: only https is trusted with that"
            )
        client = await self._client(repository)
        asked: list[tuple[str, str | int | float | bool | None]] = [("scope", scope) for scope in scopes]
        asked += [("service", challenge["service"])] if "service" in challenge else []
        with _transport_errors(repository):
            answer = await client.get(realm, params=asked, auth=(user.username, user.password) if user else None)
        _check(answer, 200, f"let {user.username if user else 'anybody'} use {repository}")
        try:
            document = answer.json()
            return str(document.get("token") or document["access_token"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ImageError(f"registry {repository.host}: {realm} answers without a token") from None


@contextlib.contextmanager
def _transport_errors(repository: Repository, *, uploading: bool = False) -> Any:
    import httpx

    try:
        yield
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError) as error:
        if not uploading:
            raise _silent(repository, error) from None
        # A registry that refuses in the middle resets the connection, and what it says is lost.
        raise RegistryUnavailableError(
            f"registry {repository.host} ended the connection in the middle of an upload "
            f"({str(error) or type(error).__name__}): its disk may be full, or something on the way limits uploads"
        ) from None
    except (httpx.TransportError, httpx.TooManyRedirects) as error:
        raise _silent(repository, error) from None


def _silent(repository: Repository, error: Exception) -> RegistryUnavailableError:
    detail = str(error) or type(error).__name__
    advice = (
        "set SSL_CERT_FILE to the certificates that it is to be trusted by"
        if "CERTIFICATE" in detail
        else "check that it runs, and the address in the workspace's settings"
    )
    return RegistryUnavailableError(f"registry {repository.host} does not answer ({detail}): {advice}")


def _location(answer: "httpx.Response") -> str:
    """Return where an upload goes on."""
    return str(answer.url.join(answer.headers.get("location", "")))


def _check_digest(repository: Repository, asked: str, found: str) -> None:
    if asked != found:
        raise ImageError(
            f"registry {repository.host}: {asked} of {repository} was asked for, {found} is there: "
            "the registry or something on the way to it changed the content"
        )


def _check(answer: "httpx.Response", expected: int, what: str) -> None:
    """Raise an error that says what the registry would not do, unless it did it."""
    if answer.status_code == expected:
        return
    host, status = answer.url.netloc.decode(), answer.status_code
    said = _said(answer)
    if status in (401, 403):
        raise ImageError(f"registry {host} does not {what}: {said}: check the user, the password and its permissions")
    if status == 429 or status >= 500:
        raise RegistryUnavailableError(
            f"registry {host} cannot {what} now: {said}: its disk may be full, or it is busy"
        )
    hint = ": is it read-only?" if status == 405 else ""
    raise ImageError(f"registry {host} does not {what}: {said}{hint}")


def _said(answer: "httpx.Response") -> str:
    """Return what a registry's answer says, in words."""
    try:
        faults = answer.json()["errors"]
        words = "; ".join(f"{fault['code']}: {fault.get('message', '')}".rstrip(": ") for fault in faults)
    except (ValueError, KeyError, TypeError):
        words = answer.reason_phrase
    return f"{answer.status_code} {words}".strip()
