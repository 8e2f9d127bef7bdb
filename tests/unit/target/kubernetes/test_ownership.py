"""Objects of others that have a name which an endpoint uses: no step and no deletion changes them."""

import base64
import copy
import logging
from typing import Any, cast

import pytest

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    HTTP_ROUTE,
    POD_DISRUPTION_BUDGET,
    SECRET,
    SERVICE,
    Kind,
)
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import NameTakenError
from controlled_rollout.target.kubernetes import keys_secret, provisioning, signing_keys_secret
from controlled_rollout.target.kubernetes.names import ENDPOINT_LABEL, version_object_name
from controlled_rollout.target.kubernetes.ownership import is_own, object_names
from controlled_rollout.target.kubernetes.reconciling import delete_version_objects
from controlled_rollout.target.kubernetes.target import KubernetesTarget
from controlled_rollout.target.protocol import Change
from controlled_rollout.tokens import SigningKeys
from controlled_rollout.workspace import Workspace
from tests.unit.target.kubernetes.memory_api import MemoryApi

WORKSPACE = Workspace.from_settings({"target": "kubernetes", "gateway": "gateway/models", "namespace": "models"})
CHANGE = Change(who="a test")
IMAGE = "registry.example/model@sha256:" + "0" * 64
ENDPOINT = Endpoint(name="digits").create_version("one", image=IMAGE)
TOKENS = Endpoint(name="digits", auth=Auth.TOKEN).create_version("one", image=IMAGE)
ROOT = CONFIG_MAP.path("models", "controlled-rollout-digits")
KEYS = SECRET.path("models", "controlled-rollout-digits-keys")
ROUTE = HTTP_ROUTE.path("models", "digits")
OF_ONE = version_object_name("digits", "one")


@pytest.fixture
def server() -> MemoryApi:
    return MemoryApi.with_gateway("gateway", "models")


def target_on(server: MemoryApi) -> KubernetesTarget:
    return KubernetesTarget(WORKSPACE, cast(Api, server))


def with_foreign(server: MemoryApi, kind: Kind, name: str) -> Object:
    """Have somebody make an object of that name; return it."""
    path = kind.path("models", name)
    server.seed(path, kind.name, {"data": {"theirs": "eA=="}, "spec": {"theirs": 1}}, manager="kubectl-create")
    return copy.deepcopy(server.objects[path])


def without_labels(server: MemoryApi, path: str, *parts: str) -> None:
    """Have somebody take the labels off an object, and other parts of its metadata."""
    metadata = server.objects[path]["metadata"]
    for part in ("labels", *parts):
        metadata.pop(part, None)


