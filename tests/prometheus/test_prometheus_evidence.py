"""Evidence from a real Prometheus that scrapes the real Envoy of a local workspace."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import tests.airflow_home  # noqa: F401 - before anything of Airflow
from controlled_rollout import record, steps
from controlled_rollout.checks.connectivity import check_connectivity
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.evaluation.splits import splits_since
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow, evidence_source
from controlled_rollout.gate import Gate, Mean
from controlled_rollout.target.history import creation_of
from controlled_rollout.target.local.envoy_files import EnvoyFiles
from controlled_rollout.workspace import Workspace
from tests.local.local_target_lab import BREAKING_OFF, Lab, running, steady_load
from tests.polling import until
from tests.prometheus.real_prometheus import RunningPrometheus, forwarding, scraping

S = timedelta(seconds=1)
# Half of the errors come from the script: 500, through the router.
SCRIPT = """
import json, random, time

def init(): ...

def run(data):
    time.sleep(%s)
    if random.random() < %s:
        raise ValueError("broken")
    return {}
"""
GATE = Gate(latency_quantiles=(0.5,), latency_tolerance=0, burst_cap=3)
WINDOW = EvidenceWindow(bin_width=2 * S, allowed_lag=1 * S, baseline_length=15 * S)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("prometheus")) as lab:
        yield lab


@pytest.fixture(scope="module")
def prometheus(lab: Lab) -> Iterator[RunningPrometheus]:
    with forwarding(admin_socket(lab)) as port:
        with scraping(lab.folder / "prometheus", f"127.0.0.1:{port}") as result:
            asyncio.run(until(lambda: has_sample(result.url), "the first sample"))
            yield result


def has_sample(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/api/v1/query?query=envoy_server_uptime", timeout=10) as answer:
        return bool(json.load(answer)["data"]["result"])


def admin_socket(lab: Lab) -> Path:
    return EnvoyFiles(lab.state.socket.parent / "envoy").admin_socket


def seeing(lab: Lab, prometheus: RunningPrometheus) -> Workspace:
    settings = {"root": str(lab.workspace.root), "prometheus_url": prometheus.url, "prometheus_selector": 'job="envoy"'}
    return Workspace.from_settings(settings)


def quiet(sentence: str) -> None:
    return


async def begin(lab: Lab, endpoint: str, *, slow_s: float = 0.0, failing: float = 0.0) -> None:
    settings = {"num_replicas": 2, "max_request_wait_time": 5_000}
    good = await lab.image("good", SCRIPT % (0, 0))
    await steps.deploy(
        lab.workspace,
        endpoint,
        "v1a",
        image=good,
        owner="w/1",
        change=steps.Change(who="w/1/r"),
        settings=settings,
        progress=quiet,
    )
    image = await lab.image(f"{slow_s} {failing}", SCRIPT % (slow_s, failing))
    async with steady_load(await lab.url(endpoint), (await lab.target.keys(endpoint)).primary, rate=60) as load:
        await load.more(700)
    await steps.deploy(
        lab.workspace,
        endpoint,
        "v2a",
        image=image,
        owner="w/2",
        change=steps.Change(who="w/2/r"),
        settings=settings,
        progress=quiet,
    )


@pytest.mark.timeout(400)
def test_failing_treatment_is_detected_by_the_counters_of_the_router_and_replayed(
    lab: Lab, prometheus: RunningPrometheus
) -> None:
    workspace = seeing(lab, prometheus)

    async def rollout() -> tuple[looks.Look, int]:
        await begin(lab, "failing", failing=0.5)
        async with steady_load(await lab.url("failing"), (await lab.target.keys("failing")).primary, rate=60) as load:
            await steps.shift(
                workspace,
                "failing",
                "v2a",
                percentile=50,
                change=steps.Change(who="w/2/s"),
                owner="w/2",
                progress=quiet,
            )

            async def look() -> looks.Look | None:
                result = await looks.look(
                    workspace, lab.target, "failing", "v2a", gate=GATE, who="w/2/g", owner="w/2", window=WINDOW
                )
                return result if result.verdict.outcome == "fail" else None

            result = await until(look, "the gate fails", timeout_s=90, interval_s=0.5)
            assert isinstance(result, looks.Look)
            return result, load.failed.get("500", 0)

    result, failed = asyncio.run(rollout())

    assert "errors are higher" in result.verdict.reason
    assert failed > 0
    replayed = list(replay(record.read(workspace, "failing")))
    assert replayed
    assert [look_.difference for look_ in replayed if look_.difference] == []
    assert replayed[-1].look is not None
    assert replayed[-1].look.settings.queries[0].startswith("envoy_cluster_upstream_rq_xx{envoy_cluster_name=~")


@pytest.mark.timeout(400)
def test_counters_equal_the_requests_of_callers_and_quantiles_are_histogram_bounds(
    lab: Lab, prometheus: RunningPrometheus
) -> None:
    workspace = seeing(lab, prometheus)

    async def rollout() -> None:
        await begin(lab, "counted", slow_s=0.03)
        history = await lab.target.history("counted")
        started = creation_of(history, "v2a").created
        async with steady_load(await lab.url("counted"), (await lab.target.keys("counted")).primary, rate=60) as load:
            await steps.shift(
                workspace,
                "counted",
                "v2a",
                percentile=50,
                change=steps.Change(who="w/2/s"),
                owner="w/2",
                progress=quiet,
            )
            await load.more(600)
        history = await lab.target.history("counted")

        async def read() -> Evidence | None:
            now = datetime.now(UTC)
            query = EvidenceQuery(
                endpoint="counted", control="v1a", treatment="v2a", started=started, now=now, gate=GATE,
                splits=splits_since(history, started, control="v1a", treatment="v2a"),
                clusters=(await lab.target.status("counted")).clusters, window=WINDOW,
            )  # fmt: skip
            evidence = await evidence_source(workspace).read(query)
            # Each by itself: control's surplus (below) must not stand for what is not scraped yet of the treatment.
            control = sum(bin_.control.requests for bin_ in evidence.bins)
            treatment = sum(bin_.treatment.requests for bin_ in evidence.bins)
            return evidence if control >= load.versions["v1a"] and treatment >= load.versions["v2a"] else None

        evidence = await until(read, "all requests are counted", timeout_s=30, interval_s=0.5)
        sent = {name: load.versions[name] for name in ("v1a", "v2a")}
        # The scrape after the rollout's beginning also tells of what control had answered just before.
        assert 0 <= sum(bin_.control.requests for bin_ in evidence.bins) - sent["v1a"] <= 40
        assert sum(bin_.treatment.requests for bin_ in evidence.bins) == sent["v2a"]
        assert sum(bin_.control.requests for bin_ in evidence.baseline) > 300
        [median] = evidence.thresholds_ms
        assert median in (0.5, 1, 5, 10, 25, 50)
        # The treatment sleeps longer than that bound: nearly all of its requests lie beyond it.
        slow = sum(bin_.treatment.slow[0] for bin_ in evidence.bins)
        assert slow > 0.8 * sent["v2a"]
        # Where the split changed, and in the bin after, it is not known what was set.
        assert next(bin_.share for bin_ in evidence.bins if bin_.treatment.requests) is None
        assert 0.5 in [bin_.share for bin_ in evidence.bins]

    asyncio.run(rollout())


def test_answers_that_a_version_breaks_off_are_errors(lab: Lab, prometheus: RunningPrometheus) -> None:
    async def ask() -> None:
        image = await lab.image(script=BREAKING_OFF)
        endpoint = Endpoint(name="broken-off").create_version("one", image=image)
        await lab.serve(endpoint.create_version("two", image=image, traffic_percentile=50.0))
        for version in ("one", "two"):
            await lab.ready("broken-off", version)
        url, key = await lab.url("broken-off"), (await lab.target.keys("broken-off")).primary
        clusters = (await lab.target.status("broken-off")).clusters
        # Some scrapes ago: a counter that is there for the first time has grown since the last of them.
        started = datetime.now(UTC) - 10 * S
        async with httpx.AsyncClient(timeout=20, headers={"Authorization": f"Bearer {key}"}) as caller:
            for _ in range(6):
                with pytest.raises(httpx.RemoteProtocolError):
                    await caller.post(url, json={"fails": True})
            for _ in range(3):
                assert (await caller.post(url, json={"fails": False})).status_code == 200

        async def read() -> tuple[int, int]:
            query = EvidenceQuery(
                endpoint="broken-off", control="one", treatment="two", started=started, now=datetime.now(UTC),
                gate=Gate(latency_quantiles=()), splits=[], clusters=clusters, window=WINDOW,
            )  # fmt: skip
            found = (await evidence_source(seeing(lab, prometheus)).read(query)).bins
            counts = [counts for one in found for counts in (one.control, one.treatment)]
            return sum(one.requests for one in counts), sum(one.errors for one in counts)

        async def are_counted() -> bool:
            return (await read())[0] == 9

        await until(are_counted, "nine requests are counted", timeout_s=30, interval_s=0.5)
        # One that begins in a bin and ends in the next, which has no other request of its version, is not seen.
        assert 4 <= (await read())[1] <= 6

    asyncio.run(ask())


def test_missing_samples_wrong_selectors_and_kql_metrics_are_no_evidence(
    lab: Lab, prometheus: RunningPrometheus
) -> None:
    now = datetime.now(UTC)
    query = EvidenceQuery(
        endpoint="other", control="v1a", treatment="v2a", started=now - 30 * S, now=now, splits=(), gate=GATE,
        window=WINDOW, clusters={"v1a": "other/v1a", "v2a": "other/v2a"},
    )  # fmt: skip

    def read(selector: str = 'job="envoy"', url: str = prometheus.url, **changes: Any) -> Evidence:
        settings = {"root": str(lab.workspace.root), "prometheus_url": url, "prometheus_selector": selector}
        source = evidence_source(Workspace.from_settings(settings))
        return asyncio.run(source.read(replace(query, **changes)))

    assert read().bins == ()
    results = asyncio.run(check_connectivity(seeing(lab, prometheus), {}))
    assert [result.message for result in results if result.name == "telemetry store"] == [
        f"{prometheus.url} scrapes {prometheus.targets[0]}"
    ]
    with pytest.raises(EvidenceUnavailableError, match="no sample of envoy_server_uptime"):
        read('job="another"')
    with pytest.raises(EvidenceUnavailableError, match="answered 400"):
        read("job=")
    with pytest.raises(EvidenceUnavailableError, match="does not answer"):
        read(url="http://127.0.0.1:9")
    with pytest.raises(EvidenceUnavailableError, match="name under which the router counts v2a"):
        read(clusters={"v1a": "other/v1a"})
    revenue = Gate(latency_quantiles=(), means={"revenue": Mean(worse="lower", kql="AppEvents")})
    with pytest.raises(EvidenceUnavailableError, match="revenue are asked for in KQL"):
        read(gate=revenue)


@pytest.mark.timeout(200)
def test_prometheus_that_stopped_scraping_is_no_evidence(lab: Lab, tmp_path: Path) -> None:
    async def steps_() -> None:
        with forwarding(admin_socket(lab)) as port:
            with scraping(tmp_path, f"127.0.0.1:{port}") as first:
                own_port = int(first.url.rsplit(":", 1)[1])
                source = evidence_source(seeing(lab, first))
                now = datetime.now(UTC)
                query = EvidenceQuery(
                    endpoint="other", control="v1a", treatment="v2a", started=now, now=now, splits=(), gate=GATE,
                    window=WINDOW, clusters={"v1a": "other/v1a", "v2a": "other/v2a"},
                )  # fmt: skip

                async def read() -> bool:
                    try:
                        await source.read(replace(query, now=datetime.now(UTC)))
                    except EvidenceUnavailableError:
                        return False
                    return True

                await until(read, "it has scraped")
        # The Envoy's port is gone, Prometheus is not.
        with scraping(tmp_path, f"127.0.0.1:{port}", own_port=own_port):

            async def silent() -> str:
                try:
                    await source.read(replace(query, now=datetime.now(UTC)))
                except EvidenceUnavailableError as error:
                    return str(error)
                return ""

            async def says_so() -> bool:
                return "has scraped no router since" in await silent() or "no sample of" in await silent()

            await until(says_so, "it says so", timeout_s=60, interval_s=0.5)

    asyncio.run(steps_())
