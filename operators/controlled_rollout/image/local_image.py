"""Images of the local target: a project folder becomes an image in the workspace's cache, and is run from there."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.worker.virtual_environment import create_virtual_environment
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.cancellable_thread import CancelCheck, in_thread
from controlled_rollout.image.environment.environment import Environment
from controlled_rollout.image.environment.hash import environment_hash
from controlled_rollout.image.inputs.files import copy_files
from controlled_rollout.image.inputs.models import LINK, LINK_TARGET, copy_models, has_link, model_dir
from controlled_rollout.image.inputs.read import ImageInputs, OnInputs, Progress, read_image_inputs
from controlled_rollout.image.reference import ImageReference, ModelSource
from controlled_rollout.image.scoring_runtime import runtime_folder

__all__ = ["LocalImage", "build_local_image", "load_local_image"]

# Changed when an image of the same inputs is laid out in another way.
IMAGE_SCHEMA: Final = 2
IMAGE_FILE: Final = "image.json"


@dataclass(frozen=True)
class LocalImage:
    """An image in the cache, ready to be run.

    Attributes:
        reference: Its name and digest.
        app_root: The project folder's files, read-only: AML_APP_ROOT.
        model_dir: AZUREML_MODEL_DIR: the only model's folder, or the folder of all models as `<name>/<version>/`.
        entry_script: Relative to `app_root`: AZUREML_ENTRY_SCRIPT.
        python: The interpreter of the image's environment.
        environment_hash: The hash under which the cache has that environment.
    """

    reference: ImageReference
    app_root: Path
    model_dir: Path
    entry_script: str
    python: Path
    environment_hash: str

    def variables(self) -> dict[str, str]:
        """Return the environment variables by which a scoring process finds the runtime and the image.

        Raises:
            ImageError: The installation lacks the runtime.
        """
        return {
            "PYTHONPATH": str(runtime_folder()),
            "AML_APP_ROOT": str(self.app_root),
            "AZUREML_ENTRY_SCRIPT": self.entry_script,
            "AZUREML_MODEL_DIR": str(self.model_dir),
        }


async def build_local_image(
    source_dir: str | Path,
    *,
    name: str,
    cache: Path,
    environment: Path | str | Environment | None = None,
    entry_script: str = "score.py",
    models: Sequence[ModelSource] = (),
    progress: Progress = lambda line: None,
    on_inputs: OnInputs = lambda inputs: None,
) -> ImageReference:
    """Build a project folder's image in the workspace's cache folder, unless the same image is there.

    The environment is found by its hash, the image by its digest. If several processes build the same at once, one
    builds it. A build that is cancelled or killed leaves nothing that would be used.

    Args:
        source_dir: The project folder, packaged as `.amlignore` or `.gitignore` says.
        name: The image is called `local/<name>`.
        cache: The workspace's cache folder.
        environment: An environment, or its file: relative to the project folder, or else to the current one. None for
            the project folder's, the first of `DEFAULT_FILES`.
        entry_script: The file with `init()` and `run(...)`, relative to the project folder.
        models: Up to 1,000.
        progress: Called with a line for each step.
        on_inputs: Called with what was read of the folder and the models.

    Raises:
        ImageError: An argument is not valid, or the environment cannot be built. The cache is unchanged.
    """
    place = Cache.at(cache)
    inputs = await read_image_inputs(
        source_dir,
        name=name,
        environment=environment,
        entry_script=entry_script,
        models=models,
        cache=place,
        progress=progress,
        on_inputs=on_inputs,
    )
    if inputs.environment.base_image or inputs.environment.docker_steps:
        progress("environment: the base image and the docker steps count in the hash, but are not run on this machine")
    env_hash = environment_hash(inputs.environment)
    await _build_environment_if_missing(inputs.environment, env_hash, place, progress)
    document = _image_document(inputs, env_hash)
    reference = ImageReference(f"local/{name}", _digest_of(document))
    built = await _copy_image_if_missing(inputs, document, place.image(reference.sha256), place)
    progress(f"image: {reference} {'built' if built else 'found in the cache'}")
    return reference


def load_local_image(reference: str | ImageReference, cache: Path) -> LocalImage:
    """Return the image of a reference from the cache folder; raise if it was never built there.

    Args:
        reference: The image, as `local/<name>@sha256:…`.
        cache: The workspace's cache folder.

    Raises:
        ImageError: The reference is malformed, or the image or its environment is not in the cache.
    """
    image = ImageReference.parse(reference) if isinstance(reference, str) else reference
    place = Cache.at(cache)
    folder = place.image(image.sha256)
    try:
        document = _read_document(folder)
        env_hash, entry_script = document["environment_hash"], document["entry_script"]
        models = [(model["name"], model["version"]) for model in document["models"]]
    except FileNotFoundError as error:
        raise ImageError(f"image {image} is not in the cache {place.root}: build it there first") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"image {image} in {folder} cannot be read ({error}): build the image again, which replaces it"
        ) from error
    if _digest_of(document) != image.sha256:
        raise ImageError(
            f"image {image} in {folder} is not what was built: somebody has changed its {IMAGE_FILE}. Build the image "
            "again, which replaces it"
        )
    environment = place.find_environment(env_hash)
    if environment is None:
        raise ImageError(
            f"image {image} is in the cache {place.root}, but not its environment {env_hash[:12]}, or its Python "
            "is no longer on this machine: build the image again"
        )
    return LocalImage(
        reference=image,
        app_root=folder / "app",
        model_dir=model_dir(folder / "models", models),
        entry_script=entry_script,
        python=environment / "bin" / "python",
        environment_hash=env_hash,
    )


def _image_document(inputs: ImageInputs, env_hash: str) -> dict[str, Any]:
    """Return the JSON object whose SHA-256 is the image's digest: hashes of the environment, source and models."""
    return {"schema": IMAGE_SCHEMA, "environment_hash": env_hash, **inputs.document()}


