"""What a caller sees at the gateway arrives as rows of AppRequests, whoever gave the answer."""

import http.client
import json
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.cluster.lab import Lab
from tests.polling import wait_until

# In the path of a request that a test counts; those that wait for the route have none.
COUNTED = "/counted"
VERSION_HEADER = "azureml-model-deployment"

# Answers with the code that the path ends with; 504 is the gateway's own, so it waits for that.
SERVER = """
import http.server, time

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        code = int(self.path.rsplit("/", 1)[1].partition("?")[0] or 200)
        time.sleep(5 if code == 504 else 0)
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

http.server.ThreadingHTTPServer(("", 8080), Answer).serve_forever()
"""


def _backend(version: str) -> dict[str, Any]:
    headers = [{"name": VERSION_HEADER, "value": version}]
    filters = [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": headers}},
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": headers}},
    ]
    return {"name": version, "port": 80, "weight": 1, "filters": filters}


def _rule(prefix: str, *versions: str) -> dict[str, Any]:
    headers = [{"name": "x-routed-by", "value": "weights"}]
    return {
        "matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
        "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": headers}}],
        "backendRefs": [_backend(version) for version in versions],
        "timeouts": {"request": "1s"},
    }


def _objects(endpoint: str, image: str, routing: str) -> list[dict[str, Any]]:
    """Return a version that serves, one without replicas, and the routes to both."""

    def service(name: str) -> dict[str, Any]:
        spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}

    container = {
        "name": "server",
        "image": image,
        "command": ["python3", "-c", SERVER],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "labels": {"app": "one"}}, "spec": spec}
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": endpoint},
        "spec": {
            "parentRefs": [{"name": "models", "namespace": "gateway"}],
            "rules": [
                _rule(f"/{endpoint}/gone", "gone"),
                _rule(f"/{endpoint}/mixed", "one", "gone"),
                _rule(f"/{endpoint}", "one"),
            ],
        },
    }
    tags = {
        "endpoint": {"type": "Literal", "literal": {"value": endpoint}},
        "version": {"type": "RequestHeader", "requestHeader": {"name": VERSION_HEADER}},
        "routed_by": {"type": "RequestHeader", "requestHeader": {"name": "x-routed-by"}},
    }
    policy = {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "BackendTrafficPolicy",
        "metadata": {"name": endpoint},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": endpoint}],
            "telemetry": {"tracing": {"customTags": tags}},
            "routingType": routing,
        },
    }
    # The Gateway closes every route that has no policy of its own.
    access = {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "SecurityPolicy",
        "metadata": {"name": endpoint},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": endpoint}],
            "authorization": {"defaultAction": "Allow"},
        },
    }
    return [pod, service("one"), service("gone"), route, policy, access]


def _serve(lab: Lab, namespace: str, *, routing: str = "Endpoint") -> None:
    """Make an endpoint by hand, and wait until the gateway serves it."""
    text = yaml.safe_dump_all(_objects(namespace, f"{lab.registry}/base/python:3.11", routing))
    lab.kubectl("--namespace", namespace, "apply", "-f", "-", input=text)
    lab.kubectl("--namespace", namespace, "wait", "pod/one", "--for=condition=Ready", "--timeout=120s")
    wait_until(
        lambda: _ask(lab, namespace, "/200") == 200,
        "an answer of the version through the gateway",
        timeout_s=60,
        interval_s=0.25,
    )


def _ask(lab: Lab, endpoint: str, path: str, headers: dict[str, str] | None = None, *, timeout_s: float = 20) -> int:
    connection = http.client.HTTPConnection(urlsplit(lab.gateway_url).netloc, timeout=timeout_s)
    try:
        connection.request("GET", f"/{endpoint}{path}", headers=headers or {})
        return connection.getresponse().status
    finally:
        connection.close()


