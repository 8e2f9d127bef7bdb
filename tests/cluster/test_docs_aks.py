"""The page docs/aks.md, as it stands: its commands run on the cluster, its files are accepted, its messages exist.

A block whose first line says `lab` is run; with `dry-run` the API server only says whether it would take everything.
The values of the lab replace the variables that the page documents.
"""

import ast
import os
import re
import runpy
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import tests.airflow_home  # noqa: F401 - before anything of Airflow
from controlled_rollout.target.kubernetes.permissions import as_yaml
from tests.cluster.lab import Lab, LabError
from tests.cluster.lab.images import base_image
from tests.cluster.lab.programs import chart, program
from tests.cluster.pod_storage import SECRET, PodStorage, serving_pods
from tests.cluster.sandbox import delete_roles
from tests.cluster.scoring_images import build, project
from tests.collector_image import collector_image

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "aks.md"
TEXT = PAGE.read_text(encoding="utf-8")
LAB = Path(__file__).with_name("lab")
SOURCES = PROJECT / "operators" / "controlled_rollout"
AIRFLOW_ROOT = "/opt/airflow/rollout"
# A dozen commands, each a process that imports much: on a busy machine that takes minutes.
DEADLINE_S = 360
CREATE_SECRET = (
    f"kubectl --namespace $NAMESPACE create secret generic {SECRET} "
    '--from-literal=connection_string="$CONNECTION_STRING" --from-file=ca.crt=$CA_FILE'
)


@dataclass(frozen=True)
class Block:
    """A fenced block of the page that is run.

    Attributes:
        language: `bash`, or `python` for a file that the page has written.
        says: What stands behind the word `lab`.
        text: What is in it.
    """

    language: str
    says: str
    text: str

    @property
    def script(self) -> str:
        """The block as lines of a shell."""
        if self.language == "bash":
            return self.text
        return f"cat > {self.says} <<'END_OF_BLOCK'\n{self.text}END_OF_BLOCK\n"


def blocks() -> list[Block]:
    fenced = re.findall(r"^```(\w+) lab ?([^\n]*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [Block(*parts) for parts in fenced]


class Shell:
    """Runs blocks in a folder that looks like the project's, with the cluster's own kubectl."""

    def __init__(self, lab: Lab, folder: Path, namespace: str, gateway: str) -> None:
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "CONTROLLED_"))},
            "PATH": os.pathsep.join((str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])),
            "KUBECONFIG": str(lab.kubeconfig),
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "NAMESPACE": namespace,
            "GATEWAY": gateway,
        }
        gateway_namespace = gateway.partition("/")[0]
        (folder / "docs" / "aks").mkdir(parents=True)
        (folder / "docs" / "aks" / "role.yaml").write_text(as_yaml(namespace, gateway_namespace))
        for name in ("gateway.yaml", "gateway-dev-test.yaml", "collector.yaml"):
            text = (PAGE.parent / "aks" / name).read_text(encoding="utf-8")
            (folder / "docs" / "aks" / name).write_text(
                text.replace("namespace: gateway", f"namespace: {gateway_namespace}")
            )
        (folder / "bin").mkdir()
        real = (None if lab.is_ours else shutil.which("kubectl")) or program("kubectl", of="kubernetes")
        kubectl = folder / "bin" / "kubectl"
        kubectl.write_text(
            "#!/bin/sh\n"
            '[ -z "$DRY_RUN" ] || [ "$1 $2" = "create namespace" ] || set -- "$@" --dry-run=server\n'
            f'exec {real} "$@"\n'
        )
        kubectl.chmod(0o755)

    def run(self, to_run: list[Block], **variables: str) -> str:
        """Run blocks one after the other in one shell, and return what it printed.

        Raises:
            AssertionError: One of them failed; the message has what was printed.
        """
        script = "set -Eeuo pipefail\ntrap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n" + "\n".join(
            block.script for block in to_run
        )
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder,
            env=self._environment | variables,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def storage(lab: Lab, tmp_path: Path) -> Iterator[PodStorage]:
    """A storage that the cluster's pods reach; the collector's image is built before the test's own time begins."""
    collector_image(lab.registry)
    with serving_pods(lab, tmp_path / "storage") as storage:
        yield storage


@pytest.fixture
def fresh(lab: Lab) -> Iterator[str]:
    """The name of a namespace that is not there; whatever a failed test has made for it goes at the end."""
    name = f"test-{secrets.token_hex(4)}"
    yield name
    lab.kubectl("delete", "namespace", name, f"{name}-builds", "--ignore-not-found", "--wait=false")
    delete_roles(lab, name)
    for where in (lab.gateway.split("/")[0], "envoy-gateway-system"):
        lab.kubectl("delete", "rolebinding", f"airflow-{name}", "--namespace", where, "--ignore-not-found")
    lab.kubectl("delete", "clusterrolebinding", f"airflow-{name}", "--ignore-not-found")


