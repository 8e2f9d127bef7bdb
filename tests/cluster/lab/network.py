"""What the lab does to this machine's network, and how it is undone: an interface, settings, rules."""

import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path

from .commands import run
from .errors import LabError
from .layout import INTERFACE, NODE_ADDRESS, PRIVATE_NETWORK
from .state import State

__all__ = ["create", "owner", "remove", "rules_without_chains"]

# Pods are routed, and a node port on loopback leads to a pod.
SETTINGS = {"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/route_localnet": "1"}
_INTERFACE = Path("/sys/class/net", INTERFACE)
CHAINS_OF_KUBE_PROXY = "KUBE-"
TABLES = (("iptables-save", "iptables-restore"), ("ip6tables-save", "ip6tables-restore"))


def owner() -> Path | None:
    """Return the folder of the lab that this machine carries; None where there is none.

    There is room for one: addresses, kube-proxy's chains and the control group are the machine's.
    """
    if not _INTERFACE.exists():
        return None
    return Path((_INTERFACE / "ifalias").read_text().strip())


def create(state: State) -> None:
    """Make the interface with the node's address and set what routing needs, remembering what was set before.

    Raises:
        LabError: The network is in use, or this machine is somebody's Kubernetes node already.
    """
    folder = state.file.parent
    if (present := owner()) is not None:
        if present != folder:
            raise LabError(f"a lab was asked for in {folder}; one is up in {present}, and a machine has room for one")
        return
    _check_nobody_is_here()
    for name, value in SETTINGS.items():
        file = Path("/proc/sys", name)
        state.kernel.setdefault(name, file.read_text().strip())
        state.write()
        file.write_text(value)
    run(["ip", "link", "add", INTERFACE, "type", "bridge"])
    run(["ip", "link", "set", INTERFACE, "alias", str(folder)])
    run(["ip", "address", "add", f"{NODE_ADDRESS}/32", "dev", INTERFACE])
    run(["ip", "link", "set", INTERFACE, "up"])


def _check_nobody_is_here() -> None:
    ours = ipaddress.ip_network(PRIVATE_NETWORK)
    for route in json.loads(run(["ip", "-4", "-json", "route", "show", "table", "all"]) or "[]"):
        destination = "0.0.0.0/0" if route["dst"] == "default" else route["dst"]
        there = ipaddress.ip_network(destination, strict=False)
        if there.prefixlen and there.overlaps(ours):
            raise LabError(
                f"the lab's network {PRIVATE_NETWORK} overlaps the route to {destination} by {route.get('dev')}:"
                " use a machine without it, or another cluster by KUBECONFIG"
            )
    if f":{CHAINS_OF_KUBE_PROXY}" in run(["iptables-save"]):
        raise LabError(
            "this machine's packet filter has a kube-proxy's chains (KUBE-…): it is a node of another Kubernetes."
            " Use that one by KUBECONFIG, or another machine"
        )


def remove(state: State) -> None:
    """Undo what `create` and kube-proxy did; nothing where it was another lab's doing."""
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
    """Yield what `iptables-restore --noflush` needs to remove all chains of a prefix, and nothing else.

    Args:
        saved: What `iptables-save` printed.
        prefix: What the chains' names begin with.
    """
    for part in saved.split("*")[1:]:
        table, *lines = part.splitlines()
        chains = [line[1:].split()[0] for line in lines if line.startswith(f":{prefix}")]
        if not chains:
            continue
        rules = [line for line in lines if line.startswith("-A ") and f"-j {prefix}" in line]
        yield f"*{table}"
        # A chain can go when no rule leads to it: first those of the built-in chains, then what is in the others.
        yield from (rule.replace("-A ", "-D ", 1) for rule in rules if not rule.startswith(f"-A {prefix}"))
        yield from (f"-F {chain}" for chain in chains)
        yield from (f"-X {chain}" for chain in chains)
        yield "COMMIT"
