"""Evidence from a Prometheus that scrapes the routers: Envoy's counters and latency histograms.

What it cannot give: quantiles between the bounds of Envoy's histogram, the requests that were sent to a version by name
apart from the others (unless the router counts those in a cluster of their own), and anything between two scrapes.
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
from controlled_rollout.evidence.metric_store import Arrivals, StoreRequest, TooMuchError
from controlled_rollout.evidence.query import Evidence, EvidenceQuery
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
# Prometheus's answers to a query that is too large: timed out, too many samples, too long.
TOO_MUCH: Final = (413, 422, 503, 504)
# The classes of result codes that a caller can be answered with.
CLASSES: Final = ("2", "3", "4", "5")


@dataclass(frozen=True, slots=True)
class TimeSeries:
    """One time series: its labels and raw samples."""

    labels: Mapping[str, str]
    samples: Sequence[Sample]

    @property
    def instance(self) -> str:
        """The router that it was scraped from."""
        return self.labels.get("instance", "")


class PrometheusEvidence:
    """Evidence from the counters of the routers that a Prometheus scrapes.

    Args:
        url: Prometheus's base URL.
        selector: Label matchers that the routers' series have, such as `job="envoy"`.
    """

    def __init__(self, url: str, selector: str = "") -> None:
        self.url = url.rstrip("/")
        self.selector = selector

    def __repr__(self) -> str:
        return f"PrometheusEvidence({self.url!r}, {self.selector!r})"

    async def read(self, query: EvidenceQuery) -> Evidence:
        """Read the closed bins of a rollout; see `EvidenceSource.read`.

        The scrape interval has to be shorter than a bin: what grew in a longer gap is left out.
        """
        if missing := {query.control, query.treatment} - query.clusters.keys():
            raise EvidenceUnavailableError(
                f"the name under which the router counts {' and '.join(sorted(missing))} of endpoint "
                f"{query.endpoint!r} is not known yet: wait until the router sends requests there"
            )
        reader = shared_reader((type(self), self.url, self.selector), self)
        # A scrape covers the time before it, which may reach back into the previous bin.
        return await read_shared(reader, self, query, split_guard=query.window.bin_width)

    async def routers(self) -> list[str]:
        """Return the routers that were scraped within the last minutes, as Prometheus calls them.

        Raises:
            EvidenceUnavailableError: Prometheus did not answer, or has scraped none.
        """
        now = datetime.now(UTC)
        scrapes = await self._scrapes(now - LATELY, now)
        self._check_scrapes(scrapes, now, LATELY)
        return sorted(scrapes)

    async def thresholds(self, requests: Sequence[StoreRequest]) -> list[tuple[float, ...]]:
        """Return the histogram's bounds at or above control's quantiles; see `MetricStore.thresholds`."""
        return [
            quantile_bounds(await self._cumulative(request), request.key.quantiles, fewest=MIN_BASELINE_REQUESTS)
            for request in requests
        ]

    async def _cumulative(self, request: StoreRequest) -> dict[float, int]:
        """Return how many of control's requests before the rollout took at most each bound."""
        key = request.key
        until, since = key.started, key.first - key.window.bin_width
        cluster = _cluster_matcher([key.cluster_of(key.control)])
        buckets = await self._query(f"{TIMES}{self._braces(cluster)}{_range(since, until)}", until)
        scrapes = await self._scrapes(since, until)
        cumulative: dict[float, int] = {}
        for bucket in buckets:
            grown = growths(bucket.samples, scrapes.get(bucket.instance, ()), longest=key.window.bin_width)
            bound = float(bucket.labels["le"])
            cumulative[bound] = cumulative.get(bound, 0) + sum(
                growth.number for growth in grown if growth.at > key.first
            )
        return cumulative

    async def counts(
        self, requests: Sequence[StoreRequest], *, until: datetime, bin_width: timedelta
    ) -> list[list[CountRow]]:
        """Return each request's counts by bin and version; see `MetricStore.counts`."""
        since = min(request.since for request in requests) - bin_width
        if until <= since:
            return [[] for _ in requests]
        keys = [request.key for request in requests]
        clusters = [key.cluster_of(version) for key in keys for version in (key.control, key.treatment)]
        matcher, window = _cluster_matcher(clusters), _range(since, until)
        scrapes = await self._scrapes(since, until)
        counters = await self._query(f"{REQUESTS}{self._braces(matcher)}{window}", until)
        times: list[TimeSeries] = []
        if any(request.thresholds_ms for request in requests):
            times = await self._query(f"{TIMES}{self._braces(matcher)}{window}", until)
        by_cluster = (_by_cluster(counters), _by_cluster(times))
        return [_rows(request, *by_cluster, scrapes, until=until) for request in requests]

    async def metrics(self, request: StoreRequest, *, until: datetime) -> list[MetricRow]:
        """Refuse: the author's queries are KQL."""
        raise EvidenceUnavailableError(
            f"the metrics {', '.join(request.key.metrics)} are asked for in KQL, and the evidence is read from "
            "Prometheus: leave the gate's means and categories out, or give the workspace a Log Analytics workspace"
        )

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, lag_since: datetime, bin_width: timedelta
    ) -> Mapping[str, Arrivals]:
        """Return nothing: a sample has the time of its scrape, none comes later. But check that routers are scraped."""
        window = max(LATELY, 2 * bin_width)
        self._check_scrapes(await self._scrapes(until - window, until), until, bin_width)
        return {}

    def queries(self, request: StoreRequest) -> tuple[str, ...]:
        """Return the series whose raw samples were read; see `MetricStore.queries`."""
        key = request.key
        matcher = _cluster_matcher([key.cluster_of(key.control), key.cluster_of(key.treatment)])
        metrics = (REQUESTS, TIMES) if request.thresholds_ms else (REQUESTS,)
        return tuple(f"{metric}{self._braces(matcher)}" for metric in metrics)

    async def _scrapes(self, since: datetime, until: datetime) -> dict[str, Sequence[Sample]]:
        """Return by router when it was scraped, and how old it was then."""
        ages = await self._query(f"{AGE}{self._braces()}{_range(since, until)}", until)
        return {age.instance: age.samples for age in ages}

    def _check_scrapes(self, scrapes: Mapping[str, Sequence[Sample]], until: datetime, width: timedelta) -> None:
        """Raise if no router was scraped within the last bin: missing samples do not mean that there was no traffic."""
        newest = max((samples[-1][0] for samples in scrapes.values() if samples), default=None)
        if newest is None:
            raise EvidenceUnavailableError(
                f"{self.url} has no sample of {AGE}{self._braces()}: check that it scrapes the routers, and that "
                "prometheus_selector matches their labels"
            )
        if datetime.fromtimestamp(newest, UTC) < until - width:
            when = f"{datetime.fromtimestamp(newest, UTC):%H:%M:%S}"
            raise EvidenceUnavailableError(f"{self.url} has scraped no router since {when}: check its targets")

    def _braces(self, *matchers: str) -> str:
        return "{" + ",".join(filter(None, (*matchers, self.selector))) + "}"

    async def _query(self, query: str, at: datetime) -> list[TimeSeries]:
        """Return the raw samples of a range selector; anything but a complete answer is an error."""
        import httpx

        form = {"query": query, "time": f"{at.timestamp():.3f}", "timeout": f"{TIMEOUT_S:g}s"}
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=not is_this_machine(self.url)) as client:
                response = await client.post(f"{self.url}/api/v1/query", data=form)
        except httpx.TimeoutException as error:
            raise TooMuchError(f"Prometheus at {self.url} did not answer within {TIMEOUT_S:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EvidenceUnavailableError(
                f"Prometheus at {self.url} does not answer ({error or type(error).__name__}): check that it runs and "
                "can be reached; the gate waits until it answers"
            ) from error
        return self._series(response)

    def _series(self, response: "httpx.Response") -> list[TimeSeries]:
        try:
            document = response.json()
            message = str(document.get("error") or document.get("warnings") or "")
        except (json.JSONDecodeError, AttributeError):
            document, message = {}, response.text[:200]
        if response.is_error or document.get("status") != "success":
            problem = f"Prometheus at {self.url} answered {response.status_code}: {' '.join(message.split())[:400]}"
            raise (TooMuchError if response.status_code in TOO_MUCH else EvidenceUnavailableError)(problem)
        if document.get("warnings"):
            raise EvidenceUnavailableError(f"Prometheus at {self.url} answered only in part: {message[:400]}")
        try:
            return [
                TimeSeries(series["metric"], [(float(time), _finite(value)) for time, value in series["values"]])
                for series in document["data"]["result"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise EvidenceUnavailableError(
                f"Prometheus at {self.url} answered samples that cannot be read ({error!r})"
            ) from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"sample {text!r}")
    return number


def _range(since: datetime, until: datetime) -> str:
    return f"[{math.ceil((until - since).total_seconds() * 1000)}ms]"


def _cluster_matcher(clusters: Sequence[str]) -> str:
    """Return a label matcher for clusters; a name with a quote or a backslash is refused."""
    if any(re.search(r'["\\\n]', name) for name in clusters):
        raise ValueError(f"{clusters!r}: a cluster's name cannot have quotes, backslashes or line breaks")
    names = "|".join(re.escape(name).replace("\\", "\\\\") for name in dict.fromkeys(clusters))
    return f'envoy_cluster_name=~"{names}"'


def _by_cluster(series: Sequence[TimeSeries]) -> dict[str, list[TimeSeries]]:
    clusters: dict[str, list[TimeSeries]] = {}
    for one_series in series:
        clusters.setdefault(one_series.labels.get("envoy_cluster_name", ""), []).append(one_series)
    return clusters


def _rows(
    request: StoreRequest,
    counters: Mapping[str, Sequence[TimeSeries]],
    times: Mapping[str, Sequence[TimeSeries]],
    scrapes: Mapping[str, Sequence[Sample]],
    *,
    until: datetime,
) -> list[CountRow]:
    """Return the counts of one request's two versions, from the counters and histograms of their clusters."""
    key, width = request.key, request.key.window.bin_width

    def grown(series: Sequence[TimeSeries], label: str, value: str) -> dict[tuple[datetime, bool], int]:
        by_bin: dict[tuple[datetime, bool], int] = {}
        for counter in series:
            if counter.labels.get(label) == value:
                growth = growths(counter.samples, scrapes.get(counter.instance, ()), longest=width)
                for bin_, number in binned(growth, width=width, started=key.started).items():
                    by_bin[bin_] = by_bin.get(bin_, 0) + number
        return by_bin

    rows = []
    for version, factor in ((key.control, 1.0), (key.treatment, 1 + key.tolerance)):
        cluster = key.cluster_of(version)
        cluster_counters, cluster_times = counters.get(cluster, ()), times.get(cluster, ())
        by_class = {code: grown(cluster_counters, "envoy_response_code_class", code) for code in CLASSES}
        timed = grown(cluster_times, "le", "+Inf")
        bound_texts = {float(bucket.labels["le"]): bucket.labels["le"] for bucket in cluster_times}
        limits = [bound_at_least(bound_texts, threshold * factor) for threshold in request.thresholds_ms]
        fast = [{} if limit is None else grown(cluster_times, "le", bound_texts[limit]) for limit in limits]
        for start, before in sorted({bin_ for bins in by_class.values() for bin_ in bins}):
            if start < request.since or start + width > until:
                continue
            n_requests = sum(bins.get((start, before), 0) for bins in by_class.values())
            # Envoy adds to its histograms only every few seconds: at a bin's edge they may be behind its counters.
            answered = min(n_requests, timed.get((start, before), 0))
            slow = tuple(max(0, answered - bins.get((start, before), 0)) for bins in fast)
            errors = by_class["5"].get((start, before), 0)
            rows.append(CountRow(start, version, before, Counts(n_requests, errors, slow)))
    return rows
