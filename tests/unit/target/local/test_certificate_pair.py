"""A certificate and its key are checked before the router gets them; no message shows what the key's file holds."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local.certificate_pair import host_for_callers, read_pair
from tests.certificates import Authority, Key, Pair, pem_of_key

AUTHORITY = Authority()
GOOD = AUTHORITY.pair()


def refusal(pair: Pair) -> str:
    with pytest.raises(WorkspaceError) as raised:
        read_pair(pair.certificate, pair.key, datetime.now(UTC))
    assert "BEGIN" not in str(raised.value).replace("-----BEGIN PRIVATE KEY-----", "").replace(
        "-----BEGIN CERTIFICATE-----", ""
    )
    return str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "RSA"],
)
def test_a_pair_is_read_with_its_names_and_its_end(key: Key) -> None:
    written = AUTHORITY.pair(names=("models.example", "10.0.0.7"), lasts=timedelta(days=20), key=key)

    pair = read_pair(written.certificate, written.key, datetime.now(UTC))

    assert pair.names == ("10.0.0.7", "models.example")
    assert timedelta(days=19) < pair.ends - datetime.now(UTC) <= timedelta(days=20)
    assert not pair.is_own_authority
    assert "PRIVATE" not in repr(pair)


def test_a_chain_ends_with_the_first_of_its_certificates_that_ends() -> None:
    between = Authority("between", signer=AUTHORITY)
    written = between.pair(lasts=timedelta(days=400))

    pair = read_pair(written.certificate + between.pem, written.key, datetime.now(UTC))

    assert pair.ends == between.certificate.not_valid_after_utc
    assert pair.chain.count(b"BEGIN CERTIFICATE") == 2


def pss() -> Pair:
    """Return a certificate that looks like one of RSA, and that Envoy refuses."""
    request = ["openssl", "req", "-x509", "-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048", "-nodes"]
    with TemporaryDirectory() as folder:
        files = ["-keyout", "key", "-out", "certificate", "-subj", "/CN=x", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*request, *files], cwd=folder, check=True, capture_output=True)
        return Pair((Path(folder) / "certificate").read_bytes(), (Path(folder) / "key").read_bytes())


def unreadable() -> Pair:
    """Return a certificate whose names are no names: it can be loaded, and its extensions cannot be read."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"no names")
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), pem_of_key(key))


RSA_PSS = pss()
SMALL = rsa.generate_private_key(65537, 1024)  # noqa: S505 - what is refused
FOREIGN = ec.generate_private_key(ec.SECP256R1())
TEXT_OF_A_SECRET = b"-----BEGIN PRIVATE KEY-----\nnot a key but secret\n-----END PRIVATE KEY-----\n"
ED25519 = ed25519.Ed25519PrivateKey.generate().private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


def followed_by_no_authority() -> Pair:
    """Return a certificate that a server's certificate has signed, as if that were an authority."""
    server = x509.load_pem_x509_certificate(GOOD.certificate)
    impostor = Authority("server of a test")
    impostor.key, impostor.subject = FOREIGN, server.subject
    signer = AUTHORITY.pair(key=FOREIGN)
    signed = impostor.pair()
    return Pair(signed.certificate + signer.certificate, signed.key)


def signing_only() -> Pair:
    """Return a certificate, signed by itself, whose key is for signing certificates only."""
    authority = Authority("localhost")
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    usage = authority.certificate.extensions.get_extension_for_class(x509.KeyUsage)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(authority.subject, authority.subject, authority.key.public_key(), 1)
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    certificate = (
        builder.add_extension(names, critical=False)
        .add_extension(usage.value, critical=usage.critical)
        .sign(authority.key, hashes.SHA256())
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), pem_of_key(authority.key))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair(b"", GOOD.key), "no certificate in PEM form"),
        (Pair(b"\x00\xff", GOOD.key), "no certificate in PEM form"),
        (Pair(GOOD.certificate[:200], GOOD.key), "no certificate in PEM form"),
        (Pair(GOOD.certificate, b""), "no private key in PEM form"),
        (Pair(GOOD.certificate, TEXT_OF_A_SECRET), "no private key in PEM form"),
        (Pair(GOOD.certificate, GOOD.certificate), "no private key in PEM form"),
        (Pair(GOOD.certificate, pem_of_key(FOREIGN, passphrase=b"secret")), "encrypted"),
        (Pair(GOOD.certificate, pem_of_key(FOREIGN)), "does not fit the first certificate"),
        (Pair(GOOD.certificate, ED25519), "cannot use a key of this kind"),
        (Pair(GOOD.certificate, pem_of_key(ec.generate_private_key(ec.SECP256K1()))), "cannot use a key of this kind"),
        (AUTHORITY.pair(key=SMALL), "1024 bits"),
        (RSA_PSS, "cannot use a key of this kind"),
        (unreadable(), "a part that cannot be read"),
        (AUTHORITY.pair(lasts=timedelta(seconds=-1)), "it ended on"),
        (AUTHORITY.pair(begins=timedelta(days=1)), "valid only from"),
        (AUTHORITY.pair(names=()), "names no host"),
        (AUTHORITY.pair(usage=ExtendedKeyUsageOID.CLIENT_AUTH), "not for servers"),
        (Pair(AUTHORITY.pem + GOOD.certificate, GOOD.key), "does not fit the first certificate"),
        (Pair(GOOD.certificate + Authority("another").pem, GOOD.key), "not in order"),
        (Pair(GOOD.certificate + Authority().pem, GOOD.key), "signed with another key"),
        (followed_by_no_authority(), "is no authority"),
        (signing_only(), "key usage has no digitalSignature"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pair_that_no_caller_could_use_is_refused_with_the_reason(pair: Pair, message: str) -> None:
    text = refusal(pair)

    assert message in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("names", "host", "expected"),
    [
        (("127.0.0.1", "localhost"), "127.0.0.1", "127.0.0.1"),
        (("localhost",), "127.0.0.1", "localhost"),
        (("localhost",), "10.0.0.7", "localhost"),
        (("*.example", "models.example"), "10.0.0.7", "models.example"),
        (("*.example",), "10.0.0.7", "10.0.0.7"),
    ],
)
def test_callers_are_told_a_name_that_the_certificate_is_for(names: tuple[str, ...], host: str, expected: str) -> None:
    assert host_for_callers(names, host) == expected
