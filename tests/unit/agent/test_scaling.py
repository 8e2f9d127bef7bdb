"""What the agent's autoscaler does with what it sees: whom it scales, whom it leaves alone, and when it is blind."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from controlled_rollout.agent.autoscaler import Autoscaler, targets_of
from controlled_rollout.agent.namespace_state import (
    NamespaceState,
    ObservedDeployment,
    ObservedRoute,
    observed_deployment,
    observed_route,
)
from controlled_rollout.agent.scaling import SETTLING_S, Scaling, reading_of, scalings
from controlled_rollout.autoscaling import Floor, History, Reading
from controlled_rollout.cluster.api import Api
from controlled_rollout.cluster.kinds import HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.counters import Counters
from controlled_rollout.target.kubernetes.annotations import FLOOR, NOT_SCALED
from controlled_rollout.target.kubernetes.envoy_stats import EnvoyStats, GatewayStats
from controlled_rollout.target.kubernetes.names import version_labels, version_object_name
from controlled_rollout.target.kubernetes.route_rules import Mark, build_rules
from controlled_rollout.target.protocol import Change, Revision
from controlled_rollout.workspace import Workspace

IMAGE = "registry.example/model@sha256:" + "0" * 64
WORKSPACE = Workspace.from_settings({"target": "kubernetes", "gateway": "gateway/models", "namespace": "models"})
NOW, NOW_S = 1_800_000_000.0, 5_000.0
NAME = version_object_name("digits", "one")
BY_WEIGHT, BY_NAME = "httproute/models/digits/rule/0/backend/0", "httproute/models/digits/rule/1/backend/0"
ROUTE = ObservedRoute({BY_WEIGHT: NAME, BY_NAME: NAME}, revision=1, is_whole=True, is_accepted=True)
DEPLOYMENT = ObservedDeployment(NAME, "digits", "one", "1", replicas=2, ready=2)


def revision(**settings: Any) -> Revision:
    endpoint = Endpoint(name="digits").create_version("one", image=IMAGE, traffic_percentile=100, **settings)
    return Revision(number=1, endpoint=endpoint, change=Change(who="a test"), created=datetime.now(UTC))


def stats(*busy: int, waiting: int = 0) -> GatewayStats:
    """Return the counters of so many Envoys, each with so many open requests."""
    return GatewayStats(
        {
            f"envoy-{number}": EnvoyStats(
                {BY_WEIGHT: Counters(active=active, waiting=waiting)}, healthy={BY_WEIGHT: 2, BY_NAME: 2}
            )
            for number, active in enumerate(busy)
        }
    )


def scaled(
    deployment: ObservedDeployment = DEPLOYMENT,
    counted: GatewayStats | None = None,
    *,
    others: dict[str, str] | None = None,
    known: bool = True,
    histories: dict[str, History] | None = None,
    now: float = NOW,
    **settings: Any,
) -> list[Scaling]:
    state = NamespaceState(
        revisions={"digits": revision(**settings)},
        deployments={NAME: deployment},
        routes={"digits": ROUTE},
        autoscalers=(others or {}) if known else None,
    )
    return scalings(state, counted, {} if histories is None else histories, now=now, now_s=NOW_S)


def test_the_open_and_waiting_requests_of_all_envoys_and_all_clusters_of_a_version_count() -> None:
    counted = stats(3, 4, waiting=1)
    by_name = EnvoyStats(
        {BY_WEIGHT: Counters(active=1), BY_NAME: Counters(active=5)}, healthy={BY_WEIGHT: 1, BY_NAME: 1}
    )

    assert reading_of(NAME, ROUTE, counted, now_s=NOW_S) == Reading(7, 2)
    assert reading_of(NAME, ROUTE, GatewayStats({"x": by_name}), now_s=NOW_S) == Reading(6, 0)
    assert reading_of("another", ROUTE, counted, now_s=NOW_S) == Reading(0, 0)


@pytest.mark.parametrize(
    ("route", "counted"),
    [
        (ROUTE, None),
        (ROUTE, GatewayStats()),
        (None, stats(3)),
        (replace(ROUTE, is_accepted=False), stats(3)),
        (replace(ROUTE, renamed_s=NOW_S - SETTLING_S + 0.1), stats(3)),
        (ROUTE, GatewayStats({"x": EnvoyStats({BY_WEIGHT: Counters(active=1)}, healthy={BY_WEIGHT: 1})})),
    ],
    ids=["unreadable", "no Envoy", "no route", "not accepted", "clusters renamed just now", "an Envoy lacks a cluster"],
)
def test_what_cannot_be_read_as_a_whole_is_no_reading(
    route: ObservedRoute | None, counted: GatewayStats | None
) -> None:
    assert reading_of(NAME, route, counted, now_s=NOW_S) is None


def test_a_version_gets_more_replicas_at_once_and_stays_as_it_is_when_nothing_is_known() -> None:
    [busy] = scaled(counted=stats(7))
    [blind] = scaled(counted=None)
    [starting] = scaled(replace(DEPLOYMENT, ready=0), stats(7))

    assert busy.replicas == 7
    assert "7 busy" in busy.reason
    assert blind.replicas == starting.replicas == 2


def test_what_sizing_gave_for_a_shift_is_not_taken_away() -> None:
    floor = Floor.for_shift(6, NOW)
    [kept] = scaled(replace(DEPLOYMENT, replicas=6, ready=6, floor=floor), stats(0))
    [raised] = scaled(replace(DEPLOYMENT, replicas=3, ready=3, floor=floor), stats(0))

    assert kept.replicas == raised.replicas == 6


def test_replicas_are_taken_away_only_by_an_agent_that_has_seen_a_whole_minute() -> None:
    histories: dict[str, History] = {}
    numbers = [scaled(counted=stats(0), histories=histories, now=NOW + second)[0].replicas for second in range(62)]
    [new_agent] = scaled(counted=stats(0), now=NOW + 62)

    assert set(numbers[:60]) == {2}
    assert numbers[-1] == 1
    assert new_agent.replicas == 2


def test_a_version_with_another_autoscaler_or_a_number_of_somebody_else_is_left_alone_and_that_is_said() -> None:
    [other] = scaled(counted=stats(50), others={NAME: "HorizontalPodAutoscaler 'x'"})
    [person] = scaled(replace(DEPLOYMENT, writer="'kubectl' at noon"), stats(50))
    [fixed] = scaled(counted=stats(50), num_replicas=2)
    [noted] = scaled(replace(DEPLOYMENT, note="as before"), stats(0))

    assert other.replicas == person.replicas == fixed.replicas == 2
    assert other.note.startswith("HorizontalPodAutoscaler 'x' scales it")
    assert person.note.startswith("'kubectl' at noon has set the number of its replicas")
    assert fixed.note == noted.note == ""


def test_nothing_is_scaled_before_it_is_known_who_else_does() -> None:
    assert scaled(counted=stats(50), known=False) == []


def test_versions_that_are_deleted_or_of_no_revision_are_not_scaled_and_not_remembered() -> None:
    histories = {NAME: History(), "gone": History()}

    assert scaled(replace(DEPLOYMENT, is_leaving=True), stats(50), histories=histories) == []
    assert scaled(replace(DEPLOYMENT, endpoint="letters"), stats(50)) == []
    assert histories == {}


def test_the_deployments_of_other_autoscalers_are_found() -> None:
    def autoscaler(**target: str) -> dict[str, Any]:
        return {"metadata": {"name": "x"}, "spec": {"scaleTargetRef": target}}

    assert targets_of(HORIZONTAL_POD_AUTOSCALER, [autoscaler(kind="Deployment", name="a")]) == {
        "a": "HorizontalPodAutoscaler 'x'"
    }
    assert targets_of(HORIZONTAL_POD_AUTOSCALER, [autoscaler(kind="StatefulSet", name="a")]) == {}
    assert targets_of(SCALED_OBJECT, [autoscaler(name="b")]) == {"b": "ScaledObject 'x'"}
    assert targets_of(SCALED_OBJECT, [{"metadata": {"name": "x"}}]) == {}


def test_what_matters_of_a_deployment_is_read() -> None:
    floor = Floor(4, NOW)
    found = observed_deployment(
        {
            "metadata": {
                "name": NAME,
                "resourceVersion": "7",
                "generation": 3,
                "labels": version_labels("digits", "one"),
                "annotations": {FLOOR: str(floor), NOT_SCALED: "why"},
                "managedFields": [{"manager": "kubectl", "time": "noon", "fieldsV1": {"f:spec": {"f:replicas": {}}}}],
            },
            "spec": {"replicas": 3},
            "status": {"readyReplicas": 2},
        }
    )

    assert found == ObservedDeployment(NAME, "digits", "one", "7", 3, 2, floor, "'kubectl' at noon", "why", 3)
    damaged = observed_deployment(
        {"metadata": {"name": "x", "resourceVersion": "1", "annotations": {FLOOR: "many"}}, "spec": {}}
    )
    assert damaged == ObservedDeployment("x", "", "", "1")


def test_what_matters_of_a_route_is_read_and_a_cluster_keeps_its_time_until_it_has_another_name() -> None:
    endpoint = revision().endpoint
    rules = build_rules(endpoint, [], weights={"one": 1_000_000}, reachable=["one"], mark=Mark(1))
    condition = {"status": "True", "observedGeneration": 1}
    parent = {
        "parentRef": {"namespace": "gateway", "name": "models"},
        "controllerName": "gateway.envoyproxy.io/gatewayclass-controller",
        "conditions": [{"type": "Accepted", **condition}, {"type": "ResolvedRefs", **condition}],
    }
    route = {
        "metadata": {"name": "digits", "namespace": "models", "generation": 1},
        "spec": {"rules": list(rules.values())},
        "status": {"parents": [parent]},
    }

    first = observed_route(route, None, gateway=("gateway", "models"), now_s=1.0)
    again = observed_route(route, first, gateway=("gateway", "models"), now_s=9.0)
    elsewhere = observed_route(route, replace(first, clusters={}), gateway=("gateway", "other"), now_s=9.0)

    assert first == ObservedRoute({BY_WEIGHT: NAME, BY_NAME: NAME}, 1, True, True, 1.0)
    assert again == first
    assert (elsewhere.is_accepted, elsewhere.renamed_s) == (False, 9.0)
    empty = observed_route({"metadata": route["metadata"], "spec": {}}, None, gateway=("g", "m"), now_s=0.0)
    assert (empty.revision, empty.is_whole, empty.clusters) == (0, False, {})


class Answers:
    """An API server that answers a change of a Deployment, and whose watch may be faster than its answer."""

    def __init__(self, state: NamespaceState, meanwhile: Callable[[], None]) -> None:
        self.state = state
        self.meanwhile = meanwhile
        self.sent: list[tuple[str, dict[str, Any]]] = []

    async def merge_patch(self, path: str, body: dict[str, Any], *, manager: str) -> dict[str, Any]:
        assert manager == "controlled-rollout-scale"
        self.sent.append((path, body))
        self.meanwhile()
        metadata = {"name": NAME, "resourceVersion": str(1 + len(self.sent)), "labels": version_labels("digits", "one")}
        return {"metadata": metadata, "spec": {"replicas": 4}}


@pytest.mark.parametrize("seen", [None, DEPLOYMENT, replace(DEPLOYMENT, replicas=7, resource_version="9")])
async def test_what_the_watch_has_told_meanwhile_is_not_overwritten_by_the_answer_to_a_change(
    seen: ObservedDeployment | None,
) -> None:
    state = NamespaceState(deployments={NAME: DEPLOYMENT})

    def tell() -> None:
        """Delete the Deployment, leave it, or change it, as the watch would."""
        state.deployments.clear()
        if seen is not None:
            state.deployments[NAME] = seen

    api = Answers(state, tell if seen is not DEPLOYMENT else lambda: None)
    autoscaler = Autoscaler(cast(Api, api), WORKSPACE, state, lambda: True)
    await autoscaler._carry_out(Scaling(DEPLOYMENT, 4, "load"))

    assert [path.rpartition("/")[2] for path, _ in api.sent] == ["scale", NAME]
    assert api.sent[0][1] == {"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 4}}
    if seen is DEPLOYMENT:
        assert (state.deployments[NAME].replicas, state.deployments[NAME].resource_version) == (4, "3")
    else:
        assert state.deployments.get(NAME) == seen
