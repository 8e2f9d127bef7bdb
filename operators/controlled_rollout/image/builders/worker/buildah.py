"""The builder on the worker: buildah, which needs no daemon, makes the environment image and pushes it."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from controlled_rollout.addresses import is_loopback, no_proxy_variables
from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.build_context import (
    BUILDAH_OPTIONS,
    ERROR_LINE,
    build_error,
    registry_auth_file,
    write_build_context,
)
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.build_secrets import build_secrets
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.cancellable_thread import in_thread
from controlled_rollout.image.run_command import error_excerpt, run_command
from controlled_rollout.image.scoring_runtime import DOCKERFILE

__all__ = ["BuildahBuilder"]

CACHE_FOLDER: Final = "containers"
LOCAL_TAG: Final = "localhost/controlled-rollout-environment"


class BuildahBuilder:
    """Builds on this machine, one environment at a time for each cache folder.

    Args:
        cache: The workspace's cache folder: keeps base images, and has the lock.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = Cache.at(cache)

    async def build(
        self, request: BuildRequest, *, is_pushed: Callable[[], Awaitable[bool]], progress: Callable[[str], None]
    ) -> None:
        """Build and push the image with buildah on this machine. One build at a time uses a cache folder."""
        waiting = f"{request.label}: another build runs on this machine, waiting"
        async with self._cache.exclusive_folder(CACHE_FOLDER, on_wait=lambda: progress(waiting)) as (folder, lock):
            if await is_pushed():
                progress(f"{request.label}: was built by another process")
                return
            progress(f"{request.label}: building on {request.base_image}")
            await _build_and_push(request, folder, lock, progress)


async def _build_and_push(request: BuildRequest, folder: Path, lock: int, progress: Callable[[str], None]) -> None:
    """Build the environment image with buildah and push it; remove containers and temporary files afterwards."""
    buildah = _Buildah(folder, lock, progress)
    await buildah.clean_up()
    work = folder / "build"
    try:
        secrets = await in_thread(lambda _: _write_build_files(request, work))
        arguments = {"BASE_IMAGE": request.base_image, "PYTHON": request.python}
        exit_code, lines = await buildah.call(
            "build",
            *BUILDAH_OPTIONS,
            *_registry_options(work, request.base_image.partition("/")[0]),
            *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            *("--tag", LOCAL_TAG, str(work / "context")),
        )
        if exit_code != 0:
            raise build_error(request, lines)
        repository = request.repository
        target = f"docker://{repository}:{request.tag}"
        exit_code, lines = await buildah.call("push", *_registry_options(work, repository.host), LOCAL_TAG, target)
        if exit_code != 0:
            excerpt = error_excerpt(lines, ERROR_LINE)
            raise ImageError(f"the environment image cannot be pushed to {repository}: {excerpt}")
    finally:
        await asyncio.shield(buildah.clean_up())


class _Buildah:
    """Calls of buildah that keep images and containers in `folder`."""

    def __init__(self, folder: Path, lock: int, progress: Callable[[str], None]) -> None:
        program = shutil.which("buildah")
        if program is None:
            raise ImageError(
                "buildah is needed to build an environment image and is not installed on this machine: "
                "apt install buildah (or your system's way to install it), or choose another builder for the workspace"
            )
        self._command = [program, "--root", str(folder / "images"), "--runroot", str(folder / "containers")]
        self._folder = folder
        self._lock = lock
        self._progress = progress

    async def call(self, *arguments: str, quiet: bool = False) -> tuple[int, list[str]]:
        """Run one buildah command; return its exit code and last output lines. With `quiet`, nothing is reported."""

        def report(line: str) -> None:
            """Report one output line as progress."""
            if line.strip() and not quiet:
                self._progress(f"environment: {line}")

        return await run_command(
            [*self._command, *arguments],
            self._folder,
            environment={**os.environ, **no_proxy_variables(os.environ)},
            lock=self._lock,
            on_line=report,
        )

    async def clean_up(self) -> None:
        """Delete containers, the built image and files of this or a killed build. Base images stay."""
        await self.call("rm", "--all", quiet=True)
        await self.call("rmi", "--force", LOCAL_TAG, quiet=True)
        await in_thread(lambda _: shutil.rmtree(self._folder / "build", ignore_errors=True))


def _write_build_files(request: BuildRequest, work: Path) -> Mapping[str, Path]:
    """Write the build context, secrets and credentials below `work`; return the secret files' paths by name."""
    work.mkdir(mode=0o700)
    write_build_context(request, work / "context")
    folder = work / "secrets"
    folder.mkdir()
    secrets = build_secrets(request.requirements, request.build_files[DOCKERFILE])
    for name, content in secrets.items():
        (folder / name).write_bytes(content)
    if request.credentials:
        (work / "auth.json").write_bytes(registry_auth_file(request.credentials))
    return {name: folder / name for name in secrets}


def _registry_options(work: Path, host: str) -> list[str]:
    """Return buildah's options for a registry: TLS unless the host is loopback, and the credentials file."""
    auth_file = work / "auth.json"
    return [
        f"--tls-verify={str(not is_loopback(host)).lower()}",
        *(["--authfile", str(auth_file)] if auth_file.exists() else []),
    ]
