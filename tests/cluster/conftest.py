"""What the tests on a cluster get: the lab, and a namespace of their own."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.lab import Lab, LabError
from tests.cluster.lab.cache import locked
from tests.cluster.lab.network import owner
from tests.cluster.lab.preparation import why_not_prepared
from tests.cluster.lab.turns import turn
from tests.cluster.place import Place, forget_role, make
from tests.cluster.scoring_images import build_all
from tests.needs import skip

TIMEOUT_S = 300
LABEL = "controlled-rollout/test"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count only the test itself against its time: the first one has to wait for the lab and the models' images."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S, func_only=True))


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab that is up, or one that is brought up for this run; tests/conftest.py takes it down."""
    # One process brings it up and the others wait: `up` on a lab that a test of another process breaks would fail.
    with locked("first-use"):
        with contextlib.suppress(LabError):
            return Lab.connect()
        if why_not := why_not_prepared():
            message = f"no cluster: {why_not}; or set KUBECONFIG to use one"
            if os.environ.get("CONTROLLED_ROLLOUT_CLUSTER") == "required":
                pytest.fail(message)
            skip(message)
        return Lab.up(owner(), started_by=os.environ["CONTROLLED_ROLLOUT_TEST_RUN"])


@pytest.fixture(autouse=True)
def its_turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests use the lab together, those marked `breaks_lab` alone."""
    if "lab" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("lab")
    with turn(alone=request.node.get_closest_marker("breaks_lab") is not None):
        yield


@contextmanager
def fresh_namespace(lab: Lab) -> Iterator[str]:
    """Create a namespace, and delete it afterwards with all that is in it."""
    name = f"test-{secrets.token_hex(4)}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {LABEL: "true"}}}
    lab.kubectl("create", "-f", "-", input=json.dumps(namespace))
    yield name
    lab.kubectl("delete", "namespace", name, "--wait=false")


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
def place(lab: Lab, images: dict[str, str], namespace: str, tmp_path: Path) -> Iterator[Place]:
    """A workspace in a namespace of its own, signed in with exactly the shipped Role."""
    yield make(lab, namespace, images, tmp_path)
    forget_role(lab, namespace)


@pytest.fixture
def other(lab: Lab, images: dict[str, str], tmp_path: Path) -> Iterator[Place]:
    """Another one."""
    with fresh_namespace(lab) as name:
        yield make(lab, name, images, tmp_path)
        forget_role(lab, name)
