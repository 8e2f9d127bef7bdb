"""Tokens of callers: an outside issuer's settings, an endpoint's own signing keys, and tokens signed with them. Pure.

A router accepts tokens of three of an endpoint's signing keys: the former one, the current one, which signs, and the
next one. A rotation moves each a place on, so that no token is ever signed with a key that a router has not had for
long, and a token of before goes on working until the rotation after that. The fourth key is known early, so that what
a router has to accept after the next rotation is known early, too.
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from controlled_rollout.addresses import is_loopback
from controlled_rollout.errors import ControlledRolloutError, EndpointError
from controlled_rollout.value import Value

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = [
    "DEFAULT_LIFETIME",
    "MAX_LIFETIME",
    "OWN_ISSUER",
    "SigningKeys",
    "Token",
    "TokenIssuer",
    "accepted_keys",
    "check_lifetime",
    "key_set",
    "no_keys",
    "sign",
]

# `iss` of the tokens that are signed with an endpoint's own keys.
OWN_ISSUER: Final = "controlled-rollout"
ALGORITHM: Final = "ES256"
MIN_LIFETIME: Final = timedelta(minutes=1)
DEFAULT_LIFETIME: Final = timedelta(hours=1)
MAX_LIFETIME: Final = timedelta(hours=24)
# A caller gets another token after this part of a token's life: what is left is enough to try again.
REFRESH_AFTER: Final = 0.75

# As Envoy Gateway limits them.
MAX_TEXT: Final = 253
MAX_VALUES: Final = 16
# Envoy Gateway asks of each claim whether it is a text or a list, so a rule is written for each combination.
MAX_CLAIMS: Final = 4
# What an issuer's key set may have; Entra ID's has about ten keys.
MAX_KEY_SET_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
# Larger parts than these Envoy takes for none, and refuses the keys of all endpoints then.
MAX_RSA_BITS: Final = 8192
MAX_RSA_EXPONENT: Final = 2**33 - 1
# What is public of a key of each type.
PUBLIC_PARTS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y")}

_PRINTABLE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_CLAIM: Final = re.compile(r"[A-Za-z0-9_:/-]+(\.[A-Za-z0-9_:/-]+)*")
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+")
# A Service of the cluster: its traffic does not leave the cluster's network. Any other name behind `.svc` may be a
# public one; of a cluster with a domain of its own the short form works.
_CLUSTER_HOST: Final = re.compile(r"[a-z0-9-]+\.[a-z0-9-]+\.svc(\.cluster\.local)?")


def _one_or_more(value: Any) -> Any:
    """Return a list with a text in it if the value is a text."""
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, strict=True)]
Values = Annotated[tuple[Text, ...], Field(max_length=MAX_VALUES)]
Texts = Annotated[Values, BeforeValidator(_one_or_more, json_schema_input_type=Text | Values)]


class TokenIssuer(Value):
    """An outside issuer of tokens, such as a tenant of Entra ID, and what a token of it has to say.

    Attributes:
        issuer: What the claim `iss` has to be, such as `https://login.microsoftonline.com/<tenant>/v2.0`.
        audience: What the claim `aud` has to be, or to have: of Entra ID the id of the application, or its URI.
        jwks_uri: Where the router reads the issuer's public keys.
        required_claims: By claim, a dot between the parts of a nested one: the values of which it has to be one, or,
            if the token has a list, to have one. A token without that is answered 403.
        required_scopes: What the claim `scope` or `scp` has to have, all of them. A token without is answered 403.
    """

    issuer: Text
    audience: Text
    jwks_uri: Text
    required_claims: dict[Text, Annotated[Texts, Field(min_length=1)]] = Field(default={}, max_length=MAX_CLAIMS)
    required_scopes: Texts = ()

    @field_validator("issuer", "audience")
    @classmethod
    def _check_printable(cls, value: str) -> str:
        """Raise unless the text is of visible ASCII characters, with spaces inside only (a validator)."""
        if not _PRINTABLE.fullmatch(value):
            raise ValueError("visible ASCII characters are expected")
        return value

    @field_validator("jwks_uri")
    @classmethod
    def _check_jwks_uri(cls, value: str) -> str:
        """Raise unless the keys come by https, or by http from this machine or from a Service (a validator)."""
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            parts, host = urlsplit(""), ""
        is_inside = parts.scheme == "http" and (is_loopback(host) or bool(_CLUSTER_HOST.fullmatch(host)))
        if not _PRINTABLE.fullmatch(value) or " " in value or not host or not (parts.scheme == "https" or is_inside):
            raise ValueError(
                "an https address is expected; http only of this machine (127.0.0.1), or of a Service of the cluster "
                "(NAME.NAMESPACE.svc)"
            )
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise ValueError("an address without user, password and fragment is expected")
        return value

    @field_validator("required_claims")
    @classmethod
    def _check_claims(cls, claims: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Raise unless each name can be a claim's, and each value can be compared (a validator)."""
        for name, values in claims.items():
            if not _CLAIM.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a claim: letters, digits and -_:/ are expected")
            if "://" in name and "." in name:
                raise ValueError(
                    f"{name!r} cannot be asked for: routers take each dot for the way into a nested claim; let the "
                    "issuer give the claim a name without dots as well"
                )
            if name in ("scope", "scp"):
                raise ValueError(f"{name!r} has scopes: name them in required_scopes")
            for value in values:
                if not _PRINTABLE.fullmatch(value):
                    raise ValueError(f"{value!r} of the claim {name!r} is not of visible ASCII characters")
        return claims

    @field_validator("required_scopes")
    @classmethod
    def _check_scopes(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Raise unless each can be a scope of OAuth 2.0 (RFC 6749, 3.3; a validator)."""
        for scope in scopes:
            if not _SCOPE.fullmatch(scope):
                raise ValueError(f"{scope!r} cannot be a scope: no spaces, quotation marks and backslashes")
        return scopes


class SigningKeys(BaseModel):
    """The private keys of an endpoint, as PEM; their `repr` does not show them.

    Attributes:
        former: Signed until the last rotation; its tokens are still accepted.
        current: Signs.
        next: Signs after the next rotation, and is accepted already.
        later: Is the next one after the next rotation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    former: str = Field(repr=False)
    current: str = Field(repr=False)
    next: str = Field(repr=False)
    later: str = Field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """Return new keys."""
        return cls(former=_new_key(), current=_new_key(), next=_new_key(), later=_new_key())

    def rotated(self) -> Self:
        """Return the keys after a rotation: the former one is gone, the next one signs."""
        return type(self)(former=self.current, current=self.next, next=self.later, later=_new_key())


class Token(BaseModel):
    """A token for callers of one endpoint; its `repr` does not show it.

    Attributes:
        token: What callers send as `Authorization: Bearer <token>`.
        refresh_by: When a caller should get another one.
        expires: Until when it is accepted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str = Field(repr=False)
    refresh_by: datetime
    expires: datetime


def check_lifetime(lifetime: timedelta) -> timedelta:
    """Return how long a token is to live; raise EndpointError unless that is 1 minute to 24 hours.

    Raises:
        EndpointError: It is shorter or longer, or no timedelta.
    """
    if not isinstance(lifetime, timedelta):
        raise EndpointError(f"a token cannot live for {lifetime!r}: give a timedelta, such as timedelta(minutes=30)")
    if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise EndpointError(f"a token cannot live for {lifetime}: ask for 1 minute to 24 hours (default 1 hour)")
    return lifetime


def sign(keys: SigningKeys, endpoint: str, lifetime: timedelta, now: datetime) -> Token:
    """Return a token for the callers of an endpoint, signed with its current key.

    Args:
        keys: The endpoint's keys.
        endpoint: Its name, the token's audience.
        lifetime: How long it is accepted.
        now: The present.

    Raises:
        EndpointError: The lifetime is too short or too long.
    """
    import jwt

    check_lifetime(lifetime)
    issued = now.replace(microsecond=0)
    claims = {"iss": OWN_ISSUER, "aud": endpoint, "iat": issued, "nbf": issued, "exp": issued + lifetime}
    key = _load(keys.current)
    token = jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": _public_key(key)["kid"]})
    return Token(token=token, refresh_by=issued + REFRESH_AFTER * lifetime, expires=issued + lifetime)


def key_set(keys: SigningKeys) -> str:
    """Return the JSON Web Key Set of the public keys that are accepted: what a router needs to check tokens.

    Raises:
        ValueError: One of the keys cannot be read, or two are the same.
    """
    public = [_public_key(_load(key)) for key in (keys.former, keys.current, keys.next, keys.later)]
    if len({key["kid"] for key in public}) != len(public):
        raise ValueError("two of its keys are the same")
    return _key_set(public[:3])


def no_keys() -> str:
    """Return a key set that no token fits: Envoy takes no empty one, and this one's private key is nowhere."""
    return _key_set([_public_key(_load(_new_key()))])


def accepted_keys(document: bytes) -> str:
    """Return an outside issuer's key set with the public keys that can check signatures, and nothing else of it.

    Secrets for HMAC are left out, so that no text that is public can sign; so are parts of private keys, and keys that
    are for encryption.

    Raises:
        ControlledRolloutError: It is no key set, is too large, or has no such key.
    """
    import jwt

    if len(document) > MAX_KEY_SET_BYTES:
        raise ControlledRolloutError(f"its key set has more than {MAX_KEY_SET_BYTES:,} bytes")
    try:
        listed = json.loads(document)["keys"]
        candidates = [key for key in listed[:MAX_KEYS] if isinstance(key, dict)]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise ControlledRolloutError("what it answers is not a JSON Web Key Set") from error
    accepted: dict[str, dict[str, str]] = {}
    for key in candidates:
        parts = PUBLIC_PARTS.get(str(key.get("kty")))
        if parts is None or key.get("use", "sig") != "sig":
            continue
        public = {name: key[name] for name in ("kty", "kid", "alg", *parts) if isinstance(key.get(name), str)}
        try:
            public |= _written_anew(public, parts)
        except (jwt.PyJWTError, ValueError, KeyError, TypeError):
            continue
        # Of two keys with one name a router would try the first only.
        accepted.setdefault(public.get("kid", json.dumps(public)), public)
    if not accepted:
        raise ControlledRolloutError("its key set has no public key for signatures (RSA from 2048 bits, or EC)")
    return _key_set(accepted.values())


def _written_anew(key: Mapping[str, str], parts: tuple[str, ...]) -> dict[str, str]:
    """Return what is public of a key in the one form that Envoy reads, whatever its issuer has written.

    Args:
        key: The key as its issuer has written it.
        parts: The names of its type's public parts.

    Raises:
        jwt.PyJWTError, ValueError, KeyError, TypeError: It is no key, or one that Envoy would refuse all keys for.
    """
    import jwt

    if not key.get("kid", "").isprintable():
        raise ValueError("its name has characters that cannot be printed")
    loaded = jwt.PyJWK(dict(key), algorithm=_algorithm(key))
    if key["kty"] == "RSA":
        numbers = loaded.key.public_numbers()
        bits = numbers.n.bit_length()
        if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS or numbers.n % 2 == 0 or numbers.e > MAX_RSA_EXPONENT:
            raise ValueError("Envoy takes no such RSA key")
    written = loaded.Algorithm.to_jwk(loaded.key, as_dict=True)
    return {name: str(written[name]) for name in parts}


def _algorithm(key: Mapping[str, str]) -> str:
    """Return the algorithm that a public key is for; of one that does not say it, the usual one of its type."""
    usual = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}.get(key.get("crv", ""), "RS256")
    allowed = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"} if key["kty"] == "RSA" else {usual}
    chosen = key.get("alg", usual)
    if chosen not in allowed:
        raise ValueError(f"{chosen!r} is no algorithm of such a key")
    return chosen


def _key_set(keys: Iterable[Mapping[str, str]]) -> str:
    """Return public keys as a JSON Web Key Set; the same keys give the same text."""
    ordered = sorted((dict(key) for key in keys), key=lambda key: json.dumps(key, sort_keys=True))
    return json.dumps({"keys": ordered}, sort_keys=True, separators=(",", ":"))


def _new_key() -> str:
    """Return a new private key as PEM."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _load(pem: str) -> "EllipticCurvePrivateKey":
    """Return a private key from its PEM; raise ValueError if it is none for ES256."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        # The error's own text may show what was read.
        raise ValueError("a key is not a private key as PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("a key is not one of the curve P-256")
    return key


def _public_key(key: "EllipticCurvePrivateKey") -> dict[str, str]:
    """Return the public part of a key as a JSON Web Key, named by its thumbprint (RFC 7638)."""
    import base64
    import hashlib

    from jwt.algorithms import ECAlgorithm

    public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    named = {name: str(public[name]) for name in ("crv", "kty", "x", "y")}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True, separators=(",", ":")).encode()).digest()
    thumbprint = base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
    return {**named, "kid": thumbprint, "alg": ALGORITHM, "use": "sig"}
