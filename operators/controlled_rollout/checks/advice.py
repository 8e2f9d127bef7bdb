"""What a failed probe means in words, and what to open for it: host, port, direction, and by which rule. Pure."""

from typing import Final

from controlled_rollout.checks import destinations as known
from controlled_rollout.checks.destinations import PODS, Wanted
from controlled_rollout.checks.probe import Probe

__all__ = ["advice", "failure_text", "place_text", "stage_cells"]

# The service tags by which a network security group, or Azure Firewall, names these servers.
SERVICE_TAGS: Final = {
    known.API_SERVER: "AzureCloud",
    known.REGISTRY: "AzureContainerRegistry",
    known.IMAGE_SOURCE: "MicrosoftContainerRegistry",
    known.STORAGE: "Storage",
    known.TABLES: "Storage",
    known.METRIC_STORE: "AzureMonitor",
    known.SIGN_IN: "AzureActiveDirectory",
}
# The private DNS zones of private endpoints, by the end of a host's name.
PRIVATE_ZONES: Final = {
    ".blob.core.windows.net": "privatelink.blob.core.windows.net",
    ".table.core.windows.net": "privatelink.table.core.windows.net",
    ".azurecr.io": "privatelink.azurecr.io",
    ".azmk8s.io": "privatelink.<region>.azmk8s.io",
    "api.loganalytics.io": "privatelink.monitor.azure.com",
}
CERTIFICATE_ADVICE: Final = {
    "expired": "renew the server's certificate",
    "not yet valid": "compare this machine's clock with the server's, or wait until the certificate is valid",
    "wrong name": "call it by a name that is in its certificate, or give it one with this name; a name that leads to "
    "another server (DNS, a proxy) looks the same",
    "unknown authority": "name its authority in SSL_CERT_FILE or REQUESTS_CA_BUNDLE; if it should be a public one, a "
    "proxy or a firewall on the way inspects TLS: except this host from that, or trust its authority",
    "unusable authorities": "correct the file that names the authorities to trust: REQUESTS_CA_BUNDLE, or the setting "
    "of the workspace or of the kube config for this server",
    "not trusted": "see what is wrong with the server's certificate",
    "plain http": "give the address as http://, or let the server speak TLS on this port",
    "no TLS": "correct the port: what listens there speaks no TLS",
    "old TLS": "let the server speak TLS 1.2 or newer",
    "closed": "a firewall that looks at the server's name (SNI) closes it like this: allow this host name there",
}
# The causes for which a certificate was shown; with all others there was none, so nothing is said of trust.
UNTRUSTED: Final = (
    "expired",
    "not yet valid",
    "wrong name",
    "unknown authority",
    "unusable authorities",
    "not trusted",
)


def place_text(probe: Probe) -> str:
    """Return a server's host and port, the addresses of its name, and whether these are private or a proxy's."""
    place = f"{probe.host}:{probe.port}"
    if probe.proxy:
        return f"{place} through the proxy {probe.proxy}"
    others = [address for address in probe.addresses if address != probe.host]
    if not others:
        return place
    return f"{place} ({', '.join(others)}{', private' if probe.is_private else ''})"


def failure_text(probe: Probe) -> str:
    """Return what failed in a sentence that begins with the stage; empty if nothing did."""
    brackets = f" ({probe.detail})" if probe.detail else ""
    return {
        "": "",
        "DNS": f"DNS: the name {probe.host} is not known here{brackets}",
        "proxy": f"proxy: {probe.detail}",
        "TCP": f"TCP: {place_text(probe)} does not accept connections{brackets}",
        "TLS": f"TLS: {place_text(probe)} {_tls_problem(probe)} ({probe.cause}: {probe.detail})",
        "HTTP": f"HTTP: {place_text(probe)} does not answer as it should{brackets}",
    }[probe.failed]


def _tls_problem(probe: Probe) -> str:
    """Return what a failed TLS handshake is: a certificate that was shown and is not trusted, or none at all."""
    return "is not trusted" if probe.cause in UNTRUSTED else "does not complete the TLS handshake"


