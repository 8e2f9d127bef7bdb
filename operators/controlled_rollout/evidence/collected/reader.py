"""Reads the collected data of one rollout: what its columns were in each bin, and whether all of it is there.

What a process remembers may save a query, never change a verdict: it remembers the sums of parts that it has read.
A part that was written anew, or is gone, makes it read all of them again, and sums do not depend on their order.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Final, Literal, TypeVar

from controlled_rollout.errors import EvidenceUnavailableError, StorageError
from controlled_rollout.evidence.bins import since_epoch
from controlled_rollout.evidence.collected.completeness import Collected, incomplete
from controlled_rollout.evidence.collected.engine import Observation, SummaryEngine
from controlled_rollout.evidence.collected.part_files import PartFiles, PartNames
from controlled_rollout.evidence.collected.parts import baseline_parts, parts_since
from controlled_rollout.evidence.collected.terms import cannot_be_judged
from controlled_rollout.evidence.collected.totals import Totals
from controlled_rollout.evidence.collected.values import bucket_edges
from controlled_rollout.evidence.query import Evidence, EvidenceQuery
from controlled_rollout.expectations import Suite
from controlled_rollout.expectations.process import count_in_process
from controlled_rollout.expectations.result import Counted, ValidationRequest
from controlled_rollout.gate import Bin, Counts, Gate, Moments
from controlled_rollout.storage import StoredFile

__all__ = ["CollectedReader", "observations_of"]

# The collections in which every request has a row.
INPUTS: Final = "inputs"
OF_REQUESTS: Final = ("predictions", INPUTS)
# So large a part of the inputs may be no number where their mean is judged.
ODD_INPUTS: Final = 0.05
# With fewer requests before the rollout control's quantiles are not known well enough to freeze them.
MIN_BASELINE_REQUESTS: Final = 100
# The gate judges no more categories of a metric.
MAX_CATEGORIES: Final = 200
# So many versions' collections are remembered; those that were not asked for longest are forgotten.
MOST_REMEMBERED: Final = 500
SHOWN_COLUMNS: Final = 10
EXPECTATIONS_TIMEOUT: Final = timedelta(minutes=2)
# Each takes a processor, and some hundred megabytes.
EVALUATED_AT_ONCE: Final = 2

Value = TypeVar("Value")


def observations_of(gate: Gate) -> dict[str, list[Observation]]:
    """Return by collection what is observed of its requests, without what control's quantiles will give."""
    result: dict[str, list[Observation]] = {}
    for name, column in gate.columns.items():
        collection, _, rest = column.partition(".")
        kind: Literal["mean", "category"] = "mean" if name in gate.means else "category"
        result.setdefault(collection, []).append(Observation(name, rest, kind))
    for collection in gate.collections:
        result.setdefault(collection, [])
    return result


@dataclass(slots=True)
class Remembered:
    """Sums of parts that were read.

    Attributes:
        etags: The parts, by name.
        totals: Their sums.
    """

    etags: dict[str, str] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)


@dataclass(frozen=True, slots=True)
class Reading:
    """What is being read of a version's collection.

    Attributes:
        key: Names its sums among those that are remembered.
        remembered: The sums of the parts that were read before.
        observations: What is observed of its requests.
        since: Of requests that arrived from then on.
        bin_width: The width of a bin.
        new: The parts that are still to be read.
        counted: The rows of its expectations; None without any.
    """

    key: object
    remembered: Remembered
    observations: Sequence[Observation]
    since: datetime
    bin_width: timedelta
    new: Sequence[StoredFile]
    counted: "Future[Counted] | None"


