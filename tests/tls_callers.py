"""Real clients of a TLS server: openssl and curl, and what they see."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Answer", "accepts", "curl", "serial_number"]

# Ciphers and signatures that today's OpenSSL would not offer by itself: so that it is the server who refuses.
WILLING = ("-cipher", "DEFAULT:@SECLEVEL=0")


@dataclass(frozen=True)
class Answer:
    """What curl came back with.

    Attributes:
        exit_code: curl's; 60 is a certificate that is not trusted.
        status: The HTTP status; 0 without an answer.
        protocol: The version of HTTP.
        body: The answer's body, or curl's own message.
    """

    exit_code: int
    status: int
    protocol: str
    body: str


def curl(url: str, *options: str, authority: Path | None = None) -> Answer:
    """Send a request with curl."""
    trust = () if authority is None else ("--cacert", str(authority))
    written = "\n%{http_code} %{http_version}"
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "-w", written, *trust]
    done = subprocess.run([*command, *options, url], capture_output=True, text=True, check=False)
    body, _, last = done.stdout.rpartition("\n")
    status, protocol = last.split()
    return Answer(done.returncode, int(status), protocol, body or done.stderr)


def accepts(url: str, version: str) -> bool:
    """Return whether a server accepts a handshake of this version, such as `tls1_2`, whatever its certificate."""
    text = _s_client(url, f"-{version}", *WILLING)
    chosen = re.search(r"^New, \S+, Cipher is (\S+)$", text, re.MULTILINE)
    assert chosen, text
    if chosen[1] == "(NONE)":
        # It is the server's own refusal, not a client that cannot ask.
        assert "alert protocol version" in text, text
    return chosen[1] != "(NONE)"


def serial_number(url: str) -> str:
    """Return the serial number of the certificate that a server shows."""
    command = ["openssl", "x509", "-noout", "-serial"]
    return subprocess.run(command, input=_s_client(url), capture_output=True, text=True, check=True).stdout.strip()


def _s_client(url: str, *options: str) -> str:
    """Return what `openssl s_client` says after a handshake."""
    command = ["openssl", "s_client", "-connect", urlsplit(url).netloc, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr
