"""Container images: a project folder becomes an image in a registry, deployed by its digest.

An image has two parts. The environment image is found by the environment's hash, or built. One layer with the project
folder and the models is put on top of it, by talking to the registry alone.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.builders.build_request import Builder, BuildRequest
from controlled_rollout.image.builders.worker.buildah import BuildahBuilder
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.cancellable_thread import in_thread
from controlled_rollout.image.environment.docker_steps import with_docker_steps
from controlled_rollout.image.environment.environment import ANY_PYTHON, Environment
from controlled_rollout.image.environment.hash import environment_hash
from controlled_rollout.image.inputs.files import read_source_folder
from controlled_rollout.image.inputs.models import model_dir
from controlled_rollout.image.inputs.read import ImageInputs, OnInputs, Progress, read_image_inputs
from controlled_rollout.image.oci.layer import APP_ROOT, MODELS_FOLDER, layer_chunks_in_thread, model_layer
from controlled_rollout.image.oci.manifest import (
    LAYER,
    Descriptor,
    Manifest,
    check_digest,
    image_with_layer,
    oci_architecture,
)
from controlled_rollout.image.oci.registry_client import Credentials, RegistryClient, Repository
from controlled_rollout.image.reference import ImageReference, ModelSource, name_with_registry
from controlled_rollout.image.scoring_runtime import DOCKERFILE, PACKAGE, build_files, runtime_folder

__all__ = ["ENVIRONMENTS", "build_container_image"]

ENVIRONMENTS: Final = "environments"
LATEST: Final = "latest"
# Changed when the layer of the same inputs changes.
LAYER_SCHEMA: Final = 2


# Long because most of it describes the arguments.
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
    on_inputs: OnInputs = lambda inputs: None,
) -> ImageReference:
    """Build a project folder's image and push it to a registry, unless the registry has the same image.

    The environment image is looked up by the environment's hash in `registry`, then in `shared_registry`, from which it
    is copied, and only then built. A changed model adds one layer and builds nothing. A build that fails, is cancelled
    or is killed leaves no tag.

    Args:
        source_dir: The project folder, packaged as `.amlignore` or `.gitignore` says.
        name: The image is called `<registry>/<name>`.
        registry: A registry and a prefix, such as `registry.example/models`. Only on this machine it may speak http.
        cache: The workspace's cache folder, for builds that run and their lock.
        base_image: What is built on where the environment names no base image.
        shared_registry: Like `registry`, only read.
        environment: An environment, or its file: relative to the project folder, or else to the current one. None for
            the project folder's, the first of `DEFAULT_FILES`.
        entry_script: The file with `init()` and `run(...)`, relative to the project folder.
        models: Up to 1,000.
        credentials: A user for each registry that needs one, by host.
        builder: Builds the environment image if no registry has it; None for buildah on this machine.
        progress: Called with a line for each step.
        on_inputs: Called with what was read of the folder and the models.

    Raises:
        RegistryUnavailableError: A registry does not answer.
        ImageError: An argument is not valid, the environment cannot be built, or a registry refuses.
    """
    if name == ENVIRONMENTS:
        raise ImageError(f"image name {name!r} is reserved for the environments' images: choose another")
    image_repository = Repository.parse(f"{registry}/{name}")
    environment_repository = Repository.parse(f"{registry}/{ENVIRONMENTS}")
    shared_repository = Repository.parse(f"{shared_registry}/{ENVIRONMENTS}") if shared_registry else None
    inputs = await read_image_inputs(
        source_dir,
        name=name,
        environment=environment,
        entry_script=entry_script,
        models=models,
        cache=Cache.at(cache),
        progress=progress,
        on_inputs=on_inputs,
    )
    base_image = _base_image_name(inputs.environment, base_image)
    async with RegistryClient(credentials) as client:
        base_image = await _resolve_base_image(client, base_image, progress)
        request = _build_request(inputs.environment, base_image, environment_repository, credentials or {})
        source = _EnvironmentSource(client, shared_repository, builder or BuildahBuilder(cache), progress)
        environment_image = await source.ensure(request)
        return await _push_image_if_missing(
            client, inputs, image_repository, environment_repository, environment_image, progress
        )


@dataclass(frozen=True)
class _EnvironmentSource:
    """Where environment images come from: the registry, else the shared registry, else a builder."""

    client: RegistryClient
    shared: Repository | None
    builder: Builder
    progress: Progress

    async def ensure(self, request: BuildRequest) -> Manifest:
        """Return the environment image's manifest; copy it from the shared registry or build it if it is missing."""
        if manifest := await self.client.manifest(request.repository, request.tag):
            self.progress(f"{request.label}: found in {request.repository}")
            return manifest
        if self.shared and (manifest := await self._copy_from_shared_registry(request, self.shared)):
            return manifest

        async def is_pushed() -> bool:
            """Whether the registry has an image with the tag of this environment."""
            return await self.client.digest(request.repository, request.tag) is not None

        await self.builder.build(request, is_pushed=is_pushed, progress=self.progress)
        if manifest := await self.client.manifest(request.repository, request.tag):
            self.progress(f"{request.label}: built, and pushed to {request.repository}")
            return manifest
        raise ImageError(
            f"{request.label} was pushed to {request.repository}, and the registry does not have it: build again"
        )

    async def _copy_from_shared_registry(self, request: BuildRequest, shared: Repository) -> Manifest | None:
        """Copy the image from the shared registry to this workspace's; None if it has none or is down."""
        try:
            manifest = await self.client.manifest(shared, request.tag)
        except RegistryUnavailableError as error:
            self.progress(f"{request.label}: not looked up in {shared}: {error}")
            return None
        if manifest is None:
            return None
        self.progress(f"{request.label}: found in {shared}, copying")
        await _copy_blobs(self.client, manifest, shared, request.repository)
        await self.client.put_manifest(request.repository, request.tag, manifest)
        return manifest


