"""How all tests run: with which generated examples, which of them in one process, in which order."""

import os
import sys
import uuid
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from hypothesis import settings

# Timings on a busy machine say nothing about the code, and a failure must be repeatable: the examples are the same
# in every run. `make fuzz` tries others.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=1_000, print_blob=True)
settings.load_profile("same")

TESTS = Path(__file__).parent
# Slow folders first, so that no process is left with a long test at the end. Tests on the cluster come after those
# that need no cluster: while one test breaks the lab, the tests beside it must not be waiting for the lab.
FOLDERS = ("registry", "browser", "local", "prometheus", "conformance", "cluster", "unit")
# Names this run to all of its processes: the run that has started the lab takes it down.
RUN_ID = "CONTROLLED_ROLLOUT_TEST_RUN"
# Environments that tests build are kept between runs, and apart from those of this machine's user.
os.environ["CONTROLLED_ROLLOUT_CACHE"] = str(TESTS.parent / ".work" / "test-cache" / "images")
# PySpark takes a process whose main module says nothing of where it is from, as in a worker of xdist, for a run of its
# own doctests, and ends it.
if sys.modules["__main__"].__spec__ is None:
    sys.modules["__main__"].__spec__ = ModuleSpec("__main__", None)


def pytest_configure(config: pytest.Config) -> None:
    """Give this run an id, in the process that starts the others."""
    if not hasattr(config, "workerinput"):
        os.environ[RUN_ID] = uuid.uuid4().hex


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the lab down if this run has brought it up."""
    from tests.cluster.lab import Lab

    if not hasattr(config, "workerinput") and Lab.started_by() == os.environ[RUN_ID]:
        Lab.down()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that share a process, before xdist looks for groups; and put them in order."""
    for item in items:
        group = _group(item)
        if group and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=_rank)


def _group(item: pytest.Item) -> str | None:
    """Return the name that a test shares with all tests of its process; None for a test that shares nothing."""
    if item.get_closest_marker("breaks_lab"):
        return "breaks_lab"
    folder = _folder(item)
    if folder == "cluster":
        # Its tests have nothing in common but the lab.
        return None
    return folder if folder in ("registry", "browser") else item.path.relative_to(TESTS).as_posix()


def _rank(item: pytest.Item) -> int:
    """Return a test's place in the order: those that break the lab wait for each other, so they come first."""
    folder = _folder(item)
    if item.get_closest_marker("breaks_lab"):
        return -1
    return FOLDERS.index(folder) if folder in FOLDERS else 0


def _folder(item: pytest.Item) -> str:
    """Return a test's folder; what a conformance test needs depends on its target."""
    folder = item.path.relative_to(TESTS).parts[0]
    if folder != "conformance":
        return folder
    return "cluster" if "kubernetes" in item.name else "local"
