"""Envoy's counters, from its Prometheus text, and the load between two such texts. Pure.

Envoy updates its counters at once and its histograms once per flush interval (5 s by default). So a request time is the
mean over the answers that were merged between the two texts, which need not be the requests that were counted.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from controlled_rollout.sizing import Load

__all__ = ["UNSENT", "Counters", "counter_growth", "loads_between", "parse_counters", "total_counters"]

_SAMPLE: Final = re.compile(
    r"^envoy_cluster_(upstream_(?:rq_(?:total|active|time_sum|time_count|pending_(?:active|failure_eject|overflow))|"
    r'cx_none_healthy))\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\}[ \t]+(\S+)',
    re.MULTILINE,
)
# Envoy's counters of requests for a cluster that it could not send there.
UNSENT: Final = ("upstream_cx_none_healthy", "upstream_rq_pending_failure_eject", "upstream_rq_pending_overflow")
_CLUSTER: Final = re.compile(r'(?:^|,)\s*envoy_cluster_name="((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Counters:
    """What a router has counted for one cluster since it started, or between two readings.

    Attributes:
        requests: Requests that were sent to it.
        active: Requests that it is answering now.
        time_ms: The sum of the times of the answered requests, in milliseconds.
        answered: The number of requests whose times are in `time_ms`; lags behind `requests`.
        unsent: Requests that it answered itself because it could not send them: no healthy replica, no connection, too
            many open. A request that is tried again may count again.
    """

    requests: int = 0
    active: int = 0
    time_ms: float = 0.0
    answered: int = 0
    unsent: int = 0
    waiting: int = 0


def parse_counters(text: str) -> dict[str, Counters]:
    """Return the counters of every cluster from the text of Envoy's `/stats/prometheus`; other metrics are skipped."""
    clusters: dict[str, dict[str, float]] = {}
    for metric, labels, value in _SAMPLE.findall(text):
        name = _CLUSTER.search(labels)
        number = _finite_number(value)
        if name is None or number is None:
            continue
        cluster = clusters.setdefault(_ESCAPED.sub(_unescape_label_character, name.group(1)), {})
        cluster[metric] = cluster.get(metric, 0.0) + number
    return {
        name: Counters(
            requests=round(cluster.get("upstream_rq_total", 0.0)),
            active=round(cluster.get("upstream_rq_active", 0.0)),
            time_ms=cluster.get("upstream_rq_time_sum", 0.0),
            answered=round(cluster.get("upstream_rq_time_count", 0.0)),
            unsent=round(sum(cluster.get(metric, 0.0) for metric in UNSENT)),
            waiting=round(cluster.get("upstream_rq_pending_active", 0.0)),
        )
        for name, cluster in clusters.items()
    }


def counter_growth(before: Mapping[str, Counters], after: Mapping[str, Counters]) -> dict[str, Counters]:
    """Return what one router has counted between two readings, for each cluster of the second reading.

    A counter that has become smaller is of a router, or a cluster, that started again in between: it counts from 0.
    If no times were merged between the two readings, the requests are taken to have lasted as long as those before.
    """
    return {name: _cluster_growth(before.get(name, Counters()), counters) for name, counters in after.items()}


def total_counters(parts: Iterable[Mapping[str, Counters]]) -> dict[str, Counters]:
    """Return the sums of the counters of several routers, by cluster."""
    sums: dict[str, Counters] = {}
    for part in parts:
        for name, counters in part.items():
            so_far = sums.get(name, Counters())
            sums[name] = Counters(
                requests=so_far.requests + counters.requests,
                active=so_far.active + counters.active,
                time_ms=so_far.time_ms + counters.time_ms,
                answered=so_far.answered + counters.answered,
                unsent=so_far.unsent + counters.unsent,
                waiting=so_far.waiting + counters.waiting,
            )
    return sums


def loads_between(before: Mapping[str, Counters], after: Mapping[str, Counters], seconds: float) -> dict[str, Load]:
    """Return each cluster's load between two readings of one router's counters.

    For several routers: `loads_between({}, total_counters(growths), seconds)`, with each router's `counter_growth`.

    Args:
        before: The first reading.
        after: The second reading.
        seconds: The time between them; above 0.

    Raises:
        ValueError: `seconds` is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"a load needs time between two readings, not {seconds} s")
    return {
        name: Load(
            requests_per_s=grown.requests / seconds,
            request_time_s=grown.time_ms / grown.answered / 1000 if grown.answered else None,
        )
        for name, grown in counter_growth(before, after).items()
    }


def _cluster_growth(before: Counters, after: Counters) -> Counters:
    """Return what was counted for one cluster between two readings; all of `after` if the router restarted."""
    if after.requests < before.requests or after.answered < before.answered:
        return after
    requests, answered = after.requests - before.requests, after.answered - before.answered
    # Envoy estimates the sum of a histogram from its buckets: it may become a little smaller.
    time_ms = max(0.0, after.time_ms - before.time_ms)
    if not answered:
        answered = requests if after.answered else 0
        time_ms = requests * after.time_ms / after.answered if after.answered else 0.0
    unsent = max(0, after.unsent - before.unsent)
    return Counters(requests, after.active, time_ms, answered, unsent, after.waiting)


def _finite_number(text: str) -> float | None:
    """Return the finite number in a text; None if it is something else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _unescape_label_character(escape: re.Match[str]) -> str:
    """Return the character that a backslash escape in a label value stands for."""
    return {"n": "\n"}.get(escape.group(1), escape.group(1))
