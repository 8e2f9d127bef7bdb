"""The collector beside a version that collects, on Kubernetes."""

import json
from typing import Any

from controlled_rollout.cluster.pods import pod_problem
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import manifests
from controlled_rollout.workspace import Workspace

OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "root", "uid": "1"}}
IMAGE = "registry.example/digits@sha256:" + "0" * 64
COLLECTOR = "registry.example/collector@sha256:" + "1" * 64
SALTED = {"hash": ["user"], "salt": {"secret": "salts", "key": "users"}, "share": 0.5}


def template(*, collect: bool = True, collection: dict[str, Any] | None = None, **settings: str) -> dict[str, Any]:
    workspace = Workspace.from_settings(
        {
            "target": "kubernetes",
            "gateway": "edge/public",
            "storage": "https://account.blob.core.windows.net/data/models",
            "collector_image": COLLECTOR,
            **settings,
        }
    )
    endpoint = Endpoint(name="digits").create_version(
        "one", image=IMAGE, collect_model_data=collect, collection=collection
    )
    manifest = manifests.deployment(endpoint, endpoint.versions["one"], workspace, owner=OWNER)
    made: dict[str, Any] = manifest["spec"]["template"]
    return made


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


def mounted(container: dict[str, Any]) -> set[str]:
    return {mount["name"] for mount in container["volumeMounts"]}


def test_a_version_that_does_not_collect_has_no_collector_and_captures_nothing() -> None:
    pod = template(collect=False)["spec"]

    assert "initContainers" not in pod
    assert not [name for name in variables(pod["containers"][0]) if name.startswith("CAPTURE_")]


def test_the_collector_is_a_sidecar_that_shares_only_the_spool_with_the_model() -> None:
    pod = template(collector_secret="storage")["spec"]
    [model], [collector] = pod["containers"], pod["initContainers"]

    assert collector["restartPolicy"] == "Always"
    assert collector["image"] == COLLECTOR
    assert mounted(model) & mounted(collector) == {"spool"}
    assert variables(model)["CAPTURE_REPLICA"] == variables(collector)["COLLECTOR_REPLICA"]
    assert not [name for name in variables(model) if name.startswith(("AZURE_", "COLLECTOR_"))]
    assert "storage-credential" in mounted(collector)
    assert collector["securityContext"] == model["securityContext"]
    # The credential is read from a file: environment variables are in a pod's description.
    assert all(name.endswith("_FILE") for name in variables(collector) if name.startswith("AZURE_"))


def test_the_pod_waits_for_what_the_collector_still_ships() -> None:
    without, with_collector = template(collect=False)["spec"], template()["spec"]

    assert with_collector["terminationGracePeriodSeconds"] == without["terminationGracePeriodSeconds"] + 20


def test_the_salt_and_the_rules_of_columns_are_the_collectors_alone() -> None:
    pod = template(collection=SALTED | {"mask": ["$(HOME)"]})["spec"]
    [model], [collector] = pod["containers"], pod["initContainers"]

    assert "salt" in mounted(collector) - mounted(model)
    [salt] = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "salt"]
    assert salt["items"] == [{"key": "users", "path": "users"}]
    settings = json.loads(variables(collector)["COLLECTOR_SPOOL"].replace("$$", "$"))
    assert settings["hash"] == ["user"]
    assert settings["mask"] == ["$(HOME)"]
    assert "user" not in json.dumps(model["env"])
    assert variables(model)["CAPTURE_SHARE"] == "0.5"


def test_the_identity_of_a_service_account_is_handed_to_the_collector_alone() -> None:
    made = template(collector_service_account="collector")

    assert made["spec"]["serviceAccountName"] == "collector"
    assert made["spec"]["automountServiceAccountToken"] is False
    assert made["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    assert made["metadata"]["annotations"] == {"azure.workload.identity/skip-containers": "model"}
    assert "annotations" not in template()["metadata"]


def test_a_pod_says_that_its_collector_keeps_it_from_starting() -> None:
    refused = {"reason": "ErrImagePull", "message": "not found"}
    pod = {
        "metadata": {"name": "digits-one-1"},
        "spec": {"initContainers": [{"name": "collector", "restartPolicy": "Always"}]},
        "status": {
            "containerStatuses": [{"name": "model", "state": {"waiting": {"reason": "PodInitializing"}}}],
            "initContainerStatuses": [{"name": "collector", "image": COLLECTOR, "state": {"waiting": refused}}],
        },
    }

    problem = pod_problem(pod, None)

    assert problem is not None
    assert problem.message == f"pod digits-one-1 cannot pull its image {COLLECTOR}: not found"
