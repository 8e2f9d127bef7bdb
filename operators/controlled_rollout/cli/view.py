"""Prints what commands show: sentences, JSON documents, and endpoints as tables."""

import json
import sys
from typing import TYPE_CHECKING, Any

from controlled_rollout.text_table import text_table

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.target.protocol import EndpointStatus

__all__ = ["document", "print_endpoint", "print_json", "say"]


def say(sentence: str) -> None:
    """Print a line at once: who reads it from a pipe waits for it too."""
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def print_json(content: Any) -> None:
    """Print a JSON document."""
    say(json.dumps(content, indent=2))


def document(endpoint: "Endpoint", status: "EndpointStatus") -> dict[str, Any]:
    """Return an endpoint's newest revision and how it is, for programs."""
    return {
        "endpoint": endpoint.model_dump(mode="json"),
        "effective_traffic": endpoint.effective_traffic(),
        "status": status.model_dump(mode="json"),
    }


def print_endpoint(endpoint: "Endpoint", status: "EndpointStatus") -> None:
    """Print an endpoint and its versions for people."""
    behind = "" if status.served_revision == status.revision else f", served {status.served_revision}"
    say(f"{endpoint.name}  {status.url}  revision {status.revision}{behind}")
    if status.trouble or status.waiting_for:
        say(f"trouble: {status.trouble}" if status.trouble else f"waiting: {status.waiting_for}")
    if endpoint.rollout:
        say(f"{endpoint.rollout.version} is being rolled out by {endpoint.rollout.owner}")
    headings = ("version", "role", "set", "traffic", "replicas", "state", "requests", "active")
    say(text_table([headings, *(_version_row(endpoint, name, status) for name in endpoint.versions)]))


def _version_row(endpoint: "Endpoint", name: str, status: "EndpointStatus") -> tuple[str, ...]:
    version = endpoint.versions[name]
    role = version.type.value + (", default" if version.is_default else "")
    shares = (f"{version.traffic_percentile:g} %", f"{endpoint.effective_traffic()[name]:g} %")
    found = status.versions.get(name)
    if found is None:
        return (name, role, *shares, "", "not there yet", "", "")
    ready = sum(replica.state == "ready" for replica in found.replicas)
    state = "ready" if found.ready else "failed" if found.failed else "not ready"
    return (
        name,
        role,
        *shares,
        f"{ready} of {max(found.wanted_replicas, len(found.replicas))}",
        f"{state}: {found.cause}" if found.cause else state,
        str(found.requests),
        str(found.active),
    )
