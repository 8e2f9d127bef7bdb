"""The parts of Envoy Gateway's policies by which callers' tokens are checked. Pure."""

import itertools
from collections.abc import Mapping
from typing import Any, Final

from controlled_rollout.cluster.api import Object
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.overload import REASON_HEADER, WRONG_AUDIENCE_REASON
from controlled_rollout.tokens import OWN_ISSUER, TokenIssuer

__all__ = ["REASON_TAG", "WRONG_AUDIENCE", "token_checks"]

# By this name an authorization rule finds what a token says.
PROVIDER: Final = "token"
JWKS_CACHE: Final = "300s"
# RFC 7235 has callers write it in any case, and Envoy compares it: these are the ways in which they do.
SCHEMES: Final = ("Bearer", "bearer", "BEARER")
CLAIM_TYPES: Final = ("String", "StringArray")

# Envoy answers a token for somebody else with 403; every token that does not open an endpoint is answered 401.
WRONG_AUDIENCE: Final[Mapping[str, Any]] = {
    "match": {
        "statusCodes": [{"type": "Value", "value": 403}],
        # Only the filter that checks tokens sets it: a token without a claim that is asked for is answered 403.
        "responseHeaders": [{"name": "www-authenticate", "value": {"type": "Prefix", "value": "Bearer realm="}}],
    },
    "source": "Local",
    # Envoy's own words get lost here.
    "response": {"statusCode": 401, "header": {"set": [{"name": REASON_HEADER, "value": WRONG_AUDIENCE_REASON}]}},
}
# The span's tag with Envoy's words for why it refused a request, which never have the token.
REASON_TAG: Final[Mapping[str, str]] = {"response_code_details": "%RESPONSE_CODE_DETAILS%"}


def token_checks(endpoint: Endpoint, key_set: str | None) -> Object:
    """Return the part of an endpoint's SecurityPolicy that lets only callers with a token in.

    Args:
        endpoint: The endpoint.
        key_set: The public parts of its signing keys; None if an outside issuer issues its tokens.
    """
    outside = endpoint.token_issuer
    provider: Object = {
        "name": PROVIDER,
        "issuer": outside.issuer if outside else OWN_ISSUER,
        "audiences": [outside.audience if outside else endpoint.name],
        # Only there: by default Envoy looks into the address, too, where a token would be logged.
        "extractFrom": {"headers": [{"name": "Authorization", "valuePrefix": f"{word} "} for word in SCHEMES]},
    }
    if outside is None:
        provider["localJWKS"] = {"type": "Inline", "inline": key_set}
    else:
        provider["remoteJWKS"] = {"uri": outside.jwks_uri, "cacheDuration": JWKS_CACHE}
    checks: Object = {"jwt": {"providers": [provider]}}
    if outside is not None and (outside.required_claims or outside.required_scopes):
        checks["authorization"] = {"defaultAction": "Deny", "rules": _claim_rules(outside)}
    return checks


def _claim_rules(outside: TokenIssuer) -> list[Object]:
    """Return the rules that let in whose token has all claims and scopes; one for each way to write the claims.

    A claim may be a text or a list, and a rule asks for the one or for the other.
    """
    rules: list[Object] = []
    for types in itertools.product(CLAIM_TYPES, repeat=len(outside.required_claims)):
        asked = zip(outside.required_claims.items(), types, strict=True)
        claims = [{"name": name, "valueType": kind, "values": list(values)} for (name, values), kind in asked]
        principal: Object = {"provider": PROVIDER}
        if claims:
            principal["claims"] = claims
        if outside.required_scopes:
            principal["scopes"] = list(outside.required_scopes)
        rules.append({"name": f"token-{len(rules) + 1}", "action": "Allow", "principal": {"jwt": principal}})
    return rules
