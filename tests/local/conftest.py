"""A running local workspace, and telemetry stores, for the tests that speak to one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.local.local_target_lab import Lab, running
from tests.local.telemetry_lab import Process, stores


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running workspace that a module's tests share: each has an endpoint of its own."""
    with running(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that starts stores; without a folder of their own they share one."""
    with stores(tmp_path / "data") as start_store:
        yield start_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A store that a module's tests share: each has an endpoint of its own."""
    process = Process(tmp_path_factory.mktemp("shared"))
    yield process
    process.http.close()
    assert process.end()[0] == 0
