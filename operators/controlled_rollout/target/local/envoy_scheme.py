"""The HTTP filters that take the word `Bearer` before a key or a token in any case (RFC 7235, 2.1). Pure.

Envoy's filters for keys and tokens take it as `Bearer` only. So the header is written that way before they see it: one
filter copies it into the request's metadata with the word rewritten, the next one puts it back.
"""

from typing import Any, Final

__all__ = ["scheme_filters"]

_FILTERS: Final = "type.googleapis.com/envoy.extensions.filters.http."
HEADER: Final = "authorization"
NAMESPACE: Final = "controlled_rollout.scheme"


def scheme_filters() -> list[dict[str, Any]]:
    """Return both filters; a header longer than 8 KB stays as it came, because Envoy takes no longer metadata."""
    rewritten = {"pattern": {"regex": "^(?i:bearer) +"}, "substitution": "Bearer "}
    copied = {"metadata_namespace": NAMESPACE, "key": HEADER, "type": "STRING", "regex_value_rewrite": rewritten}
    value = f"%DYNAMIC_METADATA({NAMESPACE}:{HEADER})%"
    back = {"header": {"key": HEADER, "value": value}, "append_action": "OVERWRITE_IF_EXISTS"}
    return [
        {
            "name": "controlled-rollout.scheme-to-metadata",
            "typed_config": {
                "@type": f"{_FILTERS}header_to_metadata.v3.Config",
                "request_rules": [{"header": HEADER, "on_header_present": copied}],
            },
        },
        {
            "name": "controlled-rollout.scheme-from-metadata",
            "typed_config": {
                "@type": f"{_FILTERS}header_mutation.v3.HeaderMutation",
                "mutations": {"request_mutations": [{"append": back}]},
            },
        },
    ]
