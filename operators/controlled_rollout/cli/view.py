"""What commands show: sentences, and endpoints as lines and as JSON values."""

import sys
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.duration import format_duration
from controlled_rollout.text_table import text_table
from controlled_rollout.visible_text import visible_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.target.protocol import EndpointStatus, VersionStatus
    from controlled_rollout.view.models import EndpointOverview

__all__ = [
    "WIDTH",
    "endpoint_as_json",
    "endpoint_lines",
    "folded_table",
    "print_answer",
    "print_line",
    "print_progress",
    "unreadable_as_json",
]

# What a terminal has at least.
WIDTH: Final = 80


def print_line(sentence: str) -> None:
    """Print a line to stdout and flush it at once, so that a reader of the pipe gets it.

    Others may have written a part of it, such as the reason of a change: nothing in it acts on the terminal.
    """
    sys.stdout.write(f"{visible_text(sentence)}\n")
    sys.stdout.flush()


def print_progress(sentence: str) -> None:
    """Print a line to stderr: what goes on while the result, on stdout, is a document for programs."""
    sys.stderr.write(f"{visible_text(sentence)}\n")
    sys.stderr.flush()


def print_answer(text: str) -> None:
    """Print what a model has answered: as it is into a pipe or a file, and on a terminal as a line that is safe."""
    if sys.stdout.isatty():
        print_line(text)
    else:
        sys.stdout.write(f"{text}\n")


def endpoint_as_json(endpoint: "Endpoint | None", status: "EndpointStatus") -> dict[str, Any]:
    """Return an endpoint's newest revision, its effective traffic and its status as JSON values.

    A revision that cannot be read is null: the status says why.
    """
    return {
        "endpoint": endpoint.model_dump(mode="json") if endpoint else None,
        "effective_traffic": endpoint.effective_traffic() if endpoint else {},
        "status": status.model_dump(mode="json"),
    }


def unreadable_as_json(status: "EndpointStatus") -> dict[str, Any]:
    """Return what is known of an endpoint whose revision cannot be read, as JSON values; `trouble` says why."""
    return {"name": status.name, "url": status.url, "revision": status.revision, "trouble": status.trouble}


def endpoint_lines(
    endpoint: "Endpoint | None", status: "EndpointStatus", overview: "EndpointOverview | None" = None
) -> list[str]:
    """Return an endpoint's state and a table of its versions as lines; only the state if its revision is unreadable.

    Args:
        endpoint: The endpoint's newest revision; None if it cannot be read.
        status: Its status.
        overview: What the page in Airflow shows of it, which says what a rollout waits for; None if that is not read.
    """
    behind = "" if status.served_revision == status.revision else f", served {status.served_revision}"
    lines = [f"{status.name}  {status.url}  revision {status.revision}{behind}"]
    if status.trouble or status.waiting_for:
        lines.append(f"trouble: {status.trouble}" if status.trouble else f"waiting: {status.waiting_for}")
    if status.certificate_ends:
        lines.append(f"certificate: ends on {status.certificate_ends:%Y-%m-%d %H:%M %Z}")
    lines += [f"warning: {warning}" for warning in status.warnings]
    if endpoint is None:
        return lines
    if endpoint.rollout:
        from controlled_rollout.target.silence import unattended_rollout

        lines.append(f"{endpoint.rollout.version} is being rolled out by {endpoint.rollout.owner}")
        if unattended_rollout(endpoint):
            silence = format_duration(endpoint.rollout.silence)
            lines.append(f"if nobody looks for {silence}, the supervisor, or the cluster's agent, takes it back")
        if overview and overview.rollout and overview.rollout.waiting_for and not endpoint.rollout.held:
            lines.append(f"at {overview.rollout.step} it waits for {overview.rollout.waiting_for}")
        if held := endpoint.rollout.held:
            lines.append(f"it is on hold since {held:%Y-%m-%d %H:%M:%S %Z}: a person has to promote it or roll it back")
    headings = ("version", "role", "traffic", "replicas", "state", "requests", "active")
    lines += folded_table([headings, *(_version_row(endpoint, name, status) for name in endpoint.versions)])
    for name, version in status.versions.items():
        if version.cause and name in endpoint.versions:
            lines.append(f"{name}: {_state(version)}: {version.cause}")
        if version.scaling:
            lines.append(f"{name}: {version.scaling}")
        if collected := version.collected:
            lines.append(
                f"{name} has captured {collected.captured:,} requests; dropped {collected.dropped:,}, unreadable "
                f"{collected.unreadable:,}; {collected.pending_bytes:,} bytes are not in the storage yet"
            )
    return lines


def folded_table(rows: "Sequence[Sequence[str]]", *, width: int = WIDTH) -> list[str]:
    """Return rows as the lines of a table; where it would be wider, the first cells have lines of their own.

    Args:
        rows: The cells, the headings first.
        width: The most characters of a line, so that it fits a terminal.
    """
    lines = text_table(rows).splitlines()
    if max(map(len, lines)) <= width:
        return lines
    heading, *others = text_table([row[1:] for row in rows]).splitlines()
    folded = [f"  {heading}"]
    for row, rest in zip(rows[1:], others, strict=True):
        folded += [row[0], f"  {rest}"]
    return folded


def _version_row(endpoint: "Endpoint", name: str, status: "EndpointStatus") -> tuple[str, ...]:
    """Return the table row of one version: name, role, traffic, replicas, state and request counts."""
    version = endpoint.versions[name]
    role = version.type.value.lower() + (", default" if version.is_default else "")
    traffic = _traffic(version.traffic_percentile, endpoint.effective_traffic()[name])
    version_status = status.versions.get(name)
    if version_status is None:
        return (name, role, traffic, "", "missing", "", "")
    ready = sum(replica.state == "ready" for replica in version_status.replicas)
    return (
        name,
        role,
        traffic,
        f"{ready} of {max(version_status.wanted_replicas, len(version_status.replicas))}",
        _state(version_status),
        str(version_status.requests),
        str(version_status.active),
    )


def _traffic(percentile: float, effective: float) -> str:
    """Return a version's per cent of the requests; the default's own and the rest, which no other version has, apart.

    Args:
        percentile: What is set for it.
        effective: What it gets.
    """
    if effective == percentile:
        return f"{effective:g} %"
    return f"{effective:g} % ({percentile:g} + rest)" if percentile else f"{effective:g} % (rest)"


def _state(version: "VersionStatus") -> str:
    """Return in a word or two whether a version answers."""
    return "ready" if version.ready else "failed" if version.failed else "not ready"
