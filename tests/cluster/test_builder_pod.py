"""Environment images built in the cluster: by a pod, with no right on the node, of files that lie in the registry."""

import asyncio
import hashlib
import http.client
import io
import json
import os
import signal
import sys
import tarfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.errors import AccessError, ImageError
from controlled_rollout.image import Credentials, Environment, ImageReference, build_image
from controlled_rollout.image.builders.pod.manifest import SELECTOR
from controlled_rollout.target.kubernetes.names import VERSION_LABEL
from controlled_rollout.target.kubernetes.permissions import builder_as_yaml
from controlled_rollout.workspace import Workspace
from tests.archives import read_file
from tests.cluster.lab import Lab, LabError
from tests.cluster.lab.builder_image import builder_image
from tests.cluster.lab.images import base_image
from tests.cluster.sandbox import ACCOUNT, Sandbox, fresh_namespace
from tests.cluster.scoring_images import project
from tests.polling import until
from tests.registry.conftest import HTPASSWD
from tests.registry.real_registry import MANIFEST, serving

DEADLINE_S = 240
PASSWORD = "hunter2"
BASIC = b64encode(b"robot:hunter2").decode()
# The lab's registry listens on the node's loopback only.
TEMPLATE = """
apiVersion: v1
kind: Pod
metadata:
  labels:
    team: models
spec:
  hostNetwork: true
  containers:
    - name: build
      resources:
        requests: {cpu: 50m}
"""


@dataclass(frozen=True)
class Builds:
    """The namespace in which pods build."""

    lab: Lab
    namespace: str

    def kubectl(self, *arguments: str) -> str:
        return self.lab.kubectl("--namespace", self.namespace, *arguments)

    def pods(self) -> list[dict[str, Any]]:
        return list(json.loads(self.kubectl("get", "pods", "--selector", SELECTOR, "-o=json"))["items"])

    def secrets(self) -> list[str]:
        return self.kubectl("get", "secrets", "--selector", SELECTOR, "-o=name").split()


@pytest.fixture
def builds(lab: Lab) -> Iterator[Builds]:
    with fresh_namespace(lab) as namespace:
        yield Builds(lab, namespace)


@pytest.fixture
def workspace(lab: Lab, sandbox: Sandbox, builds: Builds, tmp_path: Path) -> Workspace:
    """A workspace that builds in its cluster, signed in with exactly the shipped Roles."""
    lab.kubectl("apply", "-f", "-", input=builder_as_yaml(builds.namespace, ACCOUNT, sandbox.namespace))
    template = tmp_path / "pod.yaml"
    template.write_text(TEMPLATE)
    return sandbox.workspace.model_copy(
        update={
            "registry": f"{lab.registry}/{sandbox.namespace}",
            "base_image": base_image(lab.registry),
            "builder": "kubernetes",
            "builder_image": builder_image(lab.registry),
            "builder_namespace": builds.namespace,
            "builder_pod_template": template,
        }
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return project("steady", tmp_path / "source", version="pod")


def environment(*requirements: str) -> Environment:
    return Environment(requirements=requirements)


async def build(workspace: Workspace, source: Path, progress_lines: list[str], **more: Any) -> ImageReference:
    return await build_image(
        workspace, source, name="pod", owner=more.pop("owner", "a test"), progress=progress_lines.append, **more
    )


async def until_secrets_are_gone(builds: Builds) -> None:
    async def are_gone() -> bool:
        return not await asyncio.to_thread(builds.secrets)

    await until(are_gone, "the Secret goes with its pod", timeout_s=DEADLINE_S, interval_s=0.5)


def read(lab: Lab, path: str) -> bytes:
    with closing(http.client.HTTPConnection(lab.registry, timeout=30)) as connection:
        connection.request("GET", f"/v2/{path}", headers={"Accept": MANIFEST})
        with connection.getresponse() as answer:
            return answer.read()


def tags(lab: Lab, sandbox: Sandbox) -> list[str]:
    return list(json.loads(read(lab, f"{sandbox.namespace}/environments/tags/list")).get("tags") or [])


def installed(lab: Lab, repository: str, tag: str) -> list[tuple[Any, ...]]:
    """Return every entry of an environment image's own layer, but for what buildah before 1.35 adds in a pod."""
    manifest = json.loads(read(lab, f"{repository}/environments/manifests/{tag}"))
    layer = read(lab, f"{repository}/environments/blobs/{manifest['layers'][-1]['digest']}")
    entries = []
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for entry in archive:
            attributes = {name for name in entry.pax_headers if ".user.overlay." not in name}
            content = read_file(archive, entry) if entry.isreg() else entry.linkname.encode()
            digest = hashlib.sha256(content).hexdigest()
            entries.append((entry.name, entry.type, entry.mode, entry.uid, entry.gid, entry.mtime, digest, attributes))
    return entries


@pytest.mark.timeout(900)
async def test_concurrent_builds_share_one_pod_and_the_image_equals_that_of_a_worker(
    lab: Lab, sandbox: Sandbox, builds: Builds, workspace: Workspace, source: Path
) -> None:
    progress_lines: tuple[list[str], list[str]] = ([], [])

    reference, same = await asyncio.gather(
        *(build(workspace, source, lines, owner=f"run {at}") for at, lines in enumerate(progress_lines))
    )
    sandbox.workspace = workspace
    await sandbox.deploy("one", str(reference))

    assert reference == same
    assert sum("in pod build-environment-" in line for lines in progress_lines for line in lines) == 1
    assert sum("is building it, waiting" in line for lines in progress_lines for line in lines) == 1
    assert any("STEP 2/" in line for lines in progress_lines for line in lines), "the build's log is the task's"
    assert builds.pods() == []
    await until_secrets_are_gone(builds)
    # A worker has built the same environment for the other tests.
    [tag] = tags(lab, sandbox)
    assert installed(lab, sandbox.namespace, tag) == installed(lab, "models", tag)
    answer = await scored(sandbox)
    assert answer["version"] == "pod"
    # What the replica itself says of who it is, and of its root file system.
    [replica] = json.loads(sandbox.kubectl("get", "pods", "--selector", f"{VERSION_LABEL}=one", "-o=json"))["items"]
    assert replica["spec"]["containers"][0]["image"] == str(reference), "deployed by its digest"
    assert sandbox.kubectl("exec", replica["metadata"]["name"], "--", "id", "-u").strip() == "10001"
    with pytest.raises(LabError, match="Read-only file system"):
        sandbox.kubectl("exec", replica["metadata"]["name"], "--", "touch", "/opt/app/written")


async def scored(sandbox: Sandbox) -> dict[str, Any]:
    import httpx

    headers = {"Authorization": f"Bearer {await sandbox.key()}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
        answer = await client.post(sandbox.url, json={"data": [1]})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.timeout(600)
async def test_pod_uses_the_credentials_of_the_task_from_its_secret_only(
    sandbox: Sandbox, builds: Builds, workspace: Workspace, source: Path, tmp_path: Path
) -> None:
    progress_lines: list[str] = []
    pod_documents: list[str] = []
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}}
    with serving(tmp_path / "registry", auth=auth) as registry:
        there = workspace.model_copy(update={"registry": f"{registry.address}/models"})
        users = {registry.address: Credentials("robot", PASSWORD)}

        task = asyncio.create_task(build(there, source, progress_lines, credentials=users))
        while not task.done():
            pod_documents.append(
                await asyncio.to_thread(builds.kubectl, "get", "pods", "--selector", SELECTOR, "-o=yaml")
            )
            await asyncio.wait([task], timeout=1)
        reference = await task

        assert reference.name == f"{registry.address}/models/pod"
        assert len(registry.tags("models/environments")) == 1
    assert any("build-environment-" in text for text in pod_documents)
    assert not any(secret in text for text in (*pod_documents, *progress_lines) for secret in (PASSWORD, BASIC))


