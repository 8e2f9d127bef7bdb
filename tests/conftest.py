"""How all tests run: in which order, which of them in one process, and with which generated examples."""

import os
from collections import defaultdict
from itertools import chain, zip_longest
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# Timings on a busy machine say nothing about the code; CI has the same examples in every run.
settings.register_profile("everywhere", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "everywhere")

# Their tests share what takes long to make.
ONE_PROCESS = ("prometheus", "registry")
# Their tests share nothing but the cluster.
EACH_BY_ITSELF = ("cluster/test_builder_pod.py", "cluster/test_outages.py", "cluster/test_rollout.py")
# Those marked `breaks_lab`, by name: who hands out the tests sees no marks.
BREAK_THE_LAB = (
    "test_a_killed_api_server_comes_back_with_everything",
    "test_the_gateways_controller_is_killed_and_started_by_name",
    "test_the_api_server_is_away_for_half_a_minute_in_the_middle_of_a_shift",
    "test_the_gateways_controller_dies_in_the_middle_of_a_shift",
)
# The tests on the cluster that take longest come before its others, so that nobody waits for one at the end.
LONGEST = ("test_dags_on_cluster.py", "test_rollout.py", "test_docs_aks.py", "test_prometheus_on_cluster.py")
# So many groups that need no lab take about as long as the four that break it.
WITHOUT_LAB = 8
LAB_WAS_UP = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Remember whether the machine carries a lab, in the process that outlives all others."""
    if not hasattr(config, "workerinput"):
        from tests.cluster.lab.network import owner

        config.stash[LAB_WAS_UP] = owner() is not None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the lab down that was brought up for this run."""
    from tests.cluster.lab import Lab
    from tests.cluster.lab.network import owner

    if not config.stash.get(LAB_WAS_UP, True) and owner() is not None:
        Lab.down()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Keep in one process what shares fixtures; xdist's own groups get lost with pytest 9.2."""

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _place(nodeid)[1]

    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every process something to do from the beginning, and something to wait for beside what computes.

    Who breaks the lab comes first, and the others are meanwhile at what needs no lab: they would wait for it.
    """
    groups: dict[str, dict[str, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        folder, group = _place(item.nodeid)
        if item.get_closest_marker("breaks_lab") and folder != "first":
            raise pytest.UsageError(f"{item.name} breaks the lab: name it among those in tests/conftest.py")
        groups[folder][group].append(item)
    first, cluster, unit = (list(groups.pop(folder, {}).values()) for folder in ("first", "cluster", "unit"))
    others = _in_turn(*(list(folder.values()) for folder in groups.values()))
    cluster.sort(key=lambda group: group[0].path.name not in LONGEST)
    begin, later = others[:WITHOUT_LAB], others[WITHOUT_LAB:]
    items[:] = chain.from_iterable([*first, *begin, *_in_turn(cluster, later, unit)])


def _in_turn(*lists: list[list[pytest.Item]]) -> list[list[pytest.Item]]:
    """Return the first of each, the second of each, and so on."""
    return [group for turn in zip_longest(*lists, fillvalue=[]) for group in turn if group]


def _place(node_id: str) -> tuple[str, str]:
    """Return the folder of a test, and the name that it shares with all tests that one process has to run."""
    file, _, name = node_id.partition("::")
    if name in BREAK_THE_LAB:
        return "first", "first"
    path = file.removeprefix("tests/")
    folder = path.partition("/")[0]
    return folder, folder if folder in ONE_PROCESS else node_id if path in EACH_BY_ITSELF else path
