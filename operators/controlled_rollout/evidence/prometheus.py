"""Evidence from a Prometheus that scrapes the routers: Envoy's counters and latency histograms.

What it cannot give: a quantile anywhere but at a bound of Envoy's histogram, requests told apart by who chose their
version (a router without a cluster of its own for those counts them all), and anything between two scrapes.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from controlled_rollout.addresses import is_this_machine
from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.bins import MIN_BASELINE_REQUESTS
from controlled_rollout.evidence.increments import Sample, binned, bound_at_least, growths, quantile_bounds
from controlled_rollout.evidence.model import Arrival, Ask, Evidence, Question, TooMuchError
from controlled_rollout.evidence.rows import CountRow, MetricRow
from controlled_rollout.evidence.shared import read_shared, shared_reader
from controlled_rollout.gate import Counts

if TYPE_CHECKING:
    import httpx

__all__ = ["PrometheusEvidence"]

REQUESTS: Final = "envoy_cluster_upstream_rq_xx"
TIMES: Final = "envoy_cluster_upstream_rq_time_bucket"
AGE: Final = "envoy_server_uptime"
TIMEOUT_S: Final = 60.0
LATELY: Final = timedelta(minutes=5)
# Answers of Prometheus that a smaller query may not get: timed out, too many samples, too long.
TOO_MUCH: Final = (413, 422, 503, 504)
# The classes of result codes that a caller can be answered with.
CLASSES: Final = ("2", "3", "4", "5")


@dataclass(frozen=True, slots=True)
class Series:
    """One time series: its labels and raw samples."""

    labels: Mapping[str, str]
    samples: Sequence[Sample]


class PrometheusEvidence:
    """What callers saw, from the counters of the routers that a Prometheus scrapes.

    Args:
        url: Prometheus's base URL.
        selector: Label matchers that the routers' series have, such as `job="envoy"`.
    """

    def __init__(self, url: str, selector: str = "") -> None:
        self.url = url.rstrip("/")
        self.selector = selector

    def __repr__(self) -> str:
        return f"PrometheusEvidence({self.url!r}, {self.selector!r})"

    async def read(self, question: Question) -> Evidence:
        """Read the closed bins of a rollout; see `EvidenceSource.read`.

        The scrape interval has to be shorter than a bin: what grew in a longer gap is left out.
        """
        if missing := {question.control, question.treatment} - question.clusters.keys():
            raise EvidenceUnavailableError(
                f"the router does not say under which name it counts {' and '.join(sorted(missing))} of endpoint "
                f"{question.endpoint!r}: it does once it sends requests there"
            )
        reader = shared_reader((type(self), self.url, self.selector), self)
        # A scrape tells of the time before it, which may reach back into the bin before.
        return await read_shared(reader, self, question, split_guard=question.window.bin_width)

    async def routers(self) -> list[str]:
        """Return the routers that were scraped within the last minutes, as Prometheus calls them.

        Raises:
            EvidenceUnavailableError: Prometheus did not answer, or has scraped none.
        """
        now = datetime.now(UTC)
        scrapes = await self._scrapes(now - LATELY, now)
        self._check_scrapes(scrapes, now, LATELY)
        return sorted(scrapes)

    async def thresholds(self, asks: Sequence[Ask]) -> list[tuple[float, ...]]:
        """Return the histogram's bounds at or above control's quantiles; see `Store.thresholds`."""
        found = []
        for ask in asks:
            cumulative = await self._cumulative(ask)
            found.append(quantile_bounds(cumulative, ask.subject.quantiles, fewest=MIN_BASELINE_REQUESTS))
        return found

    async def _cumulative(self, ask: Ask) -> dict[float, int]:
        """How many of control's requests before the rollout took at most each bound."""
        subject = ask.subject
        until, since = subject.started, subject.first - subject.window.bin_width
        cluster = _cluster_matcher([subject.cluster_of(subject.control)])
        series = await self._ask(f"{TIMES}{self._braces(cluster)}{_range(since, until)}", until)
        scrapes = await self._scrapes(since, until)
        cumulative: dict[float, int] = {}
        for one in series:
            grown = growths(
                one.samples, scrapes.get(one.labels.get("instance", ""), ()), longest=subject.window.bin_width
            )
            number = sum(growth.number for growth in grown if growth.at > subject.first)
            bound = float(one.labels["le"])
            cumulative[bound] = cumulative.get(bound, 0) + number
        return cumulative

    async def counts(self, asks: Sequence[Ask], *, until: datetime, bin_width: timedelta) -> list[list[CountRow]]:
        """Return each ask's counts by bin and version; see `Store.counts`."""
        since = min(ask.since for ask in asks) - bin_width
        if until <= since:
            return [[] for _ in asks]
        clusters = [
            ask.subject.cluster_of(name) for ask in asks for name in (ask.subject.control, ask.subject.treatment)
        ]
        matcher, window = _cluster_matcher(clusters), _range(since, until)
        scrapes = await self._scrapes(since, until)
        self._check_scrapes(scrapes, until, bin_width)
        requests = await self._ask(f"{REQUESTS}{self._braces(matcher)}{window}", until)
        times: list[Series] = []
        if any(ask.thresholds_ms for ask in asks):
            times = await self._ask(f"{TIMES}{self._braces(matcher)}{window}", until)
        counters = (_by_cluster(requests), _by_cluster(times))
        return [_rows(ask, *counters, scrapes, until=until, width=bin_width) for ask in asks]

    async def metrics(self, ask: Ask, *, until: datetime) -> list[MetricRow]:
        """Refuse: the author's queries are KQL."""
        raise EvidenceUnavailableError(
            f"the metrics {', '.join(ask.subject.metrics)} are asked for in KQL, and the evidence is read from "
            "Prometheus: leave the gate's means and categories out, or give the workspace a Log Analytics workspace"
        )

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, bin_width: timedelta
    ) -> Mapping[str, Arrival]:
        """Return nothing: a sample has the time of its scrape, and none comes later."""
        return {}

    def queries(self, ask: Ask) -> tuple[str, ...]:
        """Return the series whose raw samples were read; see `Store.queries`."""
        subject = ask.subject
        matcher = _cluster_matcher([subject.cluster_of(subject.control), subject.cluster_of(subject.treatment)])
        metrics = (REQUESTS, TIMES) if ask.thresholds_ms else (REQUESTS,)
        return tuple(f"{metric}{self._braces(matcher)}" for metric in metrics)

    async def _scrapes(self, since: datetime, until: datetime) -> dict[str, Sequence[Sample]]:
        """Return when each router was scraped, and how old it was then."""
        series = await self._ask(f"{AGE}{self._braces()}{_range(since, until)}", until)
        return {one.labels.get("instance", ""): one.samples for one in series}

    def _check_scrapes(self, scrapes: Mapping[str, Sequence[Sample]], until: datetime, width: timedelta) -> None:
        """Refuse to take silence for quiet: a router that nobody scrapes has no requests to show."""
        newest = max((samples[-1][0] for samples in scrapes.values() if samples), default=None)
        if newest is None:
            raise EvidenceUnavailableError(
                f"{self.url} has no sample of {AGE}{self._braces()}: see that it scrapes the routers, and that "
                "prometheus_selector fits their labels"
            )
        if datetime.fromtimestamp(newest, UTC) < until - width:
            when = f"{datetime.fromtimestamp(newest, UTC):%H:%M:%S}"
            raise EvidenceUnavailableError(f"{self.url} has scraped no router since {when}: see its targets")

    def _braces(self, *matchers: str) -> str:
        return "{" + ",".join(filter(None, (*matchers, self.selector))) + "}"

    async def _ask(self, query: str, at: datetime) -> list[Series]:
        """Return the raw samples that a range selector gives; anything but a complete answer is an error."""
        import httpx

        form = {"query": query, "time": f"{at.timestamp():.3f}", "timeout": f"{TIMEOUT_S:g}s"}
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=not is_this_machine(self.url)) as client:
                answer = await client.post(f"{self.url}/api/v1/query", data=form)
        except httpx.TimeoutException:
            raise TooMuchError(f"Prometheus at {self.url} did not answer within {TIMEOUT_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EvidenceUnavailableError(
                f"Prometheus at {self.url} does not answer ({error or type(error).__name__}): see that it runs and can "
                "be reached; the gate holds until it answers"
            ) from None
        return self._series(answer)

    def _series(self, answer: "httpx.Response") -> list[Series]:
        try:
            document = answer.json()
            said = str(document.get("error") or document.get("warnings") or "")
        except (json.JSONDecodeError, AttributeError):
            document, said = {}, answer.text[:200]
        if answer.is_error or document.get("status") != "success":
            problem = f"Prometheus at {self.url} answered {answer.status_code}: {' '.join(said.split())[:400]}"
            raise (TooMuchError if answer.status_code in TOO_MUCH else EvidenceUnavailableError)(problem)
        if document.get("warnings"):
            raise EvidenceUnavailableError(f"Prometheus at {self.url} answered only in part: {said[:400]}")
        try:
            return [
                Series(one["metric"], [(float(time), _finite(value)) for time, value in one["values"]])
                for one in document["data"]["result"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise EvidenceUnavailableError(
                f"Prometheus at {self.url} answered no samples that can be read ({error!r})"
            ) from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"sample {text!r}")
    return number


def _range(since: datetime, until: datetime) -> str:
    return f"[{math.ceil((until - since).total_seconds() * 1000)}ms]"


def _cluster_matcher(clusters: Sequence[str]) -> str:
    """Match clusters by their names, which hold no quote or backslash."""
    if any(re.search(r'["\\\n]', name) for name in clusters):
        raise ValueError(f"{clusters!r}: no names of clusters")
    names = "|".join(re.escape(name).replace("\\", "\\\\") for name in dict.fromkeys(clusters))
    return f'envoy_cluster_name=~"{names}"'


def _by_cluster(series: Sequence[Series]) -> dict[str, list[Series]]:
    found: dict[str, list[Series]] = {}
    for one in series:
        found.setdefault(one.labels.get("envoy_cluster_name", ""), []).append(one)
    return found


def _rows(
    ask: Ask,
    requests: Mapping[str, Sequence[Series]],
    times: Mapping[str, Sequence[Series]],
    scrapes: Mapping[str, Sequence[Sample]],
    *,
    until: datetime,
    width: timedelta,
) -> list[CountRow]:
    """Put one ask's counters together, version by version."""
    subject = ask.subject

    def grown(series: Sequence[Series], label: str, value: str) -> dict[tuple[datetime, bool], int]:
        found: dict[tuple[datetime, bool], int] = {}
        for one in series:
            if one.labels.get(label) == value:
                known = growths(one.samples, scrapes.get(one.labels.get("instance", ""), ()), longest=width)
                for key, number in binned(known, width=width, started=subject.started).items():
                    found[key] = found.get(key, 0) + number
        return found

    rows = []
    for version, factor in ((subject.control, 1.0), (subject.treatment, 1 + subject.tolerance)):
        cluster = subject.cluster_of(version)
        counted, timed = requests.get(cluster, ()), times.get(cluster, ())
        by_class = {code: grown(counted, "envoy_response_code_class", code) for code in CLASSES}
        all_of = grown(timed, "le", "+Inf")
        texts = {float(one.labels["le"]): one.labels["le"] for one in timed}
        limits = [bound_at_least(texts, threshold * factor) for threshold in ask.thresholds_ms]
        fast = [{} if limit is None else grown(timed, "le", texts[limit]) for limit in limits]
        for start, before in sorted({key for found in by_class.values() for key in found}):
            if start < ask.since or start + width > until:
                continue
            number = sum(found.get((start, before), 0) for found in by_class.values())
            # Envoy adds to its histograms only every few seconds: at a bin's edge they may be behind its counters.
            answered = min(number, all_of.get((start, before), 0))
            slow = tuple(max(0, answered - one.get((start, before), 0)) for one in fast)
            errors = by_class["5"].get((start, before), 0)
            rows.append(CountRow(start, version, before, Counts(number, errors, slow)))
    return rows
