"""The cluster's own certificate authority, and the files that let its parts and its users in."""

import base64
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .layout import API_SERVER, CLUSTER_DOMAIN, NODE, NODE_ADDRESS, SERVICE_OF_API, Layout

__all__ = ["create", "kubeconfig"]

LIFETIME = timedelta(days=365)


@dataclass(frozen=True)
class _Signed:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def create(layout: Layout) -> None:
    """Write keys, certificates and kubeconfigs, unless they are there."""
    folder = layout.certificates
    if layout.kubeconfig.exists():
        return
    authority = _signed("lab", is_authority=True)
    _write(folder, "ca", authority)
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}")
    server = _signed("kube-apiserver", by=authority, hosts=(*names, NODE), addresses=(NODE_ADDRESS, SERVICE_OF_API))
    _write(folder, "apiserver", server)
    _write(folder, "service-accounts", _signed("service-accounts"))
    node = _signed(f"system:node:{NODE}", group="system:nodes", by=authority)
    _write(folder, "node", node)
    layout.node_kubeconfig.write_text(_kubeconfig_of(folder, "node"))
    _write(folder, "admin", _signed("admin", group="system:masters", by=authority))
    layout.kubeconfig.touch(mode=0o600)
    layout.kubeconfig.write_text(_kubeconfig_of(folder, "admin"))


def _signed(
    name: str,
    *,
    group: str | None = None,
    by: _Signed | None = None,
    hosts: Sequence[str] = (),
    addresses: Sequence[str] = (),
    is_authority: bool = False,
) -> _Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    subject = x509.Name(attributes)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A clock that was set back a little must not make it invalid.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
    )
    if hosts or addresses:
        known_as = [x509.DNSName(host) for host in hosts]
        reached_at = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName([*known_as, *reached_at]), critical=False)
    return _Signed(key, builder.sign(by.key if by else key, hashes.SHA256()))


def _write(folder: Path, name: str, signed: _Signed) -> None:
    key = folder / f"{name}.key"
    key.touch(mode=0o600)
    key.write_bytes(
        signed.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    (folder / f"{name}.crt").write_bytes(signed.certificate.public_bytes(serialization.Encoding.PEM))


def _kubeconfig_of(folder: Path, name: str) -> str:
    def data(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    user = {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")}
    return kubeconfig({"server": API_SERVER, "certificate-authority-data": data("ca.crt")}, user)


def kubeconfig(cluster: dict[str, object], user: dict[str, str], namespace: str = "default") -> str:
    """Return the text of a kubeconfig for one user of one cluster."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user", "namespace": namespace}}],
        "current-context": "lab",
    }
    return yaml.safe_dump(document, sort_keys=False)
