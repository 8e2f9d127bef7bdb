"""The names of an endpoint's objects, and the labels by which they are found: names are never parsed."""

import hashlib
from collections.abc import Mapping
from typing import Final

from controlled_rollout.cluster.kinds import MANAGED_BY
from controlled_rollout.version import check_name

__all__ = [
    "CHECK_LABEL",
    "ENDPOINT_LABEL",
    "OBJECT_PREFIX",
    "VERSION_LABEL",
    "endpoint_labels",
    "endpoint_object_name",
    "replica_selector",
    "route_name",
    "selector",
    "version_labels",
    "version_object_name",
]


ENDPOINT_LABEL: Final = "controlled-rollout/endpoint"
VERSION_LABEL: Final = "controlled-rollout/version"
# Of the names of an endpoint's objects that are not a version's; its route has the endpoint's name alone.
OBJECT_PREFIX: Final = "controlled-rollout-"
# Of a pod that checks the network as a version's pod sees it: it has the version's labels, and is no replica.
CHECK_LABEL: Final = "controlled-rollout/check"


def endpoint_labels(endpoint: str) -> dict[str, str]:
    """Return the labels of everything that belongs to an endpoint."""
    return {**MANAGED_BY, ENDPOINT_LABEL: check_name(endpoint)}


def version_labels(endpoint: str, version: str) -> dict[str, str]:
    """Return the labels of everything that belongs to one version."""
    return {**endpoint_labels(endpoint), VERSION_LABEL: check_name(version)}


def selector(labels: Mapping[str, str]) -> str:
    """Return labels as a label selector for the API server, such as `a=1,b=2`."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def replica_selector(labels: Mapping[str, str]) -> str:
    """Return the label selector of the replicas among the pods with these labels, without pods that check."""
    return f"{selector(labels)},!{CHECK_LABEL}"


def endpoint_object_name(endpoint: str, part: str = "") -> str:
    """Return the name of an object of an endpoint; `part` distinguishes objects of one kind."""
    return f"{OBJECT_PREFIX}{check_name(endpoint)}" + (f"-{part}" if part else "")


def route_name(endpoint: str) -> str:
    """Return the name of an endpoint's HTTPRoute, which is the endpoint's name."""
    return check_name(endpoint)


def version_object_name(endpoint: str, version: str) -> str:
    """Return the name of a version's Deployment and Service.

    The two names joined could be longer than a Service's name may be, and two pairs could give the same name: so they
    are cut, and a digest of both is added.
    """
    digest = hashlib.sha256(f"{check_name(endpoint)}/{check_name(version)}".encode()).hexdigest()[:8]
    return f"{endpoint[:24].rstrip('-')}-{version[:24].rstrip('-')}-{digest}"