@pytest.mark.timeout(600)
async def test_a_cancelled_build_ends_its_pod_and_leaves_no_tag(
    lab: Lab, sandbox: Sandbox, builds: Builds, workspace: Workspace, source: Path
) -> None:
    progress_lines: list[str] = []
    task = asyncio.create_task(build(workspace, source, progress_lines, environment=environment("six==1.16.0")))
    await until(
        lambda: any("Resolved" in line or "STEP 6" in line for line in progress_lines) or task.done(),
        "the build is at work",
        timeout_s=DEADLINE_S,
    )
    assert not task.done(), progress_lines

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert builds.pods() == []
    await until_secrets_are_gone(builds)
    assert tags(lab, sandbox) == []


KILLED = """
import asyncio, pathlib, sys
from controlled_rollout.image import Environment, build_image
from controlled_rollout.workspace import Workspace

workspace = Workspace.model_validate_json(sys.argv[1])
image_environment = Environment(requirements=("six==1.15.0",))
say = lambda line: print(line, flush=True)
call = build_image(
    workspace, sys.argv[2], name="pod", environment=image_environment, owner="dag/run/build", progress=say
)
asyncio.run(call)
"""


@pytest.mark.timeout(600)
async def test_retry_continues_with_the_pod_of_a_killed_build_and_removes_it(
    sandbox: Sandbox, builds: Builds, workspace: Workspace, source: Path, tmp_path: Path
) -> None:
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", KILLED, workspace.model_dump_json(), str(source)),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert killed.stdout is not None
    async for line in killed.stdout:
        if b"STEP 1/" in line:
            killed.send_signal(signal.SIGKILL)
    await killed.wait()
    [pod] = builds.pods()

    progress_lines: list[str] = []
    await build(workspace, source, progress_lines, environment=environment("six==1.15.0"), owner="dag/run/build")

    assert any(f"pod {pod['metadata']['name']} is building it, waiting" in line for line in progress_lines)
    assert any("STEP 1/" in line for line in progress_lines), "its log is read from the beginning"
    assert builds.pods() == []


@pytest.mark.timeout(600)
async def test_requirements_that_cannot_be_installed_are_an_error_as_on_a_worker(
    lab: Lab, sandbox: Sandbox, builds: Builds, workspace: Workspace, source: Path
) -> None:
    with pytest.raises(ImageError, match=r"(?s)\(six==0\.0\.0\.1\) cannot be installed on .*no version of six"):
        await build(workspace, source, [], environment=environment("six==0.0.0.1"))

    assert builds.pods() == []
    assert tags(lab, sandbox) == []


async def test_a_missing_builder_image_is_an_error(
    sandbox: Sandbox, builds: Builds, workspace: Workspace, source: Path
) -> None:
    wrong = workspace.model_copy(update={"builder_image": f"{sandbox.lab.registry}/lab/missing:1"})

    with pytest.raises(ImageError, match=r"cannot be built in the cluster: pod .* cannot pull its image .*missing:1"):
        await build(wrong, source, [], environment=environment("six==1.14.0"))

    assert builds.pods() == []


@pytest.fixture
def without_pods(builds: Builds, workspace: Workspace) -> Iterator[None]:
    """The shipped Role without the part for builders."""
    builds.kubectl("delete", "role,rolebinding", f"{ACCOUNT}-builder")
    yield


async def test_without_the_builders_role_the_error_names_what_is_missing(
    sandbox: Sandbox, workspace: Workspace, without_pods: None, source: Path
) -> None:
    with pytest.raises(AccessError, match=r"403 .* pods .*docs/aks\.md"):
        await build(workspace, source, [], environment=environment("six==1.13.0"))
