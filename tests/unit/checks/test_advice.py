"""What a failed probe is said to mean, and what to open for it."""

from dataclasses import replace

import pytest

from controlled_rollout.checks.advice import advice, failure_text, place_text, stage_cells
from controlled_rollout.checks.destinations import PODS, REGISTRY, STORAGE, WORKER, Wanted, destination_of
from controlled_rollout.checks.probe import Probe

STORE = Wanted(destination_of(STORAGE, "https://team.blob.core.windows.net"), True, "data")
PROBE = Probe(STORAGE, "team.blob.core.windows.net", 443, addresses=("20.60.1.2",), passed=("DNS",))


def said(origin: str = WORKER, wanted: Wanted = STORE, **found: object) -> tuple[str, str]:
    """Return the failure and the advice for a probe."""
    probe = replace(PROBE, **found)  # type: ignore[arg-type]
    return failure_text(probe), advice(probe, wanted, origin, "models")


def test_what_works_needs_no_advice() -> None:
    assert said(passed=("DNS", "TCP", "TLS", "HTTP"), status=400) == ("", "")


def test_unknown_name_is_put_right_at_the_name_server_and_its_private_zone() -> None:
    failure, todo = said(passed=(), failed="DNS", cause="unknown name", detail="Name or service not known")
    assert failure == "DNS: the name team.blob.core.windows.net is not known here (Name or service not known)"
    assert todo.startswith("let the name server that this machine uses know team.blob.core.windows.net")
    assert "privatelink.blob.core.windows.net" in todo

    _, in_pods = said(PODS, passed=(), failed="DNS", cause="no answer")
    assert in_pods.startswith("open outbound UDP and TCP 53 from these pods to kube-system, and let the cluster's DNS")


def test_port_that_does_not_answer_is_opened_where_the_check_ran() -> None:
    failure, todo = said(failed="TCP", cause="no answer", detail="no answer within 3 s")
    assert failure == (
        "TCP: team.blob.core.windows.net:443 (20.60.1.2) does not accept connections (no answer within 3 s)"
    )
    assert todo == (
        "open outbound TCP 443 to team.blob.core.windows.net from this machine: its firewall; in Azure by a network "
        "security group (service tag Storage) or Azure Firewall (FQDN team.blob.core.windows.net)"
    )

    _, in_pods = said(PODS, failed="TCP", cause="refused")
    assert in_pods.startswith(
        "nothing listens there, or a firewall refuses it: open outbound TCP 443 to team.blob.core.windows.net from the "
        "pods of namespace models: an egress NetworkPolicy that selects them"
    )


def test_private_endpoint_is_shown_and_opened_at_its_own_subnet() -> None:
    found = replace(PROBE, addresses=("10.2.0.5",), failed="TCP", cause="no answer")
    assert place_text(found) == "team.blob.core.windows.net:443 (10.2.0.5, private)"
    assert "private endpoint's subnet" in advice(found, STORE, PODS, "models")
    assert "service tag" not in advice(found, STORE, PODS, "models")


def test_address_of_this_machine_is_nothing_to_open() -> None:
    here = Wanted(destination_of(REGISTRY, "http://127.0.0.1:5000"), False, "images")
    probe = replace(PROBE, host="127.0.0.1", port=5000, addresses=("127.0.0.1",), failed="TCP", cause="refused")
    assert advice(probe, here, PODS, "models").endswith("nobody else reaches: give one that the cluster reaches")
    assert advice(probe, here, WORKER).endswith("start the server that should listen there")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("expired", "renew"),
        ("not yet valid", "clock"),
        ("wrong name", "a name that is in its certificate"),
        ("unknown authority", "REQUESTS_CA_BUNDLE"),
        ("unusable authorities", "correct the file"),
        ("plain http", "http://"),
        ("no TLS", "correct the port"),
        ("old TLS", "TLS 1.2"),
        ("closed", "SNI"),
        ("no answer", "open outbound TCP 443"),
        ("handshake failed", "open outbound TCP 443"),
    ],
)
def test_each_fault_of_tls_has_its_own_advice(cause: str, words: str) -> None:
    failure, todo = said(passed=("DNS", "TCP"), failed="TLS", cause=cause, detail="words")
    assert failure.startswith("TLS: ") and cause in failure
    assert words in todo


@pytest.mark.parametrize(
    ("cause", "problem"),
    [("expired", "is not trusted"), ("no answer", "does not complete"), ("plain http", "does not complete")],
)
def test_only_a_certificate_that_was_shown_is_called_not_trusted(cause: str, problem: str) -> None:
    assert problem in said(passed=("DNS", "TCP"), failed="TLS", cause=cause, detail="words")[0]


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("asks for a user", "HTTPS_PROXY"),
        ("unusable", "http://"),
        ("refuses the host", "allow CONNECT team.blob.core.windows.net:443 at the proxy proxy.example:3128"),
        ("refused", "NO_PROXY"),
    ],
)
def test_proxy_that_is_in_the_way_is_named(cause: str, words: str) -> None:
    failure, todo = said(failed="proxy", cause=cause, detail="it answers 403", proxy="proxy.example:3128", passed=())
    assert failure == "proxy: it answers 403"
    assert words in todo


def test_answer_that_is_no_answer_is_not_a_matter_of_the_network() -> None:
    failure, todo = said(passed=("DNS", "TCP", "TLS"), failed="HTTP", cause="server error", detail="it answers 503")
    assert failure.startswith("HTTP: ") and failure.endswith("(it answers 503)")
    assert todo.startswith("the way is open")
    assert "correct the address" in said(failed="HTTP", cause="no http")[1]


def test_cells_show_how_far_a_probe_came() -> None:
    assert stage_cells(None) == ("", "", "", "")
    assert stage_cells(replace(PROBE, failed="TCP")) == ("ok", "FAILS", "-", "-")
    done = replace(PROBE, passed=("DNS", "TCP", "TLS", "HTTP"), status=401)
    assert stage_cells(done) == ("ok", "ok", "ok", "401")
    assert stage_cells(replace(done, scheme="tcp", passed=("DNS", "TCP"))) == ("ok", "ok", "-", "-")
    assert stage_cells(replace(PROBE, passed=(), failed="proxy")) == ("-", "FAILS", "-", "-")
