"""The work that is left for an endpoint, from its objects in the cluster."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from controlled_rollout.cluster.kinds import DEPLOYMENT, HTTP_ROUTE, POD, SECURITY_POLICY
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.target.kubernetes import manifests, route_rules
from controlled_rollout.target.kubernetes.annotations import SCALED
from controlled_rollout.target.kubernetes.envoy_stats import EnvoyStats, GatewayStats
from controlled_rollout.target.kubernetes.gateway import CONTROLLER
from controlled_rollout.target.kubernetes.reconciling import WORKED_AT, idle_since
from controlled_rollout.target.kubernetes.route_rules import DIGEST, Mark
from controlled_rollout.target.kubernetes.view import EndpointView
from controlled_rollout.target.protocol import Change, Revision
from controlled_rollout.workspace import Workspace

NAMESPACE = "models"
WORKSPACE = Workspace.from_settings({"target": "kubernetes", "namespace": NAMESPACE, "gateway": "envoy/gateway"})
NOW = datetime(2026, 11, 26, tzinfo=UTC)
GATEWAY = ("gateway", "envoy")
OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "root", "uid": "1"}}
IMAGE = "registry.example/digits@sha256:" + "0" * 64


def endpoint(*names: str, revision: int = 1) -> Endpoint:
    made = Endpoint(name="digits", revision=revision, auth=Auth.NONE)
    for name in names:
        made = made.create_version(name, image=IMAGE)
    return made


def deployment(of: Endpoint, version: str) -> dict[str, Any]:
    body = manifests.deployment(of, of.versions[version], WORKSPACE, owner=OWNER)
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas"), 1)
    body["metadata"]["generation"] = 1
    return {**body, "spec": {**body["spec"], "replicas": 1}, "status": {"observedGeneration": 1, **counts}}


def route(rules: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the route as Envoy Gateway accepts it."""
    parent = {"namespace": GATEWAY[0], "name": GATEWAY[1]}
    made = manifests.http_route(
        "digits", parent, rules, {DIGEST: route_rules.rules_digest(rules)}, namespace=NAMESPACE, owner=OWNER
    )
    made["metadata"]["generation"] = 1
    conditions = [
        {"type": kind, "status": "True", "observedGeneration": 1, "reason": kind}
        for kind in ("Accepted", "ResolvedRefs")
    ]
    parent_status = {"parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions}
    return {**made, "status": {"parents": [parent_status]}}


def policies(of: Endpoint, *, acknowledged: bool) -> dict[str, dict[str, Any]]:
    """Return the endpoint's SecurityPolicy, by name, which Envoy Gateway has or has not processed."""
    accepted = {"type": "Accepted", "status": "True", "observedGeneration": 1 if acknowledged else 0}
    ancestor = {"namespace": GATEWAY[0], "name": GATEWAY[1]}
    policy = {
        **manifests.security_policy(of, namespace=NAMESPACE, owner=OWNER),
        "status": {"ancestors": [{"ancestorRef": ancestor, "controllerName": CONTROLLER, "conditions": [accepted]}]},
    }
    policy["metadata"]["generation"] = 1
    return {policy["metadata"]["name"]: policy}


def view_of(of: Endpoint, rules: list[dict[str, Any]], *versions: str, mark: Mark | None = None) -> EndpointView:
    """Return the view of an endpoint with the Deployments of some versions, and one Envoy that serves a mark."""
    both = endpoint("one", "two")
    objects = {
        DEPLOYMENT: {name: deployment(both, name) for name in versions},
        POD: {},
        HTTP_ROUTE: {"digits": route(rules)} if rules else {},
        SECURITY_POLICY: policies(of, acknowledged=True),
    }
    served = frozenset({mark.stat(NAMESPACE, "digits")} if mark else ())
    view = EndpointView(of, GATEWAY, objects, envoys=GatewayStats({"envoy-1": EnvoyStats(rules=served)}))
    known = [*view.weight_clusters, *view.name_clusters]
    return replace(view, envoys=GatewayStats({"envoy-1": EnvoyStats(healthy=dict.fromkeys(known, 1), rules=served)}))


def settled(of: Endpoint, *versions: str) -> EndpointView:
    """Return the view of an endpoint after all its steps, each confirmed by Envoy."""
    rules: list[dict[str, Any]] = []
    mark: Mark | None = None
    for _ in range(10):
        view = view_of(of, rules, *versions, mark=mark)
        if view.next_rules == rules:
            return view
        rules = view.next_rules
        state = view_of(of, rules, *versions).managed
        assert state is not None
        mark = state.mark
    raise AssertionError("it does not come to an end")


def test_route_of_a_new_endpoint_admits_no_requests() -> None:
    view = view_of(endpoint("one"), [])

    assert view.has_work
    assert [route_rules.is_weights_rule(rule) for rule in view.next_rules].count(True) == 1
    served = view_of(endpoint("one"), view.next_rules).managed
    assert served is not None
    assert served.weights == {}


def test_an_endpoint_that_is_served_as_it_should_be_has_no_work() -> None:
    view = settled(endpoint("one"), "one")

    assert view.whole_split_is_served
    assert (view.has_work, view.unused_objects) == (False, ())


def test_a_deleted_versions_workload_is_unused_objects_only_once_every_envoy_serves_the_split_without_it() -> None:
    view = settled(endpoint("one", revision=2), "one", "two")
    assert (view.has_work, view.unused_objects) == (True, ("two",))

    late = replace(view, envoys=GatewayStats({**view.envoys.pods, "envoy-2": EnvoyStats()}))
    assert (late.has_work, late.unused_objects) == (False, ())

    # A newer revision may have it again.
    newer = replace(view, endpoint=endpoint("one", revision=3))
    assert newer.unused_objects == ()


def test_a_deleted_versions_workload_is_not_kept_by_another_version_that_is_not_ready() -> None:
    """Version three has no Deployment yet, so only a part of revision 2 can be served."""
    view = settled(endpoint("one", "three", revision=2).shift("three", 50), "one", "two")

    assert not view.whole_split_is_served
    assert view.unused_objects == ("two",)
    assert view.status("http://gateway", NOW).waiting_for == (
        "version 'three' is not ready: 'one' serves the rest of the traffic meanwhile"
    )


def test_terminating_workload_is_not_deleted_again() -> None:
    view = settled(endpoint("one", revision=2), "one", "two")
    view.objects[DEPLOYMENT]["two"]["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"

    assert replace(view).unused_objects == ()


def test_route_edited_by_hand_is_not_overwritten() -> None:
    view = settled(endpoint("one"), "one")
    route_object = view.objects[HTTP_ROUTE]["digits"]
    changed = [{**rule, "timeouts": {"request": "1s"}} for rule in route_object["spec"]["rules"]]
    objects = {
        **view.objects,
        HTTP_ROUTE: {"digits": {**route_object, "spec": {**route_object["spec"], "rules": changed}}},
    }

    # A newer revision would be something to do.
    assert not replace(view, objects=objects, endpoint=endpoint("one", "two", revision=2)).has_work


def with_policy(view: EndpointView, *, acknowledged: bool) -> EndpointView:
    """Return the view of an endpoint that asks for keys, with a policy that Envoy Gateway has or has not processed."""
    keyed = view.endpoint.model_copy(update={"auth": Auth.KEY})
    objects = {**view.objects, SECURITY_POLICY: policies(keyed, acknowledged=acknowledged)}
    return replace(view, endpoint=keyed, objects=objects)


def test_what_serves_is_not_closed_while_its_policy_is_not_acknowledged_yet_and_is_not_called_served_either() -> None:
    serving = settled(endpoint("one"), "one")

    late = with_policy(serving, acknowledged=False)
    assert late.next_rules == late.rules
    assert late.status("http://gateway", NOW).served_revision == 0
    assert "has not processed the newest SecurityPolicy" in (late.status("http://gateway", NOW).waiting_for or "")
    assert with_policy(serving, acknowledged=True).served_revision == 1
    # Without its policy as well: closed rules would go the same way as the policy that every step makes again.
    gone = replace(late, objects={**late.objects, SECURITY_POLICY: {}})
    assert gone.next_rules == gone.rules


def test_what_serves_nobody_yet_stays_closed_until_its_policy_is_acknowledged() -> None:
    new = view_of(endpoint("one"), [], "one")
    reached = view_of(endpoint("one"), new.next_rules, "one")

    assert with_policy(reached, acknowledged=False).goal.weights == {}
    assert with_policy(reached, acknowledged=True).goal.weights == {"one": 1_000_000}


def test_a_split_that_the_counters_contradict_is_not_served() -> None:
    view = replace(settled(endpoint("one"), "one"), contradiction="the Envoys have sent 9 of 9 requests elsewhere")

    status = view.status("http://gateway", NOW)
    assert (status.served_revision, status.trouble) == (0, view.contradiction)


def test_a_version_with_a_share_that_is_ready_and_that_an_envoy_does_not_reach_is_waited_for() -> None:
    view = settled(endpoint("one"), "one")
    [pod] = view.envoys.pods.values()
    late = replace(view, envoys=GatewayStats({"envoy-1": replace(pod, healthy={})}))

    assert late.served_revision == 0
    assert late.needs_counters
    assert late.status("http://gateway", NOW).waiting_for == "not every Envoy reaches a replica of one yet"


def test_replicas_that_only_the_load_asks_for_do_not_keep_a_version_from_being_ready() -> None:
    view = settled(endpoint("one"), "one")
    grown = view.objects[DEPLOYMENT]["one"]
    grown["spec"]["replicas"] = grown["status"]["replicas"] = grown["status"]["updatedReplicas"] = 3
    assert replace(view).ready == frozenset(), "one of three is ready, and a step has asked for three"

    grown["metadata"]["annotations"] = {**grown["metadata"].get("annotations", {}), SCALED: "1 → 3 replicas"}
    assert replace(view).ready == {"one"}
    none_reached = {pod: replace(envoy, healthy={}) for pod, envoy in view.envoys.pods.items()}
    assert replace(view, envoys=GatewayStats(none_reached)).ready == frozenset()


def test_replicas_that_somebody_else_has_set_are_said() -> None:
    view = settled(endpoint("one"), "one")
    writer = {"manager": "kubectl", "time": "2026-11-26T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    view.objects[DEPLOYMENT]["one"]["metadata"]["managedFields"] = [{**writer, "subresource": "scale"}]
    view.objects[DEPLOYMENT]["one"]["spec"]["replicas"] = 3

    [warning] = replace(view).status("http://gateway", NOW).warnings

    assert warning.startswith("version 'one' has 3 replicas, as 'kubectl' at 2026-11-26T00:00:00Z has set it")


def test_a_revision_that_nobody_is_at_work_on_is_said_with_who_stored_it_and_since_when() -> None:
    two = endpoint("one", "two", revision=2)
    view = replace(view_of(two, settled(endpoint("one"), "one").rules, "one"), changed_by="weekly/run-1/shift")

    assert replace(view).status("http://gateway", NOW).warnings == ()
    [warning] = replace(view, idle_since=NOW).status("http://gateway", NOW).warnings
    assert warning == (
        "revision 2, by weekly/run-1/shift, is not served yet, and no step has been at work on it since "
        "2026-11-26 00:00:00 UTC: repeat that step, or roll back"
    )
    assert replace(settled(endpoint("one"), "one"), idle_since=NOW).status("http://gateway", NOW).warnings == ()


def test_a_served_revision_that_somebody_has_deleted_is_said_with_the_one_that_counts_now() -> None:
    view = replace(settled(endpoint("one", revision=2), "one"), endpoint=endpoint("one", revision=1))

    assert view.status("http://gateway", NOW).warnings == (
        "the router serves revision 2, and somebody has deleted its ControllerRevision: the newest that is left is 1, "
        "and the next step begins from it",
    )


def test_nobody_is_at_work_a_minute_after_the_last_step_that_waited_and_after_the_revision_was_stored() -> None:
    revision = Revision(number=1, endpoint=endpoint("one"), change=Change(who="somebody"), created=NOW)
    later, at = NOW + timedelta(minutes=5), NOW + timedelta(minutes=4, seconds=30)
    root = {"metadata": {"annotations": {WORKED_AT: at.isoformat()}}}

    assert idle_since(None, revision, NOW + timedelta(seconds=59)) is None
    assert idle_since(None, revision, later) == NOW
    assert idle_since(root, revision, later) is None
    for edited in ("", "now", "2026-11-26T00:04:30"):
        assert idle_since({"metadata": {"annotations": {WORKED_AT: edited}}}, revision, later) == NOW
    assert idle_since(root, revision, later + timedelta(minutes=5)) == at
    # A newer revision counts from its own time on.
    assert idle_since(root, revision.model_copy(update={"created": later}), later) is None


def test_a_mark_is_taken_over_once_every_envoy_serves_its_rules_or_later_ones_and_the_policy_is_enforced() -> None:
    view = settled(endpoint("one"), "one")
    assert view.managed is not None
    mark = view.managed.mark

    assert view.has_taken_over(mark)
    assert view.has_taken_over(replace(mark, step=mark.step - 1))
    assert not view.has_taken_over(replace(mark, step=mark.step + 1))
    for incomplete, reason in (
        (with_policy(view, acknowledged=False), "has not processed the newest SecurityPolicy"),
        (replace(view, envoys=GatewayStats()), "no Envoy pod is ready"),
        (replace(view, envoys=GatewayStats({**view.envoys.pods, "envoy-2": EnvoyStats()})), "not every Envoy serves"),
    ):
        assert not incomplete.has_taken_over(mark)
        assert reason in (incomplete.unconfirmed or "")


def test_a_treatment_that_could_not_be_taken_back_is_the_first_warning() -> None:
    view = replace(settled(endpoint("one"), "one"), not_taken_back="version 'two' keeps its traffic")
    assert view.status("http://gateway", NOW).warnings == ("version 'two' keeps its traffic",)
