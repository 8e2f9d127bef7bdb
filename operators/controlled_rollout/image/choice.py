"""Which builder a workspace uses: the registry's, if it has one, else this machine's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from controlled_rollout.image.container import build_container
from controlled_rollout.image.environment import Environment
from controlled_rollout.image.local import build
from controlled_rollout.image.project import Progress
from controlled_rollout.image.reference import ImageReference, ModelSource
from controlled_rollout.image.registry import Credentials
from controlled_rollout.workspace import Workspace

__all__ = ["build_for"]


async def build_for(
    workspace: Workspace,
    source_dir: str | Path,
    *,
    name: str,
    environment: Path | str | Environment | None = None,
    entry_script: str = "score.py",
    models: Sequence[ModelSource] = (),
    credentials: Mapping[str, Credentials] | None = None,
    progress: Progress = lambda line: None,
) -> ImageReference:
    """Build a project folder's image where the workspace's versions run from, or find it.

    Args:
        workspace: With `registry`, the image is pushed there; without, it is for the local target.
        source_dir: The project folder.
        name: The image's name.
        environment: See `build`.
        entry_script: See `build`.
        models: See `build`.
        credentials: A user for each registry that asks for one, by host.
        progress: Called with a line for each step.

    Raises:
        ImageError: See `build` and `build_container`.
    """
    if workspace.registry is None:
        return await build(
            source_dir,
            name=name,
            cache=workspace.cache_folder,
            environment=environment,
            entry_script=entry_script,
            models=models,
            progress=progress,
        )
    return await build_container(
        source_dir,
        name=name,
        registry=workspace.registry,
        cache=workspace.cache_folder,
        base_image=workspace.base_image,
        shared_registry=workspace.shared_registry,
        environment=environment,
        entry_script=entry_script,
        models=models,
        credentials=credentials,
        progress=progress,
    )
