"""The tests with a real Prometheus need the program."""

import pytest

from tests.prometheus.real_prometheus import require_program


@pytest.fixture(scope="session", autouse=True)
def program() -> None:
    require_program()
