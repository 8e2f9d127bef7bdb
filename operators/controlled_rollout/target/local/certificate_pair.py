"""A certificate with its key, as the router can serve it: checked before it is used. Pure."""

import itertools
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, PublicKeyAlgorithmOID

from controlled_rollout.addresses import is_loopback
from controlled_rollout.errors import WorkspaceError

__all__ = ["UNREADABLE", "CertificatePair", "host_for_callers", "read_pair"]

# What the library raises for a certificate of which it cannot read a part; it reads most parts only when asked for.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

# What Envoy serves; another key would be refused by it only when it is already needed.
MIN_RSA_BITS: Final = 2048
UNUSABLE_KEY: Final = "the router cannot use a key of this kind: make one of RSA, or of ECDSA with P-256, P-384, P-521"
CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """A certificate that the router can serve, and its key.

    Attributes:
        chain: The certificate and those between it and its authority, as PEM.
        key: Its private key, as PEM.
        begins: When it begins to be valid.
        ends: When the first certificate of the chain ends.
        names: The names and addresses that it is for.
        is_own_authority: Whether it is signed by itself, so that callers check it against itself.
    """

    chain: bytes
    key: bytes = field(repr=False)
    begins: datetime
    ends: datetime
    names: tuple[str, ...]
    is_own_authority: bool = False


def read_pair(chain: bytes, key: bytes, now: datetime) -> CertificatePair:
    """Return the certificate and the key of two PEM files, if the router can serve callers with them.

    Args:
        chain: The certificate, and after it those of the authorities between it and the root.
        key: Its private key.
        now: The time.

    Raises:
        WorkspaceError: They do not belong together, the certificate is not valid now or not one of a server, or the
            router cannot use such a key. The message says nothing of the key's content.
    """
    try:
        return _checked_pair(chain, key, now)
    except UNREADABLE as error:
        raise WorkspaceError("the certificate has a part that cannot be read: make another one") from error


def _checked_pair(chain: bytes, key: bytes, now: datetime) -> CertificatePair:
    """Return a pair, see `read_pair`; raise one of UNREADABLE if a part of a certificate cannot be read."""
    certificates = _read_certificates(chain)
    private_key = _read_key(key)
    leaf = certificates[0]
    if leaf.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS:
        raise WorkspaceError(UNUSABLE_KEY)
    if _public_bytes(leaf.public_key()) != _public_bytes(private_key.public_key()):
        raise WorkspaceError(
            "the key does not fit the first certificate of the file: give the key that the certificate was made for, "
            "and put the server's own certificate first"
        )
    for certificate, issuer in itertools.pairwise(certificates):
        if certificate.issuer != issuer.subject:
            raise WorkspaceError(
                f"the certificates are not in order: {_name(certificate)} is issued by "
                f"{certificate.issuer.rfc4514_string()!r}, and {_name(issuer)} follows it"
            )
        _check_signed(certificate, issuer)
    ends = min(certificate.not_valid_after_utc for certificate in certificates)
    begins = max(certificate.not_valid_before_utc for certificate in certificates)
    if ends <= now:
        raise WorkspaceError(f"it ended on {ends:%Y-%m-%d %H:%M} UTC: renew it")
    if begins > now:
        raise WorkspaceError(f"it is valid only from {begins:%Y-%m-%d %H:%M} UTC on: check this machine's clock")
    return CertificatePair(
        chain=b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates),
        key=private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        begins=begins,
        ends=ends,
        names=_server_names(leaf),
        is_own_authority=leaf.issuer == leaf.subject,
    )


def host_for_callers(names: tuple[str, ...], host: str) -> str:
    """Return the host by which callers reach a router so that its certificate is for that name.

    Args:
        names: The names and addresses of its certificate.
        host: The address that it listens on.

    Returns:
        The address itself if the certificate is for it, else `localhost` if it is for that and the address is this
        machine's, else its first name that is no pattern; the address if it has none.
    """
    if host in names:
        return host
    if "localhost" in names and is_loopback(host):
        return "localhost"
    return next((name for name in names if "*" not in name), host)


def _read_certificates(chain: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file in their order; raise WorkspaceError if there is none."""
    try:
        return x509.load_pem_x509_certificates(chain)
    except ValueError as error:
        raise WorkspaceError(
            "the file of the certificate has no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
        ) from error


def _read_key(key: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    """Return the private key of a PEM file; raise WorkspaceError if Envoy cannot use it."""
    try:
        private_key = serialization.load_pem_private_key(key, password=None)
    except TypeError as error:
        raise WorkspaceError(
            "the key is encrypted: give it without a passphrase, readable by its owner only"
        ) from error
    except (ValueError, UnsupportedAlgorithm):
        # Not the library's own message, which might show what the file holds.
        raise WorkspaceError(
            "the file of the key has no private key in PEM form (-----BEGIN PRIVATE KEY-----)"
        ) from None
    if isinstance(private_key, rsa.RSAPrivateKey):
        if private_key.key_size < MIN_RSA_BITS:
            raise WorkspaceError(f"the key has {private_key.key_size} bits: RSA needs {MIN_RSA_BITS} or more")
        return private_key
    if isinstance(private_key, ec.EllipticCurvePrivateKey) and isinstance(private_key.curve, CURVES):
        return private_key
    raise WorkspaceError(UNUSABLE_KEY)


def _check_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raise WorkspaceError unless one certificate has signed the other: callers compare more than the names.

    A renewed authority has the name of the one before it, and another key.
    """
    try:
        is_authority = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise WorkspaceError(
            f"{_name(issuer)} is no authority (basicConstraints without CA), so no caller accepts what it has signed"
        )
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature as error:
        raise WorkspaceError(
            f"{_name(certificate)} is signed with another key than that of {_name(issuer)}, which follows it: put the "
            "certificate there that its authority gave with it"
        ) from error


def _check_usage(leaf: x509.Certificate) -> None:
    """Raise WorkspaceError if a certificate says that its key is for nothing that a server does."""
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not (usage.digital_signature or usage.key_encipherment or usage.key_agreement):
        raise WorkspaceError("it is not for servers: its key usage has no digitalSignature")


def _server_names(leaf: x509.Certificate) -> tuple[str, ...]:
    """Return the names and addresses that a certificate is for; raise WorkspaceError if it is not one of a server."""
    _check_usage(leaf)
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    purposes = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if usage is not None and not any(purpose in usage for purpose in purposes):
        raise WorkspaceError("it is not for servers: its extended key usage has no serverAuth")
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        alternatives = x509.SubjectAlternativeName([])
    names = (
        *map(str, alternatives.get_values_for_type(x509.IPAddress)),
        *alternatives.get_values_for_type(x509.DNSName),
    )
    if not names:
        raise WorkspaceError("it names no host (subjectAltName), so no caller accepts it")
    return names


def _name(certificate: x509.Certificate) -> str:
    """Return a certificate's subject for a message."""
    return repr(certificate.subject.rfc4514_string())


def _public_bytes(key: object) -> bytes:
    """Return a public key in a form that compares; of a kind that the router cannot use, nothing."""
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
