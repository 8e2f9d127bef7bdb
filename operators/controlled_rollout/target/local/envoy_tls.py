"""TLS at the router: how callers' connections are encrypted, and what a caller of plain http is told. Pure.

Plain http comes to the same port. It is answered 400 and not redirected: a redirected client would send its key in
clear with each of its requests, and nobody would notice. The answer says that the key of this one is not safe any more.
"""

from typing import Any, Final

from controlled_rollout.target.local.certificate_pair import CertificatePair

__all__ = ["CERTIFICATE", "certificate_secret", "inspector", "plain_http_chain", "with_tls"]

Json = dict[str, Any]

_TYPE: Final = "type.googleapis.com/envoy."
# The name of the certificate among Envoy's secrets.
CERTIFICATE: Final = "router-certificate"
HANDSHAKE_TIMEOUT: Final = "10s"
# With forward secrecy and authenticated encryption; those of TLS 1.3 all have both.
CIPHERS_OF_TLS_1_2: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
HTTPS_ONLY: Final = (
    "this router speaks https only, so this request was not served: use https:// in the URL. What it carried has "
    "travelled in clear; if that was over a network, replace the key with `controlled-rollout keys ENDPOINT "
    "--regenerate primary` (or secondary), or refuse all tokens of before with `controlled-rollout keys rotate "
    "ENDPOINT`, twice"
)


def inspector() -> Json:
    """Return the listener filter that tells TLS from plain http."""
    return {
        "name": "envoy.filters.listener.tls_inspector",
        "typed_config": {"@type": _TYPE + "extensions.filters.listener.tls_inspector.v3.TlsInspector"},
    }


def with_tls(filter_chain: Json, config_source: Json) -> Json:
    """Return a filter chain for callers that use TLS.

    Args:
        filter_chain: What happens with their requests.
        config_source: Where Envoy finds the certificate, as `certificate_secret`.
    """
    context = {
        "@type": _TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_2",
                "tls_maximum_protocol_version": "TLSv1_3",
                "cipher_suites": list(CIPHERS_OF_TLS_1_2),
            },
            "tls_certificate_sds_secret_configs": [{"name": CERTIFICATE, "sds_config": config_source}],
        },
    }
    return {
        "filter_chain_match": {"transport_protocol": "tls"},
        "transport_socket_connect_timeout": HANDSHAKE_TIMEOUT,
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
        **filter_chain,
    }


def plain_http_chain() -> Json:
    """Return the filter chain that refuses plain http: no key is looked at, and nothing is counted as a request."""
    manager = {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain-http",
        "request_headers_timeout": HANDSHAKE_TIMEOUT,
        "common_http_protocol_options": {"idle_timeout": HANDSHAKE_TIMEOUT},
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "localhost"},
        "local_reply_config": {
            "body_format": {"json_format": {"status": "%RESPONSE_CODE%", "message": "%LOCAL_REPLY_BODY%"}}
        },
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "plain-http",
                    "domains": ["*"],
                    "response_headers_to_add": [{"header": {"key": "connection", "value": "close"}}],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {"status": 400, "body": {"inline_string": HTTPS_ONLY}},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": "plain-http",
        "filter_chain_match": {"transport_protocol": "raw_buffer"},
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
    }


def certificate_secret(pair: CertificatePair) -> Json:
    """Return the certificate and its key as a secret for Envoy: both in one document, so that they always fit."""
    return {
        "@type": _TYPE + "extensions.transport_sockets.tls.v3.Secret",
        "name": CERTIFICATE,
        "tls_certificate": {
            "certificate_chain": {"inline_string": pair.chain.decode()},
            "private_key": {"inline_string": pair.key.decode()},
        },
    }
