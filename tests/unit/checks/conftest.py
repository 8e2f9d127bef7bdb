from collections.abc import Iterator

import pytest

from tests.ports import closed_port


@pytest.fixture(name="closed_port")
def refusing() -> Iterator[int]:
    """Return a port at which connections are refused."""
    with closed_port() as port:
        yield port
