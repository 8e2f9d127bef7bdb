"""The entry point of builds: which builder a workspace has, and where its images go."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.image.builders.build_request import Builder
from controlled_rollout.image.builders.worker.buildah import BuildahBuilder
from controlled_rollout.image.container_image import build_container_image
from controlled_rollout.image.environment.environment import Environment
from controlled_rollout.image.inputs.read import OnInputs, Progress
from controlled_rollout.image.local_image import build_local_image
from controlled_rollout.image.oci.azure_sign_in import with_azure_credentials
from controlled_rollout.image.oci.registry_client import Credentials
from controlled_rollout.image.reference import ImageReference, ModelSource
from controlled_rollout.workspace import Workspace

__all__ = ["build_image", "builder_for"]


def builder_for(workspace: Workspace, *, owner: str) -> Builder:
    """Return the builder that a workspace uses for its environment images.

    Args:
        workspace: Its setting `builder` names it.
        owner: The task that builds. If it was killed, a retry with the same owner takes over what it had begun.

    Raises:
        WorkspaceError: A setting that the builder needs is missing.
    """
    if workspace.builder == "kubernetes":
        from controlled_rollout.image.builders.pod.builder import PodBuilder

        _check_setting(workspace, "builder_image")
        _check_setting(workspace, "builder_namespace")
        return PodBuilder(workspace, workspace.builder_namespace or "", owner=owner)
    if workspace.builder == "acr_tasks":
        from controlled_rollout.image.builders.registry.acr_tasks import AcrTasksBuilder

        _check_setting(workspace, "acr_id")
        return AcrTasksBuilder(workspace.acr_id or "")
    return BuildahBuilder(workspace.cache_folder)


def _check_setting(workspace: Workspace, setting: str) -> None:
    """Raise `WorkspaceError` if the workspace lacks a setting that its builder needs."""
    if not getattr(workspace, setting):
        raise WorkspaceError(
            f"workspace {workspace.name!r} has the builder {workspace.builder!r}, which needs the setting {setting}"
        )


# Long because most of it describes the arguments.
async def build_image(
    workspace: Workspace,
    source_dir: str | Path,
    *,
    name: str,
    environment: Path | str | Environment | None = None,
    entry_script: str = "score.py",
    models: Sequence[ModelSource] = (),
    credentials: Mapping[str, Credentials] | None = None,
    owner: str = "",
    progress: Progress = lambda line: None,
    on_inputs: OnInputs = lambda inputs: None,
) -> ImageReference:
    """Build a project folder's image in the workspace's registry or cache, unless the same image exists there.

    Args:
        workspace: With `registry`, the image is pushed there; without, it is for the local target.
        source_dir: The project folder, packaged as `.amlignore` or `.gitignore` says.
        name: The image's name.
        environment: An environment, or its file: relative to the project folder, or else to the current one. None for
            the project folder's, the first of `DEFAULT_FILES`.
        entry_script: The file with `init()` and `run(...)`, relative to the project folder.
        models: Up to 1,000.
        credentials: A user for each registry that needs one, by host. To an Azure Container Registry without one, this
            process signs in with its own identity.
        owner: The task that builds, see `builder_for`.
        progress: Called with a line for each step.
        on_inputs: Called with what was read of the folder and the models.

    Raises:
        RegistryUnavailableError: A registry does not answer.
        ImageError: An argument is not valid, the environment cannot be built, or a registry refuses.
        WorkspaceError: A setting that the workspace's builder needs is missing.
    """
    if workspace.registry is None:
        return await build_local_image(
            source_dir,
            name=name,
            cache=workspace.cache_folder,
            environment=environment,
            entry_script=entry_script,
            models=models,
            progress=progress,
            on_inputs=on_inputs,
        )
    registries = (workspace.registry, workspace.shared_registry, workspace.base_image)
    return await build_container_image(
        source_dir,
        name=name,
        registry=workspace.registry,
        cache=workspace.cache_folder,
        base_image=workspace.base_image,
        shared_registry=workspace.shared_registry,
        environment=environment,
        entry_script=entry_script,
        models=models,
        credentials=await with_azure_credentials(credentials or {}, registries),
        builder=builder_for(workspace, owner=owner),
        progress=progress,
        on_inputs=on_inputs,
    )
