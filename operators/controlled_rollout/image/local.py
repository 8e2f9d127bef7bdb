"""The local builder: a project folder becomes an image in the workspace's cache, and is loaded from there."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import Cache, EnvironmentPlace, SharedCache, find_environment
from controlled_rollout.image.entry_script import EntryScriptSyntaxError, check_entry_script
from controlled_rollout.image.environment import (
    Environment,
    environment_hash,
    find_environment_file,
    read_environment,
)
from controlled_rollout.image.models import check_models, copy_models, model_dir, package_models
from controlled_rollout.image.package import Package, copy_package, package
from controlled_rollout.image.reference import ImageReference, ModelSource
from controlled_rollout.image.stoppable import Stop, in_thread
from controlled_rollout.image.virtual_environment import create_virtual_environment

__all__ = ["LocalImage", "build", "load"]

IMAGE_SCHEMA: Final = 1
IMAGE_FILE: Final = "image.json"
NAME: Final = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LocalImage:
    """An image in the cache, ready to be run.

    Attributes:
        reference: Which.
        app_root: The project folder's files: AML_APP_ROOT. Not to be written.
        model_dir: AZUREML_MODEL_DIR: the only model's folder, or the folder of all models as `<name>/<version>/`.
        entry_script: Relative to `app_root`: AZUREML_ENTRY_SCRIPT.
        python: The interpreter of the image's environment.
        environment_hash: Which environment.
    """

    reference: ImageReference
    app_root: Path
    model_dir: Path
    entry_script: str
    python: Path
    environment_hash: str


@dataclass(frozen=True)
class _Parts:
    """What an image is made of; `sha256` covers all of it."""

    source: Package
    models: list[tuple[ModelSource, Package]]
    entry_script: str
    environment: Environment
    environment_hash: str

    def document(self) -> dict[str, Any]:
        return {
            "schema": IMAGE_SCHEMA,
            "environment_hash": self.environment_hash,
            "source_digest": self.source.digest,
            "entry_script": self.entry_script,
            "models": [
                {"name": model.name, "version": model.version, "digest": files.digest} for model, files in self.models
            ],
        }

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()


async def build(
    source_dir: str | Path,
    *,
    name: str,
    cache: Path,
    environment: Path | str | Environment | None = None,
    entry_script: str = "score.py",
    models: Sequence[ModelSource] = (),
    shared_cache: Path | None = None,
    progress: Progress = lambda line: None,
) -> ImageReference:
    """Build the image of a project folder, or find it: what has been built before is not built again.

    The environment is looked up by its hash in `cache`, then in `shared_cache`, and only then built; the image by its
    digest in `cache`. Two builds of the same at once, in any processes, become one. A build that is cancelled or killed
    leaves nothing that would be used.

    Args:
        source_dir: The project folder, packaged as `.amlignore` or `.gitignore` says.
        name: The image is called `local/<name>`.
        cache: The workspace's cache folder.
        environment: An environment, or its file: relative to the project folder, or else to the current one. None for
            the project folder's environment.yml, environment.yaml, conda.yml or requirements.txt.
        entry_script: The file with `init()` and `run(...)`, relative to the project folder.
        models: Up to 1,000.
        shared_cache: Another workspace's cache folder, only read.
        progress: Called with a line for each step.

    Raises:
        ImageError: Something that was given is not valid, or the environment cannot be built. The cache is as before.
    """
    if not NAME.fullmatch(name) or len(name) > 128:
        raise ImageError(f"image name {name!r} is not valid: use up to 128 lower-case letters, digits and inner '-_.'")
    check_models(models)
    root = Path(source_dir).expanduser().absolute()
    parts = await in_thread(lambda stop: _parts(root, environment, entry_script, models, progress, stop))
    place = Cache(Path(cache).expanduser().absolute())
    await _provide_environment(parts, place, shared_cache, progress)
    reference = ImageReference(f"local/{name}", parts.sha256)
    built = await _provide_image(parts, place)
    progress(f"image: {reference} {'built' if built else 'found in the cache'}")
    return reference


def load(reference: str | ImageReference, cache: Path) -> LocalImage:
    """Return an image that was built into the cache.

    Raises:
        ImageError: The reference is malformed, or the image or its environment is not in the cache.
    """
    asked = ImageReference.parse(reference) if isinstance(reference, str) else reference
    place = Cache(Path(cache).expanduser().absolute())
    folder = place.image(asked.sha256)
    try:
        document = json.loads((folder / IMAGE_FILE).read_text(encoding="utf-8"))
        found_hash, entry_script = document["environment_hash"], document["entry_script"]
        models = [(model["name"], model["version"]) for model in document["models"]]
    except FileNotFoundError:
        raise ImageError(f"image {asked} is not in the cache {place.root}: build it there first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"image {asked} in {folder} cannot be read ({error}): remove that folder, build again"
        ) from None
    environment = place.find(found_hash)
    if environment is None:
        raise ImageError(
            f"image {asked} is in the cache {place.root}, but not its environment {found_hash[:12]}, or its Python "
            "is no longer on this machine: build the image again"
        )
    return LocalImage(
        reference=asked,
        app_root=folder / "app",
        model_dir=model_dir(folder / "models", models),
        entry_script=entry_script,
        python=environment / "bin" / "python",
        environment_hash=found_hash,
    )


def _parts(
    root: Path,
    environment: Path | str | Environment | None,
    entry_script: str,
    models: Sequence[ModelSource],
    progress: Progress,
    stop: Stop,
) -> _Parts:
    """Read everything that is given, and check it before anything is built."""
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
    if described.base_image or described.docker_steps:
        progress("environment: the base image and the docker steps count in the hash, but are not run on this machine")
    return _Parts(
        source=source,
        models=package_models(models, stop=stop),
        entry_script=str(Path(entry_script)),
        environment=described,
        environment_hash=environment_hash(described),
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


async def _provide_environment(parts: _Parts, cache: Cache, shared: Path | None, progress: Progress) -> None:
    short = f"environment {parts.environment_hash[:12]}"
    places: list[EnvironmentPlace] = [cache, *([SharedCache(Path(shared).expanduser().absolute())] if shared else [])]
    if found := find_environment(places, parts.environment_hash):
        place, folder = found
        if place is not cache:
            await cache.link_environment(parts.environment_hash, folder)
        progress(f"{short}: found in {place.name}")
        return

    async def make(unfinished: Path, lock: int) -> None:
        progress(f"{short}: building with Python {parts.environment.python_version}")
        await create_virtual_environment(unfinished, parts.environment, lock=lock, progress=progress)

    folder = cache.environment(parts.environment_hash)
    built = await cache.build(
        folder,
        lambda _: cache.find(parts.environment_hash) is not None,
        make,
        waiting=lambda: progress(f"{short}: somebody else is building it, waiting"),
    )
    progress(f"{short}: {'built' if built else 'built by somebody else meanwhile'}")


async def _provide_image(parts: _Parts, cache: Cache) -> bool:
    def write(unfinished: Path, stop: Stop) -> None:
        copy_package(parts.source, unfinished / "app", stop=stop)
        copy_models(parts.models, unfinished / "models", stop=stop)
        document = {**parts.document(), "environment": parts.environment.model_dump(mode="json")}
        (unfinished / IMAGE_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")

    async def make(unfinished: Path, lock: int) -> None:
        await in_thread(lambda stop: write(unfinished, stop))

    return await cache.build(cache.image(parts.sha256), lambda folder: (folder / IMAGE_FILE).is_file(), make)
