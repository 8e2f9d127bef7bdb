"""Serve a project folder on this machine as a version would be served, to debug it before a rollout."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.environment_variables import check_variables
from controlled_rollout.image import LocalImage, ModelSource, build_local_image, load_local_image
from controlled_rollout.target.local.child_process import inherited_environment
from controlled_rollout.target.local.ports import reserve_port
from controlled_rollout.target.local.probe import http_status_on_socket

__all__ = ["serve_folder"]

HOST: Final = "127.0.0.1"
PROBE_INTERVAL_S: Final = 0.05
PROBE_TIMEOUT_S: Final = 2.0
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
# The settings of the scoring runtime, which the caller's environment may have here: there is no version to have them.
SETTINGS: Final = (
    "WORKER_COUNT",
    "SCORING_TIMEOUT_MS",
    "REPLICA_MAX_CONCURRENT_REQUESTS",
    "MAX_REQUEST_WAIT_TIME_MS",
    "MAX_QUEUED_REQUESTS",
    "MAX_BODY_BYTES",
    "DRAIN_TIMEOUT_S",
    "AZUREML_LOG_LEVEL",
    "AML_CORS_ORIGINS",
)


def serve_folder(
    folder: Path,
    *,
    port: int,
    cache: Path,
    environment: Path | None = None,
    models: Sequence[ModelSource] = (),
    entry_script: str = "score.py",
    environment_variables: Mapping[str, str] | None = None,
) -> int:
    """Build the folder's image unless it exists; serve it on 127.0.0.1 until Ctrl-C or SIGTERM; then drain it.

    Args:
        folder: The project folder.
        port: The port to serve on; 0 for any free one.
        cache: The folder of images and environments.
        environment: The environment's file; None for the one in the folder.
        models: The files under AZUREML_MODEL_DIR.
        entry_script: Relative to the folder.
        environment_variables: What the script finds in its environment, by name.

    Returns:
        The exit code: 0 after a drain; not 0 if the script could not be served, its output says why.

    Raises:
        EndpointError: An environment variable cannot be given; nothing has been built.
        WorkspaceError: The port is in use; nothing has been built.
        ImageError: No image can be built from the folder and its environment.
    """
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    own = dict(environment_variables or {})
    check_variables({name: value for name, value in own.items() if name not in SETTINGS})
    # No other process can begin to listen on the port while the image is being built.
    with reserve_port(HOST, port) as reserved:
        reserved_port = reserved.getsockname()[1]
        try:
            return asyncio.run(
                _build_and_serve(folder, reserved_port, cache, environment, models, entry_script, {**settings, **own})
            )
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED


async def _build_and_serve(
    folder: Path,
    port: int,
    cache: Path,
    environment: Path | None,
    models: Sequence[ModelSource],
    entry_script: str,
    variables: Mapping[str, str],
) -> int:
    """Build the local image of a folder and serve it until it ends; return the exit code."""
    reference = await build_local_image(
        folder,
        name=_image_name(folder),
        cache=cache,
        environment=environment,
        entry_script=entry_script,
        models=models,
        progress=_print_progress,
    )
    with tempfile.TemporaryDirectory(prefix="controlled-rollout-") as sockets:
        image = load_local_image(reference, cache)
        return await _serve_image(folder, image, port, Path(sockets) / "health", _scoring_environment(image, variables))


async def _serve_image(folder: Path, image: LocalImage, port: int, health: Path, variables: Mapping[str, str]) -> int:
    """Run the scoring process of an image until it ends; print its address once it is ready; return the exit code."""
    process = await asyncio.create_subprocess_exec(
        str(image.python),
        "-m",
        "controlled_rollout_scoring",
        "--bind",
        f"{HOST}:{port}",
        "--health",
        f"unix:{health}",
        "--exit-with-parent",
        env=dict(variables),
        cwd=image.app_root,
        stdin=asyncio.subprocess.DEVNULL,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _terminate, process)
    exited = asyncio.create_task(process.wait())
    while not exited.done() and await http_status_on_socket(health, "/ready", PROBE_TIMEOUT_S) != 200:
        await asyncio.wait([exited], timeout=PROBE_INTERVAL_S)
    if not exited.done():
        sys.stdout.write(f"serving {folder} at http://{HOST}:{port}/score (Ctrl-C stops)\n")
        sys.stdout.flush()
    code = await exited
    return code if code >= 0 else 128 - code


def _terminate(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM to the process unless it has ended."""
    if process.returncode is None:
        process.terminate()


def _scoring_environment(image: LocalImage, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of the scoring process of a local image."""
    return {**inherited_environment(), **variables, **image.variables()}


def _image_name(folder: Path) -> str:
    """Return a valid image name made from the folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:128].strip("-") or "model"


def _print_progress(line: str) -> None:
    """Print one line of the build's progress to stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
