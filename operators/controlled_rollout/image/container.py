"""The builder for clusters: a project folder becomes an image in a registry, deployed by its digest.

Two parts. The environment image, found by the environment's hash or built; and one layer with source and models on top
of it, made by talking to the registry alone.
"""

import asyncio
import hashlib
import json
import platform
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.buildah import build_and_push
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.dockerfile import with_docker_steps
from controlled_rollout.image.environment import Environment, environment_hash
from controlled_rollout.image.host_settings import build_secrets
from controlled_rollout.image.layer import APP_ROOT, MODELS_FOLDER, Layer, layer_of
from controlled_rollout.image.manifest import LAYER, Descriptor, Manifest, with_layer
from controlled_rollout.image.models import model_dir
from controlled_rollout.image.package import package
from controlled_rollout.image.project import Progress, Project, read_project
from controlled_rollout.image.reference import ImageReference, ModelSource
from controlled_rollout.image.registry import Credentials, Registry, RegistryUnavailableError, Repository
from controlled_rollout.image.runtime import DOCKERFILE, PACKAGE, recipe_files, runtime_folder
from controlled_rollout.image.stoppable import in_thread

__all__ = ["ENVIRONMENTS", "build_container"]

ENVIRONMENTS: Final = "environments"
WORKSHOP: Final = "containers"
ANY_PYTHON: Final = ">=3.10"
LAYER_SCHEMA: Final = 1
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


async def build_container(
    source_dir: str | Path,
    *,
    name: str,
    registry: str,
    cache: Path,
    base_image: str | None = None,
    shared_registry: str | None = None,
    environment: Path | str | Environment | None = None,
    entry_script: str = "score.py",
    models: Sequence[ModelSource] = (),
    credentials: Mapping[str, Credentials] | None = None,
    progress: Progress = lambda line: None,
) -> ImageReference:
    """Build a project folder's image in a registry, or find it: what has been built before is not built again.

    The environment image is looked up by the environment's hash in `registry`, then in `shared_registry`, from which it
    is copied, and only then built here with buildah. A changed model adds one layer and builds nothing. A build that
    fails, is cancelled or is killed leaves no tag.

    Args:
        source_dir: The project folder, packaged as `.amlignore` or `.gitignore` says.
        name: The image is called `<registry>/<name>`.
        registry: A registry and a prefix, such as `registry.example/models`; plain http is spoken only with this
            machine.
        cache: The workspace's cache folder, for images in work and their lock.
        base_image: What is built on where the environment names no base image.
        shared_registry: Like `registry`, only read.
        environment: An environment, or its file: relative to the project folder, or else to the current one. None for
            the project folder's environment.yml, environment.yaml, conda.yml or requirements.txt.
        entry_script: The file with `init()` and `run(...)`, relative to the project folder.
        models: Up to 1,000.
        credentials: A user for each registry that asks for one, by host.
        progress: Called with a line for each step.

    Raises:
        RegistryUnavailableError: A registry does not answer.
        ImageError: Something that was given is not valid, the environment cannot be built, or a registry refuses.
    """
    if name == ENVIRONMENTS:
        raise ImageError(f"image name {name!r} is taken by the environments' images: choose another")
    target, environments = Repository.parse(f"{registry}/{name}"), Repository.parse(f"{registry}/{ENVIRONMENTS}")
    shared = Repository.parse(f"{shared_registry}/{ENVIRONMENTS}") if shared_registry else None
    project = await read_project(
        source_dir, name=name, environment=environment, entry_script=entry_script, models=models, progress=progress
    )
    build = _EnvironmentBuild(project.environment, base_image, credentials or {}, progress)
    async with Registry(credentials) as client:
        manifest = await build.provide(client, environments, shared, Cache(Path(cache).expanduser().absolute()))
        return await _provide_image(client, project, target, environments, manifest, progress)