def test_cluster_accepts_the_gateway_and_the_collector_of_the_page(lab: Lab, fresh: str, tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=models.example.com"]
    subprocess.run([*command, "-keyout", "tls.key", "-out", "tls.crt"], cwd=tmp_path, check=True, capture_output=True)
    shell = Shell(lab, tmp_path, fresh, f"{fresh}/models")
    dry = [block for block in blocks() if block.says == "dry-run"]

    output = shell.run(dry, DRY_RUN="yes", CONNECTION_STRING="InstrumentationKey=11111111-2222-4333-8444-555555555555")

    made = re.findall(r"^(\S+) (?:created|configured|unchanged) \(server dry run\)$", output, re.MULTILINE)
    kinds = {name.partition("/")[0].partition(".")[0] for name in made}
    assert kinds == {
        "secret", "gatewayclass", "envoyproxy", "gateway", "clienttrafficpolicy", "configmap", "deployment", "service",
        "networkpolicy", "securitypolicy",
    }  # fmt: skip


@pytest.mark.timeout(400, func_only=True)
def test_commands_of_the_page_lead_from_the_role_to_a_promoted_version_and_to_one_that_collects(
    lab: Lab, storage: PodStorage, fresh: str, tmp_path: Path
) -> None:
    shell = Shell(lab, tmp_path, fresh, lab.gateway)
    # The lab's telemetry store replaces Azure's, which needs no more than its own workspace's id.
    store = f'"telemetry_endpoint": "{lab.telemetry_url}", "telemetry_token_file": "{lab.telemetry_token_file}",'
    to_run = [
        Block(
            block.language,
            block.says,
            block.text.replace(f'"root": "{AIRFLOW_ROOT}",', f'"root": "{tmp_path}/rollout", {store}'),
        )
        for block in blocks()
        if block.says != "dry-run"
    ]
    endpoint = f"digits-{secrets.token_hex(3)}"
    # There is no workload identity: the collector signs in to the lab's storage by a Secret.
    first, *others = (number for number, block in enumerate(to_run) if "serviceaccount collector" in block.text)
    assert not others
    signing_in = to_run[first].text.replace("EOF\ncontrolled", f"collector_secret: {SECRET}\nEOF\ncontrolled")
    to_run[first] = Block("bash", "", f"{CREATE_SECRET}\n{signing_in}")

    output = shell.run(
        to_run,
        STORAGE=storage.address,
        CONNECTION_STRING=storage.azurite.connection_string,
        CA_FILE=str(storage.authority),
        COLLECTOR_IMAGE=collector_image(lab.registry),
        COLLECTOR_CLIENT_ID="11111111-2222-4333-8444-555555555555",
        AIRFLOW="airflow",
        ENDPOINT=endpoint,
        ENDPOINT_URL=lab.gateway_url,
        TELEMETRY_WORKSPACE_ID=lab.telemetry_workspace_id,
        REGISTRY=lab.registry,
        BASE_IMAGE=base_image(lab.registry),
        PROJECT=str(project("steady", tmp_path / "steady")),
        NEXT_IMAGE=build(lab.registry, "steady2"),
    )

    assert "there are no endpoints" in output
    assert re.search(r"^HTTP/1.1 200 OK\r?$(?:.|\n)*^azureml-model-deployment: one\r?$", output, re.MULTILINE)
    assert '{"version": "steady"' in output
    assert re.search(r"^two\s+treatment\s+10 %\s+2 of 2\s+ready", output, re.MULTILINE)
    assert "Connection success!" in output
    assert re.search(r"^three has captured \d+ requests; dropped 0, unreadable 0", output, re.MULTILINE)
    assert re.search(rf"^endpoint '{endpoint}' is deleted$", output, re.MULTILINE)
    with pytest.raises(LabError, match="not found"):
        lab.kubectl("get", "clusterrole", f"controlled-rollout-{fresh}")


def test_page_installs_the_tested_version_of_envoy_gateway(lab: Lab) -> None:
    version, settings = re.findall(r"^helm install eg \S+/gateway-helm --version (\S+)(.*?)^```", TEXT, re.M | re.S)[0]
    module = (LAB / "binaries" / "envoy-gateway" / "go.mod").read_text()
    assert f"github.com/envoyproxy/gateway {version}" in module
    if not lab.is_ours:
        pytest.skip("the chart is the lab's")

    made = lab.helm("template", "eg", str(chart()), *re.findall(r"--set=\S+", settings.replace("--set ", "--set=")))

    objects = {
        (document["kind"], document["metadata"]["name"]): document for document in yaml.safe_load_all(made) if document
    }
    assert objects["Deployment", "envoy-gateway"]["spec"]["replicas"] == 2
    assert objects["PodDisruptionBudget", "envoy-gateway"]["spec"]["minAvailable"] == 1


def test_dag_of_the_page_rolls_an_image_out(tmp_path: Path) -> None:
    file = tmp_path / "deploy.py"
    file.write_text(re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[0])

    dag = runpy.run_path(str(file))["dag"]

    assert [task for task in dag.task_ids if "shift" in task] == ["rollout.shift_10", "rollout.shift_50"]


def test_collector_of_the_page_has_the_configuration_that_is_tested() -> None:
    def configuration(file: Path) -> dict[str, object]:
        objects = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        content = yaml.safe_load(
            next(document for document in objects if document["kind"] == "ConfigMap")["data"]["config.yaml"]
        )
        content["processors"].pop("memory_limiter")  # fits the size of the pod
        return dict(content)

    assert configuration(PAGE.parent / "aks" / "collector.yaml") == configuration(LAB / "manifests" / "collector.yaml")
    module = (LAB / "binaries" / "collector" / "go.mod").read_text()
    image = re.search(
        r"collector-contrib:([\d.]+)@sha256:[0-9a-f]{64}\s", (PAGE.parent / "aks" / "collector.yaml").read_text()
    )
    assert image
    assert f"go.opentelemetry.io/collector/otelcol v{image[1]}" in module


def test_every_message_on_the_page_exists_in_the_code() -> None:
    table = TEXT.partition("## When something is wrong")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| (?:[^`|]* )?`([^`]+)` \|", table, re.MULTILINE)
    all_texts = "\n".join(text for file in SOURCES.rglob("*.py") for text in texts(ast.parse(file.read_text())))

    assert len(messages) > 15
    patterns = {message: ".*".join(map(re.escape, message.split("…"))) for message in messages}
    assert [message for message, pattern in patterns.items() if not re.search(pattern, all_texts)] == []


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a module, with the parts of one that is put together in one line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
