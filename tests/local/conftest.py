"""A running local workspace, telemetry stores and Azurite, for the tests that speak to one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient

from tests.azurite import CONTAINER, signed_in_to_blobs
from tests.local.local_target_lab import Lab, running
from tests.local.telemetry_lab import Process, stores


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running workspace that a module's tests share: each has an endpoint of its own."""
    with running(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def connection(lab: Lab) -> str:
    """The Airflow connection of the running workspace."""
    return json.dumps({"conn_type": "controlled_rollout", "extra": {"root": str(lab.workspace.root)}})


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobServiceClient]:
    """An Azurite with the empty container `CONTAINER`, to which the environment signs in."""
    with signed_in_to_blobs(tmp_path_factory.mktemp("blobs"), CONTAINER) as client:
        yield client


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
