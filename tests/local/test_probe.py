"""What the probe tells apart, with real servers on this machine; and as a program of its own, as pods run it."""

import inspect
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.checks import probe as program
from controlled_rollout.checks.probe import Destination, probe, probe_all
from tests.certificates import Authority
from tests.ports import closed_port
from tests.unit.checks.server import OK, read_head, say, say_nothing, serving

# Longer than any answer of this machine takes, however busy it is.
SECONDS = 60.0


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that this process trusts, and no proxy."""
    authority = Authority()
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return authority


def server_tls(
    authority: Authority, folder: Path, names: Sequence[str] = ("127.0.0.1",), **times: Any
) -> ssl.SSLContext:
    """The TLS settings of a server with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.pair(names=names, **times).write(folder, names[0]))
    return context


def to(port: int, scheme: str = "https", host: str = "127.0.0.1", **more: Any) -> Destination:
    return Destination("server", host, port, scheme, **more)


def test_all_stages_of_a_server_that_answers(authority: Authority, tmp_path: Path) -> None:
    heads: list[bytes] = []
    with serving(say(b"HTTP/1.1 401 Who\r\n\r\n", heads), server_tls(authority, tmp_path)) as port:
        found = probe(to(port, path="/v2/"), SECONDS)

    assert (found.passed, found.failed, found.status) == (("DNS", "TCP", "TLS", "HTTP"), "", 401)
    assert (found.addresses, found.is_private, found.note) == (("127.0.0.1",), True, "")
    assert heads[0].startswith(b"GET /v2/ HTTP/1.1\r\n")
    assert b"authorization" not in heads[0].lower() and b"cookie" not in heads[0].lower()


def test_nothing_is_sent_to_a_port_that_is_only_to_be_open() -> None:
    heard: list[bytes] = []
    with serving(lambda connection: heard.append(connection.recv(10))) as port:
        found = probe(to(port, "tcp"), SECONDS)
        deadline = time.monotonic() + SECONDS
        while not heard and time.monotonic() < deadline:
            time.sleep(0.01)

    assert (found.passed, found.failed, heard) == (("DNS", "TCP"), "", [b""])