def stage_cells(probe: Probe | None) -> tuple[str, str, str, str]:
    """Return for each of DNS, TCP, TLS and HTTP whether it works; `-` where it was not tried."""
    if probe is None:
        return ("", "", "", "")

    def cell(stage: str) -> str:
        """Return the cell of one stage."""
        if stage in probe.passed:
            return str(probe.status) if stage == "HTTP" and probe.status else "ok"
        return "FAILS" if stage == probe.failed or (stage, probe.failed) == ("TCP", "proxy") else "-"

    dns, tcp, tls, http = (cell(stage) for stage in ("DNS", "TCP", "TLS", "HTTP"))
    return dns, tcp, tls, http


def advice(probe: Probe, wanted: Wanted, origin: str, namespace: str = "") -> str:
    """Return what to open or to change so that a failed probe works; empty if it works.

    Args:
        probe: What was found.
        wanted: What was asked, and what for.
        origin: From where, `WORKER` or `PODS`.
        namespace: The namespace of the pods.
    """
    if not probe.failed:
        return ""
    if probe.failed == "DNS":
        return _name_advice(probe, origin)
    if probe.failed == "proxy":
        return _proxy_advice(probe)
    if probe.failed == "TCP":
        return _port_advice(probe, wanted, origin, namespace)
    if probe.failed == "TLS":
        return CERTIFICATE_ADVICE.get(probe.cause) or _port_advice(probe, wanted, origin, namespace)
    if probe.cause == "no http":
        return "correct the address: give https:// for a port that speaks TLS, http:// for one that does not"
    return "the way is open: see the server's own log, or try again"


def _name_advice(probe: Probe, origin: str) -> str:
    """Return what to do about a name that is not known."""
    zone = next((zone for end, zone in PRIVATE_ZONES.items() if probe.host.endswith(end)), "")
    private = f"; with a private endpoint link the zone {zone} to this network, or forward it to 168.63.129.16"
    ask = "the name server that this machine uses"
    way = ""
    if origin == PODS:
        ask = "the cluster's DNS (CoreDNS, or the VNet's own name server behind it)"
        way = "open outbound UDP and TCP 53 from these pods to kube-system, and "
    if probe.cause == "unknown name":
        way = ""
    return f"{way}let {ask} know {probe.host}{private if zone else ''}"


def _proxy_advice(probe: Probe) -> str:
    """Return what to do about a proxy that does not lead to the server."""
    if probe.cause == "asks for a user":
        return "give the proxy's URL with its user in HTTPS_PROXY"
    if probe.cause == "unusable":
        return "name a proxy by http:// in HTTPS_PROXY"
    return (
        f"allow CONNECT {probe.host}:{probe.port} at the proxy {probe.proxy}, or add {probe.host} to NO_PROXY if there "
        "is a direct way"
    )


def _port_advice(probe: Probe, wanted: Wanted, origin: str, namespace: str) -> str:
    """Return which rule has to let a connection through."""
    if _is_loopback_only(probe):
        return (
            f"{probe.host} is this machine's own address, which nobody else reaches: "
            f"{'give one that the cluster reaches' if origin == PODS else 'start the server that should listen there'}"
        )
    open_to = f"outbound TCP {probe.port} to {probe.host}"
    refused = "nothing listens there, or a firewall refuses it: " if probe.cause == "refused" else ""
    tag = SERVICE_TAGS.get(wanted.name)
    azure = f"; in Azure by a network security group (service tag {tag}) or Azure Firewall (FQDN {probe.host})"
    where = "from this machine: its firewall"
    if origin == PODS:
        where = (
            f"from the pods of namespace {namespace}: an egress NetworkPolicy that selects them, the nodes' firewall"
        )
    shown = azure if tag and not probe.is_private else ""
    endpoint = "; the address is private: let the network security group of its private endpoint's subnet in"
    return f"{refused}open {open_to} {where}{shown}{endpoint if probe.is_private and tag else ''}"


def _is_loopback_only(probe: Probe) -> bool:
    """Return whether a server's addresses are loopback ones."""
    from ipaddress import ip_address

    return bool(probe.addresses) and all(ip_address(each).is_loopback for each in probe.addresses)
