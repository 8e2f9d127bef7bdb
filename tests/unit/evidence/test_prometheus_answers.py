"""Prometheus's answers as a look reads them: hang-ups are errors, and whatever is unreadable is never another error."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow, SplitChange
from controlled_rollout.evidence import shared as shared_module
from controlled_rollout.evidence.prometheus import (
    AGE,
    CLOSED_BY_REPLICA,
    REQUESTS,
    RETRIES,
    TIMEOUTS,
    TIMES,
    UNANSWERED,
    PrometheusEvidence,
)
from controlled_rollout.gate import Counts, Gate

S = timedelta(seconds=1)
STARTED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
START_S = STARTED.timestamp()
WINDOW = EvidenceWindow(bin_width=60 * S, allowed_lag=60 * S, baseline_length=600 * S)
Series = dict[str, Any]


@pytest.fixture(autouse=True)
def rounds_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "ROUND_INTERVAL_S", 0)
    monkeypatch.setattr(shared_module, "GATHER_S", 0)


class Answering(PrometheusEvidence):
    """A reader whose Prometheus has these series, or gives these bytes for every query."""

    def __init__(self, series: list[Series], content: bytes | None = None) -> None:
        super().__init__("http://prometheus.example")
        self.series = series
        self.content = content

    async def _post(self, form: Mapping[str, str]) -> httpx.Response:
        if self.content is not None:
            return httpx.Response(200, content=self.content)
        asked = [one for one in self.series if str(one["metric"].get("__name__")) in form["query"]]
        answer = {"status": "success", "data": {"resultType": "matrix", "result": asked}}
        return httpx.Response(200, content=json.dumps(answer))


def series(name: str, *values: float, **labels: str) -> Series:
    """Return a series with a sample every half minute, from ten minutes before the rollout on."""
    times = [START_S - 600 + 30 * number for number in range(len(values))]
    metric = {"__name__": name, "instance": "envoy:1", **labels}
    return {"metric": metric, "values": [[time, str(value)] for time, value in zip(times, values, strict=True)]}


def good_series() -> list[Series]:
    """Ten minutes of control, three of a rollout: 10 requests of each version in half a minute."""
    grown = [10.0 * number for number in range(27)]
    later = [0.0] * 20 + [10.0 * number for number in range(7)]
    return [
        series(AGE, *(10_000.0 + 30 * number for number in range(27))),
        *(
            one
            for cluster, counted in (("c/one", grown), ("c/two", later))
            for one in (
                series(REQUESTS, *counted, envoy_cluster_name=cluster, envoy_response_code_class="2"),
                series(TIMES, *counted, envoy_cluster_name=cluster, le="50"),
                series(TIMES, *counted, envoy_cluster_name=cluster, le="+Inf"),
            )
        ),
    ]


def read(series: list[Series], content: bytes | None = None, **gate: object) -> Evidence:
    query = EvidenceQuery(
        endpoint="digits", control="one", treatment="two", started=STARTED, now=STARTED + 245 * S, window=WINDOW,
        splits=[SplitChange(STARTED - S, 0.5)], gate=Gate.model_validate({"latency_quantiles": (0.5,), **gate}),
        clusters={"one": "c/one", "two": "c/two"},
    )  # fmt: skip
    return asyncio.run(Answering(series, content).read(query))


def test_users_cannot_be_seen_by_counters() -> None:
    """A gate of a sticky endpoint waits, and says where users are known."""
    with pytest.raises(EvidenceUnavailableError, match=r"counts users .* Prometheus knows requests only"):
        read(good_series(), unit="user")


def test_callers_who_hang_up_are_requests_and_errors_and_a_time_out_counts_once() -> None:
    """Of six connections that the router closed, four are of the 504s that the classes of codes have already."""
    counted = [0.0] * 21 + [10.0] * 6
    treatment = {"envoy_cluster_name": "c/two"}
    found = read([
        *good_series(),
        series(REQUESTS, *(0.4 * one for one in counted), **treatment, envoy_response_code_class="5"),
        series(UNANSWERED, *(0.6 * one for one in counted), **treatment),
        series(TIMEOUTS, *(0.4 * one for one in counted), **treatment),
    ])  # fmt: skip

    assert found.bins[0].treatment == Counts(requests=20 + 4 + 2, errors=4 + 2, slow=(0,))
    assert found.bins[1].treatment == Counts(requests=20, errors=0, slow=(0,))


@pytest.mark.parametrize(
    ("closed", "retried", "fives", "errors"),
    [(4, 0, 0, 4), (4, 4, 0, 0), (4, 2, 2, 2), (6, 1, 2, 5), (0, 3, 1, 1)],
    ids=["broken off", "tried again with success", "tried again or answered 503", "some broken off", "other retries"],
)
def test_answers_that_a_replica_broke_off_are_errors_and_what_was_tried_again_is_none(
    closed: int, retried: int, fives: int, errors: int
) -> None:
    def once(number: int) -> list[float]:
        return [0.0] * 21 + [float(number)] * 6

    treatment = {"envoy_cluster_name": "c/two"}
    found = read([
        *good_series(),
        series(REQUESTS, *once(fives), **treatment, envoy_response_code_class="5"),
        series(CLOSED_BY_REPLICA, *once(closed), **treatment),
        series(RETRIES, *once(retried), **treatment),
    ])  # fmt: skip

    assert found.bins[0].treatment == Counts(requests=20 + fives, errors=errors, slow=(0,))


NOT_A_NUMBER = b'{"status": "success", "data": {"result": [{"metric": {}, "values": [[1, "NaN"]]}]}}'
NO_RESULT = b'{"status": "success", "data": []}'


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b"null", b"\xff\xfe", b"[" * 9_999, NO_RESULT, NOT_A_NUMBER]
)
def test_an_answer_of_another_form_cannot_be_seen(content: bytes) -> None:
    with pytest.raises(EvidenceUnavailableError, match=r"prometheus\.example"):
        read([], content)


ANYTHING = st.one_of(
    st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5), st.just(10**400),
    st.sampled_from(["NaN", "+Inf", "-1", "1e308", -1, 0, START_S, [], {}]), st.lists(st.integers(), max_size=3),
)  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> list[Series]:
    """Good series of which up to three values, labels or times are something else."""
    everything = good_series()
    for _ in range(draw(st.integers(1, 3))):
        one = draw(st.sampled_from(everything))
        place = draw(st.sampled_from(["label", "time", "value", "sample"]))
        number = draw(st.integers(0, len(one["values"]) - 1))
        if place == "label":
            one["metric"][draw(st.sampled_from(sorted(one["metric"])))] = draw(ANYTHING)
        elif place == "sample":
            one["values"][number] = draw(ANYTHING)
        elif isinstance(one["values"][number], list) and len(one["values"][number]) == 2:
            one["values"][number][place == "value"] = draw(ANYTHING)
    return everything


@given(answers())
def test_any_series_is_evidence_or_cannot_be_seen_and_never_another_error(everything: list[Series]) -> None:
    try:
        evidence = read(everything)
    except EvidenceUnavailableError as error:
        assert "cannot be read: " not in str(error)  # nothing that nobody thought of
        return
    assert all(bin_.treatment.requests >= bin_.treatment.errors >= 0 for bin_ in evidence.bins)