def _build_request(
    environment: Environment, base_image: str, repository: Repository, credentials: Mapping[str, Credentials]
) -> BuildRequest:
    """Return the request to build an environment image. Its tag is the hash over everything it is built from.

    Args:
        environment: What is installed.
        base_image: With its digest.
        repository: Where the image is to be pushed.
        credentials: A user for each registry that needs one, by host.
    """
    files = {name: path.read_text("utf-8") for name, path in build_files().items()}
    files[DOCKERFILE] = with_docker_steps(files[DOCKERFILE], environment.docker_steps)
    # What the image contains besides the environment counts in its hash too.
    content = json.dumps([files, read_source_folder(runtime_folder() / PACKAGE).digest], sort_keys=True)
    python = environment.python or ANY_PYTHON
    hosts = (repository.host, base_image.partition("/")[0])
    return BuildRequest(
        repository=repository,
        tag=environment_hash(
            # By its digest alone: the same base image under another name, such as a mirror's, gives the same hash.
            environment.model_copy(update={"base_image": base_image.partition("@")[2]}),
            platform=f"linux/{oci_architecture()}",
            python=python,
            build_files=hashlib.sha256(content.encode()).hexdigest(),
        ),
        base_image=base_image,
        python=python,
        requirements=environment.requirements,
        constraints=environment.constraints,
        build_files=files,
        # No build needs another registry's password.
        credentials={host: user for host, user in credentials.items() if host in hosts},
    )


def _base_image_name(environment: Environment, base_image: str | None) -> str:
    """Return the full name of the environment's base image, or the workspace's; raise if neither names one."""
    name = environment.base_image or base_image
    if not name:
        raise ImageError(
            f"environment {environment.name or ''} names no base image, and neither does the workspace: set base_image "
            "in the workspace's settings, or in the environment's file, to an image that has Python 3.10 or newer"
        )
    return name_with_registry(name)


async def _resolve_base_image(client: RegistryClient, image: str, progress: Progress) -> str:
    """Resolve a base image's tag in its registry; return the name with the digest, which counts in the hash.

    Raises:
        RegistryUnavailableError: Its registry does not answer.
        ImageError: There is no such image.
    """
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, LATEST
    if digest:
        return f"{repository}@{check_digest(digest, f'the base image {image}')}"
    current = await client.digest(Repository.parse(repository), tag)
    if current is None:
        raise ImageError(
            f"the base image {image} cannot be found: its registry has no such image, or does not show it: check the "
            "name and the tag, and the user of the connection base_image_conn_id"
        )
    progress(f"base image: {repository}:{tag} is {current}")
    return f"{repository}@{current}"


async def _push_image_if_missing(
    client: RegistryClient,
    inputs: ImageInputs,
    repository: Repository,
    environments: Repository,
    environment_image: Manifest,
    progress: Progress,
) -> ImageReference:
    """Push the image unless the registry has it; return its reference. Its tag is the hash of all inputs."""
    document = {"schema": LAYER_SCHEMA, "environment": environment_image.digest, **inputs.document()}
    tag = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    digest = await client.digest(repository, tag)
    if digest is None:
        digest = await _push_image(client, inputs, repository, environments, environment_image, tag)
        outcome = "pushed"
    else:
        outcome = "found in the registry"
    reference = ImageReference(str(repository), digest.removeprefix("sha256:"))
    progress(f"image: {reference} {outcome}")
    return reference


async def _push_image(
    client: RegistryClient,
    inputs: ImageInputs,
    repository: Repository,
    environments: Repository,
    environment_image: Manifest,
    tag: str,
) -> str:
    """Add the layer with source and models to the environment image, push the result and return its digest."""
    layer = model_layer(inputs.source, inputs.models)
    digest, size = await in_thread(lambda check_cancelled: layer.digest(check_cancelled=check_cancelled))
    blob = Descriptor(LAYER, digest, size)
    config, manifest = image_with_layer(
        environment_image,
        await client.blob(environments, environment_image.config),
        blob,
        variables=_entry_script_variables(inputs),
        created_by="controlled-rollout: source and models",
    )
    await _copy_blobs(client, environment_image, environments, repository, with_config=False)
    await client.put_blob(repository, blob, lambda: layer_chunks_in_thread(layer))
    await client.put_blob(repository, manifest.config, config)
    await client.put_manifest(repository, tag, manifest)
    return manifest.digest


def _entry_script_variables(inputs: ImageInputs) -> dict[str, str]:
    """Return the environment variables `AML_APP_ROOT` and `AZUREML_*`, which entry scripts read."""
    names = [(model.name, model.version) for model, _ in inputs.models]
    return {
        "AML_APP_ROOT": str(APP_ROOT),
        "AZUREML_ENTRY_SCRIPT": inputs.entry_script,
        "AZUREML_MODEL_DIR": str(PurePosixPath(model_dir(Path(MODELS_FOLDER), names))),
    }


async def _copy_blobs(
    client: RegistryClient, manifest: Manifest, source: Repository, target: Repository, *, with_config: bool = True
) -> None:
    """Copy an image's layers, and its configuration, concurrently from one repository to another."""
    blobs = {blob.digest: blob for blob in (*manifest.layers, *([manifest.config] if with_config else []))}
    try:
        async with asyncio.TaskGroup() as copies:
            for blob in blobs.values():
                copies.create_task(client.copy_blob(source, target, blob))
    except BaseExceptionGroup as group:
        error = group.exceptions[0]
        raise error from error.__cause__  # the group adds nothing to it
