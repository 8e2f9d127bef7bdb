from collections.abc import Iterator

import pytest

from tests.invariants.surroundings import simulated_surroundings


@pytest.fixture(autouse=True, scope="module")
def surroundings() -> Iterator[None]:
    """Lead the package's edges to simulated worlds."""
    with simulated_surroundings():
        yield
