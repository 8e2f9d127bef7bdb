from pathlib import Path

import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image import ModelSource
from controlled_rollout.image.inputs.models import check_models, copy_models, model_dir, read_models


def test_a_thousand_models_are_accepted_and_one_more_is_refused(tmp_path: Path) -> None:
    models = [ModelSource(f"model-{number}", tmp_path) for number in range(1001)]

    check_models(models[:1000])
    with pytest.raises(ImageError, match=r"1,001 models were given, a deployment has at most 1,000"):
        check_models(models)


BAD_NAMES = ["", "..", ".", "../x", "a/b", "/a", "a\\b", "a b", "-a", "a\n", "a\0", "é", "a" * 256]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_or_version_that_could_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"model name .* is not valid"):
        check_models([ModelSource(name, tmp_path)])
    with pytest.raises(ImageError, match=r"model version .* is not valid"):
        check_models([ModelSource("model", tmp_path, version=name)])


def test_the_same_model_twice_is_refused_and_two_versions_are_not(tmp_path: Path) -> None:
    first, second = ModelSource("model", tmp_path), ModelSource("model", tmp_path, version="2")

    check_models([first, second])
    with pytest.raises(ImageError, match="model 'model' version '1' was given twice"):
        check_models([first, second, first])


def test_missing_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"model 'digits': there is no file or folder .*/missing"):
        read_models([ModelSource("digits", tmp_path / "missing")])


def test_one_model_is_found_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"1")
    models = read_models([ModelSource("digits", tmp_path / "model.pkl", version="7")])

    copy_models(models, tmp_path / "models")
    folder = model_dir(tmp_path / "models", [("digits", "7")])

    assert folder == tmp_path / "models" / "digits" / "7"
    assert (folder / "model.pkl").read_bytes() == b"1"


def test_several_models_are_found_under_their_names_and_versions(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"1")
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "weights").write_bytes(b"2")
    models = read_models([ModelSource("b", tmp_path / "model.pkl"), ModelSource("a", tmp_path / "trained", "3")])

    copy_models(models, tmp_path / "models")
    folder = model_dir(tmp_path / "models", [("a", "3"), ("b", "1")])

    assert folder == tmp_path / "models"
    assert (folder / "b" / "1" / "model.pkl").read_bytes() == b"1"
    assert (folder / "a" / "3" / "trained" / "weights").read_bytes() == b"2"


def test_model_folder_is_empty_without_models(tmp_path: Path) -> None:
    copy_models([], tmp_path / "models")

    assert list(model_dir(tmp_path / "models", []).iterdir()) == []
