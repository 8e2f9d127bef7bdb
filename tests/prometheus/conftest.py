"""Fixtures of the tests with a real Prometheus."""

import pytest

from tests.prometheus.real_prometheus import require_program


@pytest.fixture(scope="session", autouse=True)
def program() -> None:
    require_program()
