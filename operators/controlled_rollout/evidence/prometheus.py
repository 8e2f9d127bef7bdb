"""Evidence from a Prometheus that scrapes the routers: Envoy's counters and latency histograms.

What it cannot give: quantiles between the bounds of Envoy's histogram, the requests that were sent to a version by name
apart from the others (unless the router counts those in a cluster of their own), and anything between two scrapes.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from controlled_rollout.addresses import transport_for
from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.bins import MIN_BASELINE_REQUESTS
from controlled_rollout.evidence.increments import Sample, bound_at_least, growth_by_bin, growths, quantile_bounds
from controlled_rollout.evidence.metric_store import Arrivals, StoreRequest, TooMuchError
from controlled_rollout.evidence.query import Evidence, EvidenceQuery
from controlled_rollout.evidence.rows import CountRow, MetricRow, UserRow
from controlled_rollout.evidence.shared import read_shared, shared_reader
from controlled_rollout.gate import Counts

if TYPE_CHECKING:
    import httpx

__all__ = ["PrometheusEvidence"]

REQUESTS: Final = "envoy_cluster_upstream_rq_xx"
# Connections to replicas that the router closed because their request got no answer: its caller had hung up, or it took
# longer than `max_stream_duration`, or than the route's time-out. Only the last kind is in `REQUESTS` too, as 504.
UNANSWERED: Final = "envoy_cluster_upstream_cx_destroy_local_with_active_rq"
TIMEOUTS: Final = "envoy_cluster_upstream_rq_timeout"
# Connections that replicas closed with a request on them: the router tried again, or answered 503, or the answer had
# begun with any code and was broken off. Only the last kind is an error that no code tells of.
CLOSED_BY_REPLICA: Final = "envoy_cluster_upstream_cx_destroy_remote_with_active_rq"
RETRIES: Final = "envoy_cluster_upstream_rq_retry"
# Each is one series of a cluster, without other labels.
OTHER_COUNTERS: Final = (UNANSWERED, TIMEOUTS, CLOSED_BY_REPLICA, RETRIES)
TIMES: Final = "envoy_cluster_upstream_rq_time_bucket"
AGE: Final = "envoy_server_uptime"
TIMEOUT_S: Final = 60.0
LATELY: Final = timedelta(minutes=5)
# The end of the year 2200, and more than any counter counts.
LATEST_S: Final = 7.26e9
MOST: Final = 1e15
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
        """The label `instance`: the router that the series was scraped from."""
        return self.labels.get("instance", "")


class PrometheusEvidence:
    """Evidence from the counters of the routers that a Prometheus scrapes.

    Args:
        url: Prometheus's base URL.
        selector: Label matchers that the routers' series have, such as `job="envoy"`.
    """

    def __init__(self, url: str, selector: str = "") -> None:
        """Store the address and the label selector that is added to every query."""
        self.url = url.rstrip("/")
        self.selector = selector

    def __repr__(self) -> str:
        """Return the address and the selector."""
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
        """Return the instances of the routers that Prometheus scraped within the last minutes.

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
            quantile_bounds(
                await self._cumulative_baseline(request), request.key.quantiles, fewest=MIN_BASELINE_REQUESTS
            )
            for request in requests
        ]

    async def _cumulative_baseline(self, request: StoreRequest) -> dict[float, int]:
        """Return control's latency histogram before the rollout: requests at or below each bound."""
        key = request.key
        until, since = key.started, key.first - key.window.bin_width
        cluster = _cluster_matcher([key.cluster_of(key.control)])
        buckets = await self._query(f"{TIMES}{self._label_selector(cluster)}{_range_selector(since, until)}", until)
        scrapes = await self._scrapes(since, until)
        cumulative: dict[float, int] = {}
        for bucket in buckets:
            grown = growths(bucket.samples, scrapes.get(bucket.instance, ()), longest=key.window.bin_width)
            bound = _bucket_bound(bucket)
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
        matcher, window = _cluster_matcher(clusters), _range_selector(since, until)
        scrapes = await self._scrapes(since, until)
        names = f'__name__=~"{"|".join((REQUESTS, *OTHER_COUNTERS))}"'
        counters = await self._query(f"{self._label_selector(names, matcher)}{window}", until)
        times: list[TimeSeries] = []
        if any(request.thresholds_ms for request in requests):
            times = await self._query(f"{TIMES}{self._label_selector(matcher)}{window}", until)
        by_cluster = (_by_cluster(counters), _by_cluster(times))
        return [_count_rows(request, *by_cluster, scrapes, until=until) for request in requests]

    async def metrics(self, request: StoreRequest, *, until: datetime) -> list[MetricRow]:
        """Raise EvidenceUnavailableError: the author's metrics are KQL queries, which Prometheus cannot run."""
        raise EvidenceUnavailableError(
            f"the metrics {', '.join(request.key.metrics)} are asked for in KQL, and the evidence is read from "
            "Prometheus: leave the gate's means and categories out, or give the workspace a Log Analytics workspace"
        )

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, lag_since: datetime, bin_width: timedelta
    ) -> Mapping[str, Arrivals]:
        """Return nothing, as samples never arrive late; raise if no router was scraped within the last bin."""
        window = max(LATELY, 2 * bin_width)
        self._check_scrapes(await self._scrapes(until - window, until), until, bin_width)
        return {}

    async def users(self, request: StoreRequest, *, until: datetime) -> list[UserRow]:
        """Raise an error: counters know no users; see `MetricStore.users`."""
        raise EvidenceUnavailableError(
            "the gate counts users (unit='user'), and Prometheus knows requests only: give the workspace a Log "
            "Analytics workspace, or judge an endpoint that is not sticky"
        )

    def queries(self, request: StoreRequest) -> tuple[str, ...]:
        """Return the series whose raw samples were read; see `MetricStore.queries`."""
        key = request.key
        matcher = _cluster_matcher([key.cluster_of(key.control), key.cluster_of(key.treatment)])
        metrics = (REQUESTS, *OTHER_COUNTERS, *((TIMES,) if request.thresholds_ms else ()))
        return tuple(f"{metric}{self._label_selector(matcher)}" for metric in metrics)

    async def _scrapes(self, since: datetime, until: datetime) -> dict[str, Sequence[Sample]]:
        """Return by router the time of each scrape and the router's uptime then."""
        ages = await self._query(f"{AGE}{self._label_selector()}{_range_selector(since, until)}", until)
        return {age.instance: age.samples for age in ages}

    def _check_scrapes(self, scrapes: Mapping[str, Sequence[Sample]], until: datetime, width: timedelta) -> None:
        """Raise if no router was scraped within the last bin: missing samples do not mean that there was no traffic."""
        newest = max((samples[-1][0] for samples in scrapes.values() if samples), default=None)
        if newest is None:
            raise EvidenceUnavailableError(
                f"{self.url} has no sample of {AGE}{self._label_selector()}: check that it scrapes the routers, "
                "and that prometheus_selector matches their labels"
            )
        if datetime.fromtimestamp(newest, UTC) < until - width:
            when = f"{datetime.fromtimestamp(newest, UTC):%H:%M:%S}"
            raise EvidenceUnavailableError(f"{self.url} has scraped no router since {when}: check its targets")

    def _label_selector(self, *matchers: str) -> str:
        """Return a PromQL label selector of the matchers and the configured selector."""
        return "{" + ",".join(filter(None, (*matchers, self.selector))) + "}"

    async def _query(self, query: str, at: datetime) -> list[TimeSeries]:
        """Run a PromQL query and return the raw samples of each series; raise for anything but a complete answer."""
        form = {"query": query, "time": f"{at.timestamp():.3f}", "timeout": f"{TIMEOUT_S:g}s"}
        return self._series_from_response(await self._post(form))

    async def _post(self, form: Mapping[str, str]) -> "httpx.Response":
        """Send a query and return the response; raise if there is none."""
        import httpx

        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, transport=transport_for(self.url)) as client:
                return await client.post(f"{self.url}/api/v1/query", data=form)
        except httpx.TimeoutException as error:
            raise TooMuchError(f"Prometheus at {self.url} did not answer within {TIMEOUT_S:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EvidenceUnavailableError(
                f"Prometheus at {self.url} does not answer ({str(error) or type(error).__name__}): check that it runs "
                "and can be reached; the gate waits until it answers"
            ) from error

    def _series_from_response(self, response: "httpx.Response") -> list[TimeSeries]:
        """Return the time series of a query's HTTP response; raise if it is an error or only a partial answer."""
        try:
            document = response.json()
            message = str(document.get("error") or document.get("warnings") or "")
        except (ValueError, RecursionError, AttributeError):
            document, message = {}, response.text[:200]
        if response.is_error or document.get("status") != "success":
            problem = f"Prometheus at {self.url} answered {response.status_code}: {' '.join(message.split())[:400]}"
            raise (TooMuchError if response.status_code in TOO_MUCH else EvidenceUnavailableError)(problem)
        if document.get("warnings"):
            raise EvidenceUnavailableError(f"Prometheus at {self.url} answered only in part: {message[:400]}")
        try:
            return [
                TimeSeries(_labels(series["metric"]), _parse_samples(series["values"]))
                for series in document["data"]["result"]
            ]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EvidenceUnavailableError(
                f"Prometheus at {self.url} answered samples that cannot be read ({error!r})"
            ) from error


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return a series' labels; raise ValueError if one is no text, or the bound of a bucket is no number."""
    if not all(isinstance(text, str) for text in (*labels, *labels.values())):
        raise ValueError(f"labels {labels!r}")
    if math.isnan(float(labels.get("le", "0"))):
        raise ValueError(f"a bucket of le={labels['le']!r}")
    return dict(labels)