def _query(lab: Lab, query: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{lab.telemetry_url}/v1/workspaces/{lab.telemetry_workspace_id}/query",
        data=json.dumps({"query": query}).encode(),
        headers={
            "Authorization": f"Bearer {lab.telemetry_token_file.read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        table = json.load(answer)["tables"][0]
    names = [column["name"] for column in table["columns"]]
    return [dict(zip(names, row, strict=True)) for row in table["rows"]]


def _arrived(lab: Lab, endpoint: str, requests: int) -> list[dict[str, Any]]:
    """Return the rows of an endpoint's counted requests, once all are there; no more of them may come."""
    about = f"tostring(Properties.endpoint) == '{endpoint}' and Url contains '{COUNTED}/'"

    def rows() -> list[dict[str, Any]]:
        rows_of_requests = _query(lab, f"AppRequests | where {about} | order by TimeGenerated asc")
        return rows_of_requests if len(rows_of_requests) >= requests else []

    rows_of_requests = wait_until(rows, f"{requests} rows of AppRequests", interval_s=0.25)
    assert len(rows_of_requests) == requests
    return [row | json.loads(row["Properties"]) for row in rows_of_requests]


def _about(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("ResultCode", "Success", "version", "response_flags")}


def test_every_response_becomes_one_row_with_what_the_caller_saw(lab: Lab, namespace: str) -> None:
    """200, 404 and 500 are the version's own; 504 is the gateway's."""
    _serve(lab, namespace)
    codes = [200, 404, 500, 504]

    assert [_ask(lab, namespace, f"{COUNTED}/{code}?patient=4711") for code in codes] == codes

    rows = _arrived(lab, namespace, len(codes))
    assert [_about(row) for row in rows] == [
        {"ResultCode": "200", "Success": True, "version": "one", "response_flags": "-"},
        {"ResultCode": "404", "Success": False, "version": "one", "response_flags": "-"},
        {"ResultCode": "500", "Success": False, "version": "one", "response_flags": "-"},
        {"ResultCode": "504", "Success": False, "version": "one", "response_flags": "UT"},
    ]
    assert {row["routed_by"] for row in rows} == {"weights"}
    assert {row["ItemCount"] for row in rows} == {1}
    assert rows[0]["Name"] == f"GET /{namespace}{COUNTED}/200"
    # What a GET asks for is its input.
    assert "4711" not in repr(rows)
    assert rows[3]["DurationMs"] == pytest.approx(1000, abs=200)


def test_a_caller_who_hangs_up_is_a_row_of_the_version_with_code_0(lab: Lab, namespace: str) -> None:
    _serve(lab, namespace)

    with pytest.raises(TimeoutError):
        _ask(lab, namespace, f"{COUNTED}/504", timeout_s=0.3)

    row = _arrived(lab, namespace, 1)[0]
    # The exporter takes code 0 for a success; evidence goes by the code.
    assert (row["ResultCode"], row["version"], row["routed_by"]) == ("0", "one", "weights")
    assert row["response_flags"] == "DC"


def test_trace_header_of_a_caller_cannot_disable_telemetry(lab: Lab, namespace: str) -> None:
    """A caller that samples nothing sends a traceparent that says so."""
    _serve(lab, namespace)
    trace = "0af7651916cd43dd8448eb211c80319c"

    assert _ask(lab, namespace, f"{COUNTED}/200", {"traceparent": f"00-{trace}-b7ad6b7169203331-00"}) == 200

    assert _arrived(lab, namespace, 1)[0]["OperationId"] == trace


@pytest.mark.parametrize(("path", "flags"), [("/gone", "-"), ("/mixed", "NC")])
def test_gateway_answers_for_a_version_without_replicas_and_does_not_name_it(
    lab: Lab, namespace: str, path: str, flags: str
) -> None:
    """Envoy Gateway takes a backend without ready endpoints out, and with it what names the version."""
    _serve(lab, namespace)
    wait_until(
        lambda: _ask(lab, namespace, f"{path}/200") == 503,
        "an answer for a version without replicas",
        timeout_s=60,
        interval_s=0.25,
    )

    sent = [_ask(lab, namespace, f"{path}{COUNTED}/200") for _ in range(20)]

    failed = [row for row in _arrived(lab, namespace, len(sent)) if row["ResultCode"] != "200"]
    assert len(failed) == sent.count(503) > 0
    expected = {"ResultCode": "503", "Success": False, "version": None, "response_flags": flags}
    assert all(_about(row) == expected for row in failed)


def test_routing_by_service_names_the_version_without_replicas(lab: Lab, namespace: str) -> None:
    """The backend stays then, and the connection is refused: 503, or 504 where the kernel's refusal comes too late."""
    _serve(lab, namespace, routing="Service")
    wait_until(
        lambda: _ask(lab, namespace, "/gone/200") == 503,
        "an answer for a version without replicas",
        timeout_s=60,
        interval_s=0.25,
    )

    assert _ask(lab, namespace, f"/gone{COUNTED}/200") in (503, 504)

    row = _arrived(lab, namespace, 1)[0]
    assert (row["version"], row["routed_by"]) == ("gone", "weights")
    assert row["response_flags"] in ("UF", "UT", "UF,URX")
    assert row["Success"] is False
