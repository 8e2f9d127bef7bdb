"""Fixtures of the tests of images in registries: registries, a base image, one environment image, built once."""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlled_rollout.image import ImageReference, build_container_image
from tests.cluster.lab import packages
from tests.cluster.lab.images import base_image, debian_is_made
from tests.needs import skip
from tests.registry.real_registry import RunningRegistry, serving

Start = Callable[..., RunningRegistry]
# The password is hunter2.
HTPASSWD = "robot:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n"

SCRIPT = """
import os

def init():
    global content
    folder = os.environ["AZUREML_MODEL_DIR"]
    content = {name: open(os.path.join(folder, name)).read() for name in os.listdir(folder)}

def run(data):
    return {"uid": os.getuid(), "models": content}
"""


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """Skip where images cannot be built."""
    if why_not := packages.why_not_here(packages.IMAGES):
        skip(f"no images can be built here: {why_not}")
    if packages.missing(packages.IMAGES) or not debian_is_made():
        skip("no images can be built here: run `make lab`")


@pytest.fixture(scope="session", autouse=True)
def no_mounts_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Unmount what killed builds leave mounted: its folder could not be removed by a later session."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(folder + "/"):
            subprocess.run(["umount", "--lazy", mount], check=True)


@dataclass(frozen=True)
class Built:
    """A project folder, and the image that was built of it.

    Attributes:
        registry: A registry with a prefix that has the environment's image; later tests do not push there.
        progress_lines: The lines that the build reported.
    """

    source: Path
    base_image: str
    cache: Path
    registry: str
    reference: ImageReference
    progress_lines: tuple[str, ...]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """The registry with the base image and the environment that was built first."""
    with serving(tmp_path_factory.mktemp("stock")) as registry:
        yield registry


@pytest.fixture(scope="session")
def built(programs: None, stock: RunningRegistry, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The smallest image that a version can have, built while the environment variables hold a secret."""
    folder = tmp_path_factory.mktemp("built")
    source = write_source(folder / "source")
    base = base_image(stock.address)
    progress_lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_INDEX_PRIVATE_PASSWORD", "secret-of-the-index")
        patch.setenv("PIP_TRUSTED_HOST", "secret.host.example")
        registry = f"{stock.address}/models"
        reference = asyncio.run(
            build_container_image(
                source,
                name="digits",
                registry=registry,
                cache=folder / "cache",
                base_image=base,
                progress=progress_lines.append,
            )
        )
    return Built(source, base, folder / "cache", registry, reference, tuple(progress_lines))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RunningRegistry]:
    """An empty registry."""
    with serving(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts empty registries with given settings."""
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(serving(tmp_path / "registry", **settings))


@pytest.fixture
def with_password(start_registry: Start, tmp_path: Path) -> RunningRegistry:
    """An empty registry for the user robot with the password hunter2 only."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    return start_registry(auth={"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}})


def write_source(folder: Path, *, requirements: str = "", script: str = SCRIPT) -> Path:
    folder.mkdir(parents=True)
    (folder / "score.py").write_text(script)
    (folder / "requirements.txt").write_text(requirements)
    return folder
