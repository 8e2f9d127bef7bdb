"""The lab's changes to the network of this machine, and their removal: interface, kernel settings, iptables rules."""

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path

from .commands import run
from .errors import LabError
from .layout import INTERFACE, NODE_ADDRESS, PRIVATE_NETWORK
from .state import State

__all__ = ["create", "owner", "remove", "rules_without_chains"]

# For routing between pods, and for node ports on loopback.
SETTINGS = {"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/route_localnet": "1"}
_INTERFACE = Path("/sys/class/net", INTERFACE)
CHAINS_OF_KUBE_PROXY = "KUBE-"
TABLES = (("iptables-save", "iptables-restore"), ("ip6tables-save", "ip6tables-restore"))


def owner() -> Path | None:
    """Return the folder of the lab that is up on this machine; None where there is none.

    A machine has room for one lab, which has fixed addresses, kube-proxy's chains and a control group.
    """
    if not _INTERFACE.exists():
        return None
    return Path((_INTERFACE / "ifalias").read_text().strip())


def create(state: State) -> None:
    """Create the interface with the node's address and set the kernel up for routing; the state keeps old settings.

    Raises:
        LabError: The network is in use, or this machine is a Kubernetes node already.
    """
    folder = state.file.parent
    if (present := owner()) is not None:
        if present != folder:
            raise LabError(f"a lab was asked for in {folder}; one is up in {present}, and a machine has room for one")
        return
    _check_unused()
    for name, value in SETTINGS.items():
        file = Path("/proc/sys", name)
        state.kernel.setdefault(name, file.read_text().strip())
        state.write()
        file.write_text(value)
    run(["ip", "link", "add", INTERFACE, "type", "bridge"])
    run(["ip", "link", "set", INTERFACE, "alias", str(folder)])
    run(["ip", "address", "add", f"{NODE_ADDRESS}/32", "dev", INTERFACE])
    run(["ip", "link", "set", INTERFACE, "up"])


def _check_unused() -> None:
    network = ipaddress.ip_network(PRIVATE_NETWORK)
    for route in json.loads(run(["ip", "-4", "-json", "route", "show", "table", "all"]) or "[]"):
        destination = "0.0.0.0/0" if route["dst"] == "default" else route["dst"]
        routed = ipaddress.ip_network(destination, strict=False)
        if routed.prefixlen and routed.overlaps(network):
            raise LabError(
                f"the lab's network {PRIVATE_NETWORK} overlaps the route to {destination} by {route.get('dev')}:"
                " use a machine without it, or another cluster by KUBECONFIG"
            )
    if f":{CHAINS_OF_KUBE_PROXY}" in run(["iptables-save"]):
        raise LabError(
            "this machine has iptables chains of kube-proxy (KUBE-…), so it is a node of another Kubernetes:"
            " set KUBECONFIG to use that cluster, or use another machine"
        )


def remove(state: State) -> None:
    """Undo the changes of `create` and kube-proxy, unless they belong to another lab."""
    if owner() not in (None, state.file.parent):
        return
    for save, restore in TABLES:
        undo = "\n".join(rules_without_chains(run([save]), CHAINS_OF_KUBE_PROXY))
        if undo:
            run([restore, "--noflush"], input=f"{undo}\n")
    if _INTERFACE.exists():
        run(["ip", "link", "delete", INTERFACE])
    for name, value in state.kernel.items():
        Path("/proc/sys", name).write_text(value)
    state.kernel.clear()
    state.write()


def rules_without_chains(saved: str, prefix: str) -> Iterator[str]:
    """Yield the input of `iptables-restore --noflush` that removes all chains with a prefix, and nothing else.

    Args:
        saved: The output of `iptables-save`.
        prefix: The prefix of the chains' names.
    """
    for part in saved.split("*")[1:]:
        table, *lines = part.splitlines()
        chains = [line[1:].split()[0] for line in lines if line.startswith(f":{prefix}")]
        if not chains:
            continue
        rules = [line for line in lines if line.startswith("-A ") and f"-j {prefix}" in line]
        yield f"*{table}"
        # A chain can be deleted once no rule refers to it: first rules in built-in chains, then those in others.
        yield from (rule.replace("-A ", "-D ", 1) for rule in rules if not rule.startswith(f"-A {prefix}"))
        yield from (f"-F {chain}" for chain in chains)
        yield from (f"-X {chain}" for chain in chains)
        yield "COMMIT"
