"""The command line, the configuration files and the readiness check of each process of the lab.

Tuned for two processors and short lives: no leader election, no profiling, no metrics servers, and only the controllers
that the tests need.
"""

import json
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .layout import (
    API_SERVER,
    CLUSTER_DOMAIN,
    DNS_ADDRESS,
    NODE,
    NODE_ADDRESS,
    PODS,
    SERVICES,
    SLICE,
    TELEMETRY_PORT,
    Layout,
)
from .programs import program
from .state import State

__all__ = ["FIRST", "ON_LOOPBACK", "STARTED", "THEN", "Component", "component"]

# Listeners on loopback, whose ports are chosen when the lab is created.
ON_LOOPBACK = ("etcd", "etcd-peers", "registry")
# Processes that depend on no other one, and processes that need the API server.
FIRST = ("registry", "etcd", "containerd", "telemetry-store", "kube-apiserver")
# kube-proxy waits for the node that the kubelet registers.
THEN = ("kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")
STARTED = (*FIRST, *THEN)
# Not part of the cluster: a test starts it as an API server without custom resource definitions.
BARE_APISERVER = "bare-apiserver"
BARE_PORT = 6444
CONTROLLERS = (
    "clusterrole-aggregation",
    "daemonset",
    "deployment",
    "disruption",
    "endpointslice",
    "garbage-collector",
    "horizontal-pod-autoscaler",
    "job",
    "namespace",
    "node-lifecycle",
    "pod-garbage-collector",
    "replicaset",
    "resourcequota",
    "root-ca-certificate-publisher",
    "serviceaccount",
    "serviceaccount-token",
    "statefulset",
    "ttl-after-finished",
)
UNUSED_SNAPSHOTTERS = ("aufs", "btrfs", "devmapper", "zfs")
CNI_PLUGINS = "/usr/lib/cni"
SERVE_TELEMETRY = (
    "import sys, pathlib; from controlled_rollout.telemetry_store.server import serve; "
    "sys.exit(serve(host=sys.argv[1], port=int(sys.argv[2]), data=pathlib.Path(sys.argv[3]),"
    " token_file=pathlib.Path(sys.argv[4])))"
)
CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Component:
    """One process.

    Attributes:
        argv: Its command line.
        is_ready: Whether it can be used.
        files: The text of its configuration files, by path.
    """

    argv: Sequence[str]
    is_ready: Callable[[], bool]
    files: Mapping[Path, str]


def component(name: str, layout: Layout, state: State) -> Component:
    """Return the process of a name in `STARTED`, or the bare API server."""
    return _MAKERS[name](layout, state)


def _etcd(layout: Layout, state: State) -> Component:
    clients = f"http://127.0.0.1:{state.ports['etcd']}"
    peers = f"http://127.0.0.1:{state.ports['etcd-peers']}"
    argv = [
        "etcd",
        f"--data-dir={layout.data('etcd')}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--snapshot-count=100000",
        "--log-level=warn",
    ]
    return Component(argv, lambda: _answers(f"{clients}/health"), {})


def _registry(layout: Layout, state: State) -> Component:
    address = f"127.0.0.1:{state.ports['registry']}"
    file = layout.configuration / "registry.yaml"
    configuration = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(layout.data("registry"))},
            "delete": {"enabled": True},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": {"addr": address},
    }
    argv = ["docker-registry", "serve", str(file)]
    return Component(argv, lambda: _answers(f"http://{address}/v2/"), {file: yaml.safe_dump(configuration)})