async def _build_environment_if_missing(
    environment: Environment, env_hash: str, cache: Cache, progress: Progress
) -> None:
    """Build the virtual environment in the cache unless it is there."""
    label = f"environment {env_hash[:12]}"
    if cache.find_environment(env_hash) is not None:
        progress(f"{label}: found in the cache")
        return

    async def fill(folder: Path, lock: int) -> None:
        """Create the virtual environment in the cache entry's empty folder."""
        progress(f"{label}: building with Python {environment.python_version}")
        await create_virtual_environment(folder, environment, lock=lock, progress=progress)

    built = await cache.build(
        cache.environment(env_hash),
        lambda _: cache.find_environment(env_hash) is not None,
        fill,
        on_wait=lambda: progress(f"{label}: another process is building it, waiting"),
    )
    progress(f"{label}: {'built' if built else 'was built by another process'}")


async def _copy_image_if_missing(inputs: ImageInputs, document: dict[str, Any], folder: Path, cache: Cache) -> bool:
    """Copy the image's files into the cache unless they are there; return whether they were copied."""

    def copy(target: Path, check_cancelled: CancelCheck) -> None:
        """Copy source and models into `target` and write image.json. Blocks, so it runs in a thread."""
        copy_files(inputs.source, target / "app", check_cancelled=check_cancelled)
        copy_models(inputs.models, target / "models", check_cancelled=check_cancelled)
        if has_link(inputs.source, inputs.models):
            (target / "app" / LINK).symlink_to(LINK_TARGET)
        described = {**document, "environment": inputs.environment.model_dump(mode="json")}
        (target / IMAGE_FILE).write_text(json.dumps(described, indent=2), encoding="utf-8")

    async def fill(target: Path, lock: int) -> None:
        """Fill the cache entry's empty folder with the image's files."""
        await in_thread(lambda check_cancelled: copy(target, check_cancelled))

    return await cache.build(folder, _is_image, fill)


def _is_image(folder: Path) -> bool:
    """Whether a folder of the cache has the image that its name says."""
    try:
        return _digest_of(_read_document(folder)) == folder.name
    except (OSError, ValueError, TypeError):
        return False


def _read_document(folder: Path) -> dict[str, Any]:
    """Read the description of the image in a folder of the cache.

    Raises:
        OSError, ValueError, TypeError: It cannot be read.
    """
    return dict(json.loads((folder / IMAGE_FILE).read_text(encoding="utf-8")))


def _digest_of(document: Mapping[str, Any]) -> str:
    """Return an image's digest (hexadecimal): that of its description. Its environment is in there by its hash."""
    described = {name: value for name, value in document.items() if name != "environment"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
