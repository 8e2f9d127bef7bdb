"""What the versions of an endpoint have captured, where the target itself does not know it: read from the storage."""

import asyncio
from typing import TYPE_CHECKING

from controlled_rollout.errors import EvidenceUnavailableError, StorageError, WorkspaceError
from controlled_rollout.target.protocol import CollectedCounts

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.target.protocol import EndpointStatus
    from controlled_rollout.workspace import Workspace

__all__ = ["with_collected"]


async def with_collected(
    workspace: "Workspace", endpoint: "Endpoint | None", status: "EndpointStatus"
) -> "EndpointStatus":
    """Return a status with what each version that collects has captured, dropped and not shipped yet.

    The local supervisor counts that itself. On Kubernetes the collectors write it to the storage; one that cannot be
    read, and a version of which nothing is there, are warnings.

    Args:
        workspace: The workspace.
        endpoint: The endpoint's newest revision; None if it cannot be read.
        status: Its status, as the target gives it.
    """
    versions, warnings = dict(status.versions), list(status.warnings)
    for name, version in endpoint.versions.items() if endpoint else ():
        if version.collected is None or name not in versions or versions[name].collected is not None:
            continue
        try:
            counts = await asyncio.to_thread(_counts, workspace, status.name, name)
        except (EvidenceUnavailableError, StorageError, WorkspaceError) as error:
            warnings.append(f"what version {name!r} has captured is not known: {error}")
            continue
        if counts is None:
            warnings.append(
                f"no replica of version {name!r} has reported what it has captured: look at the log of the container "
                "collector in its pods"
            )
            continue
        versions[name] = versions[name].model_copy(update={"collected": counts})
    return status.model_copy(update={"versions": versions, "warnings": tuple(warnings)})


def _counts(workspace: "Workspace", endpoint: str, version: str) -> CollectedCounts | None:
    """Return the sums over a version's replicas; None if none has reported."""
    from controlled_rollout.evidence.collected.version_data import read_states

    states = read_states(workspace, endpoint, version)
    names = ("captured", "dropped", "unreadable", "pending_bytes")
    return CollectedCounts(**{name: sum(getattr(one, name) for one in states) for name in names}) if states else None