def _containerd(layout: Layout, state: State) -> Component:
    socket_path = layout.containerd_socket
    registry = f"127.0.0.1:{state.ports['registry']}"
    networks = layout.configuration / "cni"
    hosts = layout.configuration / "registries"
    file = layout.configuration / "containerd.toml"
    # TOML's and JSON's strings have the same syntax.
    quoted = json.dumps
    configuration = f"""\
version = 2
root = {quoted(str(layout.data("containerd")))}
state = {quoted(str(layout.data("containers")))}
disabled_plugins = [{", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in UNUSED_SNAPSHOTTERS)}]

[grpc]
address = {quoted(str(socket_path))}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {quoted(f"{registry}/lab/pause:1")}
# Without CAP_SYS_RESOURCE a process may not lower an OOM score, and runc fails when it tries.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {quoted(CNI_PLUGINS)}
conf_dir = {quoted(str(networks))}

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = {quoted(str(hosts))}

[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
discard_unpacked_layers = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = {quoted(str(layout.data("runc")))}
"""
    files = {
        file: configuration,
        networks / "10-lab.conflist": json.dumps(_network(layout), indent=2),
        hosts / registry / "hosts.toml": f'server = "http://{registry}"\n',
    }
    return Component(["containerd", "--config", str(file)], lambda: _accepts(socket_path), files)


def _network(layout: Layout) -> dict[str, Any]:
    """Return the configuration of the pods' network: a point-to-point link from each pod to the node, which routes.

    So every packet between pods passes the node's packet filter, and replies of a Service are translated back.
    """
    ranges = {"type": "host-local", "ranges": [[{"subnet": PODS}]], "dataDir": str(layout.data("addresses"))}
    return {
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{"type": "ptp", "ipMasq": False, "ipam": {**ranges, "routes": [{"dst": "0.0.0.0/0"}]}}],
    }


def _telemetry_store(layout: Layout, state: State) -> Component:
    paths = [str(layout.telemetry_data), str(layout.telemetry_token)]
    argv = [sys.executable, "-c", SERVE_TELEMETRY, NODE_ADDRESS, str(TELEMETRY_PORT), *paths]
    return Component(argv, lambda: _answers(f"http://{NODE_ADDRESS}:{TELEMETRY_PORT}/healthz"), {})


def _kube_apiserver(layout: Layout, state: State) -> Component:
    pki = layout.certificates
    argv = [
        str(program("kube-apiserver", of="kubernetes")),
        f"--etcd-servers=http://127.0.0.1:{state.ports['etcd']}",
        f"--bind-address={NODE_ADDRESS}",
        f"--advertise-address={NODE_ADDRESS}",
        "--secure-port=6443",
        f"--service-cluster-ip-range={SERVICES}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/admin.crt",
        f"--kubelet-client-key={pki}/admin.key",
        f"--service-account-key-file={pki}/service-accounts.crt",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--enable-priority-and-fairness=false",
        "--event-ttl=20m",
        "--profiling=false",
    ]
    return Component(argv, lambda: _answers(f"{API_SERVER}/readyz", authority=pki / "ca.crt"), {})


def _bare_apiserver(layout: Layout, state: State) -> Component:
    """Return an API server with an etcd prefix of its own: none of the cluster's objects and custom resources."""
    complete = _kube_apiserver(layout, state)
    argv = [part for part in complete.argv if not part.startswith("--secure-port")]
    url = f"https://{NODE_ADDRESS}:{BARE_PORT}"
    return Component(
        [*argv, f"--secure-port={BARE_PORT}", "--etcd-prefix=/bare"],
        lambda: _answers(f"{url}/readyz", authority=layout.certificates / "ca.crt"),
        {},
    )


def _kube_controller_manager(layout: Layout, state: State) -> Component:
    pki = layout.certificates
    argv = [
        str(program("kube-controller-manager", of="kubernetes")),
        f"--kubeconfig={layout.kubeconfig}",
        f"--controllers={','.join(f'{name}-controller' for name in CONTROLLERS)}",
        f"--service-account-private-key-file={pki}/service-accounts.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--flex-volume-plugin-dir={layout.data('volume-plugins')}",
        "--leader-elect=false",
        *_serving(pki),
        "--profiling=false",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        # A busy machine, or an API server that a test stops, must not make the node count as dead.
        "--node-monitor-grace-period=2m",
    ]
    return Component(argv, lambda: _answers(f"https://{NODE_ADDRESS}:10257/healthz", authority=pki / "ca.crt"), {})


