"""Prints what commands show: sentences, JSON documents, and endpoints as tables."""

import json
import sys
from typing import TYPE_CHECKING, Any

from controlled_rollout.duration import format_duration
from controlled_rollout.text_table import text_table
from controlled_rollout.visible_text import visible_text

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.target.protocol import EndpointStatus

__all__ = ["endpoint_as_json", "print_answer", "print_endpoint", "print_json", "print_line"]


def print_line(sentence: str) -> None:
    """Print a line to stdout and flush it at once, so that a reader of the pipe gets it.

    Others may have written a part of it, such as the reason of a change: nothing in it acts on the terminal.
    """
    sys.stdout.write(f"{visible_text(sentence)}\n")
    sys.stdout.flush()


def print_answer(text: str) -> None:
    """Print what a model has answered: as it is into a pipe or a file, and on a terminal as a line that is safe."""
    if sys.stdout.isatty():
        print_line(text)
    else:
        sys.stdout.write(f"{text}\n")


def print_json(content: Any) -> None:
    """Print a value to stdout as indented JSON."""
    print_line(json.dumps(content, indent=2))


def endpoint_as_json(endpoint: "Endpoint | None", status: "EndpointStatus") -> dict[str, Any]:
    """Return an endpoint's newest revision, its effective traffic and its status as JSON values.

    A revision that cannot be read is null: the status says why.
    """
    return {
        "endpoint": endpoint.model_dump(mode="json") if endpoint else None,
        "effective_traffic": endpoint.effective_traffic() if endpoint else {},
        "status": status.model_dump(mode="json"),
    }


def print_endpoint(endpoint: "Endpoint | None", status: "EndpointStatus") -> None:
    """Print an endpoint's state and a table of its versions; only the state if its revision cannot be read."""
    behind = "" if status.served_revision == status.revision else f", served {status.served_revision}"
    print_line(f"{status.name}  {status.url}  revision {status.revision}{behind}")
    if status.trouble or status.waiting_for:
        print_line(f"trouble: {status.trouble}" if status.trouble else f"waiting: {status.waiting_for}")
    if status.certificate_ends:
        print_line(f"certificate: ends on {status.certificate_ends:%Y-%m-%d %H:%M %Z}")
    for warning in status.warnings:
        print_line(f"warning: {warning}")
    if endpoint is None:
        return
    if endpoint.rollout:
        from controlled_rollout.target.silence import unattended_rollout

        print_line(f"{endpoint.rollout.version} is being rolled out by {endpoint.rollout.owner}")
        if unattended_rollout(endpoint):
            silence = format_duration(endpoint.rollout.silence)
            print_line(f"if nobody looks for {silence}, the supervisor, or the cluster's agent, takes it back")
        if held := endpoint.rollout.held:
            print_line(f"it is on hold since {held:%Y-%m-%d %H:%M:%S %Z}: a person has to promote it or roll it back")
    headings = ("version", "role", "set", "traffic", "replicas", "state", "requests", "active")
    print_line(text_table([headings, *(_version_row(endpoint, name, status) for name in endpoint.versions)]))
    for name, version in status.versions.items():
        if version.scaling:
            print_line(f"{name}: {version.scaling}")
        if collected := version.collected:
            print_line(
                f"{name} has captured {collected.captured:,} requests; dropped {collected.dropped:,}, unreadable "
                f"{collected.unreadable:,}; {collected.pending_bytes:,} bytes are not in the storage yet"
            )


def _version_row(endpoint: "Endpoint", name: str, status: "EndpointStatus") -> tuple[str, ...]:
    """Return the table row of one version: name, role, traffic, replicas, state and request counts."""
    version = endpoint.versions[name]
    role = version.type.value + (", default" if version.is_default else "")
    shares = (f"{version.traffic_percentile:g} %", f"{endpoint.effective_traffic()[name]:g} %")
    version_status = status.versions.get(name)
    if version_status is None:
        return (name, role, *shares, "", "not there yet", "", "")
    ready = sum(replica.state == "ready" for replica in version_status.replicas)
    state = "ready" if version_status.ready else "failed" if version_status.failed else "not ready"
    return (
        name,
        role,
        *shares,
        f"{ready} of {max(version_status.wanted_replicas, len(version_status.replicas))}",
        f"{state}: {version_status.cause}" if version_status.cause else state,
        str(version_status.requests),
        str(version_status.active),
    )