@pytest.mark.parametrize(
    ("names", "times", "cause"),
    [
        (["127.0.0.1"], {"begins": timedelta(days=-9), "lasts": timedelta(days=-2)}, "expired"),
        (["127.0.0.1"], {"begins": timedelta(days=2)}, "not yet valid"),
        (["other.example"], {}, "wrong name"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told_apart(
    names: list[str], times: dict[str, timedelta], cause: str, authority: Authority, tmp_path: Path
) -> None:
    with serving(say(OK), server_tls(authority, tmp_path, names=names, **times)) as port:
        found = probe(to(port), SECONDS)

    assert (found.passed, found.failed, found.cause) == (("DNS", "TCP"), "TLS", cause)


def test_certificate_of_an_authority_that_nobody_knows_is_trusted_once_it_is_given(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority("another authority")
    file = tmp_path / "other.pem"
    file.write_bytes(other.pem)
    with serving(say(OK), server_tls(other, tmp_path)) as port:
        unknown = probe(to(port), SECONDS)
        given = probe(to(port, authorities=file.read_text()), SECONDS)
        in_a_file = probe(to(port, authorities_file=str(file)), SECONDS)
        unchecked = probe(to(port, verify=False), SECONDS)

    assert (unknown.failed, unknown.cause) == ("TLS", "unknown authority")
    assert [given.failed, in_a_file.failed, unchecked.failed] == ["", "", ""]


def test_file_of_authorities_that_holds_none_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").write_text("no certificate")

    with serving(say_nothing) as port:
        found = probe(to(port, authorities_file=str(tmp_path / "bundle.pem")), SECONDS)

    assert (found.passed, found.failed, found.cause) == (("DNS", "TCP"), "TLS", "unusable authorities")


def test_certificate_that_ends_soon_is_said(authority: Authority, tmp_path: Path) -> None:
    with serving(say(OK), server_tls(authority, tmp_path, lasts=timedelta(days=3, hours=1))) as port:
        found = probe(to(port), SECONDS)

    assert (found.failed, found.note) == ("", "its certificate ends in 3 days")


def test_plain_http_on_a_port_for_tls_and_tls_on_a_port_for_http(authority: Authority, tmp_path: Path) -> None:
    with serving(say(OK)) as port:
        plain = probe(to(port), SECONDS)
    with serving(say(b"220 mail.example\r\n")) as port:
        mail = probe(to(port), SECONDS)
        no_answer = probe(to(port, "http"), SECONDS)
    with serving(say(OK), server_tls(authority, tmp_path)) as port:
        tls = probe(to(port, "http"), SECONDS)

    assert (plain.failed, plain.cause) == ("TLS", "plain http")
    assert (mail.failed, mail.cause) == ("TLS", "no TLS")
    assert (no_answer.failed, no_answer.cause) == ("HTTP", "no http")
    assert tls.failed == "HTTP"


def test_connection_that_is_closed_in_the_handshake_is_no_untrusted_certificate() -> None:
    with serving(lambda connection: connection.close()) as port:
        found = probe(to(port), SECONDS)

    assert (found.failed, found.cause) == ("TLS", "closed")


def test_closed_port_unknown_name_and_server_error_are_told_apart() -> None:
    with closed_port() as port:
        closed = probe(to(port), SECONDS)
    with serving(say(b"HTTP/1.1 503 Busy\r\n\r\n")) as port:
        busy = probe(to(port, "http"), SECONDS)
    name = probe(to(443, host="no-such-host.invalid"), SECONDS)
    too_long = probe(to(443, host="a" * 64 + ".example"), SECONDS)

    assert (closed.passed, closed.failed, closed.cause) == (("DNS",), "TCP", "refused")
    assert (busy.failed, busy.cause, busy.status) == ("HTTP", "server error", 503)
    assert [name.failed, too_long.failed] == ["DNS", "DNS"]


def test_servers_that_hang_in_any_stage_take_no_longer_than_all_together_may(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    released = threading.Event()
    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "hangs.example":
            released.wait(SECONDS)
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with serving(say_nothing) as port, serving(say(OK)) as answering:
        began = time.monotonic()
        dns, tls, http, works = probe_all(
            [to(443, host="hangs.example"), to(port), to(port, "http"), to(answering, "http")], 4.0
        )
        taken = time.monotonic() - began
    released.set()

    assert [dns.failed, tls.failed, http.failed, works.failed] == ["DNS", "TLS", "HTTP", ""]
    assert [dns.cause, tls.cause, http.cause] == ["no answer"] * 3
    # One after the other they would have taken three times as long.
    assert 4.0 <= taken < 11.0


def test_server_that_answers_byte_by_byte_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "PART_TIMEOUT_S", 1.0)

    def drip(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        pause = threading.Event()
        while not pause.wait(0.05):
            connection.sendall(b"x")

    began = time.monotonic()
    # The server ends once its caller has closed the connection.
    with serving(drip) as port:
        found = probe(to(port, "http"), SECONDS)

    assert (found.failed, found.cause) == ("HTTP", "no answer")
    assert time.monotonic() - began < SECONDS / 2


@pytest.mark.parametrize("user", ["user:hun/ter2", "user:hun#ter2", "user:hun?ter2", "user:hunter2\u2100"])
def test_proxy_whose_user_is_not_escaped_is_said_without_its_password(user: str) -> None:
    found = probe(to(443, host="far.example", proxy=f"http://{user}@127.0.0.1:1"), SECONDS)

    assert (found.failed, found.cause) == ("proxy", "unusable")
    assert "%2F" in found.detail
    assert "hun" not in repr(found)


def test_proxy_of_the_environment_is_used_said_and_told_apart(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []

    def tunnel(connection: socket.socket) -> None:
        heads.append(read_head(connection))
        connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        far = server_tls(authority, tmp_path, names=["far.example"])
        with far.wrap_socket(connection, server_side=True) as secured:
            say(OK, heads)(secured)

    with serving(tunnel) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret%21@127.0.0.1:{port}")
        found = probe(to(443, host="far.example"), SECONDS)
    assert (found.passed, found.failed, found.proxy) == (("TCP", "TLS", "HTTP"), "", f"127.0.0.1:{port}")
    assert "secret" not in repr(found)
    assert heads[0].startswith(b"CONNECT far.example:443 HTTP/1.1\r\n")
    # The proxy's user goes to the proxy, and not through it.
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQh" in heads[0] and b"uthorization" not in heads[1]

    causes = {}
    for status in (403, 407, 502):
        with serving(say(f"HTTP/1.1 {status} No\r\n\r\n".encode())) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
            refused = probe(to(443, host="far.example"), SECONDS)
            causes[status] = (refused.failed, refused.cause)
    assert causes == {
        403: ("proxy", "refuses the host"),
        407: ("proxy", "asks for a user"),
        502: ("proxy", "cannot reach the host"),
    }

    with closed_port() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        gone = probe(to(443, host="far.example"), SECONDS)
    assert (gone.failed, gone.cause) == ("proxy", "refused")

    monkeypatch.setenv("NO_PROXY", "far.example")
    assert probe(to(443, host="far.example"), SECONDS).proxy == ""


def test_as_a_program_it_needs_nothing_but_a_python(authority: Authority) -> None:
    with serving(say(OK)) as port:
        asked = {
            "destinations": [{"name": "one", "host": "127.0.0.1", "port": port, "scheme": "http"}],
            "seconds": SECONDS,
        }
        done = subprocess.run(
            # Without the packages of this environment, and without reading its settings.
            [sys.executable, "-I", "-S", "-c", inspect.getsource(program), json.dumps(asked)],
            check=True,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    [found] = json.loads(done.stdout)
    assert (found["name"], found["passed"], found["status"], done.stderr) == ("one", ["DNS", "TCP", "HTTP"], 200, "")
