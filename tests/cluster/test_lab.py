"""The lab is a Kubernetes: pods run, names resolve, Services are routed, and what is broken can be mended."""

import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.cluster.lab import Lab, LabError
from tests.cluster.lab.existing import Existing
from tests.cluster.lab.network import rules_without_chains
from tests.polling import wait_until

REPOSITORY = Path(__file__).parents[2]
ASK = "import urllib.request; print(urllib.request.urlopen('http://{host}/', timeout=5).status)"


@pytest.fixture
def server(lab: Lab, namespace: str) -> str:
    """A pod that answers HTTP, and the Service `front` before it; return the pod's name."""
    container = {
        "name": "server",
        "image": f"{lab.registry}/base/python:3.11",
        "command": ["python3", "-u", "-m", "http.server", "8080"],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server", "labels": {"app": "server"}}, "spec": spec}
    ports = {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"}, "spec": ports}
    lab.kubectl("--namespace", namespace, "apply", "-f", "-", input=yaml.safe_dump_all([pod, service]))
    lab.kubectl("--namespace", namespace, "wait", "pod/server", "--for=condition=Ready", "--timeout=120s")
    return "server"


@pytest.fixture
def own_lab(lab: Lab) -> Lab:
    """The lab itself, whose parts may be broken."""
    if not lab.is_ours:
        pytest.skip("the cluster of KUBECONFIG is not the lab's to break")
    return lab


def _in_pod(lab: Lab, namespace: str, pod: str, code: str) -> str:
    return lab.kubectl("--namespace", namespace, "exec", pod, "--", "python3", "-c", code).strip()


def test_a_pod_reaches_a_service_by_its_name(lab: Lab, namespace: str, server: str) -> None:
    """Pulled from the registry, resolved by the cluster's DNS, routed by kube-proxy; logs and exec work."""
    for host in ("front", f"front.{namespace}", f"front.{namespace}.svc.cluster.local"):
        ask = ASK.format(host=host)
        assert (
            wait_until(
                partial(_answer, lab, namespace, server, ask),
                f"an answer of {host}",
                timeout_s=20,
                interval_s=0.25,
            )
            == "200"
        )

    assert '"GET / HTTP/1.1" 200' in lab.kubectl("--namespace", namespace, "logs", server)


def _answer(lab: Lab, namespace: str, pod: str, code: str) -> str | None:
    try:
        return _in_pod(lab, namespace, pod, code)
    except LabError:
        return None


def test_a_pod_reaches_the_api_server_and_the_telemetry_store(lab: Lab, namespace: str, server: str) -> None:
    address = "socket.create_connection(('kubernetes.default.svc', 443), 5)"
    assert _in_pod(lab, namespace, server, f"import socket; {address}; print('connected')") == "connected"

    ask = f"import urllib.request; print(urllib.request.urlopen('{lab.telemetry_url}/healthz', timeout=5).status)"
    assert _in_pod(lab, namespace, server, ask) == "200"


def test_second_up_changes_nothing(own_lab: Lab) -> None:
    """Whoever is not sure whether it is up says `up`."""
    again = Lab.up(own_lab.folder)

    assert again == own_lab
    assert all(again.parts().values())


def test_new_service_account_signs_in_without_permissions(lab: Lab, namespace: str) -> None:
    lab.kubectl("--namespace", namespace, "create", "serviceaccount", "robot")

    kubeconfig = lab.kubeconfig_for(namespace, "robot", timedelta(minutes=10))

    as_robot = Lab(**{**vars(lab), "kubeconfig": kubeconfig})
    assert f"system:serviceaccount:{namespace}:robot" in as_robot.kubectl("auth", "whoami")
    with pytest.raises(LabError, match="forbidden"):
        as_robot.kubectl("get", "pods")
    assert kubeconfig.stat().st_mode & 0o077 == 0


@pytest.mark.breaks_lab
def test_a_killed_api_server_comes_back_with_everything(own_lab: Lab, namespace: str, server: str) -> None:
    own_lab.kill("kube-apiserver")
    assert not own_lab.is_running("kube-apiserver")
    with pytest.raises(LabError):
        own_lab.kubectl("get", "namespaces")

    own_lab.start("kube-apiserver")

    assert own_lab.is_running("kube-apiserver")
    assert own_lab.kubectl("--namespace", namespace, "get", f"pod/{server}", "-o=jsonpath={.status.phase}") == "Running"


@pytest.mark.breaks_lab
def test_the_gateways_controller_is_killed_and_started_by_name(own_lab: Lab) -> None:
    own_lab.kill("envoy-gateway")
    wait_until(lambda: not own_lab.is_running("envoy-gateway"), "the controller's end", timeout_s=60, interval_s=0.25)

    own_lab.start("envoy-gateway")

    assert own_lab.is_running("envoy-gateway")


def test_unknown_component_is_refused_with_the_known_names(own_lab: Lab) -> None:
    with pytest.raises(LabError, match=r"kube-apiserver.*envoy-gateway"):
        own_lab.kill("no-such-part")


def test_status_says_where_everything_is(lab: Lab) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.lab", "status"], cwd=REPOSITORY, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert str(lab.kubeconfig) in done.stdout
    assert lab.gateway_url in done.stdout


# Without a cluster


def test_only_chains_with_the_prefix_and_jumps_to_them_are_removed() -> None:
    saved = """\
# Generated by iptables-save
*filter
:INPUT ACCEPT [0:0]
:MINE - [0:0]
-A INPUT -j MINE
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-MARK - [0:0]
-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-SERVICES
-A KUBE-SERVICES -j KUBE-MARK
COMMIT
"""

    assert list(rules_without_chains(saved, "KUBE-")) == [
        "*nat",
        '-D POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-SERVICES',
        "-F KUBE-SERVICES",
        "-F KUBE-MARK",
        "-X KUBE-SERVICES",
        "-X KUBE-MARK",
        "COMMIT",
    ]


def test_existing_cluster_needs_kubeconfig_and_names_missing_variables() -> None:
    assert Existing.of({}) is None

    existing = Existing.of({"KUBECONFIG": "/home/me/.kube/config", "CONTROLLED_ROLLOUT_CLUSTER_REGISTRY": "r.io"})

    assert existing is not None
    unset = " ".join(existing.unset())
    assert "CONTROLLED_ROLLOUT_CLUSTER_GATEWAY_URL is not set" in unset
    assert "CLUSTER_REGISTRY" not in unset
    assert "CLUSTER_GATEWAY is" not in unset
