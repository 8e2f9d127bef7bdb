"""Serve a project folder on this machine as a version would be served, for debugging before it goes anywhere."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.image import LocalImage, ModelSource, build_local_image, load_local_image
from controlled_rollout.image.scoring_runtime import runtime_folder
from controlled_rollout.target.local.ports import reserve
from controlled_rollout.target.local.probe import status_of
from controlled_rollout.target.local.processes import inherited_environment

__all__ = ["serve_folder"]

HOST: Final = "127.0.0.1"
PROBE_INTERVAL_S: Final = 0.05
PROBE_TIMEOUT_S: Final = 2.0
INTERRUPTED: Final = 128 + signal.SIGINT
# What a version's own settings would say; here they may be tried out.
SETTINGS: Final = (
    "WORKER_COUNT",
    "SCORING_TIMEOUT_MS",
    "REPLICA_MAX_CONCURRENT_REQUESTS",
    "MAX_REQUEST_WAIT_TIME_MS",
    "DRAIN_TIMEOUT_S",
    "AZUREML_LOG_LEVEL",
)


def serve_folder(
    folder: Path,
    *,
    port: int,
    cache: Path,
    environment: Path | None = None,
    models: Sequence[ModelSource] = (),
    entry_script: str = "score.py",
) -> int:
    """Build the folder's image, or find it, and serve it on 127.0.0.1 until Ctrl-C or SIGTERM, which drain.

    Args:
        folder: The project folder.
        port: Where to serve.
        cache: Where images and environments are kept.
        environment: The environment's file; None for the one in the folder.
        models: The files under AZUREML_MODEL_DIR.
        entry_script: Relative to the folder.

    Returns:
        The process's exit code: 0 after a drain, not 0 if the script could not be served; its log says why.

    Raises:
        WorkspaceError: The port is taken; nothing has been built.
        ImageError: The folder or its environment cannot be made into an image.
    """
    # Held from here on: nobody else can begin to listen there while the image is being built.
    with reserve(HOST, port) as held:
        chosen = held.getsockname()[1]
        try:
            return asyncio.run(_build_and_serve(folder, chosen, cache, environment, models, entry_script))
        except KeyboardInterrupt:
            return INTERRUPTED


async def _build_and_serve(
    folder: Path,
    port: int,
    cache: Path,
    environment: Path | None,
    models: Sequence[ModelSource],
    entry_script: str,
) -> int:
    reference = await build_local_image(
        folder,
        name=_image_name(folder),
        cache=cache,
        environment=environment,
        entry_script=entry_script,
        models=models,
        progress=_progress,
    )
    with tempfile.TemporaryDirectory(prefix="controlled-rollout-") as sockets:
        return await _serve(folder, load_local_image(reference, cache), port, Path(sockets) / "health")


async def _serve(folder: Path, image: LocalImage, port: int, health: Path) -> int:
    command = [str(image.python), "-m", "controlled_rollout_scoring", "--bind", f"{HOST}:{port}"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--health",
        f"unix:{health}",
        "--exit-with-parent",
        env=_environment(image),
        cwd=image.app_root,
        stdin=asyncio.subprocess.DEVNULL,
    )
    for stop in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(stop, _stop, process)
    ended = asyncio.create_task(process.wait())
    while not ended.done() and await status_of(health, "/ready", PROBE_TIMEOUT_S) != 200:
        await asyncio.wait([ended], timeout=PROBE_INTERVAL_S)
    if not ended.done():
        sys.stdout.write(f"serving {folder} at http://{HOST}:{port}/score (Ctrl-C stops)\n")
        sys.stdout.flush()
    code = await ended
    return code if code >= 0 else 128 - code


def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()


def _environment(image: LocalImage) -> dict[str, str]:
    tried = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return {
        **inherited_environment(),
        **tried,
        "PYTHONPATH": str(runtime_folder()),
        "AML_APP_ROOT": str(image.app_root),
        "AZUREML_ENTRY_SCRIPT": image.entry_script,
        "AZUREML_MODEL_DIR": str(image.model_dir),
    }


def _image_name(folder: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:128].strip("-") or "model"


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
