"""Expectations about all rows together, evaluated on what both versions have collected in a time."""

from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.evidence.collected.part_files import PartFiles
from controlled_rollout.evidence.query import EvidenceQuery
from controlled_rollout.expectations import Suite
from controlled_rollout.expectations.process import validate_in_process
from controlled_rollout.expectations.result import ExpectationResult, ValidationRequest
from controlled_rollout.gate import AggregateResult, Aggregates

__all__ = ["evaluate"]

# Of all processes together, so that a look ends in time.
TIMEOUT: Final = timedelta(minutes=3)
# In a record, for each version.
LONGEST_TEXT: Final = 200
NOT_EVALUATED: Final = ExpectationResult(name="-", success=None, fault="not evaluated")


def evaluate(files: PartFiles, query: EvidenceQuery, *, since: datetime, until: datetime) -> Aggregates:
    """Evaluate a gate's expectations about all rows together on the rows of both versions.

    Where control has no traffic at the present share, its rows since the rollout began are compared with.

    Args:
        files: The storage, and how its parts become files of this machine.
        query: What the look asked; with at least one split.
        since: When the first bin at the present share begins.
        until: When the newest closed bin ends.

    Raises:
        EvidenceUnavailableError: The data cannot be read, or takes too long.
        StorageError: The storage cannot be read.
    """
    split = query.splits[-1]
    suite = Suite(name="aggregates", expectations=query.gate.aggregates)
    timeout = TIMEOUT / (2 * len(suite.collections))
    alone = split.share is not None and split.share >= 1
    begins = {query.treatment: since, query.control: query.started if alone else since}
    found: dict[str, dict[str, ExpectationResult]] = {version: {} for version in begins}
    for version, begin in begins.items():
        for collection in suite.collections:
            parts = tuple(files.paths_since(query.endpoint, version, collection, since=begin, until=until))
            request = ValidationRequest(suite=suite, collection=collection, parts=parts, since=begin, until=until)
            results = validate_in_process(request, timeout=timeout).results
            found[version] |= {one.name: one for one in results}
    return Aggregates(
        shifted=split.at,
        since=since,
        until=until,
        results=tuple(
            _compare_versions(one.name, found[query.treatment], found[query.control]) for one in suite.expectations
        ),
    )


def _compare_versions(
    name: str, treatment: dict[str, ExpectationResult], control: dict[str, ExpectationResult]
) -> AggregateResult:
    """Return what one expectation has found in both versions' rows."""
    of_treatment, of_control = treatment.get(name, NOT_EVALUATED), control.get(name, NOT_EVALUATED)
    return AggregateResult(
        name,
        of_treatment.success,
        of_control.success,
        of_treatment.found[:LONGEST_TEXT],
        of_control.found[:LONGEST_TEXT],
    )
