"""A sandbox of a test: a namespace with exactly the shipped Role, and a workspace that uses it as Airflow would."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlled_rollout import steps
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.target.kubernetes.permissions import as_yaml
from controlled_rollout.target.kubernetes.target import KubernetesTarget
from controlled_rollout.target.protocol import Change
from controlled_rollout.workspace import Workspace
from tests.polling import wait_until
from tests.target_per_call import target_per_call

if TYPE_CHECKING:
    from tests.cluster.lab import Lab

CHANGE = Change(who="a test")
OWNER = "retrain/run-1"
ACCOUNT = "controlled-rollout"
LABEL = "controlled-rollout/test"
MAX_WAIT = timedelta(seconds=180)
# Many fit on two cores; a replica without a core for half a second must not count as overloaded.
SMALL = {"cpu_cores": 0.05, "memory_gb": 0.2, "max_request_wait_time": 5_000}


@dataclass
class Sandbox:
    """A namespace of the cluster, the workspace whose endpoints are in it, and the images to deploy.

    Attributes:
        lab: The lab whose cluster it is.
        namespace: The namespace of the versions.
        endpoint: The name of the test's endpoint.
        workspace: The workspace, signed in as the namespace's service account.
        images: References of images by model.
        progress_lines: The progress of all steps so far.
    """

    lab: "Lab"
    namespace: str
    endpoint: str
    workspace: Workspace
    images: dict[str, str]
    progress_lines: list[str] = field(default_factory=list)

    @property
    def target(self) -> KubernetesTarget:
        return target_per_call(lambda: KubernetesTarget.open(self.workspace))

    @property
    def url(self) -> str:
        return f"{self.workspace.endpoint_url}/api/v1/service/{self.endpoint}/score"

    async def key(self) -> str:
        return (await self.target.keys(self.endpoint)).primary

    def kubectl(self, *args: str, input: str | None = None) -> str:
        return self.lab.kubectl("--namespace", self.namespace, *args, input=input)

    async def deploy(self, version: str, image: str = "steady", **settings: object) -> Endpoint:
        """Roll a version out as `OWNER`; by default with the settings `SMALL`."""
        auth = settings.pop("auth", Auth.KEY)
        silence: dict[str, Any] = {name: settings.pop(name) for name in ("on_silence", "silence") if name in settings}
        return await steps.deploy(
            self.workspace,
            self.endpoint,
            version,
            image=self.images.get(image, image),
            owner=OWNER,
            change=CHANGE,
            auth=Auth(str(auth)),
            settings={**SMALL, **settings},
            **silence,
            timeout=MAX_WAIT,
            progress=self.progress_lines.append,
        )

    async def shift(self, version: str, percentile: float, **kwargs: Any) -> Endpoint:
        return await steps.shift(
            self.workspace,
            self.endpoint,
            version,
            percentile=percentile,
            change=CHANGE,
            timeout=MAX_WAIT,
            progress=self.progress_lines.append,
            **kwargs,
        )

    async def promote(self, version: str) -> Endpoint:
        return await steps.promote(
            self.workspace,
            self.endpoint,
            version,
            change=CHANGE,
            timeout=MAX_WAIT,
            progress=self.progress_lines.append,
        )

    async def roll_back(self, version: str, reason: str) -> Endpoint | None:
        return await steps.roll_back(
            self.workspace,
            self.endpoint,
            version,
            change=Change(who="a test", reason=reason),
            timeout=MAX_WAIT,
            progress=self.progress_lines.append,
        )

    async def retire(self, version: str) -> Endpoint | None:
        return await steps.retire(
            self.workspace,
            self.endpoint,
            version,
            change=CHANGE,
            timeout=MAX_WAIT,
            progress=self.progress_lines.append,
        )


@contextmanager
def fresh_namespace(lab: "Lab") -> Iterator[str]:
    """Create a namespace, and delete it afterwards with all that is in it."""
    name = f"test-{secrets.token_hex(4)}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {LABEL: "true"}}}
    lab.kubectl("create", "-f", "-", input=json.dumps(namespace))
    yield name
    lab.kubectl("delete", "namespace", name, "--wait=false")


@contextmanager
def fresh_sandbox(lab: "Lab", images: dict[str, str], folder: Path) -> Iterator[Sandbox]:
    """Create a sandbox in a namespace of its own, and delete it afterwards."""
    with fresh_namespace(lab) as namespace:
        yield create_sandbox(lab, namespace, images, folder)
        delete_roles(lab, namespace)


def create_sandbox(lab: "Lab", namespace: str, images: dict[str, str], folder: Path) -> Sandbox:
    """Create the ServiceAccount and the Roles of docs/aks/role.yaml, and a workspace that signs in with them."""
    gateway_namespace, _ = lab.gateway.split("/")
    roles = as_yaml(namespace, gateway_namespace, service_account=ACCOUNT)
    lab.kubectl("apply", "--validate=ignore", "-f", "-", input=roles)
    # The API server applies new Roles with a short delay.
    wait_until(
        lambda: _may_list(lab, namespace),
        f"{namespace}/{ACCOUNT} may do what its Roles say",
        timeout_s=20,
        interval_s=0.25,
    )
    return Sandbox(
        lab,
        namespace,
        # Endpoints of one Gateway share its paths, whatever their namespaces.
        f"digits-{secrets.token_hex(3)}",
        Workspace.from_settings(
            {
                "name": "cluster",
                "target": "kubernetes",
                "root": str(folder),
                "namespace": namespace,
                "gateway": lab.gateway,
                "endpoint_url": lab.gateway_url,
                "kubeconfig": str(lab.kubeconfig_for(namespace, ACCOUNT)),
                "telemetry_endpoint": lab.telemetry_url,
                "telemetry_workspace_id": lab.telemetry_workspace_id,
                "telemetry_token_file": str(lab.telemetry_token_file),
            }
        ),
        images,
    )


def _may_list(lab: "Lab", namespace: str) -> bool:
    """Return whether both Roles are in force, with one call of kubectl, which every test waits for."""
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{ACCOUNT}",
                "resourceAttributes": {
                    "verb": "list",
                    "namespace": role_namespace,
                    "group": group,
                    "resource": resource,
                },
            },
        }
        for role_namespace, group, resource in (
            (namespace, "apps", "controllerrevisions"),
            ("envoy-gateway-system", "", "pods"),
        )
    ]
    review_list = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    answers = lab.kubectl("create", "-f", "-", "-o=jsonpath={.status.allowed} ", input=review_list).split()
    return answers == ["true"] * len(reviews)


def delete_roles(lab: "Lab", namespace: str) -> None:
    """Delete the Roles; the one in the Gateway's namespace is not deleted with the test's namespace."""
    gateway_namespace, _ = lab.gateway.split("/")
    roles = as_yaml(namespace, gateway_namespace, service_account=ACCOUNT)
    lab.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", input=roles)
