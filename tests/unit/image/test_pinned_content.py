"""What is not ours and gets into an installation or an image is pinned: by hash, or by digest."""

import re
from pathlib import Path

import pytest

from controlled_rollout.image.scoring_runtime import LOCKS, runtime_folder, runtime_pins

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_the_scoring_runtime_is_locked_with_hashes_for_each_python(name: str) -> None:
    text = (runtime_folder() / name).read_text()
    pins = {match[1]: match[2] for match in BLOCK.finditer(text)}

    assert BLOCK.sub("", text) == "", "every line belongs to a version with a hash, and no address of an index is there"
    assert {pin: pins.get(pin.partition("==")[0]) for pin in runtime_pins()} == {
        pin: pin.partition("==")[2] for pin in runtime_pins()
    }
    assert len(pins) > len(runtime_pins()), "what they need in turn is locked too"


def test_the_collectors_image_is_locked_with_hashes_in_the_versions_of_the_constraints() -> None:
    folder = ROOT / "docker" / "collector"
    text = (folder / "lock.txt").read_text()
    pins = {match[1]: match[2] for match in BLOCK.finditer(text)}
    requirements = (folder / "requirements.txt").read_text().splitlines()
    wanted = {re.split("[>=<]", line)[0] for line in requirements if not line.startswith("#")}
    constraints = dict(re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))

    assert BLOCK.sub("", text) == "", "every line belongs to a version with a hash, and no address of an index is there"
    assert wanted <= pins.keys()
    assert {name: constraints.get(name) for name in pins} == pins
    assert "--require-hashes" in (folder / "Dockerfile").read_text()


def test_the_locks_are_in_the_wheel() -> None:
    included = (ROOT / "pyproject.toml").read_text()

    for name in (*LOCKS, "install-packages"):
        assert f'"docker/scoring/{name}" = "controlled_rollout/image/runtime/{name}"' in included


def test_uv_and_the_build_back_end_are_installed_with_their_hashes() -> None:
    script = (ROOT / "scripts" / "install").read_text()
    installing = [line for line in script.splitlines() if re.search(r"pip\"? (install|sync)\b", line)]
    constraints = (ROOT / "constraints.txt").read_text()

    assert len(installing) == 4
    assert [line for line in installing if "--require-hashes" not in line and "--no-build-isolation" not in line] == []
    for package in ("uv", "hatchling"):
        assert re.search(rf"^{package}==\S+ \\\n +--hash=sha256:", constraints, re.MULTILINE)


def test_images_that_are_shipped_by_name_have_a_digest() -> None:
    named = re.compile(r"^(?:ARG BASE_IMAGE=| *(?:- )?image: )(\S+)", re.MULTILINE)
    files = [*ROOT.glob("docker/**/Dockerfile"), *ROOT.glob("docs/aks/*.yaml"), *ROOT.glob("dags/**/*.yaml")]
    images = {image for file in files for image in named.findall(file.read_text())}

    assert len(images) >= 2
    assert [image for image in images if not re.fullmatch(r"[^\s@]+@sha256:[0-9a-f]{64}", image)] == []
