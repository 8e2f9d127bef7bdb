"""The builder for clusters: a project folder becomes an image in a registry, deployed by its digest.

Two parts. The environment image, found by the environment's hash or built; and one layer with source and models on top
of it, made by talking to the registry alone.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.build_request import Builder, BuildRequest
from controlled_rollout.image.builders.worker.buildah import BuildahBuilder
from controlled_rollout.image.cancellable_thread import in_thread
from controlled_rollout.image.environment.docker_steps import with_docker_steps
from controlled_rollout.image.environment.environment import Environment, environment_hash
from controlled_rollout.image.inputs.files import package
from controlled_rollout.image.inputs.models import model_dir
from controlled_rollout.image.inputs.read import Progress, Project, read_project
from controlled_rollout.image.oci.layer import APP_ROOT, MODELS_FOLDER, layer_of, streamed
from controlled_rollout.image.oci.manifest import LAYER, Descriptor, Manifest, architecture, with_layer
from controlled_rollout.image.oci.registry_client import Credentials, Registry, RegistryUnavailableError, Repository
from controlled_rollout.image.reference import ImageReference, ModelSource, full_name
from controlled_rollout.image.scoring_runtime import DOCKERFILE, PACKAGE, recipe_files, runtime_folder

__all__ = ["ENVIRONMENTS", "build_container_image"]

ENVIRONMENTS: Final = "environments"
LATEST: Final = "latest"
ANY_PYTHON: Final = ">=3.10"
LAYER_SCHEMA: Final = 1


async def build_container_image(
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
    builder: Builder | None = None,
    progress: Progress = lambda line: None,
) -> ImageReference:
    """Build a project folder's image in a registry, or find it: what has been built before is not built again.

    The environment image is looked up by the environment's hash in `registry`, then in `shared_registry`, from which it
    is copied, and only then built. A changed model adds one layer and builds nothing. A build that fails, is cancelled
    or is killed leaves no tag.

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
        builder: Who builds an environment image that is nowhere; None for buildah on this machine.
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
        source_dir,
        name=name,
        environment=environment,
        entry_script=entry_script,
        models=models,
        cache=cache,
        progress=progress,
    )
    build = _EnvironmentBuild(
        project.environment, base_image, builder or BuildahBuilder(cache), credentials or {}, progress
    )
    async with Registry(credentials) as client:
        manifest = await build.provide(client, environments, shared)
        return await _provide_image(client, project, target, environments, manifest, progress)


class _EnvironmentBuild:
    """Finds, copies or builds the image of one environment."""

    def __init__(
        self,
        environment: Environment,
        base_image: str | None,
        builder: Builder,
        credentials: Mapping[str, Credentials],
        progress: Progress,
    ) -> None:
        self._environment = environment
        self._base_image = _base_image(environment, base_image)
        self._builder = builder
        self._credentials = credentials
        self._progress = progress

    async def provide(self, client: Registry, repository: Repository, shared: Repository | None) -> Manifest:
        """Return the environment image's manifest once it is in `repository`."""
        order = self._order(repository, await _pinned(client, self._base_image, self._progress))
        if found := await client.manifest(repository, order.tag):
            self._progress(f"{order.short}: found in {repository}")
            return found
        if shared and (found := await self._copied(client, order, shared)):
            return found

        async def is_there() -> bool:
            return await client.digest(repository, order.tag) is not None

        await self._builder.build(order, is_there=is_there, progress=self._progress)
        if found := await client.manifest(repository, order.tag):
            self._progress(f"{order.short}: is in {repository}")
            return found
        raise ImageError(f"{order.short} was pushed to {repository}, and the registry does not have it: build again")

    def _order(self, repository: Repository, base_image: str) -> BuildRequest:
        """Return what would be built, under the hash over all that it is built from."""
        environment = self._environment
        recipe = {name: path.read_text("utf-8") for name, path in recipe_files().items()}
        recipe[DOCKERFILE] = with_docker_steps(recipe[DOCKERFILE], environment.docker_steps)
        # What is in the image besides the environment counts in its hash too.
        others = json.dumps([recipe, package(runtime_folder() / PACKAGE).digest], sort_keys=True)
        python = environment.python or ANY_PYTHON
        return BuildRequest(
            target=repository,
            tag=environment_hash(
                # The same base image under another name, such as a mirror's, is the same base image.
                environment.model_copy(update={"base_image": base_image.partition("@")[2]}),
                platform=f"linux/{architecture()}",
                python=python,
                recipe=hashlib.sha256(others.encode()).hexdigest(),
            ),
            base_image=base_image,
            python=python,
            requirements=environment.requirements,
            recipe=recipe,
            credentials=self._credentials,
        )

    async def _copied(self, client: Registry, order: BuildRequest, shared: Repository) -> Manifest | None:
        """Copy the image from the shared registry, if that has it and answers."""
        try:
            manifest = await client.manifest(shared, order.tag)
        except RegistryUnavailableError as error:
            self._progress(f"{order.short}: not looked up in {shared}: {error}")
            return None
        if manifest is None:
            return None
        self._progress(f"{order.short}: found in {shared}, copying")
        await _copy_blobs(client, manifest, shared, order.target)
        await client.put_manifest(order.target, order.tag, manifest)
        return manifest


def _base_image(environment: Environment, base_image: str | None) -> str:
    if not environment.base_image and not base_image:
        raise ImageError(
            f"environment {environment.name or ''} names no base image, and neither does the workspace: set base_image "
            "in the workspace's settings, or in the environment's file, to an image that has Python 3.10 or newer"
        )
    return full_name(environment.base_image or base_image or "")


async def _pinned(client: Registry, image: str, progress: Progress) -> str:
    """Return an image's name with the digest that its tag has now: what is built on is what counts in the hash.

    Raises:
        RegistryUnavailableError: Its registry does not answer.
        ImageError: There is no such image.
    """
    name, _, digest = image.partition("@")
    place, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        place, tag = name, LATEST
    if digest:
        return f"{place}@{digest}"
    found = await client.digest(Repository.parse(place), tag)
    if found is None:
        raise ImageError(
            f"the base image {image} cannot be had: its registry has no such image, or does not show it: check the "
            "name and the tag, and the user of the connection base_image_conn_id"
        )
    progress(f"base image: {place}:{tag} is {found}")
    return f"{place}@{found}"


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
    await client.put_blob(target, blob, lambda: streamed(layer))
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
