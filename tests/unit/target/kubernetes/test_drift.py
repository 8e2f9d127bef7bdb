"""What differs from the newest revision, and who changed it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.cluster.kinds import SERVICE
from controlled_rollout.target.kubernetes.drift import (
    Drift,
    container_writers,
    exact_patch,
    other_writers,
    replicas_writer,
    targets_route,
)

AT = "2026-11-28T09:00:00Z"


def merged(found: Any, patch: Any) -> Any:
    """Return what an API server makes of a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(found) if isinstance(found, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


VALUES = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2) | st.lists(st.integers(0, 2), max_size=2),
    lambda children: st.dictionaries(st.text("abc", min_size=1, max_size=1), children, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text("abc", min_size=1, max_size=1), VALUES, max_size=3)


@given(found=OBJECTS, wanted=OBJECTS)
def test_an_object_is_put_back_to_exactly_what_is_wanted_whatever_others_have_added(
    found: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert merged(found, exact_patch(found, wanted)) == wanted


def entry(manager: str, fields: dict[str, Any], **more: str) -> dict[str, Any]:
    return {"manager": manager, "fieldsV1": fields, "time": AT, **more}


def managed(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "Service", "metadata": {"name": "digits-one", "managedFields": list(entries)}}


def test_other_writers_are_those_who_wrote_to_the_content_and_not_controllers_that_report_a_status() -> None:
    found = managed(
        entry("controlled-rollout", {"f:spec": {}}),
        entry("controlled-rollout-scale", {"f:spec": {"f:replicas": {}}}, subresource="scale"),
        entry("envoy-gateway", {"f:status": {}}, subresource="status"),
        entry("kubectl-label", {"f:metadata": {}}),
        entry("kubectl-edit", {"f:spec": {"f:selector": {}}}),
    )

    assert other_writers(found) == [f"'kubectl-edit' at {AT}"]
    assert str(Drift.edited(found)) == (
        f"Service digits-one was edited by 'kubectl-edit' at {AT}: every step puts it back"
    )


def test_an_object_that_nobody_else_wrote_to_may_be_as_an_earlier_revision_asked_for() -> None:
    assert Drift.edited(managed()).is_unattributed
    assert not Drift.edited(managed(entry("kubectl-edit", {"f:spec": {}}))).is_unattributed
    assert not Drift.missing(SERVICE, "digits-one").is_unattributed


def test_replicas_are_somebody_elses_once_a_person_or_an_autoscaler_has_set_them() -> None:
    replicas: dict[str, Any] = {"f:spec": {"f:replicas": {}}}

    assert replicas_writer(managed()) is None
    assert replicas_writer(managed(entry("controlled-rollout-scale", replicas, subresource="scale"))) is None
    by_person = managed(entry("kubectl", replicas, subresource="scale"))
    assert replicas_writer(by_person) == f"'kubectl' at {AT}"


def test_a_policy_for_our_route_or_for_one_of_its_rules_is_recognised_however_it_names_it() -> None:
    ours, other = ({"kind": "HTTPRoute", "name": name} for name in ("digits", "letters"))

    assert targets_route(
        {"spec": {"targetRefs": [other, {**ours, "sectionName": "controlled-rollout-weights"}]}}, "digits"
    )
    assert targets_route({"spec": {"targetRef": ours}}, "digits")
    assert not targets_route({"spec": {"targetRefs": [other, {**ours, "kind": "GRPCRoute"}]}}, "digits")


def test_who_sets_fields_of_containers_that_we_do_not_set_is_seen_and_who_sets_them_as_we_do_is_not() -> None:
    def template(fields: dict[str, Any]) -> dict[str, Any]:
        return {"f:spec": {"f:template": fields}}

    def model(*fields: str) -> dict[str, Any]:
        container: dict[str, Any] = {".": {}, **{f"f:{field}": {} for field in fields}}
        return template({"f:spec": {"f:containers": {'k:{"name":"model"}': container}}})

    ours = entry("controlled-rollout", model("image", "args"))
    restarted = template({"f:metadata": {"f:annotations": {"f:kubectl.kubernetes.io/restartedAt": {}}}})
    priority = template({"f:spec": {"f:priorityClassName": {}}})

    assert container_writers(managed(ours, entry("kubectl-edit", model("command")))) == [f"'kubectl-edit' at {AT}"]
    assert container_writers(managed(ours)) == []
    # Somebody has set the image, and has set it back.
    assert container_writers(managed(ours, entry("kubectl-set", model("image")))) == []
    assert container_writers(managed(ours, entry("kubectl-rollout", restarted), entry("kubectl-patch", priority))) == []
