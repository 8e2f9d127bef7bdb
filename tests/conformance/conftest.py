"""Every test of this folder runs on both targets."""

from collections.abc import Iterator

import pytest

from tests.cluster.lab import Lab
from tests.cluster.lab_of_this_run import lab_of_this_run
from tests.conformance.target_lab import TargetLab, cluster_lab, local_lab

TIMEOUT_S = 300


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module's tests on each target, those of one target in one process: they share what takes long to make."""
    if "target_lab" not in metafunc.fixturenames:
        return
    module = metafunc.module.__name__.rpartition(".")[2]
    # Only the test itself counts: the first one has to wait for the lab and the models' images.
    timeout = pytest.mark.timeout(TIMEOUT_S, func_only=True)
    targets = [
        pytest.param(target, marks=[pytest.mark.xdist_group(f"conformance-{module}-{target}"), timeout])
        for target in ("local", "kubernetes")
    ]
    metafunc.parametrize("target_lab", targets, indirect=True, scope="module")


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab that is up, or one that is brought up for this run; tests/conftest.py takes it down."""
    return lab_of_this_run()


@pytest.fixture(scope="module")
def target_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TargetLab]:
    """A target that the tests of a module share."""
    folder = tmp_path_factory.mktemp("target")
    if request.param == "local":
        with local_lab(folder) as target_lab:
            yield target_lab
    else:
        with cluster_lab(request.getfixturevalue("lab"), folder) as target_lab:
            yield target_lab


@pytest.fixture(autouse=True)
def its_turn(target_lab: TargetLab) -> Iterator[None]:
    """Use the lab together with others; a test that breaks it has it alone."""
    with target_lab.turn():
        yield
