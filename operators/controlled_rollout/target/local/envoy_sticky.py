"""Envoy's settings for an endpoint whose callers stay with a version: the hash, its ranges, the tag of spans. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controlled_rollout.sticky import StickyKey, UserRange
from controlled_rollout.target.local.envoy_config import ENVOY_TYPE, HEADER_TO_METADATA, Json

__all__ = ["KEY_TAG", "StickyRoute", "cookie_settings", "hash_policy", "key_tags"]

# The tag of spans with the caller's key. The telemetry store keeps a hash of it only.
KEY_TAG: Final = "sticky_key"
METADATA: Final = "controlled-rollout"


@dataclass(frozen=True, slots=True)
class StickyRoute:
    """How an endpoint's requests are split by a key of the caller's.

    Attributes:
        key: Where the key is.
        ranges: The ranges of its hash that may be served now.
    """

    key: StickyKey
    ranges: Sequence[UserRange]


def hash_policy(key: StickyKey) -> list[Json]:
    """Return a route's hash policy; a request without the key has no hash, and Envoy draws a number instead."""
    if key.kind == "cookie":
        return [{"cookie": {"name": key.name}}]
    return [{"header": {"header_name": key.name}}]


def cookie_settings(key: StickyKey) -> Json:
    """Return the filter settings of a route by which one cookie's value can be a tag; nothing for a header."""
    if key.kind != "cookie":
        return {}
    found = {"metadata_namespace": METADATA, "key": KEY_TAG, "type": "STRING"}
    return {
        HEADER_TO_METADATA: {
            "@type": ENVOY_TYPE + "extensions.filters.http.header_to_metadata.v3.Config",
            "request_rules": [{"cookie": key.name, "on_header_present": found}],
        }
    }


def key_tags(key: StickyKey) -> list[Json]:
    """Return the tag of a route's spans that has the caller's key; a request without the key has none."""
    if key.kind == "cookie":
        place = {"key": METADATA, "path": [{"key": KEY_TAG}]}
        return [{"tag": KEY_TAG, "metadata": {"kind": {"request": {}}, "metadata_key": place}}]
    return [{"tag": KEY_TAG, "request_header": {"name": key.name}}]
