"""How all tests run: in which order, which of them in one process, and with which generated examples."""

import os
from collections import defaultdict
from itertools import chain, zip_longest
from pathlib import Path

import pytest
from hypothesis import settings

# Timings on a busy machine say nothing about the code; CI has the same examples in every run.
settings.register_profile("everywhere", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "everywhere")

TESTS = Path(__file__).parent
# Their tests share what takes long to make.
ONE_PROCESS = ("prometheus", "registry")
# Their tests share nothing but the cluster.
EACH_BY_ITSELF = ("cluster/test_builder_pod.py", "cluster/test_outages.py", "cluster/test_rollout.py")
BREAKS_LAB = "breaks_lab"
LAB_WAS_UP = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Remember whether the machine carries a lab, in the process that outlives all others."""
    if not hasattr(config, "workerinput"):
        from cluster.lab.network import owner

        config.stash[LAB_WAS_UP] = owner() is not None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the lab down that was brought up for this run."""
    from cluster.lab import Lab
    from cluster.lab.network import owner

    if not config.stash.get(LAB_WAS_UP, True) and owner() is not None:
        Lab.down()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep in one process what shares fixtures, and give every process something to wait for from the beginning.

    Who breaks the lab comes first, while the others are at something else: later, all would have to wait for it.
    """
    groups: dict[str, dict[str, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        folder, group = _place(item)
        item.add_marker(pytest.mark.xdist_group(group))
        groups[folder][group].append(item)
    first = groups.pop(BREAKS_LAB, {}).values()
    turns = chain.from_iterable(zip_longest(*(folder.values() for folder in groups.values()), fillvalue=[]))
    items[:] = chain.from_iterable(chain(first, turns))


def _place(item: pytest.Item) -> tuple[str, str]:
    """Return the folder of a test, and the name that it shares with all tests that one process has to run."""
    if item.get_closest_marker(BREAKS_LAB):
        return BREAKS_LAB, BREAKS_LAB
    path = item.path.relative_to(TESTS).as_posix()
    folder = path.partition("/")[0]
    return folder, folder if folder in ONE_PROCESS else item.nodeid if path in EACH_BY_ITSELF else path
