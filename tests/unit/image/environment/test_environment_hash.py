import shutil
import string
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from controlled_rollout.errors import ImageError
from controlled_rollout.image import Environment, scoring_runtime
from controlled_rollout.image.environment.hash import environment_hash

NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=5)
REQUIREMENTS = st.lists(NAMES, max_size=4).map(tuple)
ENVIRONMENTS = st.builds(
    Environment,
    name=st.none() | NAMES,
    version=st.none() | NAMES,
    python=st.sampled_from([None, "3.11", "3.12", "3.12.1", ">=3.9"]),
    base_image=st.none() | NAMES,
    docker_steps=st.lists(NAMES.map("RUN {}".format), max_size=4).map(tuple),
    requirements=REQUIREMENTS,
)


def hashed_fields(environment: Environment) -> tuple[object, ...]:
    return (
        environment.python_version,
        environment.base_image,
        environment.docker_steps,
        environment.requirements,
    )


@given(ENVIRONMENTS, ENVIRONMENTS)
def test_hashes_are_equal_exactly_for_equal_environments(first: Environment, second: Environment) -> None:
    assert (environment_hash(first) == environment_hash(second)) == (hashed_fields(first) == hashed_fields(second))


@given(ENVIRONMENTS, st.none() | NAMES, st.none() | NAMES)
def test_name_and_version_do_not_change_the_hash(
    environment: Environment, name: str | None, version: str | None
) -> None:
    renamed = environment.model_copy(update={"name": name, "version": version})

    assert environment_hash(renamed) == environment_hash(environment)


@given(
    st.lists(NAMES, min_size=2, max_size=4, unique=True).flatmap(lambda r: st.tuples(st.just(r), st.permutations(r)))
)
def test_order_of_requirements_changes_the_hash(orders: tuple[list[str], list[str]]) -> None:
    first, second = (Environment(requirements=tuple(order)) for order in orders)

    assert (environment_hash(first) == environment_hash(second)) == (orders[0] == orders[1])


@given(ENVIRONMENTS)
def test_an_environment_written_and_read_again_has_the_same_hash(environment: Environment) -> None:
    again = Environment.model_validate_json(environment.model_dump_json())

    assert again == environment
    assert environment_hash(again) == environment_hash(environment)


def test_the_same_requirement_written_otherwise_has_the_same_hash() -> None:
    first = Environment(requirements=("numpy>=1.2,<2",), python="3.11")
    second = Environment(requirements=("numpy < 2, >= 1.2",), python=" 3.11 ")

    assert environment_hash(first) == environment_hash(second)


@pytest.mark.parametrize("file", ["controlled_rollout_scoring/requirements.txt", "lock-3.12.txt", "install-packages"])
def test_an_upgrade_of_what_the_runtime_needs_changes_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    before = environment_hash(Environment())
    shutil.copytree(scoring_runtime.runtime_folder(), tmp_path / "runtime")
    (tmp_path / "runtime" / file).write_text("httptools==99\n")
    monkeypatch.setattr(scoring_runtime, "__file__", str(tmp_path / "scoring_runtime.py"))

    assert environment_hash(Environment()) != before


def test_platform_changes_the_hash() -> None:
    environment = Environment()

    assert environment_hash(environment, platform="linux/arm64") != environment_hash(
        environment, platform="linux/amd64"
    )


def test_no_version_and_a_range_mean_the_running_interpreter_where_it_fits() -> None:
    running = f"{sys.version_info.major}.{sys.version_info.minor}"

    assert Environment().python_version == running
    assert Environment(python=">=3.9").python_version == running
    assert Environment(python="3").python_version == running
    assert Environment(python=f"!={running}.*").python_version == f"!={running}.*,<3.15,>=3.10"
    assert Environment(python="3.10.1").python_version == "3.10.1"


def test_an_environment_cannot_be_changed_and_has_no_unknown_fields() -> None:
    assert issubclass(Environment, BaseModel)
    with pytest.raises(ImageError, match="known are name, version, python, base_image"):
        Environment.model_validate({"requirement": []})
    with pytest.raises(ImageError, match="is not understood"):
        Environment(requirements=("a=1",))
    with pytest.raises(ValueError, match="frozen"):
        Environment().name = "other"
