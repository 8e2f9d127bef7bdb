"""The cluster's certificate authority, and the certificates and kubeconfigs of its components and users."""

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
class _KeyPair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def create(layout: Layout) -> None:
    """Write keys, certificates and kubeconfigs, unless they exist."""
    folder = layout.certificates
    if layout.kubeconfig.exists():
        return
    authority = _key_pair("lab", is_authority=True)
    _write(folder, "ca", authority)
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}")
    server = _key_pair(
        "kube-apiserver", signer=authority, hosts=(*names, NODE), addresses=(NODE_ADDRESS, SERVICE_OF_API)
    )
    _write(folder, "apiserver", server)
    _write(folder, "service-accounts", _key_pair("service-accounts"))
    node = _key_pair(f"system:node:{NODE}", group="system:nodes", signer=authority)
    _write(folder, "node", node)
    layout.node_kubeconfig.write_text(_kubeconfig_of(folder, "node"))
    _write(folder, "admin", _key_pair("admin", group="system:masters", signer=authority))
    layout.kubeconfig.touch(mode=0o600)
    layout.kubeconfig.write_text(_kubeconfig_of(folder, "admin"))


def _key_pair(
    name: str,
    *,
    group: str | None = None,
    signer: _KeyPair | None = None,
    hosts: Sequence[str] = (),
    addresses: Sequence[str] = (),
    is_authority: bool = False,
) -> _KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    subject = x509.Name(attributes)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Valid even if the clock is set back a little.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
    )
    if hosts or addresses:
        names = [x509.DNSName(host) for host in hosts]
        ips = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName([*names, *ips]), critical=False)
    return _KeyPair(key, builder.sign(signer.key if signer else key, hashes.SHA256()))


def _write(folder: Path, name: str, pair: _KeyPair) -> None:
    key = folder / f"{name}.key"
    key.touch(mode=0o600)
    key.write_bytes(
        pair.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    (folder / f"{name}.crt").write_bytes(pair.certificate.public_bytes(serialization.Encoding.PEM))


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
