"""The first step: a project folder and its environment become an image, named by digest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from controlled_rollout.errors import ArgumentError
from controlled_rollout.hooks.registry_users import registry_users, signed_in
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.base import EngineCalls, task_of
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.image import Credentials, ModelSource

__all__ = ["BuildImageOperator"]


class BuildImageOperator(EngineCalls, BaseOperator):
    """Builds a project folder's image, or finds it: what has been built before is not built again.

    A workspace with a registry gets a container image there, any other one an image in its cache. The registry is
    signed in to by the connection that the workspace names in `registry_conn_id`. Returns the image's reference,
    `name@sha256:…`: hand `task.output` to the rollout. Relative paths start at the folder of the DAG file.

    Args:
        source_dir: The project folder, packaged as its `.amlignore` or `.gitignore` says.
        name: The image's name.
        models: The models, as `{name: path or address}` or as mappings with `name`, `path` and `version`.
        environment: The environment file; by default the project folder's own.
        entry_script: The file with `init()` and `run(...)`, relative to the project folder.
        conn_id: The connection that describes the workspace; missing, it is the local one.
        **kwargs: What every operator takes.
    """

    template_fields = ("conn_id", "source_dir", "name", "models", "environment", "entry_script")
    ui_color = "#e3dcf5"

    def __init__(
        self,
        *,
        source_dir: str,
        name: str,
        models: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
        environment: str | None = None,
        entry_script: str = "score.py",
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source_dir = source_dir
        self.name = name
        self.models = models
        self.environment = environment
        self.entry_script = entry_script
        self.conn_id = conn_id

    def execute(self, context: "Context") -> str:
        """Build, and return the reference."""
        return self.call(context, lambda workspace: self._build(workspace, context, self._users(workspace)))

    def _users(self, workspace: Workspace) -> "dict[str, Credentials]":
        return registry_users(workspace, WorkspaceHook.get_connection)

    async def _build(self, workspace: Workspace, context: "Context", users: "dict[str, Credentials]") -> str:
        from controlled_rollout.image import build_image

        folder = Path(context["dag"].folder)
        source = folder / Path(self.source_dir).expanduser()
        environment = None
        if self.environment:
            beside = folder / Path(self.environment).expanduser()
            environment = beside if beside.is_file() else self.environment
        reference = await build_image(
            workspace,
            source,
            name=self.name,
            environment=environment,
            entry_script=self.entry_script,
            models=model_sources(self.models, folder),
            credentials=await signed_in(workspace, users) if workspace.registry else None,
            owner=task_of(context),
            progress=self.log_progress,
        )
        return str(reference)


def model_sources(models: Mapping[str, Any] | Sequence[Mapping[str, Any]], folder: Path) -> "list[ModelSource]":
    """Return the models that an author wrote down.

    Args:
        models: `{name: path}`, or mappings with `name`, `path` and, if wanted, `version`.
        folder: Where relative paths start.

    Raises:
        ArgumentError: A model has no name or no path, or fields that are not known.
    """
    from controlled_rollout.image import ModelSource
    from controlled_rollout.image.inputs.remote_models import resolve_model_path

    described: Sequence[Mapping[str, Any]] = (
        [{"name": name, "path": path} for name, path in models.items()] if isinstance(models, Mapping) else models
    )
    sources = []
    for model in described:
        if not {"name", "path"} <= set(model) <= {"name", "path", "version"} or not model["path"]:
            raise ArgumentError(f"model {dict(model)!r} needs a name and a path, and may have a version; nothing else")
        path = resolve_model_path(str(model["path"]), folder)
        sources.append(ModelSource(str(model["name"]), path, str(model.get("version", "1"))))
    return sources
