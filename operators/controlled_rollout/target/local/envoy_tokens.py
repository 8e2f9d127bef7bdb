"""The part of Envoy's configuration that checks callers' tokens. Pure.

The filter's own configuration, with issuers and public keys, is a discovery file beside the listener: a rotation
changes neither a listener nor a connection. Routes name the requirement of their endpoint in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controlled_rollout.target.local.envoy_files import EnvoyFiles
from controlled_rollout.target.local.envoy_overload import refusal_headers
from controlled_rollout.target.overload import WRONG_AUDIENCE_REASON

__all__ = [
    "TOKENS_VERSION",
    "TOKEN_FILTERS",
    "TokenRoute",
    "filter_configuration",
    "reason_tag",
    "route_configuration",
    "token_filters",
    "wrong_audience_reply",
]

ENVOY_TYPE: Final = "type.googleapis.com/envoy."
JWT_AUTHN: Final = "envoy.filters.http.jwt_authn"
RBAC: Final = "envoy.filters.http.rbac"
TOKEN_FILTERS: Final = (JWT_AUTHN, RBAC)
# Envoy's name of the version of the filter's configuration that it has taken over.
TOKENS_VERSION: Final = f"extension_config_discovery.http_filter.{JWT_AUTHN}.version_text"
# Envoy's word for a token of another audience, which it answers with 403.
_WRONG_AUDIENCE: Final = "jwt_authn_access_denied{Audiences"


@dataclass(frozen=True, slots=True)
class TokenRoute:
    """The tokens that open an endpoint.

    Attributes:
        issuer: What the claim `iss` has to be.
        audience: What the claim `aud` has to be, or to have.
        key_set: The public keys, as the JSON text of a JSON Web Key Set.
        claims: By claim: the values of which a token has to have one, or be answered 403.
        scopes: The scopes that it has to have, all of them.
    """

    issuer: str
    audience: str
    key_set: str
    claims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()


def token_filters(files: EnvoyFiles) -> list[dict[str, Any]]:
    """Return the HTTP filters that check tokens and what they say; routes without settings of theirs need no token."""
    return [
        {
            "name": JWT_AUTHN,
            "config_discovery": {
                "config_source": {
                    "path_config_source": {"path": str(files.tokens)},
                    "resource_api_version": "V3",
                    "initial_fetch_timeout": "5s",
                },
                # Without its configuration the filter answers 500: nobody is let in.
                "type_urls": [f"{ENVOY_TYPE}extensions.filters.http.jwt_authn.v3.JwtAuthentication"],
            },
        },
        {"name": RBAC, "typed_config": {"@type": f"{ENVOY_TYPE}extensions.filters.http.rbac.v3.RBAC"}},
    ]


def filter_configuration(tokens: Mapping[str, TokenRoute]) -> dict[str, Any]:
    """Return the discovery resource of the filter: whose tokens it accepts, by endpoint."""
    return {
        "@type": f"{ENVOY_TYPE}config.core.v3.TypedExtensionConfig",
        "name": JWT_AUTHN,
        "typed_config": {
            "@type": f"{ENVOY_TYPE}extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": {name: _jwt_provider(token) for name, token in tokens.items()},
            "requirement_map": {name: {"provider_name": name} for name in tokens},
        },
    }


def _jwt_provider(token: TokenRoute) -> dict[str, Any]:
    """Return the settings by which a token of one endpoint is checked; the clock may differ by 60 s."""
    return {
        "issuer": token.issuer,
        "audiences": [token.audience],
        "local_jwks": {"inline_string": token.key_set},
        # Only there: Envoy's default looks into the address, too, where a token would be logged.
        "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
        # The routes take it off: a large request is checked twice.
        "forward": True,
        "require_expiration": True,
        "clock_skew_seconds": 60,
        "payload_in_metadata": "token",
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope", "scp"]},
    }


def route_configuration(endpoint: str, token: TokenRoute) -> dict[str, Any]:
    """Return the settings of both filters for the routes of an endpoint."""
    settings: dict[str, Any] = {
        JWT_AUTHN: {
            "@type": f"{ENVOY_TYPE}extensions.filters.http.jwt_authn.v3.PerRouteConfig",
            "requirement_name": endpoint,
        }
    }
    needed = [
        _any_of(_claim_principal(name.split("."), value) for value in values) for name, values in token.claims.items()
    ]
    needed += [_any_of(_claim_principal([name], scope) for name in ("scope", "scp")) for scope in token.scopes]
    if needed:
        policy = {"permissions": [{"any": True}], "principals": [{"and_ids": {"ids": needed}}]}
        settings[RBAC] = {
            "@type": f"{ENVOY_TYPE}extensions.filters.http.rbac.v3.RBACPerRoute",
            "rbac": {"rules": {"action": "ALLOW", "policies": {"token": policy}}},
        }
    return settings


def _any_of(principals: Any) -> dict[str, Any]:
    """Return the principal that one of several suffices for."""
    return {"or_ids": {"ids": list(principals)}}


def _claim_principal(path: list[str], value: str) -> dict[str, Any]:
    """Return the principal whose token has a value in a claim: as its text, or in its list."""
    is_value = {"string_match": {"exact": value}}
    matches = (is_value, {"list_match": {"one_of": is_value}})
    where = {"filter": JWT_AUTHN, "path": [{"key": key} for key in ("token", *path)]}
    return _any_of({"sourced_metadata": {"metadata_matcher": {**where, "value": match}}} for match in matches)


def wrong_audience_reply() -> dict[str, Any]:
    """Return the mapper by which a token for somebody else is answered 401, as any other that does not open."""
    return {
        "filter": {
            "extension_filter": {
                "name": "envoy.access_loggers.extension_filters.cel",
                "typed_config": {
                    "@type": f"{ENVOY_TYPE}extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                    "expression": f"response.code_details.startsWith('{_WRONG_AUDIENCE}')",
                },
            }
        },
        "status_code": 401,
        "headers_to_add": refusal_headers(WRONG_AUDIENCE_REASON, comes_again=False),
    }


def reason_tag() -> dict[str, Any]:
    """Return the span's tag with Envoy's words for why it refused a request, which never have the token."""
    return {"tag": "response_code_details", "value": "%RESPONSE_CODE_DETAILS%"}
