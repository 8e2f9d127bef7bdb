"""What `build` and `load` refuse before anything is built."""

import json
from pathlib import Path

import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image import ImageReference, ModelSource, build_local_image, load_local_image
from controlled_rollout.image.scoring_runtime import runtime_folder, runtime_requirements

SCRIPT = "def init(): ...\ndef run(data): ...\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "score.py").write_text(SCRIPT)
    (folder / "requirements.txt").write_text("")
    return folder


@pytest.mark.parametrize("name", ["", "Digits", "-a", "a@b", "a b", "a/b", "a" * 129])
async def test_name_that_is_not_a_repository_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"image name .* is not valid"):
        await build_local_image(source, name=name, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("score.py", "def init(): ...", r"does not define run\(\)"),
        ("score.py", "def init(:", "does not compile: line 1"),
        ("requirements.txt", "a=1", "is not understood"),
        (".amlignore", "*", "there is nothing to package"),
    ],
)
async def test_invalid_input_is_refused_and_the_cache_is_unchanged(
    source: Path, tmp_path: Path, file: str, text: str, message: str
) -> None:
    (source / file).write_text(text)

    with pytest.raises(ImageError, match=message):
        await build_local_image(source, name="digits", cache=tmp_path / "cache")

    assert not (tmp_path / "cache").exists()


async def test_missing_model_is_refused_and_the_cache_is_unchanged(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no file or folder"):
        await build_local_image(
            source, name="digits", cache=tmp_path / "cache", models=[ModelSource("m", tmp_path / "missing")]
        )

    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("local/digits:latest", "deploy by digest"),
        (f"local/digits@sha256:{'a' * 64}", "is not in the cache .*: build it there first"),
        (ImageReference("local/digits", "b" * 64), "is not in the cache"),
    ],
)
def test_a_missing_image_is_an_error(tmp_path: Path, reference: str | ImageReference, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_local_image(reference, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"models": [1], "environment_hash": "", "entry_script": ""}', "\0"])
def test_an_image_that_cannot_be_read_is_an_error(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "images" / ("a" * 64)
    folder.mkdir(parents=True)
    (folder / "image.json").write_text(text)

    with pytest.raises(ImageError, match=r"cannot be read .* build the image again, which replaces it"):
        load_local_image(ImageReference("local/digits", "a" * 64), tmp_path)


def test_the_runtime_is_found_with_requirements_that_are_pinned() -> None:
    lines = [line for line in runtime_requirements().read_text().splitlines() if line and not line.startswith("#")]

    assert (runtime_folder() / "controlled_rollout_scoring" / "__init__.py").is_file()
    assert lines
    assert all("==" in line for line in lines)


def test_an_image_whose_description_was_changed_is_not_run(tmp_path: Path) -> None:
    document = {"environment_hash": "e" * 64, "entry_script": "other.py", "models": []}
    folder = tmp_path / "images" / ("a" * 64)
    folder.mkdir(parents=True)
    (folder / "image.json").write_text(json.dumps(document))

    with pytest.raises(ImageError, match=r"is not what was built: somebody has changed its image\.json"):
        load_local_image(ImageReference("local/digits", "a" * 64), tmp_path)