class _EnvironmentBuild:
    """Finds, copies or builds the image of one environment."""

    def __init__(
        self,
        environment: Environment,
        base_image: str | None,
        credentials: Mapping[str, Credentials],
        progress: Progress,
    ) -> None:
        self._environment = _with_base_image(environment, base_image)
        self._python = environment.python or ANY_PYTHON
        self._credentials = credentials
        self._progress = progress
        self._recipe = {name: path.read_text("utf-8") for name, path in recipe_files().items()}
        self._recipe[DOCKERFILE] = with_docker_steps(self._recipe[DOCKERFILE], environment.docker_steps)
        # What is in the image besides the environment counts in its hash too.
        recipe = json.dumps([self._recipe, package(runtime_folder() / PACKAGE).digest], sort_keys=True)
        machine = platform.machine()
        self._hash = environment_hash(
            self._environment,
            platform=f"linux/{ARCHITECTURES.get(machine, machine)}",
            python=self._python,
            recipe=hashlib.sha256(recipe.encode()).hexdigest(),
        )
        self._short = f"environment {self._hash[:12]}"

    async def provide(
        self, client: Registry, repository: Repository, shared: Repository | None, cache: Cache
    ) -> Manifest:
        """Return the environment image's manifest once it is in `repository`."""
        if found := await client.manifest(repository, self._hash):
            self._progress(f"{self._short}: found in {repository}")
            return found
        if shared and (found := await self._copied(client, shared, repository)):
            return found
        short, waiting = self._short, f"{self._short}: this machine is at another build, waiting"
        async with cache.workshop(WORKSHOP, waiting=lambda: self._progress(waiting)) as (folder, lock):
            if found := await client.manifest(repository, self._hash):
                self._progress(f"{short}: built by somebody else meanwhile")
                return found
            await self._build(repository, folder, lock)
        if found := await client.manifest(repository, self._hash):
            self._progress(f"{short}: built and pushed to {repository}")
            return found
        raise ImageError(f"{short} was pushed to {repository}, and the registry does not have it: build again")

    async def _copied(self, client: Registry, shared: Repository, repository: Repository) -> Manifest | None:
        """Copy the image from the shared registry, if that has it and answers."""
        try:
            manifest = await client.manifest(shared, self._hash)
        except RegistryUnavailableError as error:
            self._progress(f"{self._short}: not looked up in {shared}: {error}")
            return None
        if manifest is None:
            return None
        self._progress(f"{self._short}: found in {shared}, copying")
        await _copy_blobs(client, manifest, shared, repository)
        await client.put_manifest(repository, self._hash, manifest)
        return manifest

    async def _build(self, repository: Repository, folder: Path, lock: int) -> None:
        base_image = self._environment.base_image or ""
        self._progress(f"{self._short}: building on {base_image}")
        await build_and_push(
            repository,
            self._hash,
            base_image=_qualified(base_image),
            python=self._python,
            requirements=self._environment.requirements,
            recipe=self._recipe,
            secrets=build_secrets(self._environment.requirements),
            credentials=self._credentials,
            folder=folder,
            lock=lock,
            progress=self._progress,
        )


def _with_base_image(environment: Environment, base_image: str | None) -> Environment:
    if environment.base_image:
        return environment
    if not base_image:
        raise ImageError(
            f"environment {environment.name or ''} names no base image, and neither does the workspace: set base_image "
            "in the workspace's settings, or in the environment's file, to an image that has Python 3.10 or newer"
        )
    return environment.model_copy(update={"base_image": base_image})


def _qualified(image: str) -> str:
    """Return an image's full name: without a registry it is meant as on Docker Hub, as everywhere else."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


async def _provide_image(
    client: Registry,
    project: Project,
    target: Repository,
    environments: Repository,
    base: Manifest,
    progress: Progress,
) -> ImageReference:
    """Return the image's reference once it is in `target`: it is looked up by all that it is made of."""
    document = {"schema": LAYER_SCHEMA, "environment": base.digest, **project.document()}
    tag = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    digest = await client.digest(target, tag)
    if digest is None:
        digest = await _push_image(client, project, target, environments, base, tag)
        how = "pushed"
    else:
        how = "found in the registry"
    reference = ImageReference(str(target), digest.removeprefix("sha256:"))
    progress(f"image: {reference} {how}")
    return reference


async def _push_image(
    client: Registry, project: Project, target: Repository, environments: Repository, base: Manifest, tag: str
) -> str:
    """Push the image and return its digest."""
    layer = layer_of(project.source, project.models)
    digest, size = await in_thread(lambda stop: layer.digest(stop=stop))
    blob = Descriptor(LAYER, digest, size)
    config, manifest = with_layer(
        base,
        await client.blob(environments, base.config),
        blob,
        environment=_contract(project),
        created_by="controlled-rollout: source and models",
    )
    await _copy_blobs(client, base, environments, target, with_config=False)
    await client.put_blob(target, blob, lambda: _chunks(layer))
    await client.put_blob(target, manifest.config, config)
    await client.put_manifest(target, tag, manifest)
    return manifest.digest


def _contract(project: Project) -> dict[str, str]:
    """Return the environment variables that the retired service set for entry scripts."""
    names = [(model.name, model.version) for model, _ in project.models]
    return {
        "AML_APP_ROOT": str(APP_ROOT),
        "AZUREML_ENTRY_SCRIPT": project.entry_script,
        "AZUREML_MODEL_DIR": str(PurePosixPath(model_dir(Path(MODELS_FOLDER), names))),
    }


async def _copy_blobs(
    client: Registry, manifest: Manifest, source: Repository, target: Repository, *, with_config: bool = True
) -> None:
    blobs = {blob.digest: blob for blob in (*manifest.layers, *([manifest.config] if with_config else []))}
    try:
        async with asyncio.TaskGroup() as copies:
            for blob in blobs.values():
                copies.create_task(client.copy_blob(source, target, blob))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def _chunks(layer: Layer) -> AsyncIterator[bytes]:
    """Read the layer beside the event loop."""
    chunks = layer.chunks()
    try:
        while (chunk := await in_thread(lambda stop: next(chunks, None))) is not None:
            yield chunk
    finally:
        chunks.close()
