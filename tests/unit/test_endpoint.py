"""The rules of an endpoint: what it allows, what it refuses, and that a refusal changes nothing."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from controlled_rollout.endpoint import Auth, Endpoint, EndpointError, Version
from controlled_rollout.errors import ConflictError
from controlled_rollout.rollout import OnSilence
from controlled_rollout.version import VersionType

NOW = datetime(2026, 1, 5, 6, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def two_versions() -> Endpoint:
    return (
        Endpoint(name="digits").create_version("first", is_control=True).create_version("second", traffic_percentile=10)
    )


def test_the_old_documentations_own_sequence_gives_the_traffic_that_it_states() -> None:
    endpoint = Endpoint(name="mynewendpoint").create_version("versiona", traffic_percentile=20)
    assert endpoint.effective_traffic() == {"versiona": 100}

    endpoint = endpoint.create_version("versionb", traffic_percentile=10)
    assert endpoint.effective_traffic() == {"versiona": 90, "versionb": 10}

    endpoint = endpoint.update_version("versionb", traffic_percentile=40, is_default=True, is_control=True)
    assert endpoint.effective_traffic() == {"versiona": 20, "versionb": 80}
    assert endpoint.versions["versionb"].type is VersionType.CONTROL

    # The old client deleted the default and left none; here another version has to take over.
    with pytest.raises(EndpointError, match="default of endpoint"):
        endpoint.delete_version("versionb")
    assert endpoint.delete_version("versionb", successor="versiona").effective_traffic() == {"versiona": 100}


def test_first_version_is_the_default_and_a_new_default_takes_over() -> None:
    endpoint = two_versions()
    assert endpoint.default is not None
    assert endpoint.default.name == "first"

    endpoint = endpoint.update_version("second", is_default=True)
    assert [v.name for v in endpoint.versions.values() if v.is_default] == ["second"]


def test_marking_a_new_control_makes_the_old_one_a_treatment() -> None:
    endpoint = two_versions().update_version("second", is_control=True)
    assert [v.name for v in endpoint.versions.values() if v.is_control] == ["second"]


def test_seventh_version_is_refused_and_nothing_changes() -> None:
    endpoint = Endpoint(name="digits")
    for number in range(6):
        endpoint = endpoint.create_version(f"version{number}")
    before = endpoint.model_dump_json()

    with pytest.raises(EndpointError, match=r"would have 7 versions, at most 6.*delete one of version0"):
        endpoint.create_version("version6")
    assert endpoint.model_dump_json() == before


def test_sum_over_100_is_refused_with_the_share_of_each_version() -> None:
    with pytest.raises(EndpointError, match=r"101 % .*second 10 %, third 91 %.*may not exceed 100"):
        two_versions().create_version("third", traffic_percentile=91)


def test_three_thirds_may_add_up_to_100() -> None:
    third = 100 / 3
    endpoint = Endpoint(name="digits").create_version("one", traffic_percentile=third)
    endpoint = endpoint.create_version("two", traffic_percentile=third).create_version(
        "three", traffic_percentile=third
    )
    assert sum(endpoint.weight_ppm().values()) == 1_000_000
    assert endpoint.weight_ppm()["two"] in (333_333, 333_334)


@pytest.mark.parametrize("percentile", [-1, 101, math.nan, math.inf, "10", True, None])
def test_invalid_percentile_is_refused(percentile: Any) -> None:
    endpoint = two_versions()
    with pytest.raises(EndpointError, match="traffic_percentile"):
        endpoint.update_version("second", traffic_percentile=percentile)
    with pytest.raises(EndpointError, match="traffic_percentile"):
        endpoint.create_version("third", traffic_percentile=percentile)
    assert endpoint.effective_traffic() == {"first": 90, "second": 10}


@pytest.mark.parametrize(
    "name", ["", "ab", "a" * 33, "Digits", "1digits", "digits-", "-digits", "dig its", "dig_its", "ziffern\n", "übung"]
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(EndpointError, match="3 to 32 characters"):
        Endpoint(name=name)
    with pytest.raises(EndpointError, match="3 to 32 characters"):
        Endpoint(name="digits").create_version(name)


def test_two_controls_or_two_defaults_cannot_be_written_down() -> None:
    one = Version(name="one", is_default=True, is_control=True)
    with pytest.raises(EndpointError, match="may have one control"):
        Endpoint(name="digits", versions={"one": one, "two": Version(name="two", is_control=True)})
    with pytest.raises(EndpointError, match="exactly one default"):
        Endpoint(name="digits", versions={"one": one, "two": Version(name="two", is_default=True)})


def test_an_update_that_changes_nothing_is_the_same_value() -> None:
    endpoint = two_versions()
    assert endpoint.update_version("second", traffic_percentile=10) is endpoint
    assert endpoint.promote("first").promote("first") == endpoint.promote("first")


def test_an_explicit_zero_or_empty_text_is_a_value_and_not_unchanged() -> None:
    endpoint = two_versions().update_version("second", description="better")
    endpoint = endpoint.update_version("second", traffic_percentile=0, description="")
    assert endpoint.versions["second"].traffic_percentile == 0
    assert endpoint.versions["second"].description == ""


def test_default_cannot_be_unmarked_without_another() -> None:
    with pytest.raises(EndpointError, match="make another version the default"):
        two_versions().update_version("first", is_default=False)
    with pytest.raises(EndpointError, match="has to be the default"):
        Endpoint(name="digits").create_version("first", is_default=False)


def test_a_control_with_traffic_is_deleted_only_with_a_successor_that_gets_its_traffic() -> None:
    endpoint = two_versions().update_version("second", is_control=True, traffic_percentile=30)
    with pytest.raises(EndpointError, match=r"is the control .* 30 %"):
        endpoint.delete_version("second")

    left = endpoint.create_version("third", traffic_percentile=5).delete_version("second", successor="third")
    assert left.effective_traffic() == {"first": 65, "third": 35}
    assert left.control == left.versions["third"]


def test_a_version_is_not_its_own_successor_and_is_listed_under_its_name() -> None:
    endpoint = two_versions()

    with pytest.raises(EndpointError, match="cannot be its own successor"):
        endpoint.delete_version("first", successor="first")
    with pytest.raises(EndpointError, match="under the name 'other'"):
        Endpoint(name="digits", versions={"other": Version(name="first", is_default=True)})


def test_promotion_moves_everything_at_once_and_back_again() -> None:
    promoted = two_versions().promote("second")
    assert promoted.effective_traffic() == {"first": 0, "second": 100}
    assert promoted.default == promoted.control == promoted.versions["second"]

    back = promoted.promote("first")
    assert back.effective_traffic() == {"first": 100, "second": 0}


def test_after_a_promotion_the_next_treatment_gets_its_share_from_the_new_control() -> None:
    endpoint = two_versions().promote("second").create_version("third")
    assert endpoint.shift("third", 10).effective_traffic() == {"first": 0, "second": 90, "third": 10}
    assert endpoint.update_version("third", traffic_percentile=10) == endpoint.shift("third", 10)


def test_shift_takes_traffic_from_the_default_only() -> None:
    endpoint = Endpoint(name="digits").create_version("first", traffic_percentile=100).create_version("second")
    shifted = endpoint.shift("second", 10)
    assert shifted.effective_traffic() == {"first": 90, "second": 10}
    assert shifted.shift("second", 10) is shifted
    full = shifted.create_version("third").shift("third", 80)
    assert full.effective_traffic() == {"first": 10, "second": 10, "third": 80}
    with pytest.raises(EndpointError, match="may not exceed 100"):
        full.shift("third", 95)
    with pytest.raises(EndpointError, match="traffic_percentile"):
        full.shift("third", 101)


def test_rolling_back_takes_the_treatments_traffic_and_nothing_else() -> None:
    endpoint = two_versions().create_version("third", traffic_percentile=5)
    rolled_back = endpoint.roll_back("second")
    assert rolled_back.effective_traffic() == {"first": 95, "second": 0, "third": 5}
    with pytest.raises(EndpointError, match="is the default"):
        endpoint.roll_back("first")


def test_one_rollout_holds_the_endpoint_until_it_is_released() -> None:
    held = two_versions().claim("second", owner="weekly/run-1", at=NOW)
    assert held.claim("second", owner="weekly/run-1", at=NOW) is held
    with pytest.raises(ConflictError, match=r"held by weekly/run-1 rolling out 'second' since 2026-01-05 06:00:00 UTC"):
        held.claim("third", owner="weekly/run-2", at=NOW)
    assert held.release("third") is held
    assert held.release("second").claim("third", owner="weekly/run-2", at=NOW).rollout is not None


def test_who_holds_the_endpoint_may_change_what_happens_on_silence() -> None:
    held = two_versions().claim("second", owner="Ada", at=NOW).hold("second", owner=None, at=LATER)
    changed = held.claim("second", owner="Ada", at=LATER, on_silence=OnSilence.ROLL_BACK, silence=timedelta(hours=2))
    assert held.rollout is not None and changed.rollout is not None
    assert (changed.rollout.on_silence, changed.rollout.silence) == (OnSilence.ROLL_BACK, timedelta(hours=2))
    assert changed.rollout.is_same(held.rollout) and changed.rollout.held == LATER
    with pytest.raises(EndpointError, match=r"silence = 0\.5 s is too short"):
        held.claim("second", owner="Ada", at=LATER, silence=timedelta(seconds=0.5))


def test_hold_and_resume_keep_the_rollout_and_its_split() -> None:
    rolling = two_versions().claim("second", owner="weekly/run-1", at=NOW)
    held = rolling.hold("second", owner="weekly/run-1", at=LATER)
    assert held.rollout is not None and held.rollout.held == LATER
    assert held.rollout.is_same(rolling.rollout)
    assert held.hold("second", owner="weekly/run-1", at=NOW) is held
    assert held.claim("second", owner="weekly/run-1", at=LATER) is held
    with pytest.raises(ConflictError, match="no longer holds"):
        rolling.hold("second", owner="weekly/run-2", at=LATER)

    resumed = held.resume("second", owner="weekly/run-1", at=LATER)
    assert resumed.rollout is not None
    assert (resumed.rollout.held, resumed.rollout.resumed) == (None, LATER)
    assert resumed.rollout.is_same(rolling.rollout)
    assert resumed.effective_traffic() == rolling.effective_traffic()
    for unchanged in (resumed, two_versions()):
        assert unchanged.resume("second", owner=None, at=NOW) is unchanged
    assert held.resume("second", owner="weekly/run-2", at=NOW) is held
    assert held.resume("first", owner=None, at=NOW) is held


def test_a_fixed_number_of_replicas_switches_the_autoscaler_off_and_both_are_refused() -> None:
    fixed = Version(name="fixed", num_replicas=2)
    assert (fixed.autoscale_enabled, fixed.replicas_at_start) == (False, 2)
    with pytest.raises(EndpointError, match="choose one"):
        Version(name="both", num_replicas=2, autoscale_enabled=True)
    with pytest.raises(EndpointError, match="autoscale_max_replicas without the autoscaler"):
        Version(name="neither", num_replicas=2, autoscale_max_replicas=3)
    with pytest.raises(EndpointError, match="may not exceed the maximum"):
        Version(name="turned", autoscale_min_replicas=3, autoscale_max_replicas=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_cores": 0},
        {"memory_gb": -1},
        {"cpu_cores": 1, "cpu_cores_limit": 0.5},
        {"memory_gb": 1, "memory_gb_limit": 0.5},
        {"gpu_cores": -1},
        {"scoring_timeout_ms": 0},
        {"scoring_timeout_ms": 86_400_001},
        {"max_request_wait_time": 86_400_001},
        {"autoscale_target_utilization": 500},
        {"num_replicas": 1_001},
        {"autoscale_max_replicas": 100_000},
        {"replica_max_concurrent_requests": 1_000_000},
        {"worker_count": 101},
        {"unknown": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match=next(iter(settings)).split("_limit", maxsplit=1)[0]):
        Version(name="version", **settings)


def test_a_fixed_number_in_an_update_switches_the_autoscaler_off() -> None:
    endpoint = Endpoint(name="digits").create_version("first", is_control=True)

    assert endpoint.update_version("first", num_replicas=3).versions["first"].autoscale_enabled is False
    with pytest.raises(EndpointError, match="gives no num_replicas"):
        endpoint.create_version("second", autoscale_enabled=False)


def test_endpoints_survive_json_and_cannot_be_changed_in_place() -> None:
    endpoint = two_versions().claim("second", owner="weekly/run-1", at=NOW)
    assert Endpoint.model_validate_json(endpoint.model_dump_json()) == endpoint
    with pytest.raises(TypeError):
        endpoint.versions["third"] = Version(name="third")  # type: ignore[index]
    assert Endpoint(name="digits").auth is Auth.KEY


names = st.sampled_from(["one", "two", "three", "four", "five", "six", "seven", "eight"])
percentiles = st.one_of(
    st.integers(0, 100).map(float), st.floats(0, 100, allow_nan=False), st.sampled_from([-1.0, 101.0, math.nan])
)
flags = st.sampled_from([None, True, False])


class AnySequenceOfCalls(RuleBasedStateMachine):
    """In any order of calls the rules hold, and a refused call changes nothing."""

    @initialize()
    def begin(self) -> None:
        self.endpoint = Endpoint(name="digits")

    def ask(self, name: str, *arguments: object, **keywords: object) -> None:
        before = self.endpoint.model_dump_json()
        keywords = {key: value for key, value in keywords.items() if value is not None}
        try:
            after = getattr(self.endpoint, name)(*arguments, **keywords)
        except (EndpointError, ConflictError) as error:
            assert len(str(error)) > 20, "a refusal has to say why"
        else:
            after_json = after.model_dump_json()
            assert self.endpoint.model_dump_json() == before, "a call may not change the value that it was made on"
            assert (after is self.endpoint) == (after_json == before), "what changes nothing is the same value"
            self.endpoint = after
            return
        assert self.endpoint.model_dump_json() == before

    @rule(name=names, traffic_percentile=percentiles, is_default=flags, is_control=flags)
    def create(self, name: str, **settings: object) -> None:
        self.ask("create_version", name, **settings)

    @rule(name=names, traffic_percentile=st.one_of(st.none(), percentiles), is_default=flags, is_control=flags)
    def update(self, name: str, **changes: object) -> None:
        self.ask("update_version", name, **changes)

    @rule(name=names, successor=st.one_of(st.none(), names))
    def delete(self, name: str, successor: str | None) -> None:
        self.ask("delete_version", name, successor=successor)

    @rule(name=names)
    def promote(self, name: str) -> None:
        self.ask("promote", name)

    @rule(name=names, percentile=percentiles)
    def shift(self, name: str, percentile: float) -> None:
        self.ask("shift", name, percentile)

    @rule(name=names)
    def roll_back(self, name: str) -> None:
        self.ask("roll_back", name)

    @rule(name=names, owner=st.sampled_from(["run-1", "run-2"]))
    def claim(self, name: str, owner: str) -> None:
        self.ask("claim", name, owner=owner, at=NOW)

    @rule(name=names)
    def release(self, name: str) -> None:
        self.ask("release", name)

    @invariant()
    def rules_hold(self) -> None:
        versions = list(self.endpoint.versions.values())
        assert len(versions) <= 6
        assert sum(v.is_control for v in versions) <= 1
        assert sum(v.is_default for v in versions) == bool(versions)
        assert all(0 <= v.traffic_percentile <= 100 for v in versions)
        traffic = self.endpoint.effective_traffic()
        assert traffic.keys() == self.endpoint.versions.keys()
        if versions:
            assert sum(traffic.values()) == pytest.approx(100)
            assert sum(self.endpoint.weight_ppm().values()) == 1_000_000
        for version in versions:
            assert traffic[version.name] >= version.traffic_percentile - 1e-6

    @invariant()
    def it_survives_json(self) -> None:
        assert Endpoint.model_validate_json(self.endpoint.model_dump_json()) == self.endpoint


TestAnySequenceOfCalls = AnySequenceOfCalls.TestCase


@given(shares=st.lists(st.floats(0.01, 50), min_size=1, max_size=5))
def test_weights_are_within_a_millionth_of_the_effective_traffic(shares: list[float]) -> None:
    assume(math.fsum(shares) <= 100)
    endpoint = Endpoint(name="digits").create_version("default")
    for number, share in enumerate(shares):
        endpoint = endpoint.create_version(f"version{number}", traffic_percentile=share)
    traffic = endpoint.effective_traffic()
    for name, weight in endpoint.weight_ppm().items():
        assert abs(weight - traffic[name] * 10_000) < 1
