"""How many threads the router gets: as many as there are processors that it may use."""

import os
from pathlib import Path

import pytest

from controlled_rollout.target.local import cores
from controlled_rollout.target.local.cores import cores_of_quotas, router_threads


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ([], None),
        ([("max", "100000")], None),
        ([("-1", "100000")], None),
        ([("150000", "100000")], 2),
        ([("400000", "100000"), ("100000", "100000"), ("max", "100000")], 1),
        ([("10000", "100000")], 1),
        ([("", ""), ("nonsense", "100000"), ("100000", "0")], None),
    ],
)
def test_the_tightest_quota_counts_rounded_up(quotas: list[tuple[str, str]], expected: int | None) -> None:
    assert cores_of_quotas(quotas) == expected


def machine(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, processors: int, group: str, files: dict[str, str]
) -> None:
    """Let this process see so many processors, be in a cgroup, and find these files below the cgroups' folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    own = folder / "own"
    own.write_text(group)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(cores, "OWN_GROUPS", own)
    monkeypatch.setattr(cores, "CGROUPS", folder)


def test_there_are_as_many_threads_as_processors_of_the_affinity_mask_and_at_most_16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, tmp_path, processors=3, group="0::/\n", files={})
    assert router_threads() == 3

    machine(monkeypatch, tmp_path, processors=96, group="0::/\n", files={})
    assert router_threads() == 16


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/user/app\n", {"user/app/cpu.max": "150000 100000\n"}),
        ("0::/user/app\n", {"user/cpu.max": "200000 100000\n", "user/app/cpu.max": "max 100000\n"}),
        # A container: its own group is the root that it sees.
        ("0::/../kubepods/pod\n", {"cpu.max": "200000 100000\n"}),
        (
            "3:cpu,cpuacct:/app\n2:memory:/other\n",
            {"cpu,cpuacct/app/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/app/cpu.cfs_period_us": "100000\n"},
        ),
    ],
    ids=["own group", "group above", "container", "version 1"],
)
def test_a_quota_of_the_cgroup_or_of_one_above_it_bounds_the_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str, files: dict[str, str]
) -> None:
    machine(monkeypatch, tmp_path, processors=8, group=group, files=files)

    assert router_threads() == 2


def test_this_machine_has_threads() -> None:
    assert 1 <= router_threads() <= len(os.sched_getaffinity(0))
