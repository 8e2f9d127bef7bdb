import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controlled_rollout.checks.reachability import certificate_end, check_reachable, http_get
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from tests.unit.checks.server import say, serving


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "both.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    return context


@pytest.mark.parametrize("go", [check_reachable, http_get])
async def test_unknown_host_and_closed_port_have_different_messages(
    go: Callable[[str], Awaitable[Any]], closed_port: int
) -> None:
    with pytest.raises(TargetUnavailableError, match=r"^DNS: the name no-such-host\.invalid is not known here"):
        await go("http://no-such-host.invalid")
    with pytest.raises(TargetUnavailableError, match=r"^DNS: the name a{64}\.example is not known here"):
        await check_reachable(f"http://{'a' * 64}.example")
    with pytest.raises(TargetUnavailableError, match=rf"^TCP: 127\.0\.0\.1:{closed_port} does not accept connections"):
        await go(f"http://127.0.0.1:{closed_port}")


@pytest.mark.parametrize("go", [check_reachable, http_get])
async def test_untrusted_certificate_has_its_own_message(
    go: Callable[[str], Awaitable[Any]], self_signed: ssl.SSLContext
) -> None:
    with serving(say(b""), self_signed) as port:
        url = f"https://127.0.0.1:{port}"
        with pytest.raises(
            TargetUnavailableError, match=rf"^TLS: 127\.0\.0\.1:{port} is not trusted \(unknown authority: self"
        ):
            await go(url)
        assert await check_reachable(url, tls=False) == f"127.0.0.1:{port}"


async def test_this_machine_is_asked_without_a_proxy_and_with_the_certificates_of_the_environment(
    self_signed: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "both.pem"))
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    with serving(say(ok), self_signed) as port:
        assert (await http_get(f"https://127.0.0.1:{port}")).status_code == 200
    with serving(say(ok)) as port:
        assert (await http_get(f"http://127.0.0.1:{port}")).status_code == 200


async def test_a_named_authority_is_trusted_and_the_certificates_end_is_read(
    self_signed: ssl.SSLContext, tmp_path: Path
) -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with serving(say(ok), self_signed) as port:
        url = f"https://127.0.0.1:{port}"
        assert (await http_get(url, authority=tmp_path / "both.pem")).status_code == 200
        assert await check_reachable(url, authority=tmp_path / "both.pem")
        ends = await certificate_end(url, tmp_path / "both.pem")
        with pytest.raises(TargetUnavailableError, match=r"^TLS: .* is not trusted \(unknown authority: self"):
            await certificate_end(url, None)

    assert timedelta(minutes=50) < ends - datetime.now(UTC) <= timedelta(hours=1)


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("nonsense", "no certificate in PEM form")])
async def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    file = tmp_path / "ca.crt"
    if content:
        file.write_text(content)

    with pytest.raises(WorkspaceError, match=rf"cannot be read from {file} \(.*{reason}.*endpoint_ca"):
        await http_get("https://127.0.0.1:9", authority=file)


async def test_server_without_http_has_its_own_message() -> None:
    with serving(say(b"220 mail\r\n")) as port:
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(TargetUnavailableError, match=rf"^{url} does not answer"):
            await http_get(url)
    with serving(say(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")) as port:
        with pytest.raises(TargetUnavailableError, match="answers 503"):
            await http_get(f"http://127.0.0.1:{port}")
    with serving(say(b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n")) as port:
        assert (await http_get(f"http://127.0.0.1:{port}")).status_code == 401


@pytest.mark.parametrize("url", ["models.example", "ftp://models.example", "https://", "http://host:port"])
async def test_invalid_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(WorkspaceError, match=r"not the address of a server"):
        await check_reachable(url)
