"""The evidence reader over HTTP against the real telemetry store."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.errors import EndpointError, EvidenceUnavailableError
from controlled_rollout.evidence import (
    Evidence,
    EvidenceQuery,
    EvidenceSource,
    EvidenceWindow,
    SplitChange,
    evidence_source,
)
from controlled_rollout.gate import Category, Counts, Gate, Mean, Moments, judge
from controlled_rollout.workspace import Workspace
from tests.local.telemetry_lab import Process, source

DOCS = Path(__file__).parents[2] / "docs"
STARTED = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
STARTED -= timedelta(seconds=STARTED.timestamp() % 60)
S = timedelta(seconds=1)


def read(source: EvidenceSource, endpoint: str, **changes: Any) -> Evidence:
    arguments: dict[str, Any] = {
        "control": "control",
        "treatment": "treatment",
        "started": STARTED,
        "now": STARTED + 32 * S,
        "window": EvidenceWindow(bin_width=10 * S, allowed_lag=2 * S, baseline_length=timedelta(minutes=10)),
        "splits": [SplitChange(STARTED, 0.1), SplitChange(STARTED + 25 * S, 0.5)],
        "gate": Gate(),
    } | changes
    return asyncio.run(source.read(EvidenceQuery(endpoint=endpoint, **arguments)))


def test_the_reader_counts_what_callers_saw_in_closed_bins(store: Process) -> None:
    name = "counted"
    baseline = [{"at": STARTED - (1 + n * 0.5) * S, "ms": 1.0 + n, "endpoint": name} for n in range(200)]
    rollout = [
        {"at": STARTED + 1 * S, "ms": 5_000.0, "code": "504"},
        {"at": STARTED + 2 * S, "ms": 1.0, "code": "404"},
        {"at": STARTED + 3 * S, "ms": 104.0, "version": "treatment"},  # above control's median, within its tolerance
        {"at": STARTED + 4 * S, "ms": 120.0, "version": "treatment", "code": "0"},
        {"at": STARTED + 5 * S, "ms": 1.0, "version": "treatment", "routed_by": "header", "code": "500"},
        {"at": STARTED + 6 * S, "ms": 1.0, "version": "treatment"},
        {"at": STARTED + 7 * S, "version": "another"},
        {"at": STARTED + 12 * S, "version": "treatment"},
        {"at": STARTED + 31 * S, "version": "treatment"},  # its bin is not closed
    ]
    store.send(*baseline, *({"endpoint": name, **row} for row in rollout), {"endpoint": "other", "at": STARTED + 1 * S})

    evidence = read(source(store), name)

    assert evidence.until == STARTED + 30 * S
    assert evidence.thresholds_ms == pytest.approx((100, 180, 190, 198), rel=0.0102)
    assert [b.start for b in evidence.bins] == [STARTED, STARTED + 10 * S]
    first, second = evidence.bins
    assert first.control == Counts(requests=2, errors=1, slow=(1, 1, 1, 1))
    assert first.treatment == Counts(requests=3, errors=1, slow=(1, 0, 0, 0))
    assert second.control == Counts(requests=0, errors=0, slow=(0, 0, 0, 0))
    assert second.treatment.requests == 1
    assert (first.share, second.share) == (None, 0.1)  # the split was set as the first bin began
    assert sum(b.control.requests for b in evidence.baseline) == 200
    assert sum(b.control.slow[0] for b in evidence.baseline) == pytest.approx(100, abs=3)
    # By hand, in full: the same numbers.
    counted = store.rows(f"let Until = datetime({evidence.until.isoformat()});\n{evidence.queries[1]}")
    assert sum(row[4] for row in counted if not row[3]) == 6
    assert len(store.rows(evidence.queries[0])) > 100
    assert read(source(store), name).bins == evidence.bins


def test_only_requests_for_a_score_that_the_router_split_by_weight_are_evidence(store: Process) -> None:
    base = {"endpoint": "judged", "at": STARTED + 1 * S, "version": "treatment"}
    host = "http://localhost/api/v1/service/judged"
    store.send(
        base,
        {**base, "code": "503"},  # the router's own answer for a version that it had chosen
        {**base, "url": "http://localhost/score?explain=1", "method": "GET"},
        *({**base, "routed_by": way, "code": "500"} for way in (None, "header", "", "Weights")),
        *({**base, "code": code} for code in ("401", "403")),
        *({**base, "method": method, "code": "500"} for method in ("OPTIONS",)),
        *({**base, "url": host + path, "method": "GET", "code": "500"} for path in ("/swagger.json", "/", "", "/live")),
    )

    counts = read(source(store), "judged").bins[0].treatment

    assert (counts.requests, counts.errors) == (3, 1)


def test_a_request_whose_span_arrives_twice_counts_once(store: Process) -> None:
    ids = {"trace_id": b"t" * 16, "span_id": b"s" * 8}
    base = {"endpoint": "twice", "at": STARTED + 1 * S, "version": "treatment", "code": "500"}
    store.send({**base, **ids}, {**base, **ids})
    store.send({**base, **ids})
    store.send({**base, "trace_id": b"t" * 16})  # a caller may use one trace for many requests

    counts = read(source(store), "twice").bins[0].treatment

    assert (counts.requests, counts.errors) == (2, 2)


def test_sampled_rows_are_the_observations_and_say_how_many_requests_they_stand_for(store: Process) -> None:
    base = {"endpoint": "sampled", "at": STARTED + 1 * S, "version": "treatment", "sample_rate": 10}
    store.track(*({**base, "code": "500" if number == 0 else "200"} for number in range(20)))

    assert read(source(store), "sampled").bins[0].treatment == Counts(requests=20, errors=1, represented=200)


@pytest.mark.parametrize(
    ("code", "errors"),
    [
        *((code, 0) for code in ("100", "200", "404", "404.0", "499")),
        *((code, 1) for code in ("500", "599", "600", "503.0", "0", "Timeout", "-1", "2000", "9999999999", "503 ")),
    ],
)
def test_every_result_code_but_a_number_below_500_is_an_error(store: Process, code: str, errors: int) -> None:
    name = f"code-{'x'.join(str(ord(letter)) for letter in code)}"[:32].rstrip("x")
    store.track({"endpoint": name, "at": STARTED + 1 * S, "version": "treatment", "code": code})

    assert read(source(store), name).bins[0].treatment == Counts(requests=1, errors=errors)


def test_a_store_on_this_machine_is_asked_without_a_proxy(store: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    store.send({"endpoint": "direct", "at": STARTED + 1 * S})

    assert read(source(store), "direct").bins[0].control.requests == 1


def test_latency_needs_a_baseline_and_empty_bins_are_left_out(store: Process) -> None:
    store.send({"endpoint": "young", "at": STARTED + 1 * S, "version": "treatment"})

    young = read(source(store), "young")

    assert young.thresholds_ms == ()
    assert young.bins[0].treatment == Counts(requests=1, errors=0, slow=())
    assert young.bins[0].control == Counts(requests=0, errors=0, slow=())
    nothing = read(source(store), "nothing")
    assert (nothing.bins, nothing.baseline) == ((), ())


def test_time_of_the_newest_row_is_returned(store: Process) -> None:
    store.send({"endpoint": "newest", "at": STARTED}, {"endpoint": "newest", "at": STARTED - 5 * S})

    assert asyncio.run(source(store).newest("newest")) == STARTED
    assert asyncio.run(source(store).newest("never")) is None


def test_invalid_name_is_never_sent_to_the_store(store: Process) -> None:
    with pytest.raises(EndpointError):
        read(source(store), "digits' or '1' == '1")
    with pytest.raises(EndpointError):
        read(source(store), "digits", treatment="x'; drop table AppRequests")


def test_store_that_is_down_or_refuses_is_an_error_and_never_counts_of_zero(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse")
    process = start(tmp_path / "data", token_file=token_file)

    with pytest.raises(EvidenceUnavailableError, match=r"401.*credential"):
        read(source(process), "digits")
    process.end()
    began = time.monotonic()
    with pytest.raises(EvidenceUnavailableError, match="did not answer"):
        read(source(process), "digits")
    assert time.monotonic() - began < 10


def test_local_evidence_uses_the_address_in_the_state_of_the_supervisor(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    workspace = Workspace.local(tmp_path / "home")
    evidence = evidence_source(workspace)
    with pytest.raises(EvidenceUnavailableError, match="local up"):
        read(evidence, "digits")

    token_file = tmp_path / "token"
    token_file.write_text("correct-horse")
    process = start(tmp_path / "data", token_file=token_file)
    process.send({"at": STARTED + 1 * S})
    state = {"telemetry_url": process.url, "telemetry_workspace_id": None, "telemetry_token_file": str(token_file)}
    workspace.state_file.parent.mkdir(parents=True)
    workspace.state_file.write_text(json.dumps(state))

    assert read(evidence, "digits").bins[0].control.requests == 1
    workspace.state_file.write_text("{}")
    with pytest.raises(EvidenceUnavailableError, match="does not say"):
        read(evidence, "digits")


def test_only_the_token_of_the_workspace_is_sent(start: Callable[..., Process], tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse")
    process = start(tmp_path / "data", token_file=token_file)
    process.send({"at": STARTED + 1 * S})
    settings = {
        "root": str(tmp_path / "home"),
        "target": "kubernetes",
        "gateway": "infra/shared",
        "telemetry_endpoint": f"{process.url}/v1",
        "telemetry_workspace_id": process.workspace,
        "telemetry_token_file": str(token_file),
    }
    workspace = Workspace.from_settings(settings)
    # Another store's, of a supervisor that happens to run.
    workspace.state_file.parent.mkdir(parents=True)
    workspace.state_file.write_text(json.dumps({"telemetry_token_file": str(tmp_path / "other")}))

    assert read(evidence_source(workspace), "digits").bins[0].control.requests == 1

    token_file.write_text("changed-horse")
    with pytest.raises(EvidenceUnavailableError, match="401"):
        read(evidence_source(workspace), "digits")
    token_file.unlink()
    with pytest.raises(EvidenceUnavailableError, match="token cannot be read"):
        read(evidence_source(workspace), "digits")


def test_custom_metrics_are_read_by_bin_and_a_failing_query_affects_its_own_gate_only(store: Process) -> None:
    name = "metrics"
    store.send(*({"endpoint": name, "at": STARTED + n * S} for n in range(20)))
    values = [("control", 1.0), ("control", 3.0), ("treatment", 10.0), ("treatment", 20.0), ("another", 99.0)]
    envelopes = [
        {
            "time": (STARTED + (2 + 10 * n) * S).isoformat(),
            "iKey": store.key,
            "data": {
                "baseType": "EventData",
                "baseData": {
                    "ver": 2, "name": "sold", "properties": {"version": version}, "measurements": {"euros": value},
                },
            },
        }
        for n in range(2)
        for version, value in values[: 5 - 2 * n]
    ]  # fmt: skip
    assert store.http.post("/v2.1/track", content=json.dumps(envelopes)).status_code == 200
    kql = """
        AppEvents
        | where Name == 'sold'
        | project TimeGenerated, Version = tostring(Properties.version), Value = toreal(Measurements.euros);
    """
    gate = Gate(latency_quantiles=(), means={"revenue": Mean(worse="lower", kql=kql)})
    broken = Gate(latency_quantiles=(), means={"revenue": Mean(worse="lower", kql="AppEvents | where")})

    evidence = read(source(store), name, gate=gate)

    first, second = evidence.bins[:2]
    assert first.control.means["revenue"] == Moments(2, 2.0, 2.0)
    assert first.treatment.means["revenue"] == Moments(2, 15.0, 50.0)
    assert second.treatment.means["revenue"] == Moments(1, 10.0, 0.0)
    assert first.control.requests == 10
    with pytest.raises(EvidenceUnavailableError, match=r"the query of the metric 'revenue'.*answered 400"):
        read(source(store), name, gate=broken)


@pytest.mark.parametrize(("refused", "outcome"), [(1.0, "fail"), (0.05, "not_enough_evidence")])
def test_a_model_that_refuses_what_control_takes_fails_the_gate_that_the_docs_give_for_it(
    store: Process, refused: float, outcome: str
) -> None:
    name = f"refuses-{outcome.replace('_', '-')}"
    [kql] = re.findall(r'"refusals": Category\(.*?kql="""(.*?)"""', (DOCS / "gate.md").read_text(), re.DOTALL)
    asked = Category(kql=kql.replace("'digits'", f"'{name}'"), tolerance=0.02, on_difference="fail")
    for version, share in (("control", 0.05), ("treatment", refused)):
        codes = ["400" if number % 20 < 20 * share else "200" for number in range(200)]
        base = {"endpoint": name, "version": version}
        store.send(*({**base, "at": STARTED + (0.1 * n + 5) * S, "code": code} for n, code in enumerate(codes)))

    without, with_it = (
        judge(read(source(store), name, gate=gate, splits=[SplitChange(STARTED - 60 * S, 0.5)]).bins, gate)
        for gate in (Gate(latency_quantiles=()), Gate(latency_quantiles=(), categories={"refusals": asked}))
    )

    assert str(without.outcome) == "not_enough_evidence"
    assert str(with_it.outcome) == outcome
    assert outcome != "fail" or "refusals" in with_it.reason


def test_custom_categories_are_counted_by_bin_and_version(store: Process) -> None:
    name = "categories"
    store.send(*({"endpoint": name, "at": STARTED + n * S} for n in range(20)))
    values = [("control", name) for name in ("CH", "DE", "CH")]
    values += [("treatment", "it's"), ("treatment", ""), ("another", "FR")]
    envelopes = [
        {
            "time": (STARTED + 2 * S).isoformat(),
            "iKey": store.key,
            "data": {
                "baseType": "EventData",
                "baseData": {"ver": 2, "name": "asked", "properties": {"version": version, "country": country}},
            },
        }
        for version, country in values
    ]
    assert store.http.post("/v2.1/track", content=json.dumps(envelopes)).status_code == 200
    kql = """
        AppEvents
        | where Name == 'asked'
        | project TimeGenerated, Version = tostring(Properties.version), Value = tostring(Properties.country);
    """
    numbers = kql.replace("tostring(Properties.country)", "strlen(tostring(Properties.country))")
    gate = Gate(latency_quantiles=(), categories={"country": Category(kql=kql), "length": Category(kql=numbers)})

    evidence = read(source(store), name, gate=gate)

    first = evidence.bins[0]
    assert first.control.categories == {"country": {"CH": 2, "DE": 1}, "length": {"2": 3}}
    assert first.treatment.categories == {"country": {"it's": 1}, "length": {"4": 1, "0": 1}}
    assert first.control.requests == 10
    assert "Category = Value" in evidence.queries[-1]


def test_failing_query_of_a_category_is_an_error_with_its_name(store: Process) -> None:
    broken = Gate(latency_quantiles=(), categories={"country": Category(kql="AppEvents | where")})

    with pytest.raises(EvidenceUnavailableError, match=r"the query of the metric 'country'.*answered 400"):
        read(source(store), "categories", gate=broken)
