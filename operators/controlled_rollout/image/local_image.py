"""The local builder: a project folder becomes an image in the workspace's cache, and is loaded from there."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.worker.virtual_environment import create_virtual_environment
from controlled_rollout.image.cache import Cache, EnvironmentPlace, SharedCache, find_environment
from controlled_rollout.image.cancellable_thread import Stop, in_thread
from controlled_rollout.image.environment.environment import Environment, environment_hash
from controlled_rollout.image.inputs.files import copy_package
from controlled_rollout.image.inputs.models import copy_models, model_dir
from controlled_rollout.image.inputs.read import Progress, Project, read_project
from controlled_rollout.image.reference import ImageReference, ModelSource

__all__ = ["LocalImage", "build_local_image", "load_local_image"]

IMAGE_SCHEMA: Final = 1
IMAGE_FILE: Final = "image.json"


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

    project: Project
    environment_hash: str

    def document(self) -> dict[str, Any]:
        return {"schema": IMAGE_SCHEMA, "environment_hash": self.environment_hash, **self.project.document()}

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()


async def build_local_image(
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
    project = await read_project(
        source_dir,
        name=name,
        environment=environment,
        entry_script=entry_script,
        models=models,
        cache=cache,
        progress=progress,
    )
    if project.environment.base_image or project.environment.docker_steps:
        progress("environment: the base image and the docker steps count in the hash, but are not run on this machine")
    parts = _Parts(project, environment_hash(project.environment))
    place = Cache(Path(cache).expanduser().absolute())
    await _provide_environment(parts, place, shared_cache, progress)
    reference = ImageReference(f"local/{name}", parts.sha256)
    built = await _provide_image(parts, place)
    progress(f"image: {reference} {'built' if built else 'found in the cache'}")
    return reference


def load_local_image(reference: str | ImageReference, cache: Path) -> LocalImage:
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
        progress(f"{short}: building with Python {parts.project.environment.python_version}")
        await create_virtual_environment(unfinished, parts.project.environment, lock=lock, progress=progress)

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
        copy_package(parts.project.source, unfinished / "app", stop=stop)
        copy_models(parts.project.models, unfinished / "models", stop=stop)
        document = {**parts.document(), "environment": parts.project.environment.model_dump(mode="json")}
        (unfinished / IMAGE_FILE).write_text(json.dumps(document, indent=2), encoding="utf-8")

    async def make(unfinished: Path, lock: int) -> None:
        await in_thread(lambda stop: write(unfinished, stop))

    return await cache.build(cache.image(parts.sha256), lambda folder: (folder / IMAGE_FILE).is_file(), make)
