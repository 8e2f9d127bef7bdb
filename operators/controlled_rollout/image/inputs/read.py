"""Reading of everything that an image is made of, and the checks that come before anything is built."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.cancellable_thread import Stop, in_thread
from controlled_rollout.image.environment.environment import Environment, find_environment_file, read_environment
from controlled_rollout.image.inputs.entry_script import EntryScriptSyntaxError, check_entry_script
from controlled_rollout.image.inputs.files import Package, package
from controlled_rollout.image.inputs.models import check_models, package_models
from controlled_rollout.image.inputs.remote_models import on_this_machine
from controlled_rollout.image.reference import ModelSource

__all__ = ["Progress", "Project", "read_project"]

NAME: Final = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Project:
    """What an image is made of.

    Attributes:
        source: The project folder's files.
        models: Each with its files, sorted by name and version.
        entry_script: Relative to the project folder.
        environment: What is installed.
    """

    source: Package
    models: list[tuple[ModelSource, Package]]
    entry_script: str
    environment: Environment

    def document(self) -> dict[str, Any]:
        """Return the digests of all that is not the environment."""
        return {
            "source_digest": self.source.digest,
            "entry_script": self.entry_script,
            "models": [
                {"name": model.name, "version": model.version, "digest": files.digest} for model, files in self.models
            ],
        }


async def read_project(
    source_dir: str | Path,
    *,
    name: str,
    environment: Path | str | Environment | None,
    entry_script: str,
    models: Sequence[ModelSource],
    cache: Path,
    progress: Progress,
) -> Project:
    """Read everything that is given, and check it before anything is built. Models that are elsewhere are fetched.

    Raises:
        ImageError: Something that was given is not valid.
    """
    if not NAME.fullmatch(name) or len(name) > 128:
        raise ImageError(f"image name {name!r} is not valid: use up to 128 lower-case letters, digits and inner '-_.'")
    check_models(models)
    root = Path(source_dir).expanduser().absolute()
    here = await on_this_machine(models, Cache(Path(cache).expanduser().absolute()), progress=progress)
    return await in_thread(lambda stop: _read(root, environment, entry_script, here, progress, stop))


def _read(
    root: Path,
    environment: Path | str | Environment | None,
    entry_script: str,
    models: Sequence[ModelSource],
    progress: Progress,
    stop: Stop,
) -> Project:
    source = package(root, stop=stop)
    ignoring = f", without what {source.ignore_file} excludes" if source.ignore_file else ""
    progress(f"source: {len(source.files):,} files, {source.size / 1e6:,.1f} MB{ignoring}")
    described = _environment(root, environment, progress)
    try:
        check_entry_script(source, entry_script)
    except EntryScriptSyntaxError:
        # A newer Python may know a syntax that this one does not; the runtime then says what is wrong with it.
        if not _is_newer(described.python_version):
            raise
        progress(f"entry script: not checked, Python {described.python_version} may read it otherwise than this one")
    return Project(
        source=source,
        models=package_models(models, stop=stop),
        entry_script=str(Path(entry_script)),
        environment=described,
    )


def _environment(root: Path, given: Path | str | Environment | None, progress: Progress) -> Environment:
    if isinstance(given, Environment):
        return given
    if given is None:
        return read_environment(find_environment_file(root), progress=progress)
    beside = root / Path(given).expanduser()
    return read_environment(beside if beside.is_file() else Path(given).expanduser().absolute(), progress=progress)


def _is_newer(python_version: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)", python_version)
    return found is None or (int(found[1]), int(found[2])) > sys.version_info[:2]