def _kube_scheduler(layout: Layout, state: State) -> Component:
    file = layout.configuration / "scheduler.yaml"
    configuration = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig), "qps": 100, "burst": 200},
        "leaderElection": {"leaderElect": False},
        "enableProfiling": False,
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 2,
    }
    pki = layout.certificates
    argv = [str(program("kube-scheduler", of="kubernetes")), f"--config={file}", *_serving(pki)]
    return Component(
        argv,
        lambda: _answers(f"https://{NODE_ADDRESS}:10259/healthz", authority=pki / "ca.crt"),
        {file: yaml.safe_dump(configuration)},
    )


def _serving(pki: Path) -> tuple[str, ...]:
    """Return the arguments with which a control-plane process serves its health on the node's address."""
    return (
        f"--bind-address={NODE_ADDRESS}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
    )


def _kube_proxy(layout: Layout, state: State) -> Component:
    file = layout.configuration / "proxy.yaml"
    # Zeros keep the kernel's settings.
    unchanged = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig)},
        "hostnameOverride": NODE,
        "mode": "iptables",
        "clusterCIDR": PODS,
        "nodePortAddresses": ["127.0.0.0/8", f"{NODE_ADDRESS}/32"],
        "iptables": {"localhostNodePorts": True, "minSyncPeriod": "0s", "syncPeriod": "5m"},
        "conntrack": unchanged,
        "oomScoreAdj": 0,
        "healthzBindAddress": f"{NODE_ADDRESS}:10256",
        "metricsBindAddress": f"{NODE_ADDRESS}:10249",
    }
    argv = [str(program("kube-proxy", of="kubernetes")), f"--config={file}"]
    return Component(
        argv, lambda: _answers(f"http://{NODE_ADDRESS}:10256/livez"), {file: yaml.safe_dump(configuration)}
    )


def _kubelet(layout: Layout, state: State) -> Component:
    file = layout.configuration / "kubelet.yaml"
    resolver = layout.configuration / "resolv.conf"
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "healthzPort": 0,
        # Only the API server, administrators and the node have certificates of this authority.
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(layout.certificates / "ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{SLICE}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(resolver),
        "podLogsDir": str(layout.logs / "pods"),
        "volumePluginDir": str(layout.data("volume-plugins")),
        "makeIPTablesUtilChains": False,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "oomScoreAdj": 0,
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "eventRecordQPS": 20,
        "nodeStatusReportFrequency": "1m",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "enableProfilingHandler": False,
        "enableDebugFlagsHandler": False,
    }
    argv = [
        str(program("kubelet", of="kubernetes")),
        f"--config={file}",
        f"--kubeconfig={layout.node_kubeconfig}",
        f"--root-dir={layout.data('kubelet')}",
        f"--cert-dir={layout.data('kubelet-certificates')}",
        f"--hostname-override={NODE}",
        f"--node-ip={NODE_ADDRESS}",
    ]
    # Pods resolve no names outside the cluster.
    files = {file: yaml.safe_dump(configuration), resolver: ""}
    return Component(argv, lambda: _accepts((NODE_ADDRESS, 10250)), files)


_MAKERS: Mapping[str, Callable[[Layout, State], Component]] = {
    "etcd": _etcd,
    "registry": _registry,
    "containerd": _containerd,
    "telemetry-store": _telemetry_store,
    "kube-apiserver": _kube_apiserver,
    BARE_APISERVER: _bare_apiserver,
    "kube-controller-manager": _kube_controller_manager,
    "kube-scheduler": _kube_scheduler,
    "kube-proxy": _kube_proxy,
    "kubelet": _kubelet,
}


def _answers(url: str, authority: Path | None = None) -> bool:
    context = ssl.create_default_context(cafile=str(authority)) if authority else None
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S, context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _accepts(address: Path | tuple[str, int]) -> bool:
    try:
        if isinstance(address, tuple):
            socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
        else:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(address))
    except OSError:
        return False
    return True