def _parse_samples(values: Iterable[tuple[float, str]]) -> list[Sample]:
    """Return a series' samples; raise ValueError unless they are numbers from 0 on, in the order of their times."""
    samples = [(float(time), float(value)) for time, value in values]
    times = [time for time, _ in samples]
    if any(not 0 <= time <= LATEST_S for time in times) or times != sorted(set(times)):
        raise ValueError("samples that are not in the order of their times")
    if odd := next((value for _, value in samples if not 0 <= value <= MOST), None):
        raise ValueError(f"a sample of {odd!r}")
    return samples


def _range_selector(since: datetime, until: datetime) -> str:
    """Return a PromQL range selector from `since` to `until`, rounded up to milliseconds."""
    return f"[{math.ceil((until - since).total_seconds() * 1000)}ms]"


def _cluster_matcher(clusters: Sequence[str]) -> str:
    """Return a PromQL label matcher for Envoy clusters; raise ValueError for quotes or backslashes in a name."""
    if any(re.search(r'["\\\n]', name) for name in clusters):
        raise ValueError(f"{clusters!r}: a cluster's name cannot have quotes, backslashes or line breaks")
    names = "|".join(re.escape(name).replace("\\", "\\\\") for name in dict.fromkeys(clusters))
    return f'envoy_cluster_name=~"{names}"'


