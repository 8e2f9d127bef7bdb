"""A workspace's own certificate: private, for its own addresses, renewed under the same authority."""

import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout.target.local.certificate_pair import CertificatePair, read_pair
from controlled_rollout.target.local.own_certificate import OwnCertificate, is_due
from tests.certificates import Authority, pem_of_key

NOW = datetime.now(UTC)


def served(own: OwnCertificate, now: datetime = NOW) -> CertificatePair:
    return read_pair(own.certificate.read_bytes(), own.key.read_bytes(), now)


def test_a_first_certificate_is_for_this_machine_and_its_keys_are_the_owners_only(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path / "tls", "127.0.0.1")

    assert own.ensure(NOW)

    assert set(served(own).names) == {"127.0.0.1", "::1", "localhost"}
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()} == dict.fromkeys(
        ("ca.crt", "ca.key", "router.crt", "router.key"), 0o600
    )
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700


def verified(own: OwnCertificate, name: str) -> bool:
    """Return whether OpenSSL accepts the certificate for a name or an address, checking as strictly as it can."""
    option = "-verify_ip" if name[0].isdigit() or ":" in name else "-verify_hostname"
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(own.authority), option, name, str(own.certificate)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize(("host", "also"), [("127.0.0.1", ()), ("::", ()), ("10.1.2.3", ("10.1.2.3",))])
def test_clients_that_check_strictly_accept_it_for_the_workspaces_addresses_only(
    tmp_path: Path, host: str, also: tuple[str, ...]
) -> None:
    own = OwnCertificate(tmp_path, host)
    own.ensure(NOW)

    assert all(verified(own, name) for name in ("localhost", "127.0.0.1", "::1", *also))
    assert not any(verified(own, name) for name in ("example.com", "127.0.0.2"))


def test_the_authority_cannot_sign_for_any_other_host(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, "127.0.0.1")
    own.ensure(NOW)
    request = ["openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", "x.key"]
    subprocess.run([*request, "-out", "x.csr"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "names").write_text("subjectAltName=DNS:bank.example\n")
    sign = ["openssl", "x509", "-req", "-in", "x.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-extfile", "names"]
    subprocess.run([*sign, "-out", "x.crt", "-days", "9"], cwd=tmp_path, check=True, capture_output=True)

    check = subprocess.run(
        ["openssl", "verify", "-CAfile", "ca.crt", "x.crt"], cwd=tmp_path, check=False, capture_output=True, text=True
    )

    assert check.returncode != 0
    assert "permitted subtree violation" in check.stdout + check.stderr


def test_it_is_renewed_when_a_third_of_its_time_is_left_under_the_same_authority(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, "127.0.0.1")
    own.ensure(NOW)
    first, authority = own.certificate.read_bytes(), own.authority.read_bytes()

    assert not own.ensure(NOW + timedelta(days=59))
    assert own.certificate.read_bytes() == first
    assert own.ensure(NOW + timedelta(days=61))

    later = NOW + timedelta(days=61)
    assert own.authority.read_bytes() == authority
    assert served(own, later).ends > NOW + timedelta(days=150)
    assert not is_due(served(own, later), ("127.0.0.1", "::1", "localhost"), later)


@pytest.mark.parametrize("damaged", ["router.crt", "router.key", "ca.crt", "ca.key"])
@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_a_file_that_is_gone_or_damaged_is_made_anew(tmp_path: Path, damaged: str, content: bytes | None) -> None:
    own = OwnCertificate(tmp_path, "127.0.0.1")
    own.ensure(NOW)
    if content is None:
        (tmp_path / damaged).unlink()
    else:
        (tmp_path / damaged).write_bytes(content)

    assert own.ensure(NOW)

    assert verified(own, "localhost")
    ssl.create_default_context(cafile=own.authority)


def test_an_authority_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, "127.0.0.1")
    own.ensure(NOW)
    other = Authority()
    (tmp_path / "ca.crt").write_bytes(other.pem)
    (tmp_path / "ca.key").write_bytes(pem_of_key(other.key))

    assert own.ensure(NOW)

    assert own.authority.read_bytes() != other.pem
    assert verified(own, "localhost")


def test_an_authority_whose_key_others_may_have_read_is_made_anew(tmp_path: Path) -> None:
    own = OwnCertificate(tmp_path, "127.0.0.1")
    own.ensure(NOW)
    before = own.authority.read_bytes()
    (tmp_path / "ca.key").chmod(0o644)

    assert own.ensure(NOW)

    assert own.authority.read_bytes() != before
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    assert verified(own, "localhost")


def test_another_address_gets_another_certificate_that_its_authority_may_sign(tmp_path: Path) -> None:
    OwnCertificate(tmp_path, "127.0.0.1").ensure(NOW)
    moved = OwnCertificate(tmp_path, "10.1.2.3")

    assert moved.ensure(NOW)
    assert verified(moved, "10.1.2.3")
