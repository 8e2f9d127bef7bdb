"""The addresses of this machine."""

import socket

import pytest

from controlled_rollout.addresses import is_loopback, is_this_machine


def interface_address() -> str:
    """Return an address of this machine that other machines can reach; without a network the loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect(("203.0.113.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(unsent.getsockname()[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST", "[::1]", "::1"])
def test_loopback_is_known_with_and_without_a_port(host: str) -> None:
    assert is_loopback(host)
    assert (":" in host.strip("[]") and not host.startswith("[")) or is_loopback(f"{host}:5000")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1.example", "localhost.example:5000", "10.0.0.1", "128.0.0.1:5000", "", "[::1", "::2"],
)
def test_a_name_that_only_looks_like_loopback_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]", interface_address()])
def test_an_address_of_this_machine_is_known_as_such(host: str) -> None:
    assert is_this_machine(f"http://{host}:8080/v1")


@pytest.mark.parametrize("host", ["203.0.113.1", "models.example", "localhost.example", "[2001:db8::1]", ""])
def test_an_address_elsewhere_or_one_that_a_name_server_chooses_is_not(host: str) -> None:
    assert not is_this_machine(f"http://{host}:8080/v1")


def test_invalid_url_is_not_this_machine() -> None:
    assert not is_this_machine("http://[::1")
