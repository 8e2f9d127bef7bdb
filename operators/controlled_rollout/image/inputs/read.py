"""Read everything that an image is made of, and check it before anything is built."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.cancellable_thread import CancelCheck, in_thread
from controlled_rollout.image.environment.environment import Environment
from controlled_rollout.image.environment.file import find_environment_file, read_environment
from controlled_rollout.image.inputs.entry_script import EntryScriptSyntaxError, check_entry_script
from controlled_rollout.image.inputs.files import FileSet, read_source_folder
from controlled_rollout.image.inputs.models import check_models, read_models
from controlled_rollout.image.inputs.remote_models import fetch_remote_models
from controlled_rollout.image.reference import ModelSource

__all__ = ["ImageInputs", "OnInputs", "Progress", "read_image_inputs"]

NAME: Final = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")

Progress = Callable[[str], None]
"""Called with one line of text for each step of a build."""


@dataclass(frozen=True)
class ImageInputs:
    """What an image is made of.

    Attributes:
        source: The project folder's files.
        models: Each with its files, sorted by name and version.
        entry_script: Relative to the project folder.
        environment: What is installed.
    """

    source: FileSet
    models: list[tuple[ModelSource, FileSet]]
    entry_script: str
    environment: Environment

    def document(self) -> dict[str, Any]:
        """Return a JSON object: entry script, digests of source and models. The environment is not in it."""
        return {
            "source_digest": self.source.digest,
            "entry_script": self.entry_script,
            "models": [
                {"name": model.name, "version": model.version, "digest": files.digest} for model, files in self.models
            ],
        }


OnInputs = Callable[[ImageInputs], None]
"""Called once with all that was read, before anything is built of it."""


async def read_image_inputs(
    source_dir: str | Path,
    *,
    name: str,
    environment: Path | str | Environment | None,
    entry_script: str,
    models: Sequence[ModelSource],
    cache: Cache,
    progress: Progress,
    on_inputs: OnInputs = lambda inputs: None,
) -> ImageInputs:
    """Read and check all inputs of an image. Remote models are downloaded into the cache first.

    Args:
        source_dir: The project folder.
        name: The image's name, without registry.
        environment: An environment, its file, or None for the project folder's own.
        entry_script: Relative to the project folder.
        models: Each with a path of this machine or an address.
        cache: The workspace's.
        progress: Called with a line for each step.
        on_inputs: Called with what was read.

    Raises:
        ImageError: An input is not valid.
    """
    if not NAME.fullmatch(name) or len(name) > 128:
        raise ImageError(f"image name {name!r} is not valid: use up to 128 lower-case letters, digits and inner '-_.'")
    check_models(models)
    root = Path(source_dir).expanduser().absolute()
    local_models = await fetch_remote_models(models, cache, progress=progress)
    inputs = await in_thread(
        lambda check_cancelled: _read_local_inputs(
            root, environment, entry_script, local_models, progress, check_cancelled
        )
    )
    on_inputs(inputs)
    return inputs


def _read_local_inputs(
    root: Path,
    environment: Path | str | Environment | None,
    entry_script: str,
    models: Sequence[ModelSource],
    progress: Progress,
    check_cancelled: CancelCheck,
) -> ImageInputs:
    """Read and check source, environment, entry script and models from this machine. Blocks, so it runs in a thread."""
    source = read_source_folder(root, check_cancelled=check_cancelled)
    ignoring = f", without what {source.ignore_file} excludes" if source.ignore_file else ""
    if source.patterns_without_effect:
        ignoring += f" (without effect, as in git: {', '.join(map(repr, source.patterns_without_effect))})"
    progress(f"source: {len(source.files):,} files, {source.size / 1e6:,.1f} MB{ignoring}")
    if not models:
        progress("models: none, so AZUREML_MODEL_DIR is an empty folder")
    described = _resolve_environment(root, environment, progress)
    try:
        check_entry_script(source, entry_script)
    except EntryScriptSyntaxError:
        # A newer Python may have syntax that this interpreter rejects; the version's own interpreter decides then.
        if not _is_newer_python(described.python_version):
            raise
        progress(f"entry script: syntax not checked, it is for Python {described.python_version}")
    return ImageInputs(
        source=source,
        models=read_models(models, check_cancelled=check_cancelled),
        entry_script=str(Path(entry_script)),
        environment=described,
    )


def _resolve_environment(root: Path, given: Path | str | Environment | None, progress: Progress) -> Environment:
    """Return the given environment, or read it from the given file or the project folder's default file."""
    if isinstance(given, Environment):
        return given
    if given is None:
        return read_environment(find_environment_file(root), progress=progress)
    in_project = root / Path(given).expanduser()
    path = in_project if in_project.is_file() else Path(given).expanduser().absolute()
    return read_environment(path, progress=progress)


def _is_newer_python(python_version: str) -> bool:
    """Whether a Python version is newer than the running interpreter, or is a range."""
    version = re.match(r"(\d+)\.(\d+)", python_version)
    return version is None or (int(version[1]), int(version[2])) > sys.version_info[:2]
