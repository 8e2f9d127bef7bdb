"""The collected data of one version by itself: how many requests there are, and what a suite of expectations finds."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.completeness import ReplicaState, replica_state
from controlled_rollout.evidence.collected.part_files import PartFiles
from controlled_rollout.evidence.collected.parts import state_prefix
from controlled_rollout.expectations import Suite
from controlled_rollout.expectations.process import validate_in_process
from controlled_rollout.expectations.report import DataReport
from controlled_rollout.expectations.result import ValidationRequest
from controlled_rollout.storage import open_storage
from controlled_rollout.workspace import Workspace

__all__ = ["count_rows", "read_states", "validate_version"]

READS_AT_ONCE: Final = 8


def validate_version(
    workspace: Workspace,
    endpoint: str,
    version: str,
    suite: Suite,
    *,
    since: datetime,
    until: datetime,
    max_rows: int,
) -> DataReport:
    """Evaluate a suite on all rows that a version has collected in a time.

    Args:
        workspace: Where the data is.
        endpoint: The endpoint's name.
        version: The version's name.
        suite: The expectations.
        since: Requests that arrived from then on.
        until: Requests that arrived before.
        max_rows: Of more rows those of as many requests, drawn by their ids, are evaluated.

    Raises:
        EvidenceUnavailableError: The data cannot be read, or takes too long.
        StorageError: The storage cannot be read.
    """
    files = PartFiles.of(workspace)
    validations = {}
    for collection in suite.collections:
        parts = tuple(files.paths_since(endpoint, version, collection, since=since, until=until))
        request = ValidationRequest(
            suite=suite, collection=collection, parts=parts, since=since, until=until, max_rows=max_rows
        )
        validations[collection] = validate_in_process(request)
    notes = tuple(_missing_sentences(files, endpoint, version, since))
    return DataReport(endpoint, version, suite.name, since, until, validations, notes)


def count_rows(
    workspace: Workspace, endpoint: str, version: str, collection: str, *, since: datetime, until: datetime
) -> int:
    """Return how many rows a version's parts of a time hold; of the first and the last part all rows count.

    Raises:
        EvidenceUnavailableError: A part cannot be read.
        StorageError: The storage cannot be read.
    """
    from pyarrow import ArrowInvalid, parquet

    paths = PartFiles.of(workspace).paths_since(endpoint, version, collection, since=since, until=until)
    try:
        return sum(int(parquet.read_metadata(path).num_rows) for path in paths)
    except (OSError, ArrowInvalid) as error:
        raise EvidenceUnavailableError(f"collected data cannot be read: {error}") from error


def read_states(workspace: Workspace, endpoint: str, version: str) -> list[ReplicaState]:
    """Return what the collectors of a version's replicas, those that have ended included, say in the storage.

    Raises:
        EvidenceUnavailableError: A file is not what a collector writes.
        StorageError: The storage cannot be read.
    """
    storage = open_storage(workspace)
    names = [file.name for file in storage.list(state_prefix(endpoint, version)) if file.name.endswith(".json")]
    with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="states") as pool:
        return list(pool.map(lambda name: replica_state(name, storage.get(name)), names))


def _missing_sentences(files: PartFiles, endpoint: str, version: str, since: datetime) -> list[str]:
    """Return what replicas have dropped or not shipped, each in a sentence."""
    notes = []
    for state in files.states(endpoint, version, since=since):
        if lost := state.dropped + state.unreadable:
            notes.append(f"replica {state.replica} has not kept {lost:,} of its requests since it began")
        if state.pending_bytes and not state.final:
            notes.append(f"{state.pending_bytes:,} bytes of replica {state.replica} are not in the storage yet")
    return notes
