"""The builder without a daemon: buildah on this machine makes the environment image and pushes it."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from controlled_rollout.addresses import is_loopback
from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.build_context import ERROR_LINE, failure, users_file, write_context
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.build_secrets import build_secrets
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.cancellable_thread import in_thread
from controlled_rollout.image.run_command import essence, run

__all__ = ["BUILD_OPTIONS", "BuildahBuilder"]

WORKSHOP: Final = "containers"
UNNAMED: Final = "localhost/controlled-rollout-environment"
# No daemon and no right of its own is needed; and nothing of the clock gets into the image.
BUILD_OPTIONS: Final = (
    *("--isolation", "chroot", "--network", "host", "--format", "oci"),
    *("--timestamp", "0", "--no-cache"),
)


class BuildahBuilder:
    """Builds on this machine. One environment is built at a time in a workspace's cache folder.

    Args:
        cache: The workspace's cache folder, for images in work and their lock.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = Cache(Path(cache).expanduser().absolute())

    async def build(
        self, order: BuildRequest, *, is_there: Callable[[], Awaitable[bool]], progress: Callable[[str], None]
    ) -> None:
        """See `Builder`."""
        waiting = f"{order.short}: this machine is at another build, waiting"
        async with self._cache.workshop(WORKSHOP, waiting=lambda: progress(waiting)) as (folder, lock):
            if await is_there():
                progress(f"{order.short}: built by somebody else meanwhile")
                return
            progress(f"{order.short}: building on {order.base_image}")
            await _build_and_push(order, folder, lock, progress)


async def _build_and_push(order: BuildRequest, folder: Path, lock: int, progress: Callable[[str], None]) -> None:
    buildah = _Buildah(folder, lock, progress)
    await buildah.forget()
    work = folder / "build"
    try:
        secrets = await in_thread(lambda stop: _write(order, work))
        asked = {"BASE_IMAGE": order.base_image, "PYTHON": order.python}
        code, lines = await buildah.call(
            "build",
            *BUILD_OPTIONS,
            *_access(work, order.base_image.partition("/")[0]),
            *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
            *(f"--build-arg={name}={value}" for name, value in asked.items()),
            *("--volume", f"{_wheels(folder)}:/run/wheels"),
            *("--tag", UNNAMED, str(work / "context")),
        )
        if code != 0:
            raise failure(order, lines)
        target = order.target
        code, lines = await buildah.call("push", *_access(work, target.host), UNNAMED, f"docker://{target}:{order.tag}")
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
                "apt install buildah (or your system's way to install it), or choose another builder for the workspace"
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


def _write(order: BuildRequest, work: Path) -> Mapping[str, Path]:
    """Write all files of the build, and return the secret ones: they are not where the build's own files are."""
    work.mkdir(mode=0o700)
    write_context(order, work / "context")
    folder = work / "secrets"
    folder.mkdir()
    secrets = build_secrets(order.requirements)
    for name, content in secrets.items():
        (folder / name).write_bytes(content)
    if order.credentials:
        (work / "users.json").write_bytes(users_file(order.credentials))
    return {name: folder / name for name in secrets}


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