@pytest.mark.parametrize(
    ("endpoint", "kind", "name"),
    [
        *((ENDPOINT, kind, name) for kind, name in [*object_names(ENDPOINT), (HTTP_ROUTE, "digits")]),
        (TOKENS, SECRET, "controlled-rollout-digits-signing-keys"),
        (ENDPOINT, CONTROLLER_REVISION, "controlled-rollout-digits-00000001"),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else getattr(value, "auth", value),
)
async def test_an_endpoint_is_refused_where_somebody_else_has_a_name_that_it_needs(
    server: MemoryApi, endpoint: Endpoint, kind: Kind, name: str
) -> None:
    theirs = with_foreign(server, kind, name)

    with pytest.raises(NameTakenError) as refused:
        await target_on(server).apply(endpoint, CHANGE)

    said = str(refused.value)
    assert f"{kind.name} {name}, and the one in namespace 'models' is not its own" in said
    assert "written by 'kubectl-create' at 2026-01-05T12:00:00Z" in said and "choose another name" in said
    assert f"kubectl label {kind.name.lower()} {name} -n models {ENDPOINT_LABEL}=digits" in said
    assert server.objects[kind.path("models", name)] == theirs
    assert await target_on(server).endpoints() == []


@pytest.mark.parametrize("endpoint", [ENDPOINT, TOKENS])
async def test_the_names_that_are_looked_at_are_those_of_all_objects_that_are_made(
    server: MemoryApi, endpoint: Endpoint
) -> None:
    await target_on(server).apply(endpoint, CHANGE)

    made = {path for path in server.objects if "/namespaces/models/" in path}
    # These have names that no other object has by accident: a number and a digest. Of the route it is asked for itself.
    apart = {path for path in made if CONTROLLER_REVISION.plural in path or "-digits-keys-" in path} - {f"{KEYS}-copy"}
    assert made - apart - {ROUTE} == {kind.path("models", name) for kind, name in object_names(endpoint)}


async def test_deleting_an_endpoint_leaves_somebody_elses_config_map_and_deletes_nothing(server: MemoryApi) -> None:
    await target_on(server).apply(ENDPOINT, CHANGE)
    del server.objects[ROOT]
    theirs = with_foreign(server, CONFIG_MAP, "controlled-rollout-digits")
    before = dict(server.objects)

    with pytest.raises(NameTakenError, match="ConfigMap controlled-rollout-digits"):
        await target_on(server).delete("digits", CHANGE)

    assert server.objects == before and server.objects[ROOT] == theirs


async def test_an_endpoint_whose_objects_have_lost_their_labels_goes_on_and_is_deleted(server: MemoryApi) -> None:
    target = target_on(server)
    stored = await target.apply(ENDPOINT, CHANGE)
    own = [kind.path("models", name) for kind, name in object_names(ENDPOINT)]
    for path in (*own, ROUTE):
        without_labels(server, path)

    assert await provisioning.find_drift(cast(Api, server), WORKSPACE, stored)
    await target.apply(stored.create_version("two", image=IMAGE), CHANGE)

    labelled = [path for path in own if (server.objects[path]["metadata"].get("labels") or {}).get(ENDPOINT_LABEL)]
    assert set(own) - set(labelled) == {path for path in own if "/secrets/" in path}, "a Secret is not found by labels"

    for path in (*own, ROUTE):
        without_labels(server, path)
    await target.delete("digits", CHANGE)
    assert [path for path in server.objects if "/namespaces/models/" in path] == []


async def test_going_back_puts_all_else_back_and_leaves_somebody_elses_objects(
    server: MemoryApi, caplog: pytest.LogCaptureFixture
) -> None:
    target = target_on(server)
    stored = await target.apply(ENDPOINT.create_version("two", image=IMAGE, traffic_percentile=0), CHANGE)
    stored = await target.apply(stored.update_version("two", traffic_percentile=10), CHANGE)
    services = SERVICE.path("models", OF_ONE), SERVICE.path("models", version_object_name("digits", "two"))
    for path in (KEYS, *services):
        del server.objects[path]
    theirs = with_foreign(server, SECRET, "controlled-rollout-digits-keys"), with_foreign(server, SERVICE, OF_ONE)

    with pytest.raises(NameTakenError, match="not its own"):
        await target.apply(stored.update_version("two", traffic_percentile=20), CHANGE)
    with caplog.at_level(logging.WARNING):
        back = await target.apply(stored.update_version("two", traffic_percentile=0), CHANGE)

    assert back.revision == stored.revision + 1
    assert (server.objects[KEYS], server.objects[services[0]]) == theirs
    assert server.objects[services[1]]["kind"] == "Service", "the others are made again"
    assert "Secret controlled-rollout-digits-keys" in caplog.text
    drift = [str(one) for one in await provisioning.find_drift(cast(Api, server), WORKSPACE, back)]
    assert any(f"Service {OF_ONE}" in one for one in drift) and any(
        f"{KEYS.rpartition('/')[2]}," in one for one in drift
    )


async def test_what_is_left_of_a_version_is_deleted_without_somebody_elses_service(server: MemoryApi) -> None:
    await target_on(server).apply(ENDPOINT, CHANGE)
    paths = {kind: kind.path("models", OF_ONE) for kind in (SERVICE, POD_DISRUPTION_BUDGET, DEPLOYMENT)}
    del server.objects[paths[SERVICE]]
    theirs = with_foreign(server, SERVICE, OF_ONE)
    without_labels(server, paths[POD_DISRUPTION_BUDGET])

    await delete_version_objects(cast(Api, server), "models", "digits", OF_ONE)

    assert [server.objects.get(path) for path in paths.values()] == [theirs, None, None]


async def test_somebody_elses_deployment_is_not_scaled(server: MemoryApi) -> None:
    await target_on(server).apply(ENDPOINT, CHANGE)
    path = DEPLOYMENT.path("models", OF_ONE)
    del server.objects[path]
    theirs = with_foreign(server, DEPLOYMENT, OF_ONE)

    with pytest.raises(NameTakenError, match=f"Deployment {OF_ONE}"):
        await target_on(server).scale("digits", "one", 5)

    assert server.objects[path] == theirs


async def test_the_keys_of_a_secret_are_the_endpoints_two_and_no_others(server: MemoryApi) -> None:
    api = cast(Api, server)
    target = target_on(server)
    stored = await target.apply(ENDPOINT, CHANGE)
    keys = await target.keys("digits")
    server.objects[KEYS]["data"]["third"] = base64.b64encode(b"let me in").decode()

    [drift] = await provisioning.find_drift(api, WORKSPACE, stored)
    assert "other entries than primary and secondary (third), and each of them lets callers in" in str(drift)
    assert "let me in" not in str(drift)
    await target.apply(stored.create_version("two", image=IMAGE), CHANGE)

    assert set(server.objects[KEYS]["data"]) == {"primary", "secondary"}
    assert await target.keys("digits") == keys
    server.objects[KEYS]["data"]["third"] = "eA=="
    assert await keys_secret.regenerate(api, "models", "digits", "primary") is not None
    assert set(server.objects[KEYS]["data"]) == {"primary", "secondary"}


async def test_keys_that_somebody_else_has_made_are_never_an_endpoints(server: MemoryApi) -> None:
    api, owner = cast(Api, server), await provisioning.apply_root(cast(Api, server), WORKSPACE, "digits")
    known = {name: base64.b64encode(text.encode()).decode() for name, text in SigningKeys.new().model_dump().items()}
    for path, data in (
        (f"{KEYS}-copy", {"primary": "eA==", "secondary": "eQ=="}),
        (SECRET.path("models", "controlled-rollout-digits-signing-keys"), known),
    ):
        server.seed(path, "Secret", {"data": data}, manager="kubectl-create")

    with pytest.raises(NameTakenError, match="keys-copy"):
        await keys_secret.restore(api, "models", "digits", owner, dry_run=False)
    with pytest.raises(NameTakenError, match="signing-keys"):
        await signing_keys_secret.restore(api, "models", "digits", owner, dry_run=False)
    with pytest.raises(NameTakenError, match="signing-keys"):
        await signing_keys_secret.read(api, "models", "digits")
    assert KEYS not in server.objects


async def test_two_endpoints_whose_secrets_would_have_one_name_are_told_so(server: MemoryApi) -> None:
    await target_on(server).apply(TOKENS, CHANGE)

    with pytest.raises(
        NameTakenError, match=r"Secret controlled-rollout-digits-signing-keys.*belongs to endpoint 'digits'"
    ):
        await target_on(server).apply(ENDPOINT.model_copy(update={"name": "digits-signing"}), CHANGE)


OURS: dict[str, Any] = {"manager": "controlled-rollout", "fieldsV1": {"f:data": {}}}
NOTE: dict[str, Any] = {"manager": "controlled-rollout-waits", "fieldsV1": {"f:metadata": {}}}
LABELS: dict[str, Any] = {"manager": "controlled-rollout", "fieldsV1": {"f:metadata": {}}}
OWNER: dict[str, Any] = {"kind": "ConfigMap", "name": "controlled-rollout-digits", "uid": "restored from a backup"}


@pytest.mark.parametrize(
    ("metadata", "is_ours"),
    [
        ({"labels": {ENDPOINT_LABEL: "digits"}}, True),
        ({"ownerReferences": [OWNER], "labels": {ENDPOINT_LABEL: "somebody has edited it"}}, True),
        ({"managedFields": [OURS]}, True),
        ({"managedFields": [OURS], "labels": {ENDPOINT_LABEL: "somebody has edited it"}}, True),
        ({}, False),
        ({"managedFields": [NOTE, LABELS]}, False),
        ({"managedFields": [OURS], "ownerReferences": [{**OWNER, "name": "controlled-rollout-other"}]}, False),
        ({"ownerReferences": [{**OWNER, "kind": "Deployment"}]}, False),
        ({"labels": {"app.kubernetes.io/managed-by": "controlled-rollout", ENDPOINT_LABEL: "other"}}, False),
    ],
)
def test_any_one_mark_makes_an_object_an_endpoints_own(metadata: dict[str, Any], is_ours: bool) -> None:
    assert is_own({"kind": "Secret", "metadata": metadata}, "digits") is is_ours


def test_a_route_that_only_rules_of_others_are_left_in_is_no_endpoints() -> None:
    route = {"kind": "HTTPRoute", "metadata": {"managedFields": [{**OURS, "fieldsV1": {"f:spec": {}}}]}}
    assert not is_own({**route, "spec": {"rules": [{"name": "theirs"}]}}, "digits")
