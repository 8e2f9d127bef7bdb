"""Evidence from a metric store, with what the versions have collected joined to its bins."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from controlled_rollout.evidence.collected.aggregates import evaluate
from controlled_rollout.evidence.collected.duckdb_engine import DuckDBEngine
from controlled_rollout.evidence.collected.part_files import PartAddresses, PartFiles
from controlled_rollout.evidence.collected.reader import CollectedReader
from controlled_rollout.evidence.collected.spark_engine import SparkEngine
from controlled_rollout.evidence.query import Evidence, EvidenceQuery, EvidenceSource
from controlled_rollout.gate import Aggregates
from controlled_rollout.storage import storage_at
from controlled_rollout.workspace import Workspace

__all__ = ["CollectedEvidence", "evaluate_aggregates"]


class CollectedEvidence:
    """A metric store, and the storage with what versions have collected; see `EvidenceSource`.

    Args:
        metric_store: Knows what callers saw.
        storage: The folder or address of the workspace's storage.
        cache: The folder for copies of parts that are in Blob Storage.
        engine: Which engine summarises parts.
        spark_remote: The Spark Connect server for `spark`; None for the session of this process.
    """

    def __init__(
        self,
        metric_store: EvidenceSource,
        storage: str,
        cache: Path,
        *,
        engine: Literal["duckdb", "spark"] = "duckdb",
        spark_remote: str | None = None,
    ) -> None:
        """Store where to read; nothing is read before the first look."""
        self.metric_store = metric_store
        self._storage = storage
        self._cache = cache
        self._engine = engine
        self._spark_remote = spark_remote

    async def read(self, query: EvidenceQuery) -> Evidence:
        """Read the closed bins of a rollout; see `EvidenceSource.read`.

        Where collected data is missing the evidence says so in `unseen`, and has what callers saw all the same.
        """
        evidence = await self.metric_store.read(query)
        if not query.gate.collections:
            return evidence
        reader, thread = _reader(self._storage, self._cache, self._engine, self._spark_remote)
        return await asyncio.get_running_loop().run_in_executor(thread, reader.with_collected, query, evidence)


async def evaluate_aggregates(
    workspace: Workspace, query: EvidenceQuery, *, since: datetime, until: datetime
) -> Aggregates:
    """Evaluate a gate's expectations about all rows together; see `aggregates.evaluate`."""
    files = PartFiles.of(workspace)
    _, thread = _reader(workspace.storage_place, files.cache, workspace.data_engine, workspace.spark_remote)
    evaluated = partial(evaluate, files, query, since=since, until=until)
    return await asyncio.get_running_loop().run_in_executor(thread, evaluated)


@lru_cache(maxsize=8)
def _reader(
    place: str, cache: Path, engine: Literal["duckdb", "spark"], spark_remote: str | None
) -> tuple[CollectedReader, ThreadPoolExecutor]:
    """Return this process's reader of a storage, and its thread: one summary at a time bounds memory and processors."""
    storage = storage_at(place)
    files = PartFiles(storage, cache)
    if engine == "duckdb":
        reader = CollectedReader(files, DuckDBEngine())
    elif PartAddresses.has_names(storage):
        names = PartAddresses(storage)
        reader = CollectedReader(files, SparkEngine(spark_remote, read_end=names.read_end), names)
    else:
        reader = CollectedReader(files, SparkEngine(spark_remote))
    return reader, ThreadPoolExecutor(1, thread_name_prefix="collected")
