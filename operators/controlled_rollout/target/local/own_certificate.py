"""The certificate that a local workspace makes for itself: an authority that stays, and a certificate that is renewed.

Callers trust the authority's certificate, `tls/ca.crt`; so a new certificate of the router changes nothing for them.
The authority can sign for the workspace's own addresses only: who trusts it trusts nothing else by that.
"""

import ipaddress
import stat
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlled_rollout.addresses import is_loopback
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.local.certificate_pair import UNREADABLE, CertificatePair, read_pair
from controlled_rollout.text_file import read_regular_file

__all__ = ["OwnCertificate", "is_due"]

AUTHORITY_DAYS: Final = 3650
# Renewed when a third is left, so that a laptop may sleep for a month.
DAYS: Final = 90
RENEW_BEFORE: Final = timedelta(days=30)
# A client whose clock is a little behind accepts a new certificate too.
BACKDATED: Final = timedelta(hours=1)
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
UNSPECIFIED: Final = ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on

_PEM: Final = serialization.Encoding.PEM


def is_due(pair: CertificatePair, names: tuple[str, ...], now: datetime) -> bool:
    """Return whether the workspace's certificate has to be made anew: it ends soon, or is for other names."""
    return pair.ends - now < RENEW_BEFORE or set(pair.names) != set(names)


@dataclass(frozen=True, slots=True)
class _Authority:
    """The workspace's own authority: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def has_signed(self, chain: bytes) -> bool:
        """Return whether it has signed the first certificate of a chain."""
        try:
            x509.load_pem_x509_certificate(chain).verify_directly_issued_by(self.certificate)
        except (*UNREADABLE, InvalidSignature):
            return False
        return True

    def may_sign_for(self, names: tuple[str, ...]) -> bool:
        """Return whether its own constraints let it sign for all these names."""
        return set(_general_names(names, constraints=True)) <= set(
            self.certificate.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
        )


class OwnCertificate:
    """The files of a workspace's own certificate.

    Args:
        folder: Where they are; private.
        host: The address that the router listens on.
    """

    def __init__(self, folder: Path, host: str) -> None:
        self._folder = folder
        self._names = LOOPBACK if is_loopback(host) or host in UNSPECIFIED else (*LOOPBACK, host)

    @property
    def authority(self) -> Path:
        """The certificate of the authority, which callers trust."""
        return self._folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The router's certificate."""
        return self._folder / "router.crt"

    @property
    def key(self) -> Path:
        """The key of the router's certificate."""
        return self._folder / "router.key"

    def ensure(self, now: datetime) -> bool:
        """Make the certificate if there is none, if it ends soon, or if it cannot be used.

        Returns:
            Whether it was made now.

        Raises:
            OSError: The files could not be written; those of before are still there.
        """
        atomic_files.create_private_folder(self._folder)
        authority = self._read_authority(now) or self._make_authority(now)
        pair = self._read_pair(now)
        if pair is not None and not is_due(pair, self._names, now) and authority.has_signed(pair.chain):
            return False
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed_certificate(authority, key, self._names, now)
        # Whoever is ended between the two leaves a pair that does not fit: it is made anew.
        atomic_files.write_atomically(self.key, _private_bytes(key))
        atomic_files.write_atomically(self.certificate, certificate.public_bytes(_PEM))
        return True

    @property
    def _authority_key(self) -> Path:
        """The key of the authority."""
        return self._folder / "ca.key"

    def _read_pair(self, now: datetime) -> CertificatePair | None:
        """Return the router's certificate and key; None if they are not there or cannot be used."""
        try:
            return read_pair(read_regular_file(self.certificate), read_regular_file(self.key), now)
        except (OSError, WorkspaceError):
            return None

    def _read_authority(self, now: datetime) -> _Authority | None:
        """Return the authority; None if it is not there, ends before a new certificate would, or cannot be used.

        One whose key others than its owner may have read is not used any more.
        """
        try:
            if self._authority_key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                return None
            certificate = x509.load_pem_x509_certificate(read_regular_file(self.authority))
            key = serialization.load_pem_private_key(read_regular_file(self._authority_key), password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
                return None
            authority = _Authority(certificate, key)
            lasts = certificate.not_valid_after_utc - now > timedelta(days=DAYS)
            return authority if lasts and authority.may_sign_for(self._names) else None
        # One that is not ours has no names for which it may sign.
        except (OSError, *UNREADABLE, x509.ExtensionNotFound):
            return None

    def _make_authority(self, now: datetime) -> _Authority:
        """Make an authority for the workspace's names, and write its files."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = _Authority(_authority_certificate(key, self._names, now), key)
        atomic_files.write_atomically(self._authority_key, _private_bytes(key))
        atomic_files.write_atomically(self.authority, authority.certificate.public_bytes(_PEM))
        return authority


def _authority_certificate(key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], now: datetime) -> x509.Certificate:
    """Return the certificate of an authority that may sign for these names only."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "local workspace of controlled-rollout")])
    return (
        _certificate_builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.NameConstraints(_general_names(names, constraints=True), None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _signed_certificate(
    authority: _Authority, key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], now: datetime
) -> x509.Certificate:
    """Return a certificate of the router for these names, signed by the authority."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    own = x509.SubjectKeyIdentifier.from_public_key(authority.key.public_key())
    return (
        _certificate_builder(subject, authority.certificate.subject, key.public_key(), now, DAYS)
        .add_extension(x509.SubjectAlternativeName(_general_names(names, constraints=False)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _certificate_builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    """Return a certificate without extensions and without a signature."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _general_names(names: tuple[str, ...], *, constraints: bool) -> list[x509.GeneralName]:
    """Return names and addresses as an extension has them; a constraint has a network in place of an address."""
    general: list[x509.GeneralName] = []
    for name in names:
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            general.append(x509.DNSName(name))
        else:
            general.append(x509.IPAddress(ipaddress.ip_network(address) if constraints else address))
    return general


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    """Return the extension that says what a key may do."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM."""
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
