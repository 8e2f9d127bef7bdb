"""Tokens of callers: which open an endpoint, which do not, with what answer; a rotation interrupts nobody."""

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from jwt.algorithms import ECAlgorithm

from controlled_rollout.endpoint import Auth, EndpointError
from controlled_rollout.target.kubernetes import key_set_standby
from controlled_rollout.target.local.supervisor_state import SupervisorState
from controlled_rollout.tokens import OWN_ISSUER, SigningKeys, TokenIssuer, key_set
from tests.conformance.target_lab import TargetLab
from tests.polling import until

HOUR = 3600
# The router's clock may differ from the issuer's by 60 s.
BEYOND_SKEW = 90


@dataclass(frozen=True)
class Shared:
    """An endpoint whose callers have tokens.

    Attributes:
        name: The endpoint's name.
        url: Where its callers send requests.
        keys: The keys that sign its tokens.
    """

    name: str
    url: str
    keys: SigningKeys

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a token that opens the endpoint, with changes; None leaves one out."""
        now = int(time.time())
        claims = {"iss": OWN_ISSUER, "aud": self.name, "iat": now, "exp": now + HOUR, **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def signed(self, key: str = "", *, kid: str | None = None, **changes: Any) -> str:
        """Return a token signed with the current key, or another one."""
        pem = key or self.keys.current
        return jwt.encode(self.claims(**changes), pem, algorithm="ES256", headers={"kid": kid or key_id(pem)})

    def forged(self, algorithm: str, secret: bytes | None = None) -> str:
        """Return a token whose head names another algorithm; signed by HMAC with a secret, if one is given."""
        parts = ({"alg": algorithm, "typ": "JWT", "kid": key_id(self.keys.current)}, self.claims())
        text = b".".join(encoded(json.dumps(part).encode()) for part in parts)
        signature = hmac.digest(secret, text, hashlib.sha256) if secret else b""
        return (text + b"." + encoded(signature)).decode()


def encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def public_key(pem: str) -> ec.EllipticCurvePublicKey:
    private = load_pem_private_key(pem.encode(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return private.public_key()


def key_id(pem: str) -> str:
    """Return the name of a key in the key sets that routers get."""
    keys = SigningKeys.new().model_copy(update={"current": pem})
    x = ECAlgorithm.to_jwk(public_key(pem), as_dict=True)["x"]
    return next(str(key["kid"]) for key in json.loads(key_set(keys))["keys"] if key["x"] == x)


@pytest.fixture(scope="module")
def shared(target_lab: TargetLab) -> Shared:
    """An endpoint with tokens that the tests share; each rotation changes its keys."""
    lab = target_lab
    with lab.turn():
        first = lab.with_version(lab.endpoint("tokens", auth=Auth.TOKEN), "one")
        name = asyncio.run(lab.serve(first)).name
        return Shared(name, asyncio.run(lab.target.status(name)).url, lab.signing_keys(name))


async def answers(url: str, tokens: Mapping[str, str | None]) -> dict[str, int]:
    """Return the status that a request with each token is answered with."""
    async with httpx.AsyncClient(timeout=30) as caller:
        statuses = {}
        for what, token in tokens.items():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            statuses[what] = (await caller.post(url, json={}, headers=headers)).status_code
        return statuses


async def test_only_a_valid_token_for_this_endpoint_opens_it(target_lab: TargetLab, shared: Shared) -> None:
    lab, now = target_lab, int(time.time())
    token = await lab.target.token(shared.name)
    lasts, fresh_for = token.expires - datetime.now(UTC), token.refresh_by - datetime.now(UTC)
    stranger = SigningKeys.new().current
    head, claims, signature = token.token.split(".")
    public = public_key(shared.keys.current)
    pem_of_public_key = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    opened = {
        "from the target": token.token,
        "several audiences": shared.signed(aud=["other", shared.name]),
        "signed with the former key": shared.signed(shared.keys.former),
        "signed with the next key": shared.signed(shared.keys.next),
        "expired within the skew": shared.signed(exp=now - 5),
        "valid in a moment, within the skew": shared.signed(nbf=now + 20),
    }
    refused = {
        "no token": None,
        "no token at all": "secret",
        "another audience": shared.signed(aud="other"),
        "no audience": shared.signed(aud=None),
        "another issuer": shared.signed(iss="https://somebody.example"),
        "no issuer": shared.signed(iss=None),
        "expired": shared.signed(exp=now - BEYOND_SKEW),
        "not yet valid": shared.signed(nbf=now + HOUR),
        "alg none": shared.forged("none"),
        "alg None": shared.forged("None"),
        "HMAC with the public key": shared.forged("HS256", pem_of_public_key),
        "HMAC with the key set's text": shared.forged("HS256", key_set(shared.keys).encode()),
        "another algorithm": shared.forged("RS256"),
        "unknown key": shared.signed(stranger),
        "unknown key under a known name": shared.signed(stranger, kid=key_id(shared.keys.current)),
        "known key under an unknown name": shared.signed(kid="nobody"),
        "another signature": f"{head}.{claims}.{signature[:-4]}AAAA",
        "other claims": f"{head}.{encoded(json.dumps(shared.claims(aud='x')).encode()).decode()}.{signature}",
        "of 16,000 characters": "x" * 16_000,
    }

    assert await answers(shared.url, opened) == dict.fromkeys(opened, 200)
    assert await answers(shared.url, refused) == dict.fromkeys(refused, 401)
    async with httpx.AsyncClient(timeout=30) as caller:
        in_address = await caller.post(f"{shared.url}?access_token={token.token}", json={})
        in_cookie = await caller.post(shared.url, json={}, headers={"Cookie": f"access_token={token.token}"})
        basic = await caller.post(shared.url, json={}, headers={"Authorization": f"Basic {token.token}"})
        by_name = await caller.post(shared.url, json={}, headers={"azureml-model-deployment": "one"})
    assert [answer.status_code for answer in (in_address, in_cookie, basic, by_name)] == 4 * [401]
    assert timedelta(minutes=44) < fresh_for < timedelta(minutes=46)
    assert timedelta(minutes=59) < lasts <= timedelta(minutes=60)


async def test_a_rotation_interrupts_nobody_and_the_key_of_before_the_last_is_refused_when_it_returns(
    target_lab: TargetLab, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = target_lab
    endpoint = await lab.target.endpoint(shared.name)
    before = Shared(shared.name, shared.url, lab.signing_keys(shared.name))
    # On Kubernetes a rotation waits for connections that nobody uses. All of this test's are in use.
    monkeypatch.setattr(key_set_standby, "DRAINED", timedelta(seconds=10))
    async with lab.load(endpoint, rate=40) as load:
        await load.more(20)
        await lab.target.rotate_signing_keys(shared.name)
        once = await answers(shared.url, {"of before": before.signed(), "gone": before.signed(before.keys.former)})
        new = (await lab.target.token(shared.name)).token
        once["new"] = (await answers(shared.url, {"new": new}))["new"]
        await load.more(20)
    assert (once, load.failed) == ({"of before": 200, "gone": 401, "new": 200}, {})
    assert key_id(lab.signing_keys(shared.name).current) == jwt.get_unverified_header(new)["kid"]
    assert lab.signing_keys(shared.name).current == before.keys.next

    await lab.target.rotate_signing_keys(shared.name)

    assert await answers(shared.url, {"of before": before.signed(), "new": new}) == {"of before": 401, "new": 200}
    status = await lab.target.status(shared.name)
    assert (status.served_revision, status.weight_ppm, status.trouble) == (endpoint.revision, {"one": 1_000_000}, None)


async def test_who_has_tokens_has_no_keys_and_the_other_way_round(target_lab: TargetLab, shared: Shared) -> None:
    lab = target_lab
    with pytest.raises(EndpointError, match="has no keys: its auth is 'token'; `controlled-rollout keys token"):
        await lab.target.keys(shared.name)
    with pytest.raises(EndpointError, match="has no keys: its auth is 'token'"):
        await lab.target.regenerate_key(shared.name, "primary")
    with pytest.raises(EndpointError, match="1 minute to 24 hours"):
        await lab.target.token(shared.name, lifetime=timedelta(hours=25))


async def test_telemetry_says_why_each_request_was_refused_and_has_no_token(
    target_lab: TargetLab, shared: Shared
) -> None:
    lab = target_lab
    sent = {
        "Jwt_is_missing": None,
        "Jwt_is_expired": shared.signed(exp=int(time.time()) - BEYOND_SKEW),
        "wrong-audience": shared.signed(aud="other"),
        "via_upstream": (await lab.target.token(shared.name)).token,
    }
    await answers(shared.url, sent)
    about = f"tostring(Properties.endpoint) == '{shared.name}'"
    words = "strcat(tostring(Properties.response_code_details), ' ', tostring(Properties.reason))"
    expected = {part: "200" if part == "via_upstream" else "401" for part in sent}

    def has_all() -> bool:
        found = [" ".join(row) for row in rows(lab, f"AppRequests | where {about} | project ResultCode, {words}")]
        return all(any(part in row for row in found if row.startswith(status)) for part, status in expected.items())

    await until(has_all, f"rows with the reasons {expected}", timeout_s=60, interval_s=0.5)
    everything = json.dumps(rows(lab, f"AppRequests | where {about} | project Name, Url, tostring(Properties)"))
    assert not [token for token in sent.values() if token and token[:40] in everything]


def rows(lab: TargetLab, query: str) -> list[list[Any]]:
    """Return the rows that the store of the target's telemetry answers a query with."""
    state = SupervisorState.read(lab.workspace) if lab.workspace.target == "local" else None
    url = state.telemetry_url if state else lab.workspace.telemetry_endpoint
    store = state.telemetry_workspace_id if state else lab.workspace.telemetry_workspace_id
    token = state.telemetry_token_file if state else lab.workspace.telemetry_token_file
    assert url and token
    answer = httpx.post(
        f"{url.removesuffix('/v1')}/v1/workspaces/{store}/query",
        json={"query": query},
        headers={"Authorization": f"Bearer {token.read_text().strip()}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    found: list[list[Any]] = answer.json()["tables"][0]["rows"]
    return found


async def test_real_clients_are_let_in_with_a_token_and_not_without(target_lab: TargetLab, shared: Shared) -> None:
    token = (await target_lab.target.token(shared.name)).token

    def by_curl(*options: str) -> str:
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "60", "-d", "{}", *options, shared.url]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def by_requests(headers: dict[str, str]) -> int:
        with requests.Session() as session:
            return session.post(shared.url, json={}, headers=headers, timeout=60).status_code

    bearer = f"Bearer {token}"
    assert await asyncio.to_thread(by_curl, "-H", f"Authorization: {bearer}") == "200"
    assert await asyncio.to_thread(by_curl, "--oauth2-bearer", token) == "200"
    assert await asyncio.to_thread(by_curl) == "401"
    assert await asyncio.to_thread(by_requests, {"Authorization": bearer}) == 200
    # The scheme has no case (RFC 7235).
    for word in ("bearer", "BEARER"):
        assert await asyncio.to_thread(by_requests, {"Authorization": f"{word} {token}"}) == 200
    assert await asyncio.to_thread(by_requests, {"Authorization": bearer[:-8]}) == 401


async def test_tokens_of_an_outside_issuer_open_with_what_is_asked_for_and_its_keys_outlive_it(
    target_lab: TargetLab,
) -> None:
    lab = target_lab
    with lab.issuer() as (issuer, address):
        outside = TokenIssuer(
            issuer=issuer.name,
            audience=issuer.audience,
            jwks_uri=address,
            required_claims={"roles": ("Digits.Score", "Digits.Admin"), "app.tenant": ("ours",)},
            required_scopes=("score",),
        )
        endpoint = lab.endpoint("outside").model_copy(update={"auth": Auth.TOKEN, "token_issuer": outside})
        endpoint = await lab.serve(lab.with_version(endpoint, "one"))
        url = (await lab.target.status(endpoint.name)).url
        asked: dict[str, Any] = {"roles": ["Other", "Digits.Score"], "app": {"tenant": "ours"}, "scp": "read score"}
        issuer.keys["stranger"] = rsa.generate_private_key(65537, 2048)
        stranger = issuer.token("stranger", **asked)
        del issuer.keys["stranger"]
        await lab.answers(endpoint, 200, key=issuer.token(**asked))

        found = await answers(
            url,
            {
                "a list of roles": issuer.token(**asked),
                "one role": issuer.token(**{**asked, "roles": "Digits.Admin"}),
                "scopes in the other claim": issuer.token(**{**asked, "scp": None, "scope": "score"}),
                "no roles": issuer.token(**{**asked, "roles": None}),
                "another role": issuer.token(**{**asked, "roles": ["Digits.Scorer"]}),
                "another tenant": issuer.token(**{**asked, "app": {"tenant": "theirs"}}),
                "a part of a scope": issuer.token(**{**asked, "scp": "scores"}),
                "no scope": issuer.token(**{**asked, "scp": None}),
                "another audience": issuer.token(**asked, aud="api://other"),
                "another issuer": issuer.token(**asked, iss="https://login.example/other/v2.0"),
                "another issuer's key": stranger,
                "expired": issuer.token(**asked, exp=int(time.time()) - BEYOND_SKEW),
            },
        )
        assert list(found.values()) == 3 * [200] + 5 * [403] + 4 * [401], found
        with pytest.raises(EndpointError, match=f"its callers get them from {issuer.name}"):
            await lab.target.token(endpoint.name)
        issuer.answers = False
    # It is away now: what it has signed goes on working, and what it has not stays out.
    assert await answers(url, {"known": issuer.token(**asked), "unknown": stranger}) == {"known": 200, "unknown": 401}
