"""Fixtures of the tests on a cluster: the lab, and a sandbox in a namespace of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.lab.turns import turn
from tests.cluster.lab_of_this_run import lab_of_this_run
from tests.cluster.sandbox import Sandbox, fresh_namespace, fresh_sandbox
from tests.cluster.scoring_images import build_all

TIMEOUT_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count only the test itself against its time: the first one has to wait for the lab and the models' images."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S, func_only=True))


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab that is up, or one that is brought up for this run; tests/conftest.py takes it down."""
    return lab_of_this_run()


@pytest.fixture(autouse=True)
def its_turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests use the lab together, those marked `breaks_lab` alone."""
    if "lab" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("lab")
    with turn(alone=request.node.get_closest_marker("breaks_lab") is not None):
        yield


@pytest.fixture
def namespace(lab: Lab) -> Iterator[str]:
    """A fresh namespace, deleted afterwards with all that is in it."""
    with fresh_namespace(lab) as name:
        yield name


@pytest.fixture(scope="session")
def images(lab: Lab) -> dict[str, str]:
    """The models' images, by name."""
    return build_all(lab.registry)


@pytest.fixture
def sandbox(lab: Lab, images: dict[str, str], tmp_path: Path) -> Iterator[Sandbox]:
    """A workspace in a namespace of its own, signed in with exactly the shipped Role."""
    with fresh_sandbox(lab, images, tmp_path) as sandbox:
        yield sandbox


@pytest.fixture
def second_sandbox(lab: Lab, images: dict[str, str], tmp_path: Path) -> Iterator[Sandbox]:
    """Another sandbox."""
    with fresh_sandbox(lab, images, tmp_path) as sandbox:
        yield sandbox
