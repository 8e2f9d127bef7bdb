"""The pod that builds images, as a value. On a real cluster: tests/cluster/test_builder_pod.py."""

import base64
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.errors import ImageError, WorkspaceError
from controlled_rollout.image import Credentials
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.pod.builder import (
    _pod_end,
    _pod_ended_at,
    _raise_if_build_failed,
    _sortable_timestamp,
)
from controlled_rollout.image.builders.pod.manifest import (
    BEGIN,
    BUILD,
    pod_manifest,
    read_pod_template,
    secret_manifest,
    secret_name_of,
)
from controlled_rollout.image.oci.registry_client import Repository

REQUEST = BuildRequest(
    repository=Repository.parse("registry.example/models/environments"),
    tag="ab" * 32,
    base_image="docker.io/library/python@sha256:" + "0" * 64,
    python=">=3.10",
    requirements=("six==1.17.0",),
    build_files={},
    credentials={"registry.example": Credentials("robot", "hunter2")},
)


def made_pod(template: dict[str, Any] | None = None) -> dict[str, Any]:
    return pod_manifest(
        REQUEST,
        context_image="registry.example/models/environments@sha256:" + "1" * 64,
        namespace="models",
        builder_image="quay.io/buildah/stable:v1.41",
        owner="dag/run/build",
        secret_name="build-environment-1",
        secret_files=["settings", "netrc"],
        template=template,
    )


def test_pod_is_named_by_the_hash() -> None:
    assert made_pod()["metadata"]["name"] == "build-environment-" + "ab" * 16
    assert len(made_pod()["metadata"]["name"]) <= 63


def test_no_secret_is_in_the_pod() -> None:
    text = json.dumps(made_pod())

    assert "hunter2" not in text
    assert "PASSWORD" not in text
    assert base64.b64encode(b"robot:hunter2").decode() not in text


def test_the_pod_has_no_privileges_on_the_node_and_no_token() -> None:
    spec = made_pod()["spec"]
    [container] = spec["containers"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SETUID", "SETGID"]}
    assert "privileged" not in json.dumps(spec)
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_an_abandoned_pod_ends_by_itself_and_is_not_restarted() -> None:
    assert made_pod()["spec"]["activeDeadlineSeconds"] == 3600
    assert made_pod()["spec"]["restartPolicy"] == "Never"


def test_the_pod_owns_its_secret() -> None:
    there = made_pod() | {"metadata": {"name": "build-environment-1", "uid": "some-uid"}}

    secret = secret_manifest(secret_name_of(there), "models", there, {"auth.json": "e30="})

    assert secret["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "build-environment-1", "uid": "some-uid"}
    ]


def test_a_template_adds_to_the_pod_and_to_its_container() -> None:
    template = {
        "metadata": {"labels": {"team": "models"}},
        "spec": {
            "nodeSelector": {"pool": "builds"},
            "tolerations": [{"key": "builds", "operator": "Exists"}],
            "containers": [
                {
                    "name": "build",
                    "resources": {"limits": {"memory": "4Gi"}},
                    "env": [{"name": "HTTPS_PROXY", "value": "p"}],
                },
                {"name": "proxy", "image": "proxy:1"},
            ],
        },
    }

    pod = made_pod(template=template)

    build, proxy = pod["spec"]["containers"]
    assert pod["metadata"]["labels"]["team"] == "models"
    assert pod["metadata"]["labels"]["controlled-rollout/builds"] == "environment"
    assert pod["spec"]["nodeSelector"] == {"pool": "builds"}
    assert pod["spec"]["tolerations"] == [{"key": "builds", "operator": "Exists"}]
    assert build["resources"] == {"limits": {"memory": "4Gi"}}
    assert build["command"] == made_pod()["spec"]["containers"][0]["command"]
    assert {variable["name"] for variable in build["env"]} > {"HTTPS_PROXY", "CONTEXT", "TARGET"}
    assert proxy["image"] == "proxy:1"


@pytest.mark.parametrize("text", ["kind: Deployment", "- a", "{"])
def test_template_that_is_not_a_pod_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pod.yaml").write_text(text)

    with pytest.raises(WorkspaceError, match=r"builder_pod_template .*pod\.yaml"):
        read_pod_template(tmp_path / "pod.yaml")


def test_a_missing_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="cannot be read"):
        read_pod_template(tmp_path / "pod.yaml")


def test_the_shell_accepts_the_scripts() -> None:
    for script in (BEGIN, BUILD):
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_log_times_sort_as_text_without_their_trailing_zeros() -> None:
    times = ["2026-01-01T00:00:00.9Z", "2026-01-01T00:00:00.10000001Z", "2026-01-01T00:00:00Z"]

    assert sorted(times, key=_sortable_timestamp) == [times[2], times[1], times[0]]


def ended_pod(code: int, *, phase: str = "Failed", reason: str = "Error") -> dict[str, Any]:
    terminated = {"exitCode": code, "reason": reason, "finishedAt": "2026-01-01T00:00:00Z"}
    return {
        "metadata": {"name": "build-environment-1"},
        "status": {"phase": phase, "containerStatuses": [{"name": "build", "state": {"terminated": terminated}}]},
    }


@pytest.mark.parametrize(
    ("pod", "lines", "message"),
    [
        (ended_pod(91), ["STEP 2/13", "error: no luck"], r"cannot be built on docker\.io/library/python.*no luck"),
        (ended_pod(91), ["Error: name unknown"], r"base image .* cannot be pulled: Error: name unknown"),
        (ended_pod(92), ["Error: denied"], "cannot be pushed to registry.example/models/environments: Error: denied"),
        (ended_pod(90), ["Error: denied"], "the pod cannot read the build's files from registry.example"),
        (ended_pod(137, reason="OOMKilled"), [], r"failed \(exit code 137 OOMKilled\)"),
        (
            {"metadata": {}, "status": {"phase": "Failed", "message": "Pod was active longer than the deadline"}},
            [],
            r"failed \(Pod was active longer than",
        ),
    ],
)
def test_a_failed_pod_is_an_error_that_says_how_it_ended(pod: dict[str, Any], lines: list[str], message: str) -> None:
    with pytest.raises(ImageError, match=f"(?s){message}"):
        _raise_if_build_failed(REQUEST, _pod_end(pod), lines)


def test_a_pod_that_succeeded_is_no_error() -> None:
    _raise_if_build_failed(REQUEST, _pod_end(ended_pod(0, phase="Succeeded", reason="Completed")), [])


def test_only_a_finished_pod_has_an_end_time() -> None:
    assert _pod_ended_at(ended_pod(0)) == datetime(2026, 1, 1, tzinfo=UTC)
    assert _pod_ended_at({"metadata": {}, "status": {"phase": "Running"}}) is None