class CollectedReader:
    """Reads collected data with one engine from one storage; not for several threads at once.

    Args:
        files: The storage, and how its parts become files of this machine.
        engine: Summarises parts.
        names: The names by which the engine reads parts; None: as files of this machine.
    """

    def __init__(self, files: PartFiles, engine: SummaryEngine, names: PartNames | None = None) -> None:
        """Start with nothing remembered."""
        self._files = files
        self._engine = engine
        self._names = names or files
        self._remembered: OrderedDict[object, Remembered] = OrderedDict()
        self._expectations = ThreadPoolExecutor(EVALUATED_AT_ONCE, thread_name_prefix="expectations")
        self._cuts: OrderedDict[object, dict[str, tuple[float, ...]]] = OrderedDict()

    def with_collected(self, query: EvidenceQuery, evidence: Evidence) -> Evidence:
        """Return the evidence with the means and categories of the gate's columns, or with why they are not seen.

        Args:
            query: What the look asks.
            evidence: What callers saw, by closed bin.
        """
        try:
            return self._with_collected_data(query, evidence)
        except (EvidenceUnavailableError, StorageError) as error:
            return replace(evidence, unseen=str(error))

    def _with_collected_data(self, query: EvidenceQuery, evidence: Evidence) -> Evidence:
        """Return the evidence with the collected data; raise if some of it is missing."""
        shares = {version: _share_of(query, version) for version in (query.control, query.treatment)}
        if not evidence.bins:
            return evidence
        wanted = observations_of(query.gate)
        cuts: dict[str, tuple[float, ...]] = {}
        totals: dict[tuple[str, str], Totals] = {}
        for collection, observations in wanted.items():
            frozen = self._frozen_cuts(query, collection, observations)
            cuts |= frozen
            cut = [_with_cuts(one, frozen) for one in observations]
            begun = {
                version: self._begin_reading(query, version, collection, cut, query.gate.expectations)
                for version in shares
            }
            totals |= {(version, collection): self._finished(reading) for version, reading in begun.items()}
        for version, share in shares.items():
            self._check_complete(query, evidence, version, share, totals)
        for collection, observations in wanted.items():
            _check_columns(query, collection, observations, totals)
            _check_expectations(query, collection, totals)
        bins = tuple(_bin_with(bin_, query, list(wanted), totals) for bin_ in evidence.bins)
        return replace(evidence, bins=bins, cuts=cuts)

    # Control's quantiles

    def _frozen_cuts(
        self, query: EvidenceQuery, collection: str, observations: Sequence[Observation]
    ) -> dict[str, tuple[float, ...]]:
        """Return by metric the buckets' edges, or the bounds of clipped values: control's quantiles before the rollout.

        Raises:
            EvidenceUnavailableError: Control has collected too little before the rollout.
        """
        asked = [
            (observation, wanted)
            for observation in observations
            if (wanted := _quantiles_asked(query.gate, observation.metric))
        ]
        if not asked:
            return {}
        since = _baseline_begin(query)
        listed = self._files.listed(query.endpoint, query.control, collection, since=since, until=query.started)
        parts = baseline_parts(listed, since=since, started=query.started)
        key = (*_identity(query, query.control, collection), since, repr(asked), tuple((p.name, p.etag) for p in parts))
        if key not in self._cuts:
            found = self._engine.quantiles(self._names.paths(parts), asked, since=since, until=query.started)
            cuts = {}
            for (observation, _), quantiles in zip(asked, found, strict=True):
                if quantiles.count < MIN_BASELINE_REQUESTS:
                    raise EvidenceUnavailableError(
                        f"control {query.control!r} has {quantiles.count} requests with a number in "
                        f"{collection}.{observation.column} from {since:%Y-%m-%d %H:%M:%S} to the rollout's begin, and "
                        f"{MIN_BASELINE_REQUESTS} are needed for its quantiles (metric {observation.metric!r}): give a "
                        "longer baseline_length, or begin when control has collected more"
                    )
                cuts[observation.metric] = (
                    bucket_edges(quantiles.values) if observation.kind == "category" else quantiles.values
                )
            _remember(self._cuts, key, cuts)
        return self._cuts[key]

    # Sums of parts

    def _requests_by_bin(self, query: EvidenceQuery, version: str, collection: str) -> Totals:
        """Return how many requests a version's collection has by bin."""
        return self._finished(self._begin_reading(query, version, collection, []))

    def _begin_reading(
        self,
        query: EvidenceQuery,
        version: str,
        collection: str,
        observations: Sequence[Observation],
        suite: Suite | None = None,
    ) -> Reading:
        """Begin to read a version's parts since the rollout began, those that are new; expectations meanwhile."""
        expectations = () if suite is None else tuple(one for one in suite.of(collection) if one.is_row_wise)
        width = query.window.bin_width
        listed = self._files.listed(query.endpoint, version, collection, since=query.started, until=query.now)
        parts = {part.name: part for part in parts_since(listed, query.started)}
        key = (*_identity(query, version, collection), query.started, width, tuple(observations), repr(expectations))
        remembered = self._remembered.get(key, Remembered())
        if any(name not in parts or parts[name].etag != etag for name, etag in remembered.etags.items()):
            remembered = Remembered()
        new = [part for name, part in parts.items() if name not in remembered.etags]
        counted: Future[Counted] | None = None
        if suite is not None and expectations and new:
            paths = tuple(self._files.paths(new))
            request = ValidationRequest(
                suite=suite, collection=collection, parts=paths, since=query.started, bin_width=width
            )
            counted = self._expectations.submit(count_in_process, request, timeout=EXPECTATIONS_TIMEOUT)
        return Reading(key, remembered, observations, query.started, width, new, counted)

    def _finished(self, reading: Reading) -> Totals:
        """Return the sums of all parts of a collection, with those that are new."""
        remembered = reading.remembered
        if reading.new:
            # Whatever goes wrong, sums of half of the parts are not kept.
            self._remembered.pop(reading.key, None)
            names = self._names.paths(reading.new)
            summaries = self._engine.summaries(
                names, reading.observations, since=reading.since, bin_width=reading.bin_width
            )
            if reading.counted is not None:
                remembered.totals.add_expectations(reading.counted.result())
            for part, summary in zip(reading.new, summaries, strict=True):
                remembered.totals.add(summary)
                remembered.etags[part.name] = part.etag
        _remember(self._remembered, reading.key, remembered)
        return remembered.totals

    # Completeness

    def _check_complete(
        self,
        query: EvidenceQuery,
        evidence: Evidence,
        version: str,
        share: float,
        totals: Mapping[tuple[str, str], Totals],
    ) -> None:
        """Raise EvidenceUnavailableError if some of a version's collected data is missing."""
        # Of replicas that ended before the rollout nothing is read.
        states = list(self._files.states(query.endpoint, version, since=query.started - timedelta(hours=1)))
        of_requests = next((name for name in OF_REQUESTS if (version, name) in totals), None)
        if of_requests is None:
            # A collection of the script's own: how often it collects is its own affair.
            counted = self._requests_by_bin(query, version, OF_REQUESTS[0])
        else:
            counted = totals[version, of_requests]
        bins = [
            Collected(
                bin_.start,
                _answered_requests(bin_.treatment if version == query.treatment else bin_.control),
                counted.requests.get(_bin_number(bin_, query), 0),
            )
            for bin_ in evidence.bins
        ]
        problem = incomplete(
            version, states, bins, share=share, started=query.started, until=evidence.until, now=query.now
        )
        if problem:
            raise EvidenceUnavailableError(problem)


