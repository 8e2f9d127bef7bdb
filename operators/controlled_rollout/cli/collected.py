"""What the versions of an endpoint have captured, where the target itself does not know it: read from the storage."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from controlled_rollout.errors import EvidenceUnavailableError, StorageError, WorkspaceError
from controlled_rollout.target.protocol import CollectedCounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.evidence.collected.completeness import ReplicaState
    from controlled_rollout.target.protocol import EndpointStatus
    from controlled_rollout.workspace import Workspace

__all__ = ["with_collected"]

COUNTS: Final = ("captured", "dropped", "unreadable", "pending_bytes")
# Collectors write to the storage every half minute, also if nothing was captured.
SILENT: Final = timedelta(minutes=2)
LOG: Final = "look at the log of the container collector in its pod"
# asyncio's own threads are few on a small machine: there, versions would wait for each other's storage in turn.
READERS: Final = ThreadPoolExecutor(32, thread_name_prefix="collected")


async def with_collected(
    workspace: "Workspace", endpoint: "Endpoint | None", status: "EndpointStatus"
) -> "EndpointStatus":
    """Return a status with what each version that collects has captured, dropped and not shipped yet.

    The local supervisor counts that itself. On Kubernetes the collectors write it to the storage; one that cannot be
    read, a version of which nothing is there, and a replica that has stopped writing are warnings.

    Args:
        workspace: The workspace.
        endpoint: The endpoint's newest revision; None if it cannot be read.
        status: Its status, as the target gives it.
    """
    versions, warnings = dict(status.versions), list(status.warnings)
    names = [
        name
        for name, version in (endpoint.versions.items() if endpoint else ())
        if version.collected is not None and name in versions and versions[name].collected is None
    ]
    loop = asyncio.get_running_loop()
    readings = (loop.run_in_executor(READERS, _read, workspace, status.name, name) for name in names)
    for name, states in zip(names, await asyncio.gather(*readings), strict=True):
        if isinstance(states, str):
            warnings.append(f"what version {name!r} has captured is not known: {states}")
            continue
        if not states:
            warnings.append(f"no replica of version {name!r} has reported what it has captured: {LOG}")
            continue
        counts = CollectedCounts(**{count: sum(getattr(one, count) for one in states) for count in COUNTS})
        running = {replica.name for replica in versions[name].replicas}
        silent_since = datetime.now(UTC) - SILENT
        warnings += [
            f"replica {one.replica} has not said since {one.updated:%Y-%m-%d %H:%M:%S %Z} what it has captured: {LOG}"
            for one in states
            if one.replica in running and one.updated < silent_since
        ]
        versions[name] = versions[name].model_copy(update={"collected": counts})
    return status.model_copy(update={"versions": versions, "warnings": tuple(warnings)})


def _read(workspace: "Workspace", endpoint: str, version: str) -> "Sequence[ReplicaState] | str":
    """Return what the collectors of a version's replicas say in the storage, or why that cannot be read."""
    from controlled_rollout.evidence.collected.version_data import read_states

    try:
        return read_states(workspace, endpoint, version)
    except (EvidenceUnavailableError, StorageError, WorkspaceError) as error:
        return str(error)
