"""The builder without a daemon: buildah on this machine makes the environment image and pushes it."""

import asyncio
import base64
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.command import essence, run
from controlled_rollout.image.package import copy_package, package
from controlled_rollout.image.registry import Credentials, Repository, is_loopback
from controlled_rollout.image.runtime import PACKAGE, runtime_folder
from controlled_rollout.image.stoppable import in_thread
from controlled_rollout.image.virtual_environment import find_uv, runtime_pins

__all__ = ["build_and_push"]

UNNAMED: Final = "localhost/controlled-rollout-environment"
ERROR_LINE: Final = r"\s*(?:error:|×|Error:|.*FATA)"
# What buildah says after a command that it ran has failed: the command has said more.
EPILOGUE: Final = ("subprocess exited with status", "Error: building at STEP")
# The exit codes of the Dockerfile's own checks.
UV_DOES_NOT_RUN, NO_SUCH_PYTHON, NOT_INSTALLED = 81, 82, 83


async def build_and_push(
    target: Repository,
    tag: str,
    *,
    base_image: str,
    python: str,
    requirements: tuple[str, ...],
    recipe: Mapping[str, str],
    secrets: Mapping[str, bytes],
    credentials: Mapping[str, Credentials],
    folder: Path,
    lock: int,
    progress: Callable[[str], None],
) -> None:
    """Build an environment image and push it; the tag is there when this returns, and never before the image is whole.

    Args:
        target: Where it is pushed.
        tag: Under which tag.
        base_image: What it is built on.
        python: The Python version or range that the base image must have.
        requirements: What is installed, besides what the scoring runtime needs.
        recipe: The Dockerfile and the files that it runs, by name.
        secrets: What only the build may know, by the names that the Dockerfile uses.
        credentials: A user for each registry that asks for one, by host.
        folder: For images and layers in work; nobody else may use it meanwhile.
        lock: A file descriptor that every process inherits.
        progress: Called with each line that the build says.

    Raises:
        ImageError: buildah is missing; the base image is, or does not fit; or the requirements cannot be installed.
        DiskFullError: No space is left.
    """
    buildah = _Buildah(folder, lock, progress)
    await buildah.forget()
    work = folder / "build"
    try:
        await in_thread(lambda stop: _write_context(work, recipe, requirements, secrets, credentials))
        asked = {"BASE_IMAGE": base_image, "PYTHON": python}
        code, lines = await buildah.call(
            "build",
            *("--isolation", "chroot", "--network", "host", "--format", "oci", "--timestamp", "0", "--no-cache"),
            *_access(work, base_image.partition("/")[0]),
            *(f"--secret=id={name},src={work / 'secrets' / name}" for name in secrets),
            *(f"--build-arg={name}={value}" for name, value in asked.items()),
            *("--volume", f"{_wheels(folder)}:/run/wheels"),
            *("--tag", UNNAMED, str(work / "context")),
        )
        if code != 0:
            raise _why(lines, base_image, python, requirements)
        code, lines = await buildah.call("push", *_access(work, target.host), UNNAMED, f"docker://{target}:{tag}")
        if code != 0:
            raise ImageError(f"the environment image cannot be pushed to {target}: {essence(lines, ERROR_LINE)}")
    finally:
        await asyncio.shield(buildah.forget())


class _Buildah:
    """Calls of buildah with images and containers of their own in `folder`."""

    def __init__(self, folder: Path, lock: int, progress: Callable[[str], None]) -> None:
        found = shutil.which("buildah")
        if found is None:
            raise ImageError(
                "buildah is needed to build an environment image and is not installed on this machine: "
                "apt install buildah (or your system's way to install it)"
            )
        self._storage = [found, "--root", str(folder / "images"), "--runroot", str(folder / "containers")]
        self._folder = folder
        self._lock = lock
        self._progress = progress

    async def call(self, *arguments: str) -> tuple[int, list[str]]:
        """Run it; return its exit status and its last lines."""
        return await run(
            [*self._storage, *arguments],
            self._folder,
            environment=os.environ,
            lock=self._lock,
            line=lambda line: self._progress(f"environment: {line}") if line.strip() else None,
        )

    async def forget(self) -> None:
        """Remove what this or a killed build left, but for the base images."""
        quiet = {"environment": os.environ, "lock": self._lock}
        await run([*self._storage, "rm", "--all"], self._folder, **quiet)  # type: ignore[arg-type]
        await run([*self._storage, "rmi", "--force", UNNAMED], self._folder, **quiet)  # type: ignore[arg-type]
        await in_thread(lambda stop: shutil.rmtree(self._folder / "build", ignore_errors=True))


def _write_context(
    work: Path,
    recipe: Mapping[str, str],
    requirements: tuple[str, ...],
    secrets: Mapping[str, bytes],
    credentials: Mapping[str, Credentials],
) -> None:
    """Write all files of the build; none of the secrets is where the build's own files are."""
    context = work / "context"
    work.mkdir(mode=0o700)
    context.mkdir()
    for name, text in recipe.items():
        (context / name).write_text(text, encoding="utf-8")
        (context / name).chmod(0o755)
    (context / "environment.txt").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    shutil.copy(find_uv(), context / "uv")
    copy_package(package(runtime_folder() / PACKAGE), context / "runtime" / PACKAGE)
    (work / "secrets").mkdir()
    for name, content in secrets.items():
        (work / "secrets" / name).write_bytes(content)
    if credentials:
        users = {
            host: {"auth": base64.b64encode(f"{user.username}:{user.password}".encode()).decode()}
            for host, user in credentials.items()
        }
        (work / "users.json").write_text(json.dumps({"auths": users}), encoding="utf-8")


def _access(work: Path, host: str) -> list[str]:
    """Return how a registry is reached."""
    users = work / "users.json"
    return [
        f"--tls-verify={str(not is_loopback(host)).lower()}",
        *(["--authfile", str(users)] if users.exists() else []),
    ]


def _wheels(folder: Path) -> Path:
    """Return the folder of what was downloaded for earlier builds."""
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    return wheels


def _why(lines: list[str], base_image: str, python: str, requirements: tuple[str, ...]) -> ImageError:
    """Return the error that a failed build's lines amount to."""
    last = next((line for line in reversed(lines) if "exit status" in line), "")
    code = last.rpartition("exit status ")[2].strip()
    said = essence([line for line in lines if not line.startswith(EPILOGUE)], ERROR_LINE)
    if code == str(UV_DOES_NOT_RUN):
        return ImageError(f"uv does not run on the base image {base_image}: it needs a Linux with glibc: {said}")
    if code == str(NO_SUCH_PYTHON):
        return ImageError(
            f"the base image {base_image} has no Python {python}, which the environment asks for: {said}\n"
            "Choose a base image that has it, or ask for the Python that is there"
        )
    if code == str(NOT_INSTALLED):
        what = ", ".join(requirements[:5]) or "the scoring runtime alone"
        return ImageError(
            f"the environment ({what}) cannot be installed on {base_image}:\n{said}\n"
            f"Installed with it is the scoring runtime, which needs {', '.join(runtime_pins())}"
        )
    if not any(line.startswith("STEP 2/") for line in lines):
        return ImageError(f"the base image {base_image} cannot be had: {said}")
    return ImageError(f"the environment image cannot be built on {base_image}:\n{said}")