def _identity(query: EvidenceQuery, version: str, collection: str) -> tuple[str, str, str]:
    """Return what names a version's collection in the storage."""
    return query.endpoint, version, collection


def _remember(remembered: "OrderedDict[object, Value]", key: object, value: Value) -> None:
    """Keep a value as the newest, and forget what was not asked for longest."""
    remembered[key] = value
    remembered.move_to_end(key)
    while len(remembered) > MOST_REMEMBERED:
        remembered.popitem(last=False)


def _share_of(query: EvidenceQuery, version: str) -> float:
    """Return the part of its requests that a version collects; raise if it does not collect what the gate judges."""
    collected = query.collected.get(version)
    problem = cannot_be_judged(query.gate, version, collected)
    if problem or collected is None:
        raise EvidenceUnavailableError(problem)
    return collected.share


def _quantiles_asked(gate: Gate, metric: str) -> tuple[float, ...]:
    """Return which of control's quantiles a metric needs; empty if none."""
    category, mean = gate.categories.get(metric), gate.means.get(metric)
    if category is not None and category.buckets is not None:
        return tuple(number / category.buckets for number in range(category.buckets + 1))
    if mean is not None and mean.clip is not None:
        return mean.clip, 1 - mean.clip
    return ()


def _with_cuts(observation: Observation, cuts: Mapping[str, tuple[float, ...]]) -> Observation:
    """Return an observation with its buckets' edges, or the bounds of its values."""
    frozen = cuts.get(observation.metric)
    if frozen is None:
        return observation
    if observation.kind == "category":
        return replace(observation, edges=frozen)
    return replace(observation, bounds=(frozen[0], frozen[1]))


def _baseline_begin(query: EvidenceQuery) -> datetime:
    """Return when the baseline begins."""
    first = query.started - query.window.baseline_length
    return first if query.baseline_from is None else min(max(first, query.baseline_from), query.started)


def _bin_number(bin_: Bin, query: EvidenceQuery) -> int:
    """Return the number of a bin."""
    return since_epoch(bin_.start, query.window.bin_width)


