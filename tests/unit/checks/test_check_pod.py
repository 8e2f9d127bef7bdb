"""The pod that checks the network as a version's pods see it. On a real cluster: tests/cluster/test_check_pod.py."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.checks.check_pod import _probes_of, _why_not, check_pod
from controlled_rollout.checks.probe import Destination
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.target.kubernetes.manifests import deployment, service
from controlled_rollout.target.kubernetes.names import replica_selector, version_labels
from controlled_rollout.workspace import Workspace

IMAGE = "registry.example/models/digits@sha256:" + "0" * 64
OWNER = {"metadata": {"name": "controlled-rollout-digits", "uid": "1"}}
SETTINGS: dict[str, Any] = {
    "node_selector": {"pool": "models"},
    "tolerations": [{"key": "models", "operator": "Exists"}],
    "collect_model_data": True,
    "environment_variables": {"HTTPS_PROXY": "http://proxy.example:3128", "no_proxy": "a.example", "TOKEN": "geheim"},
}


def pod_for(folder: Path, destination: Destination, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pod of a check, and the template of the version's own pods."""
    workspace = Workspace.from_settings(
        {
            "root": str(folder),
            "target": "kubernetes",
            "gateway": "gateway/models",
            "namespace": "models",
            "image_pull_secret": "registry",
            "storage": "https://team.blob.core.windows.net/data/ml",
            "collector_image": IMAGE,
            "collector_service_account": "collector",
            **settings,
        }
    )
    endpoint = Endpoint(name="digits").create_version("one", image=IMAGE, **SETTINGS)
    version = endpoint.version("one")
    pod = check_pod(endpoint, version, workspace, [destination], owner=OWNER, seconds=6)
    return pod, deployment(endpoint, version, workspace, owner=OWNER)["spec"]["template"]


def test_pod_has_the_network_identity_of_the_versions_own_pods(tmp_path: Path) -> None:
    pod, template = pod_for(tmp_path, Destination("one", "a.example", 443))

    assert template["metadata"]["labels"].items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["namespace"] == "models"
    for field in ("serviceAccountName", "nodeSelector", "tolerations", "imagePullSecrets"):
        assert pod["spec"][field] == template["spec"][field]
    [container] = pod["spec"]["containers"]
    assert container["image"] == IMAGE
    assert {each["name"]: each["value"] for each in container["env"]} == {
        "HTTPS_PROXY": "http://proxy.example:3128",
        "no_proxy": "a.example",
    }
    assert "geheim" not in json.dumps(pod)


def test_a_whole_bundle_of_authorities_is_a_file_and_no_argument(tmp_path: Path) -> None:
    bundle = "-----BEGIN CERTIFICATE-----\n" + 150_000 * "A"
    wanted = Destination("endpoints", "models.example", 443, authorities=bundle)

    pod, _ = pod_for(tmp_path, wanted, collector_secret="storage")

    [container] = pod["spec"]["containers"]
    asked = json.loads(container["command"][-1])["destinations"][0]
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "trusted"]
    [volume] = [each for each in pod["spec"]["volumes"] if each["name"] == "trusted"]
    [item] = volume["downwardAPI"]["items"]
    assert (asked["authorities"], asked["authorities_file"]) == ("", f"{mount['mountPath']}/{item['path']}")
    name = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
    assert pod["metadata"]["annotations"][name] == bundle
    assert sum(map(len, container["command"])) < 100_000
    with pytest.raises(WorkspaceError, match="write only the authority of"):
        pod_for(tmp_path, replace(wanted, authorities=2 * bundle))


def test_nobody_takes_the_pod_for_a_replica(tmp_path: Path) -> None:
    pod, _ = pod_for(tmp_path, Destination("one", "a.example", 443))

    # The Service selects it, and sends nothing to a pod that is not ready.
    selected = service("digits", "one", namespace="models", owner=OWNER)["spec"]["selector"]
    assert selected.items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["readinessGates"] == [{"conditionType": "controlled-rollout/never-ready"}]
    assert pod["metadata"]["labels"]["controlled-rollout/check"] == "true"
    assert replica_selector(version_labels("digits", "one")).endswith(",!controlled-rollout/check")


def test_pod_has_no_rights_and_little_of_the_node_and_ends_by_itself(tmp_path: Path) -> None:
    pod, _ = pod_for(tmp_path, Destination("one", "a.example", 443))
    spec = pod["spec"]
    [container] = spec["containers"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": "128Mi"}
    assert (spec["automountServiceAccountToken"], spec["restartPolicy"]) == (False, "Never")
    assert spec["activeDeadlineSeconds"] == 76
    assert pod["metadata"]["ownerReferences"][0]["name"] == "controlled-rollout-digits"


def test_pod_gets_the_storages_authority_and_no_key_of_its_secret(tmp_path: Path) -> None:
    pod, _ = pod_for(
        tmp_path, Destination("one", "a.example", 443), collector_service_account=None, collector_secret="storage"
    )

    [volume] = pod["spec"]["volumes"]
    assert volume["secret"] == {
        "secretName": "storage", "items": [{"key": "ca.crt", "path": "ca.crt"}], "optional": True,
    }  # fmt: skip


def test_kubernetes_replaces_nothing_in_what_is_asked(tmp_path: Path) -> None:
    pod, _ = pod_for(tmp_path, Destination("one", "a.example", 443, path="/$(TOKEN)"))

    *_, asked = pod["spec"]["containers"][0]["command"]
    assert "/$$(TOKEN)" in asked


def test_log_without_a_result_says_what_it_holds() -> None:
    [found] = _probes_of('noise\n[{"name": "one", "host": "a", "port": 1, "passed": ["DNS"], "addresses": ["::1"]}]\n')
    assert (found.passed, found.addresses) == (("DNS",), ("::1",))
    for log in ("", "exec python3: not found", '{"a": 1}', "[1]"):
        with pytest.raises(TargetUnavailableError, match="has written no result"):
            _probes_of(log)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"phase": "Pending"}, "did not start: see its events"),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "message": "no node matches"}],
            },
            "cannot be scheduled: no node matches",
        ),
        (
            {
                "phase": "Failed",
                "containerStatuses": [
                    {"name": "model", "state": {"terminated": {"exitCode": 127, "message": "one\npython3: not found"}}}
                ],
            },
            "exited with code 127: python3: not found",
        ),
        ({"phase": "Failed", "message": "Pod was active on the node longer than the deadline"}, "deadline"),
        ({"phase": "Running"}, "did not end in time (Running)"),
    ],
)
def test_pod_that_does_not_come_to_its_end_says_why(status: dict[str, Any], words: str) -> None:
    assert words in _why_not({"metadata": {"name": "check"}, "status": status})
