from pathlib import Path

import pytest

from controlled_rollout.errors import ArgumentError
from controlled_rollout.image import ModelSource
from controlled_rollout.operators.image_build import model_sources

FOLDER = Path("/dags")


def test_models_may_be_paths_by_name() -> None:
    assert model_sources({"digits": "models/digits.bin", "labels": "/data/labels"}, FOLDER) == [
        ModelSource("digits", Path("/dags/models/digits.bin")),
        ModelSource("labels", Path("/data/labels")),
    ]


def test_models_may_say_their_version() -> None:
    described = [{"name": "digits", "path": "/data/digits", "version": 7}]
    assert model_sources(described, FOLDER) == [ModelSource("digits", Path("/data/digits"), "7")]


@pytest.mark.parametrize(
    "wrong", [[{"name": "digits"}], [{"path": "/data"}], [{"name": "a", "path": "b", "tag": "c"}], {"digits": ""}]
)
def test_models_without_a_name_or_a_path_are_refused(wrong: dict[str, str] | list[dict[str, str]]) -> None:
    with pytest.raises(ArgumentError, match="needs a name and a path"):
        model_sources(wrong, FOLDER)
