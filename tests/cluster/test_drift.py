"""What others delete or edit among an endpoint's objects: the next step remakes it, or refuses and says so."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from controlled_rollout.cluster.api import Api
from controlled_rollout.errors import ConflictError, ControlledRolloutError, TargetUnavailableError
from controlled_rollout.evaluation.look import look
from controlled_rollout.gate import Gate
from controlled_rollout.target.kubernetes.names import ENDPOINT_LABEL, endpoint_object_name, version_object_name
from tests.cluster.sandbox import SMALL, Sandbox
from tests.local.local_target_lab import steady_load
from tests.polling import until

RATE = 40.0


async def warnings_of(sandbox: Sandbox) -> str:
    return "\n".join((await sandbox.target.status(sandbox.endpoint)).warnings)


async def is_refused(sandbox: Sandbox) -> bool:
    async with httpx.AsyncClient() as caller:
        return (await caller.post(sandbox.url, json={})).status_code == 403


async def requests_of_a_look(sandbox: Sandbox) -> list[str]:
    """Return the methods of the requests that a look sends to the API server."""
    methods: list[str] = []
    send = Api.request

    async def count(self: Api, method: str, *args: Any, **kwargs: Any) -> bytes:
        methods.append(method)
        return await send(self, method, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Api, "request", count)
        await look(sandbox.workspace, sandbox.target, sandbox.endpoint, "two", gate=Gate(), who="a test")
    return methods


def patch(sandbox: Sandbox, kind: str, name: str, body: dict[str, Any]) -> None:
    sandbox.kubectl("patch", kind, name, "--type=merge", "--field-manager=somebody", "-p", json.dumps(body))


def spec(sandbox: Sandbox, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sandbox.kubectl("get", kind, name, "-o", "json"))["spec"]
    return found


def metadata(sandbox: Sandbox, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sandbox.kubectl("get", kind, name, "-o", "json"))["metadata"]
    return found


def autoscale(sandbox: Sandbox, version: str, *, least: int) -> str:
    """Have an autoscaler scale a version to at least so many replicas; return the name of its Deployment."""
    name = version_object_name(sandbox.endpoint, version)
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": least,
            "maxReplicas": least + 1,
        },
    }
    sandbox.kubectl("create", "-f", "-", input=json.dumps(autoscaler))
    return name


async def test_objects_that_somebody_deletes_are_said_in_status_and_remade_by_the_next_step(sandbox: Sandbox) -> None:
    await sandbox.deploy("one", num_replicas=2)
    await sandbox.deploy("two")
    name, service = endpoint_object_name(sandbox.endpoint), version_object_name(sandbox.endpoint, "one")
    # The copy must not bring back a key that was replaced.
    keys = await sandbox.target.regenerate_key(sandbox.endpoint, "secondary")

    async with steady_load(sandbox.url, keys.primary, rate=RATE) as load:
        await load.more(50)
        # Without its policy the endpoint is closed at once, and the next step opens it for good.
        sandbox.kubectl("delete", "securitypolicy,backendtrafficpolicy,httproutefilter", "--all")
        await until(lambda: is_refused(sandbox), "the Gateway refuses callers of a route that has no policy")
        said = await warnings_of(sandbox)
        await sandbox.shift("two", 10)
        failed_until_then = load.failed
        await load.more(50)
        assert set(failed_until_then) == {"403"}
        assert load.failed == failed_until_then, load.refusals

        sandbox.kubectl("delete", "secret", f"{name}-keys")
        sandbox.kubectl("delete", "service", service)
        said += await warnings_of(sandbox)
        await sandbox.shift("two", 20)
        failed_until_then = load.failed
        await load.more(50)
        assert load.failed == failed_until_then, load.refusals
        sandbox.kubectl("delete", "deployment", service)
        said += await warnings_of(sandbox)
        await sandbox.roll_back("two", "to see that control is remade")

        async def is_ready() -> bool:
            return (await sandbox.target.status(sandbox.endpoint)).versions["one"].ready

        await until(is_ready, "control has its replicas again", timeout_s=60, interval_s=0.5)

        # The rest, each of which a roll-back makes again too.
        lost = ("networkpolicy", name), ("poddisruptionbudget", service), ("secret", f"{name}-keys-copy")
        for kind, of in (*lost, ("httproute", sandbox.endpoint)):
            sandbox.kubectl("delete", kind, of)
        said += await warnings_of(sandbox)
        await sandbox.roll_back("two", "to see that the rest is remade")
        assert all(metadata(sandbox, kind, of)["ownerReferences"] for kind, of in lost)
        failed_until_then = load.failed
        await load.more(50)
        assert load.failed == failed_until_then, load.refusals

    assert "so that nobody is asked for a key" in said
    for missing in (
        f"HTTPRoute {sandbox.endpoint}",
        f"NetworkPolicy {name}",
        f"PodDisruptionBudget {service}",
        f"SecurityPolicy {name}",
        f"BackendTrafficPolicy {name}",
        f"Service {service}",
        f"Deployment {service}",
    ):
        assert f"{missing} does not exist" in said
    assert "every step restores the keys from their copy; callers keep theirs" in said
    assert await sandbox.target.keys(sandbox.endpoint) == keys
    assert await warnings_of(sandbox) == ""


async def test_objects_that_somebody_edits_are_put_back_and_an_edited_deployment_is_refused_but_not_to_a_roll_back(
    sandbox: Sandbox,
) -> None:
    await sandbox.deploy("one")
    control = autoscale(sandbox, "one", least=2)
    await sandbox.deploy("two")
    await sandbox.shift("two", 10)
    name, service = endpoint_object_name(sandbox.endpoint), version_object_name(sandbox.endpoint, "two")
    policies = {kind: spec(sandbox, kind, name) for kind in ("securitypolicy", "backendtrafficpolicy")}
    patch(sandbox, "securitypolicy", name, {"spec": {"cors": {"allowOrigins": ["https://evil.example"]}}})
    patch(sandbox, "backendtrafficpolicy", name, {"spec": {"retry": {"numRetries": 9}, "useClientProtocol": True}})
    patch(sandbox, "service", service, {"spec": {"selector": {"track": "canary"}}})
    for kind, of in (("httproute", sandbox.endpoint), ("deployment", service)):
        patch(sandbox, kind, of, {"metadata": {"labels": {ENDPOINT_LABEL: None}}})
    said = await warnings_of(sandbox)
    await until(
        lambda: spec(sandbox, "deployment", control)["replicas"] == 2, "control is scaled", timeout_s=60, interval_s=1
    )
    generation = metadata(sandbox, "deployment", control)["generation"]

    await sandbox.shift("two", 20)

    for kind in ("SecurityPolicy", "BackendTrafficPolicy", "Service"):
        assert f"{kind} {name if kind != 'Service' else service} was edited by 'somebody' at " in said
    assert f"Deployment {service} has other labels than its version's: every step puts them back" in said
    assert {kind: spec(sandbox, kind, name) for kind in policies} == policies
    assert "track" not in spec(sandbox, "service", service)["selector"]
    by_autoscaler = r"version 'one' has 2 replicas, as 'kube-controller-manager' .* ask for 1: no step sets it back"
    assert re.fullmatch(by_autoscaler, await warnings_of(sandbox))

    # A look asks for none of this: the lists that a view is made of, history, Gateway, and the counters of each Envoy.
    assert set(methods := await requests_of_a_look(sandbox)) == {"GET"} and len(methods) <= 20

    container: dict[str, Any] = {"name": "model", "env": [{"name": "MAX_REQUEST_WAIT_TIME_MS", "value": "4000"}]}
    edit = {"spec": {"template": {"spec": {"containers": [container]}}}}
    sandbox.kubectl("patch", "deployment", service, "--field-manager=somebody", "-p", json.dumps(edit))
    edit_rules = [{"op": "replace", "path": "/spec/rules/0/timeouts/request", "value": "1s"}]
    with pytest.raises(
        ConflictError, match=rf"Deployment {service} was edited by 'somebody' .*env.*nothing was changed now"
    ):
        await sandbox.shift("two", 30)
    sandbox.kubectl("patch", "httproute", sandbox.endpoint, "--type=json", "-p", json.dumps(edit_rules))
    with pytest.raises(TargetUnavailableError, match=r"primary key .* is stored, but .* has changed the route last"):
        await sandbox.target.regenerate_key(sandbox.endpoint, "primary")
    assert await sandbox.roll_back("two", "going back waits for nobody")

    status = await sandbox.target.status(sandbox.endpoint)
    found = (status.trouble, status.weight_ppm, status.versions["one"].wanted_replicas)
    assert found == (None, {"one": 1_000_000}, 2)
    # Nobody has set it since, neither a step nor the autoscaler after one: they do not fight over it.
    assert metadata(sandbox, "deployment", control)["generation"] == generation
    environment = spec(sandbox, "deployment", service)["template"]["spec"]["containers"][0]["env"]
    assert {"name": "MAX_REQUEST_WAIT_TIME_MS", "value": "4000"} in environment
    assert f"Deployment {service} was edited by 'somebody'" in await warnings_of(sandbox)
    # A field that we do not set, and ours as we have it.
    container["env"] = [{"name": "MAX_REQUEST_WAIT_TIME_MS", "value": str(SMALL["max_request_wait_time"])}]
    for more, is_edited in (({"workingDir": "/"}, True), ({"workingDir": None}, False)):
        edit = {"spec": {"template": {"spec": {"containers": [{**container, **more}]}}}}
        sandbox.kubectl("patch", "deployment", service, "--field-manager=somebody", "-p", json.dumps(edit))
        assert (f"Deployment {service} was edited" in await warnings_of(sandbox)) is is_edited


async def test_a_route_of_another_namespace_that_takes_all_callers_is_said_and_refused_but_not_to_a_roll_back(
    sandbox: Sandbox, second_sandbox: Sandbox
) -> None:
    await sandbox.deploy("one")
    await sandbox.deploy("two")
    await sandbox.shift("two", 10)
    assert "not yet seen by traffic" in "".join(sandbox.progress_lines)
    namespace, name = sandbox.lab.gateway.split("/")
    path = f"/api/v1/service/{sandbox.endpoint}/score"
    thief = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "thief"},
        "spec": {
            "parentRefs": [{"namespace": namespace, "name": name}],
            "rules": [{"matches": [{"path": {"type": "Exact", "value": path}}]}],
        },
    }
    second_sandbox.kubectl("create", "-f", "-", input=json.dumps(thief))
    taken = f"HTTPRoute {second_sandbox.namespace}/thief takes requests to {path}"

    assert taken in ((await sandbox.target.status(sandbox.endpoint)).trouble or "")
    for step in (sandbox.shift("two", 20), sandbox.promote("two")):
        with pytest.raises(ConflictError, match=f"no split .* reaches its callers: {taken}"):
            await step
    await sandbox.roll_back("two", "going back waits for nobody")
    second_sandbox.kubectl("delete", "httproute", "thief")
    # Host names of our own route that leave the callers' out take them away as well.
    patch(sandbox, "httproute", sandbox.endpoint, {"spec": {"hostnames": ["elsewhere.example"]}})
    assert "is for requests to elsewhere.example only" in (
        (await sandbox.target.status(sandbox.endpoint)).trouble or ""
    )
    with pytest.raises(ConflictError, match=r"no split .* reaches its callers: .* elsewhere"):
        await sandbox.shift("two", 20)
    patch(sandbox, "httproute", sandbox.endpoint, {"spec": {"hostnames": None}})
    await sandbox.shift("two", 20)

    status = await sandbox.target.status(sandbox.endpoint)
    assert (status.trouble, status.weight_ppm) == (None, {"one": 800_000, "two": 200_000})


async def test_of_two_new_endpoints_of_one_name_at_once_exactly_one_is_told_that_it_lost(
    sandbox: Sandbox, second_sandbox: Sandbox
) -> None:
    second_sandbox.endpoint = sandbox.endpoint

    results = await asyncio.gather(sandbox.deploy("one"), second_sandbox.deploy("one"), return_exceptions=True)

    [lost] = [result for result in results if isinstance(result, BaseException)]
    assert isinstance(lost, ControlledRolloutError)
    assert sandbox.endpoint in str(lost)
    winner = second_sandbox if results[0] is lost else sandbox
    assert (await winner.target.status(sandbox.endpoint)).trouble is None
