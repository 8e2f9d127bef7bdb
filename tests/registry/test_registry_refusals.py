"""Registries with users, registries that refuse, and registries with corrupt content."""

import json
import os
import subprocess
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import psutil
import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image import Credentials, ImageReference, build_container_image
from tests.registry.conftest import Built, Start
from tests.registry.real_registry import RunningRegistry

ROBOT = Credentials("robot", "hunter2")


async def push(built: Built, registry: RunningRegistry, cache: Path, user: Credentials | None = None) -> ImageReference:
    return await build_container_image(
        built.source,
        name="digits",
        registry=f"{registry.address}/models",
        cache=cache,
        base_image=built.base_image,
        shared_registry=built.registry,
        credentials={registry.address: user} if user else {},
    )


async def test_a_registry_with_a_password_takes_the_right_one(
    built: Built, with_password: RunningRegistry, tmp_path: Path
) -> None:
    reference = await push(built, with_password, tmp_path / "cache", ROBOT)

    assert reference.sha256 == built.reference.sha256


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (None, "needs a user name and a password, and none are given"),
        (Credentials("robot", "wrong-password"), "UNAUTHORIZED.*: check the user, the password"),
    ],
)
async def test_a_wrong_password_is_an_error_that_does_not_repeat_it(
    built: Built, with_password: RunningRegistry, tmp_path: Path, user: Credentials | None, message: str
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        await push(built, with_password, tmp_path / "cache", user)

    assert "wrong-password" not in str(caught.value)
    assert "wrong-password" not in repr(user)


async def test_buildah_gets_the_password_in_a_file_that_is_removed(
    built: Built, with_password: RunningRegistry, tmp_path: Path
) -> None:
    commands: set[str] = set()

    def look(line: str) -> None:
        if "STEP" not in line and "Copying" not in line:
            return
        for child in psutil.Process().children(recursive=True):
            try:
                commands.add(" ".join(child.cmdline()))
            except psutil.Error:
                continue

    await build_container_image(
        built.source,
        name="digits",
        registry=f"{with_password.address}/models",
        cache=tmp_path / "cache",
        base_image=built.base_image,
        credentials={with_password.address: ROBOT},
        progress=look,
    )

    assert any("buildah" in command for command in commands)
    assert not any("hunter2" in command for command in commands)
    password = b64encode(b"robot:hunter2")
    assert not any(password in path.read_bytes() for path in (tmp_path / "cache").rglob("*.json") if path.is_file())


async def test_a_read_only_registry_is_an_error(built: Built, start_registry: Start, tmp_path: Path) -> None:
    registry = start_registry(read_only=True)

    with pytest.raises(ImageError, match=r"does not push to .*: 405 .*is it read-only\?"):
        await push(built, registry, tmp_path / "cache")


@pytest.mark.parametrize("part", ["config", "layer"])
async def test_content_with_a_wrong_digest_is_refused(
    built: Built, stock: RunningRegistry, registry: RunningRegistry, tmp_path: Path, part: str
) -> None:
    manifest = stock.manifest(built.reference.sha256)
    base = json.loads(stock.blob(manifest["annotations"]["org.opencontainers.image.base.digest"]))
    digest = base["config"]["digest"] if part == "config" else base["layers"][-1]["digest"]
    file = stock.blob_file(digest)
    kept = file.read_bytes()
    try:
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(ImageError, match="digest"):
            await push(built, registry, tmp_path / "cache")
    finally:
        file.write_bytes(kept)

    assert registry.tags("models/environments") == []
    assert registry.tags("models/digits") == []


def certificate(folder: Path, host: str) -> dict[str, str]:
    folder.mkdir()
    paths = {"certificate": str(folder / "tls.crt"), "key": str(folder / "tls.key")}
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"]
    command += ["-addext", f"subjectAltName=IP:{host}", "-keyout", paths["key"], "-out", paths["certificate"]]
    subprocess.run(command, check=True, capture_output=True)
    return paths


def own_address() -> str:
    """Return an address of this machine that is not loopback: registries there are used with https."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family.name == "AF_INET" and not address.address.startswith("127."):
                return address.address
    pytest.skip("this machine has no address but loopback")


async def test_a_registry_with_private_certificates_is_trusted_by_ssl_cert_file(
    built: Built, start_registry: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = own_address()
    tls = certificate(tmp_path / "tls", host)
    registry = start_registry(host=host, tls=tls)

    with pytest.raises(ImageError, match=r"CERTIFICATE_VERIFY_FAILED.*: set SSL_CERT_FILE"):
        await push(built, registry, tmp_path / "cache")
    monkeypatch.setenv("SSL_CERT_FILE", tls["certificate"])
    monkeypatch.setenv("NO_PROXY", host)
    reference = await push(built, registry, tmp_path / "cache")

    assert reference.sha256 == built.reference.sha256


class TokenService(ThreadingHTTPServer):
    """Issues the tokens that a registry requires, to the user robot only."""

    def __init__(self, key: Path, chain: Path) -> None:
        super().__init__(("127.0.0.1", 0), TokenHandler)
        self.key = key.read_text()
        self.chain = "".join(chain.read_text().splitlines()[1:-1])
        self.scopes: list[list[str]] = []


class TokenHandler(BaseHTTPRequestHandler):
    server: TokenService

    def do_GET(self) -> None:
        kind, _, pair = self.headers.get("Authorization", "").partition(" ")
        query = parse_qs(urlsplit(self.path).query)
        if kind != "Basic" or b64decode(pair) != b"robot:hunter2":
            self._answer(401, {"errors": [{"code": "DENIED", "message": "who are you"}]})
            return
        self.server.scopes.append(query["scope"])
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in (scope.split(":") for scope in query["scope"])
        ]
        claims = {"iss": "tests", "aud": query["service"][0], "exp": 2**33, "nbf": 0, "iat": 0, "access": access}
        token = jwt.encode(claims, self.server.key, "RS256", headers={"x5c": [self.server.chain]})
        self._answer(200, {"token": token})

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def token_service(tls: dict[str, str]) -> Iterator[TokenService]:
    with TokenService(Path(tls["key"]), Path(tls["certificate"])) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        try:
            yield service
        finally:
            service.shutdown()
            thread.join()


async def test_a_registry_with_tokens_is_asked_for_the_needed_scopes_only(
    built: Built, start_registry: Start, tmp_path: Path
) -> None:
    tls = certificate(tmp_path / "tls", "127.0.0.1")
    with token_service(tls) as service:
        realm = f"http://127.0.0.1:{service.server_port}/token"
        bundle = tls["certificate"]
        token = {"realm": realm, "service": "registry", "issuer": "tests", "rootcertbundle": bundle}
        registry = start_registry(auth={"token": token})

        with pytest.raises(ImageError, match="DENIED: who are you"):
            await push(built, registry, tmp_path / "cache", Credentials("robot", "wrong"))
        reference = await push(built, registry, tmp_path / "cache", ROBOT)

    assert reference.sha256 == built.reference.sha256
    assert service.scopes[0] == ["repository:models/environments:pull"]
    assert ["repository:models/digits:pull,push", "repository:models/environments:pull"] in service.scopes
    assert not os.path.exists(tmp_path / "cache" / "containers")