def _bucket_bound(bucket: TimeSeries) -> float:
    """Return the upper bound of a histogram's bucket, in milliseconds; raise if the series is of no bucket."""
    if "le" not in bucket.labels:
        raise EvidenceUnavailableError(f"Prometheus answered a histogram without the label le: {dict(bucket.labels)}")
    return float(bucket.labels["le"])


def _by_cluster(series: Sequence[TimeSeries]) -> dict[str, list[TimeSeries]]:
    """Group time series by their Envoy cluster."""
    clusters: dict[str, list[TimeSeries]] = {}
    for one_series in series:
        clusters.setdefault(one_series.labels.get("envoy_cluster_name", ""), []).append(one_series)
    return clusters


def _count_rows(
    request: StoreRequest,
    counters: Mapping[str, Sequence[TimeSeries]],
    times: Mapping[str, Sequence[TimeSeries]],
    scrapes: Mapping[str, Sequence[Sample]],
    *,
    until: datetime,
) -> list[CountRow]:
    """Return the counts of one request's two versions per bin, from the counters and histograms of their clusters."""
    key, width = request.key, request.key.window.bin_width

    def growth_with_label(series: Sequence[TimeSeries], label: str, value: str) -> dict[tuple[datetime, bool], int]:
        """Return the growth per bin, summed over the series in which a label has a value."""
        by_bin: dict[tuple[datetime, bool], int] = {}
        for counter in series:
            if counter.labels.get(label) == value:
                growth = growths(counter.samples, scrapes.get(counter.instance, ()), longest=width)
                for bin_, number in growth_by_bin(growth, width=width, started=key.started).items():
                    by_bin[bin_] = by_bin.get(bin_, 0) + number
        return by_bin

    rows = []
    for version, factor in ((key.control, 1.0), (key.treatment, 1 + key.tolerance)):
        cluster = key.cluster_of(version)
        cluster_counters, cluster_times = counters.get(cluster, ()), times.get(cluster, ())
        by_class = {code: growth_with_label(cluster_counters, "envoy_response_code_class", code) for code in CLASSES}
        closed, timed_out, closed_by_replica, retries = (
            growth_with_label(cluster_counters, "__name__", name) for name in OTHER_COUNTERS
        )
        unanswered = {bin_: max(0, number - timed_out.get(bin_, 0)) for bin_, number in closed.items()}
        timed = growth_with_label(cluster_times, "le", "+Inf")
        bound_texts = {_bucket_bound(bucket): bucket.labels["le"] for bucket in cluster_times}
        limits = [bound_at_least(bound_texts, threshold * factor) for threshold in request.thresholds_ms]
        fast = [{} if limit is None else growth_with_label(cluster_times, "le", bound_texts[limit]) for limit in limits]
        for start, before in sorted({bin_ for bins in (*by_class.values(), unanswered) for bin_ in bins}):
            if start < request.since or start + width > until:
                continue
            n_unanswered = unanswered.get((start, before), 0)
            n_requests = sum(bins.get((start, before), 0) for bins in by_class.values()) + n_unanswered
            # Envoy adds to its histograms only every few seconds: at a bin's edge they may be behind its counters.
            answered = min(n_requests, timed.get((start, before), 0))
            slow = tuple(max(0, answered - bins.get((start, before), 0)) for bins in fast)
            # At least: a 503 of the version itself may hide an answer that was broken off.
            broken_off = closed_by_replica.get((start, before), 0) - retries.get((start, before), 0)
            errors = min(n_requests, max(by_class["5"].get((start, before), 0), broken_off) + n_unanswered)
            rows.append(CountRow(start, version, before, Counts(n_requests, errors, slow)))
    return rows
