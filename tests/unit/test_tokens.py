"""The settings of an outside issuer, an endpoint's signing keys, and what is taken of an issuer's key set."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, RSAAlgorithm
from jwt.utils import to_base64url_uint

from controlled_rollout import tokens
from controlled_rollout.arguments import authentication, check_authentication
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ArgumentError, ControlledRolloutError, EndpointError
from controlled_rollout.tokens import OWN_ISSUER, SigningKeys, TokenIssuer

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
ISSUER: dict[str, Any] = {
    "issuer": "https://login.example/tenant/v2.0",
    "audience": "api://digits",
    "jwks_uri": "https://login.example/tenant/keys",
}
KEYS = SigningKeys.new()
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, **fields: Any) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPublicKey) else ECAlgorithm
    return {**algorithm.to_jwk(key, as_dict=True), **fields}


def key_names(key_set: str) -> list[str]:
    return sorted(key["kid"] for key in json.loads(key_set)["keys"])


# The settings


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("issuer", "", "at least 1 character"),
        ("issuer", "a\nb", "visible ASCII"),
        ("issuer", 7, "valid string"),
        ("audience", " digits", "visible ASCII"),
        ("audience", "x" * 254, "at most 253"),
        ("jwks_uri", "http://login.example/keys", "https address"),
        ("jwks_uri", "ftp://login.example/keys", "https address"),
        ("jwks_uri", "https:///keys", "https address"),
        ("jwks_uri", "https://login.example:99999/keys", "https address"),
        ("jwks_uri", "https://user:secret@login.example/keys", "without user"),
        ("jwks_uri", "https://login.example/keys#a", "without user"),
        ("jwks_uri", "http://svc/keys", "https address"),
        ("jwks_uri", "http://login.auth.svc.example.com/keys", "https address"),
        ("jwks_uri", "http://login.svc/keys", "https address"),
        ("required_claims", {"roles": []}, "at least 1 item"),
        ("required_claims", {"ro les": ["a"]}, "cannot be the name"),
        ("required_claims", {"a..b": ["a"]}, "cannot be the name"),
        ("required_claims", {"https://models.example/roles": ["a"]}, "each dot"),
        ("required_claims", {"scp": ["a"]}, "required_scopes"),
        ("required_claims", {"roles": ["a\n"]}, "visible ASCII"),
        ("required_claims", {f"claim{number}": "a" for number in range(5)}, "at most 4"),
        ("required_scopes", ["a b"], "cannot be a scope"),
        ("required_scopes", [f"s{number}" for number in range(17)], "at most 16"),
        ("secret", "x", "Extra inputs"),
    ],
)
def test_an_issuer_that_cannot_be_checked_is_refused_with_the_reason(field: str, value: Any, why: str) -> None:
    with pytest.raises(EndpointError, match=why):
        TokenIssuer(**{**ISSUER, field: value})


@pytest.mark.parametrize(
    "given",
    [
        {**ISSUER, "jwks_uri": "https://user:hunter2@login.example/keys"},
        {**ISSUER, "jwks_uri": "https://user:hunt/er2@login.example:x/keys"},
        {**ISSUER, "client_secret": "hunter2"},
        {"jwks_uri": "https://user:hunter2@login.example/keys"},
    ],
    ids=["password", "password that is not escaped", "client secret", "missing fields"],
)
def test_an_issuer_is_refused_without_its_secrets(given: dict[str, Any]) -> None:
    with pytest.raises(EndpointError) as raised:
        TokenIssuer(**given)
    assert "hunt" not in str(raised.value)
    assert ("client_secret" in str(raised.value)) == ("client_secret" in given)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8000/keys", "http://issuer.auth.svc/keys", "http://i.a.svc.cluster.local:1/k"]
)
def test_keys_come_in_clear_only_from_this_machine_or_from_the_cluster(address: str) -> None:
    assert TokenIssuer(**{**ISSUER, "jwks_uri": address}).jwks_uri == address


@given(
    issuer=st.text(max_size=300),
    audience=st.text(max_size=300),
    claims=st.dictionaries(st.text(max_size=20), st.text(max_size=5) | st.lists(st.text(max_size=5)), max_size=6),
    scopes=st.lists(st.text(max_size=10), max_size=20),
)
def test_what_is_accepted_is_read_again_as_it_was_written(
    issuer: str, audience: str, claims: dict[str, Any], scopes: list[str]
) -> None:
    fields = {**ISSUER, "issuer": issuer, "audience": audience, "required_claims": claims, "required_scopes": scopes}
    try:
        accepted = TokenIssuer(**fields)
    except EndpointError:
        return
    again = TokenIssuer.model_validate_json(accepted.model_dump_json())
    assert again == accepted
    assert accepted.issuer.isascii() and accepted.issuer.isprintable()
    assert all(values for values in accepted.required_claims.values())
    assert not any(" " in scope for scope in accepted.required_scopes)


def test_keys_and_tokens_together_are_refused() -> None:
    issuer = TokenIssuer(**ISSUER)
    for auth in (Auth.KEY, Auth.NONE):
        with pytest.raises(EndpointError, match="keys or tokens, never both"):
            Endpoint(name="digits", auth=auth, token_issuer=issuer)
    assert Endpoint.new("digits", issuer).token_issuer == issuer
    assert not Endpoint.new("digits", issuer).has_signing_keys
    assert Endpoint.new("digits", Auth.TOKEN).has_signing_keys
    assert not Endpoint.new("digits").has_signing_keys


def test_auth_is_a_name_or_the_fields_of_an_issuer_as_a_mapping_or_as_json() -> None:
    assert authentication("auth", "token") is Auth.TOKEN
    assert authentication("auth", ISSUER) == authentication("auth", json.dumps(ISSUER)) == TokenIssuer(**ISSUER)
    for wrong in ("key,token", "", {}, {**ISSUER, "audience": ""}, "{", '{"issuer": "a"}', ["key", "token"]):
        with pytest.raises(ArgumentError, match="auth"):
            authentication("auth", wrong)
    check_authentication("auth", "{{ params.auth }}")
    check_authentication("auth", json.dumps(ISSUER))
    with pytest.raises(ValueError, match="choose one of key, token, none"):
        check_authentication("auth", "keys")


# Signing


def test_a_token_is_for_one_endpoint_and_for_its_lifetime() -> None:
    token = tokens.sign(KEYS, "digits", timedelta(hours=2), NOW)

    name = jwt.get_unverified_header(token.token)["kid"]
    [key] = [key for key in json.loads(tokens.key_set(KEYS))["keys"] if key["kid"] == name]
    claims = jwt.decode(
        token.token,
        jwt.PyJWK(key),
        ["ES256"],
        audience="digits",
        issuer=OWN_ISSUER,
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert claims["exp"] - claims["iat"] == 7200
    assert token.expires == NOW + timedelta(hours=2)
    assert token.refresh_by == NOW + timedelta(minutes=90)
    assert token.token not in repr(token)


LIFETIMES = [timedelta(0), timedelta(seconds=59), timedelta(days=1, seconds=1), timedelta(days=-1)]


@pytest.mark.parametrize("lifetime", [1800, "30 min", None])
def test_a_lifetime_that_is_no_timedelta_is_refused_with_what_to_give(lifetime: Any) -> None:
    with pytest.raises(EndpointError, match="give a timedelta"):
        tokens.check_lifetime(lifetime)


@pytest.mark.parametrize("lifetime", LIFETIMES)
def test_a_lifetime_outside_of_a_minute_to_a_day_is_refused(lifetime: timedelta) -> None:
    with pytest.raises(EndpointError, match="1 minute to 24 hours"):
        tokens.sign(KEYS, "digits", lifetime, NOW)


def test_a_rotation_moves_each_key_a_place_on_and_the_router_knows_the_next_two_key_sets_early() -> None:
    rotated = KEYS.rotated()

    assert (rotated.former, rotated.current, rotated.next) == (KEYS.current, KEYS.next, KEYS.later)
    assert len(key_names(tokens.key_set(KEYS))) == 3
    assert len(set(key_names(tokens.key_set(KEYS))) & set(key_names(tokens.key_set(rotated)))) == 2
    assert tokens.key_set(KEYS.rotated()) == tokens.key_set(rotated)


def test_what_a_router_gets_and_what_is_shown_has_no_private_part() -> None:
    assert all(
        set(key) == {"alg", "crv", "kid", "kty", "use", "x", "y"} for key in json.loads(tokens.key_set(KEYS))["keys"]
    )
    assert "PRIVATE" not in repr(KEYS) + str(KEYS)


@pytest.mark.parametrize(
    "damage",
    ["", "x", KEYS.next, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"],
    # The names are the same in every process, which a new key is not.
    ids=["empty", "a letter", "a second time the same", "no key inside"],
)
def test_damaged_keys_are_refused_and_not_shown(damage: str) -> None:
    with pytest.raises(ValueError, match="key") as raised:
        tokens.key_set(KEYS.model_copy(update={"current": damage}))
    assert "BEGIN" not in str(raised.value)


# An outside issuer's key set


def test_of_a_key_set_only_public_keys_for_signatures_are_taken() -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - as somebody else has it
    document = {
        "keys": [
            public(RSA.public_key(), kid="rsa", use="sig", x5c=["..."]),
            {**RSAAlgorithm.to_jwk(RSA, as_dict=True), "kid": "with its private part"},
            public(EC.public_key(), kid="ec"),
            public(RSA.public_key(), kid="for encryption", use="enc"),
            public(RSA.public_key(), kid="for HMAC", alg="HS256"),
            public(RSA.public_key(), kid="of another type", alg="ES256"),
            public(weak.public_key(), kid="weak"),
            {**HMACAlgorithm.to_jwk(b"x" * 32, as_dict=True), "kid": "secret"},
            {"kty": "RSA", "kid": "without parts"},
            {"kty": "EC", "kid": "no curve", "crv": "P-1", "x": "AA", "y": "AA"},
            "no key",
        ]
    }

    accepted = tokens.accepted_keys(json.dumps(document).encode())

    assert key_names(accepted) == ["ec", "rsa", "with its private part"]
    assert not [key for key in json.loads(accepted)["keys"] if {"d", "p", "q", "k", "x5c"} & set(key)]
    assert tokens.accepted_keys(accepted.encode()) == accepted


def test_one_key_that_envoy_would_refuse_all_keys_for_is_left_out_or_written_as_envoy_reads_it() -> None:
    good = public(RSA.public_key(), kid="good")
    plain_base64 = {name: good[name].replace("-", "+").replace("_", "/") + "==" for name in ("n", "e")}
    document = {
        "keys": [
            {**good, **plain_base64, "kid": "not URL-safe"},
            {**good, "kid": "\ud800"},
            {**good, "kid": "even", "n": number(RSA.public_key().public_numbers().n + 1)},
            {**good, "kid": "large exponent", "e": number(2**40 + 1)},
            {**good, "kid": "large", "n": number(2**20_000 + 1)},
        ]
    }

    accepted = tokens.accepted_keys(json.dumps(document).encode())

    assert key_names(accepted) == ["not URL-safe"]
    [key] = json.loads(accepted)["keys"]
    assert (key["n"], key["e"]) == (good["n"], good["e"])


def number(value: int) -> str:
    return to_base64url_uint(value).decode()


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys": []}', b'{"keys": {}}', b'{"keys": null}', b"\xff", b"[" * 100_000, b" " * 300_000],
)
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    with pytest.raises(ControlledRolloutError):
        tokens.accepted_keys(document)


NAMES = st.sampled_from(["keys", "kty", "n", "e", "kid", "alg"])
TREES = st.recursive(
    st.none() | st.text(max_size=5),
    lambda inner: st.dictionaries(NAMES, inner | st.lists(inner, max_size=3), max_size=4),
)


@given(st.binary(max_size=200) | TREES.map(lambda tree: json.dumps(tree).encode()))
def test_any_answer_of_an_issuer_is_a_key_set_or_refused(document: bytes) -> None:
    try:
        assert key_names(tokens.accepted_keys(document))
    except ControlledRolloutError:
        pass


def test_a_key_set_that_no_token_fits_has_a_key_that_nobody_has() -> None:
    assert key_names(tokens.no_keys()) != key_names(tokens.no_keys())
