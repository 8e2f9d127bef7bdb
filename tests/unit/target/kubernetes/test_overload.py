"""What the Gateway is told to do when a version has no room."""

from controlled_rollout.target.kubernetes import overload


def test_the_gateways_own_refusals_have_a_reason_and_say_when_to_come_again() -> None:
    headers = {
        override["match"]["statusCodes"][0]["value"]: {
            header["name"]: header["value"] for header in override["response"]["header"]["set"]
        }
        for override in overload.response_overrides()
    }

    assert headers == {
        413: {"x-controlled-rollout-reason": "body-too-large"},
        503: {"x-controlled-rollout-reason": "no-replica", "Retry-After": "1"},
        504: {"x-controlled-rollout-reason": "timeout"},
    }
    # A version's own answers are left as they are.
    assert {override["source"] for override in overload.response_overrides()} == {"Local"}


def test_only_what_a_replica_gave_back_is_sent_again() -> None:
    headers = {header["name"]: header["value"] for header in overload.request_headers()}

    assert headers["x-envoy-retry-on"] == "retriable-headers"
    assert headers["x-envoy-retriable-header-names"] == "x-controlled-rollout-send-again"
    assert overload.retry()["retryOn"]["triggers"] == ["connect-failure", "reset-before-request", "refused-stream"]
