"""The replicas of versions on one machine follow the router's counters; what nobody may change, nobody changes."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controlled_rollout.autoscaling import DOWN_WINDOW_S
from controlled_rollout.endpoint import Version
from controlled_rollout.target.counters import Counters
from controlled_rollout.target.local.autoscaler import SIZED, Autoscaler, ScaledVersion
from controlled_rollout.target.local.replica_numbers import ReplicaNumbers, VersionKey

KEY = VersionKey("digits", "one")


@dataclass(eq=False)
class Running:
    """A version whose replicas are ready at once."""

    version: Version
    wanted_replicas: int
    retiring: bool = False
    fails: bool = False
    awaited: int = 0

    @property
    def ready_replicas(self) -> int:
        return self.wanted_replicas

    def scale(self, replicas: int) -> None:
        self.wanted_replicas = replicas

    def await_at_least(self, replicas: int) -> None:
        self.awaited = replicas

    def follow_load(self, replicas: int) -> None:
        if self.fails:
            raise OSError("no space left on device")
        self.wanted_replicas = replicas


@dataclass
class Machine:
    """A supervisor's autoscaler with one version, and the time."""

    folder: Path
    version: Version = field(default_factory=lambda: Version(name="one", autoscale_max_replicas=6))
    now: float = 1_800_000_000.0

    def __post_init__(self) -> None:
        (self.folder / "digits").mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """Start the supervisor, for the first time or again."""
        self.numbers = ReplicaNumbers(lambda endpoint: self.folder / endpoint)
        self.one = Running(self.version, self.numbers.at_start(KEY, self.version))
        self.running: dict[VersionKey, ScaledVersion] = {KEY: self.one}
        self.autoscaler = Autoscaler(self.running, self.numbers, clock=lambda: self.now)

    def run(self, seconds: float, demand: int | None) -> int:
        """Let some seconds go by under a load (None: the router does not answer); return the number of replicas."""
        counters = (
            None if demand is None else {"digits/one": Counters(active=demand - demand // 2, waiting=demand // 2)}
        )
        for _ in range(int(seconds)):
            self.autoscaler.follow(counters)
            self.now += 1
        return self.one.wanted_replicas


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_load_starts_replicas_up_to_the_most_and_takes_them_back_after_a_minute(machine: Machine) -> None:
    assert machine.run(1, demand=4) == 4
    assert machine.run(5, demand=8) == 6
    assert "4 → 6 replicas: 4 busy, 4 waiting" in str(machine.autoscaler.why(KEY))
    assert machine.run(DOWN_WINDOW_S - 6, demand=1) == 6
    assert machine.run(DOWN_WINDOW_S, demand=1) == 2


def test_requests_of_both_clusters_of_a_version_count(machine: Machine) -> None:
    machine.autoscaler.follow({"digits/one": Counters(active=2), "digits/one/not-judged": Counters(active=2)})
    assert machine.one.wanted_replicas == 4


@pytest.mark.parametrize("demand", [None, 0])
def test_supervisor_that_starts_again_has_as_many_replicas_as_before_and_keeps_them_for_a_minute(
    machine: Machine, demand: int | None
) -> None:
    machine.run(5, demand=5)
    assert machine.one.wanted_replicas == 6
    machine.start()
    assert machine.one.wanted_replicas == 6
    assert machine.run(DOWN_WINDOW_S, demand) == 6
    assert machine.run(3, demand=0) == (6 if demand is None else 1)


def test_router_that_cannot_be_read_changes_nothing(machine: Machine) -> None:
    machine.run(5, demand=5)
    assert machine.run(3 * DOWN_WINDOW_S, demand=None) == 6
    machine.autoscaler.follow({"another/one": Counters(active=9)})  # it has lost the version's cluster
    assert machine.one.wanted_replicas == 6


def test_what_a_shift_was_sized_for_is_not_taken_back_for_ten_minutes_and_survives_a_restart(machine: Machine) -> None:
    machine.autoscaler.set_replicas(KEY, 4)
    assert (machine.one.wanted_replicas, machine.autoscaler.why(KEY)) == (4, SIZED)
    assert machine.run(100, demand=0) == 4
    machine.start()
    assert machine.run(400, demand=0) == 4
    assert machine.run(150, demand=0) == 1


def test_replicas_that_a_shift_finds_there_are_not_taken_away_before_its_traffic_comes(machine: Machine) -> None:
    machine.run(5, demand=5)
    machine.autoscaler.set_replicas(KEY, 4, at_least=True)
    assert (machine.one.wanted_replicas, machine.one.awaited) == (6, 4)
    assert "→ 6 replicas" in str(machine.autoscaler.why(KEY))
    assert machine.run(2 * DOWN_WINDOW_S, demand=0) == 4
    machine.start()
    assert machine.run(400, demand=0) == 4
    assert machine.run(200, demand=0) == 1


def test_smaller_floor_of_a_shift_does_not_end_the_higher_one_of_a_moment_ago(machine: Machine) -> None:
    machine.autoscaler.set_replicas(KEY, 4)
    machine.autoscaler.set_replicas(KEY, 2, at_least=True)
    assert machine.run(500, demand=0) == 4
    machine.autoscaler.set_replicas(KEY, 2)
    assert machine.run(100, demand=0) == 2


@pytest.mark.parametrize(("workers", "concurrent"), [(4, 1), (2, 2), (1, 4)])
def test_slots_of_all_processes_of_a_replica_count(tmp_path: Path, workers: int, concurrent: int) -> None:
    version = Version(name="one", worker_count=workers, replica_max_concurrent_requests=concurrent)
    machine = Machine(tmp_path, version)
    assert machine.run(10, demand=2) == 1
    assert machine.run(10, demand=11) == 4
    assert "× 4 slots" in str(machine.autoscaler.why(KEY))


def test_fixed_number_of_replicas_is_left_alone_and_is_not_stored(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Version(name="one", num_replicas=2))
    assert machine.run(5, demand=50) == 2
    machine.autoscaler.set_replicas(KEY, 3)
    assert machine.run(5, demand=0) == 3
    assert machine.autoscaler.why(KEY) is None
    assert not (tmp_path / "digits" / "replicas.json").exists()


def test_version_that_is_removed_is_not_scaled_and_its_successor_starts_with_the_fewest(machine: Machine) -> None:
    machine.run(5, demand=5)
    machine.one.retiring = True
    assert machine.run(5, demand=0) == 6
    assert machine.numbers.at_start(KEY, machine.version) == 1


def test_version_that_cannot_be_scaled_keeps_no_other_from_it(machine: Machine) -> None:
    machine.one.fails = True
    two = Running(Version(name="two"), 1)
    machine.running[VersionKey("digits", "two")] = two
    machine.autoscaler.follow({"digits/one": Counters(active=5), "digits/two": Counters(active=5)})
    assert (machine.one.wanted_replicas, two.wanted_replicas) == (1, 5)


@pytest.mark.parametrize("content", ["", "{", '{"versions": {"one": {"replicas": 0}}}', '{"versions": {"one": 5}}'])
def test_damaged_file_costs_no_more_than_a_start_with_the_fewest(machine: Machine, content: str) -> None:
    machine.run(5, demand=5)
    (machine.folder / "digits" / "replicas.json").write_text(content)
    machine.start()
    assert machine.one.wanted_replicas == 1
    assert machine.run(5, demand=5) == 6


def test_number_of_before_is_brought_within_changed_bounds(machine: Machine) -> None:
    machine.run(5, demand=5)
    machine.version = Version(name="one", autoscale_max_replicas=3)
    machine.start()
    assert machine.one.wanted_replicas == 3


def test_file_keeps_what_it_says_of_versions_that_have_not_started_yet(machine: Machine) -> None:
    path = machine.folder / "digits" / "replicas.json"
    path.write_text(json.dumps({"versions": {"broken": {"replicas": 5}}}))
    machine.run(5, demand=5)
    assert machine.numbers.at_start(VersionKey("digits", "broken"), Version(name="broken")) == 5


def test_folder_of_a_deleted_endpoint_is_not_made_again(machine: Machine) -> None:
    shutil.rmtree(machine.folder / "digits")
    assert machine.run(5, demand=5) == 6
    assert not (machine.folder / "digits").exists()


def test_file_that_cannot_be_written_stops_nobody(machine: Machine) -> None:
    (machine.folder / "digits" / "replicas.json").mkdir()
    assert machine.run(5, demand=5) == 6
