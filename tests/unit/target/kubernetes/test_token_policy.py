"""What Envoy Gateway is asked to check of callers' tokens, and that no version gets one."""

import json
from typing import Any

from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.target.kubernetes import manifests, token_policy
from controlled_rollout.target.kubernetes.route_rules import Mark, build_rules
from controlled_rollout.tokens import SigningKeys, TokenIssuer, key_set

OWNER: dict[str, Any] = {"metadata": {"name": "controlled-rollout-digits", "uid": "1"}}
KEYS = SigningKeys.new()
OUTSIDE = TokenIssuer(
    issuer="https://login.example/v2.0",
    audience="api://digits",
    jwks_uri="https://login.example/keys",
    required_claims={"roles": ("a", "b"), "tenant": ("ours",)},
    required_scopes=("score",),
)


def test_own_tokens_are_checked_by_public_keys_and_for_this_endpoint_only() -> None:
    endpoint = Endpoint(name="digits", auth=Auth.TOKEN)

    spec = manifests.security_policy(endpoint, namespace="models", owner=OWNER, key_set=key_set(KEYS))["spec"]

    [provider] = spec["jwt"]["providers"]
    assert (provider["audiences"], provider["issuer"]) == (["digits"], "controlled-rollout")
    prefixes = [{"name": "Authorization", "valuePrefix": word} for word in ("Bearer ", "bearer ", "BEARER ")]
    assert provider["extractFrom"] == {"headers": prefixes}
    assert "authorization" not in spec
    assert "apiKeyAuth" not in spec
    assert "PRIVATE" not in json.dumps(spec)
    assert '"d"' not in provider["localJWKS"]["inline"]


def test_an_outside_issuers_claims_may_be_texts_or_lists_and_all_are_asked_for() -> None:
    checks = token_policy.token_checks(Endpoint.new("digits", OUTSIDE), None)

    assert checks["jwt"]["providers"][0]["remoteJWKS"]["uri"] == OUTSIDE.jwks_uri
    assert checks["authorization"]["defaultAction"] == "Deny"
    rules = [rule["principal"]["jwt"] for rule in checks["authorization"]["rules"]]
    assert len({tuple(claim["valueType"] for claim in rule["claims"]) for rule in rules}) == len(rules) == 4
    for rule in rules:
        assert {claim["name"]: claim["values"] for claim in rule["claims"]} == {"roles": ["a", "b"], "tenant": ["ours"]}
        assert rule["scopes"] == ["score"]


def test_without_claims_and_scopes_a_valid_token_suffices() -> None:
    plain = OUTSIDE.model_copy(update={"required_claims": {}, "required_scopes": ()})
    assert "authorization" not in token_policy.token_checks(Endpoint.new("digits", plain), None)


def test_a_token_is_taken_off_before_a_version_and_a_key_is_hidden_by_the_policy() -> None:
    for auth, removed in ((Auth.TOKEN, ["Authorization"]), (Auth.KEY, None), (Auth.NONE, None)):
        endpoint = Endpoint(name="digits", auth=auth).create_version("one", image="one@sha256:1")
        rules = build_rules(endpoint, (), weights={"one": 1_000_000}, reachable=["one"], mark=Mark(1))
        leading = [rule for rule in rules.values() if rule.get("backendRefs")]
        assert len(leading) == 2
        for rule in leading:
            [headers] = [part["requestHeaderModifier"] for part in rule["filters"] if "requestHeaderModifier" in part]
            assert headers.get("remove") == removed


def test_only_endpoints_with_tokens_have_what_tokens_need() -> None:
    for auth in Auth:
        endpoint = Endpoint(name="digits", auth=auth)
        spec = manifests.traffic_policy(endpoint, namespace="models", owner=OWNER)["spec"]
        has_tokens = auth is Auth.TOKEN
        assert (token_policy.WRONG_AUDIENCE in spec["responseOverride"]) is has_tokens
        assert ("response_code_details" in spec["telemetry"]["tracing"]["tags"]) is has_tokens


def test_routes_that_hold_key_sets_are_no_route_of_the_endpoint() -> None:
    endpoint = Endpoint(name="digits", auth=Auth.TOKEN)
    labels = {"controlled-rollout/standby": "digits"}

    policy = manifests.standby_policy(endpoint, "x", labels, key_set(KEYS), namespace="models", owner=OWNER)
    route = manifests.standby_route("digits", "x", labels, {"name": "gateway"}, namespace="models", owner=OWNER)

    assert policy["spec"]["targetRefs"][0]["name"] == route["metadata"]["name"] == "x"
    assert route["metadata"]["labels"] == labels
    [rule] = route["spec"]["rules"]
    assert rule["matches"][0]["path"]["value"].startswith("/.controlled-rollout/")
    assert "backendRefs" not in rule
