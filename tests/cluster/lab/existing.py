"""A cluster of the user, given by `KUBECONFIG` and a few variables, and what it lacks for the tests."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import LabError
from .layout import GATEWAY, Layout

if TYPE_CHECKING:
    from .cluster import Lab

__all__ = ["VARIABLES", "Existing", "lacks"]

PREFIX = "CONTROLLED_ROLLOUT_CLUSTER_"
# What a kubeconfig does not contain, with an example of each.
VARIABLES = {
    "REGISTRY": "host:port that this machine pushes to and the cluster pulls from",
    "GATEWAY": f"namespace/name of the gateway (default {GATEWAY})",
    "GATEWAY_URL": "where this machine reaches the gateway: http://…",
    "TELEMETRY_URL": "where the Log Analytics workspace is queried: http://…",
    "TELEMETRY_WORKSPACE_ID": "the workspace's id",
    "TELEMETRY_TOKEN_FILE": "file with the bearer token of queries",
}
CRDS = ("gateways.gateway.networking.k8s.io", "httproutes.gateway.networking.k8s.io")
ENVOY_GATEWAY_CRDS = ("backendtrafficpolicies.gateway.envoyproxy.io", "securitypolicies.gateway.envoyproxy.io")


@dataclass(frozen=True)
class Existing:
    """The settings of a cluster that is not the lab's."""

    kubeconfig: Path
    settings: Mapping[str, str]

    @classmethod
    def of(cls, environment: Mapping[str, str] | None = None) -> "Existing | None":
        """Return the settings in the environment; None where it names no cluster, or that of the lab."""
        variables = os.environ if environment is None else environment
        file = variables.get("KUBECONFIG", "").partition(os.pathsep)[0]
        if not file or Layout(Path(file).absolute().parent).state.exists():
            return None
        settings = {name: variables.get(PREFIX + name, "") for name in VARIABLES}
        return cls(Path(file).absolute(), {**settings, "GATEWAY": settings["GATEWAY"] or GATEWAY})

    @property
    def folder(self) -> Path:
        """The folder for files about this cluster, such as kubeconfigs."""
        return Path(tempfile.gettempdir()) / f"controlled-rollout-lab-{os.getuid()}"

    def unset(self) -> list[str]:
        """Return a line for each required variable that is not set."""
        missing = [name for name, value in self.settings.items() if not value]
        return [f"{PREFIX}{name} is not set: {VARIABLES[name]}" for name in missing]


def lacks(lab: "Lab") -> Iterator[str]:
    """Yield a line for each thing that the tests need and the cluster lacks."""
    try:
        definitions = json.loads(lab.kubectl("get", "customresourcedefinitions", "-o=json"))["items"]
    except LabError as error:
        yield f"the cluster of {lab.kubeconfig} does not answer: {error}"
        return
    names = {item["metadata"]["name"] for item in definitions}
    if missing := [name for name in CRDS if name not in names]:
        yield f"the Gateway API is not installed: no {', '.join(missing)}"
    if missing := [name for name in ENVOY_GATEWAY_CRDS if name not in names]:
        yield f"Envoy Gateway is not installed: no {', '.join(missing)}"
        return
    namespace, _, name = lab.gateway.partition("/")
    try:
        gateway = json.loads(lab.kubectl("--namespace", namespace, "get", f"gateway/{name}", "-o=json"))
    except LabError:
        yield f"there is no Gateway {lab.gateway}: create it, or set {PREFIX}GATEWAY"
        return
    conditions = {item["type"]: item["status"] for item in gateway.get("status", {}).get("conditions", ())}
    if conditions.get("Programmed") != "True":
        yield f"the Gateway {lab.gateway} is not programmed: {conditions or 'no controller has processed it'}"