def _answered_requests(counts: Counts) -> float:
    """Return how many requests a version has answered without an error; sampled rows stand for several."""
    weight = counts.represented / counts.requests if counts.represented and counts.requests else 1.0
    return (counts.requests - counts.errors) * weight


def _check_columns(
    query: EvidenceQuery,
    collection: str,
    observations: Sequence[Observation],
    totals: Mapping[tuple[str, str], Totals],
) -> None:
    """Raise EvidenceUnavailableError if a column is not what the gate can judge, in one of the versions."""
    for version in (query.control, query.treatment):
        total = totals[version, collection]
        if not total.requests:
            # What is missing of requests was looked at before: the script has not collected, or nobody has called.
            if collection not in OF_REQUESTS:
                raise EvidenceUnavailableError(
                    f"version {version!r} has collected nothing in {collection!r} since the rollout began: check that "
                    "its script does, or judge another column"
                )
            continue
        for observation in observations:
            name = f"{collection}.{observation.column}"
            if observation.column not in total.columns and not observation.column.startswith("$"):
                known = sorted(total.columns)
                more = f" and {len(known) - SHOWN_COLUMNS} more" if len(known) > SHOWN_COLUMNS else ""
                raise EvidenceUnavailableError(
                    f"column {name} (metric {observation.metric!r}) is not in the data that version {version!r} has "
                    f"collected since the rollout began; the columns there: "
                    f"{', '.join(known[:SHOWN_COLUMNS]) or 'none'}{more}: judge one of them, or "
                    "let the script collect it"
                )
            odd = total.not_numbers.get(observation.metric, 0)
            numbers = sum(moments.count for moments in total.means.get(observation.metric, {}).values())
            # What callers send is drawn by the same split: a few of them do not keep the gate from seeing.
            if odd and (collection != INPUTS or odd > ODD_INPUTS * (odd + numbers)):
                raise EvidenceUnavailableError(
                    f"{name} (metric {observation.metric!r}) of version {version!r} is no finite number in "
                    f"{odd:,} requests: a mean needs numbers; judge the column as a Category"
                )
            categories = set(chain.from_iterable(total.categories.get(observation.metric, {}).values()))
            if len(categories) > MAX_CATEGORIES:
                raise EvidenceUnavailableError(
                    f"{name} (metric {observation.metric!r}) of version {version!r} has {len(categories):,} different "
                    f"values, and {MAX_CATEGORIES} are judged: a number can be cut into buckets=10"
                )


def _check_expectations(query: EvidenceQuery, collection: str, totals: Mapping[tuple[str, str], Totals]) -> None:
    """Raise EvidenceUnavailableError if an expectation could not be evaluated on one of the versions' rows."""
    suite = query.gate.expectations
    for expectation in suite.row_wise if suite is not None else ():
        if expectation.collection != collection:
            continue
        for version in (query.control, query.treatment):
            total = totals[version, collection]
            if fault := total.faults.get(expectation.name):
                raise EvidenceUnavailableError(
                    f"the expectation {expectation.name!r} could not be evaluated on what version {version!r} "
                    f"has collected: {fault}"
                )
            stored = [f"${name}" if name.startswith("$") else name for name in expectation.columns]
            if total.requests and (missing := [name for name in stored if name not in total.columns]):
                raise EvidenceUnavailableError(
                    f"column {collection}.{missing[0]} (expectation {expectation.name!r}) is not in the data that "
                    f"version {version!r} has collected since the rollout began; the columns there: "
                    f"{', '.join(sorted(total.columns)[:SHOWN_COLUMNS]) or 'none'}"
                )


def _bin_with(
    bin_: Bin, query: EvidenceQuery, collections: Sequence[str], totals: Mapping[tuple[str, str], Totals]
) -> Bin:
    """Return a bin with the means and categories that both versions have collected in it."""
    number = _bin_number(bin_, query)

    def counts_of(counts: Counts, version: str) -> Counts:
        """Return one version's counts with what it has collected."""
        means: dict[str, Moments] = {}
        categories: dict[str, Mapping[str, int]] = {}
        for collection in collections:
            means |= totals[version, collection].means_in(number)
            categories |= totals[version, collection].categories_in(number)
        return replace(counts, means={**counts.means, **means}, categories={**counts.categories, **categories})

    return replace(
        bin_, control=counts_of(bin_.control, query.control), treatment=counts_of(bin_.treatment, query.treatment)
    )
