"""The image of the collector, built as its Dockerfile says; for the lab built once for each state of its folder."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controlled_rollout.image.builders.build_secrets import build_secrets
from tests.cluster.lab.cache import digest_of, find_or_make
from tests.cluster.lab.images import Layer, base_image, on_base, push, seal
from tests.registry.real_registry import serving

__all__ = ["build_image", "call", "collector_image", "own_buildah"]

FOLDER = Path(__file__).parents[1] / "docker" / "collector"
NAME = "localhost/collector"
# What the Dockerfile copies onto its base image.
CONTENT = ("opt/environment", "opt/collector")


def call(*arguments: str) -> str:
    """Run a command and return what it printed; fail with its last lines."""
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@contextmanager
def own_buildah(folder: Path) -> Iterator[list[str]]:
    """Give the command of buildah with images and containers in a folder of its own, and remove them afterwards."""
    command = ["buildah", "--root", str(folder / "root"), "--runroot", str(folder / "run")]
    try:
        yield command
    finally:
        subprocess.run([*command, "rm", "--all"], capture_output=True)
        subprocess.run([*command, "rmi", "--all", "--force"], capture_output=True)


def build_image(
    buildah: Sequence[str],
    folder: Path,
    base: str,
    *,
    dockerfile: Path = FOLDER / "Dockerfile",
    context: Path = FOLDER,
    name: str = NAME,
) -> dict[str, Any]:
    """Build the image of the collector, or another one, from a base image, and return its configuration.

    Args:
        buildah: The command.
        folder: For the build's secrets.
        base: A reference in a registry that takes plain HTTP.
        dockerfile: What it is built by.
        context: What the build may take.
        name: How it is called then.
    """
    given = build_secrets([], dockerfile.read_text())
    for secret in ("settings", "certificates"):
        (folder / secret).write_bytes(given.get(secret, b""))
    call(
        *(*buildah, "build", "--isolation", "chroot", "--network", "host", "--tls-verify=false", "--format", "oci"),
        *(f"--secret=id={secret},src={folder / secret}" for secret in ("settings", "certificates")),
        *(f"--build-arg=BASE_IMAGE={base}", "--tag", name),
        f"--ignorefile={dockerfile.with_name('Dockerfile.dockerignore')}",
        *("--file", str(dockerfile), str(context)),
    )
    image: dict[str, Any] = json.loads(call(*buildah, "inspect", "--type", "image", name))["OCIv1"]["config"]
    return image


def collector_image(registry: str) -> str:
    """Push the image to a registry on this machine, and return its reference `name@sha256:…`; build it first if needed.

    Args:
        registry: Its host and port; it takes plain HTTP.
    """
    sources = [path for path in sorted(FOLDER.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    digest = digest_of(*(f"{path.relative_to(FOLDER)}\0{path.read_text()}" for path in sources))
    made = find_or_make("layers", "data-collector", digest, _make)
    config = json.loads((made / "config.json").read_text())
    return push(on_base("lab/data-collector:1", Layer.read(made), config), registry)


def _make(made: Path) -> None:
    """Build the image, and keep what it has on top of its base image, and its configuration."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        serving(Path(temporary) / "registry") as registry,
        own_buildah(Path(temporary)) as buildah,
    ):
        config = build_image(buildah, Path(temporary), base_image(registry.address))
        container = call(*buildah, "from", "--pull-never", NAME).strip()
        root = call(*buildah, "mount", container).strip()
        owner = ("--numeric-owner", "--owner=0", "--group=0")
        call("tar", "--create", *owner, "--file", str(made / "layer.tar"), "--directory", root, *CONTENT)
        call(*buildah, "umount", container)
    (made / "config.json").write_text(json.dumps(config))
    seal(made)
