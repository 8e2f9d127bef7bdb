"""The task that builds the image of a project folder and its environment."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator

from controlled_rollout.errors import ArgumentError
from controlled_rollout.hooks.registry_users import with_azure_sign_in
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.base import EngineCalls, task_of
from controlled_rollout.operators.datasets import Lineage, build_lineage
from controlled_rollout.operators.lineage import ReportsLineage
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.image import Credentials, ModelSource
    from controlled_rollout.image.inputs.read import ImageInputs

__all__ = ["MODEL_KEY", "BuildImageOperator"]

# The XCom key with the model of MLflow's registry that is in the image, as models:/<name>/<version>, if there is one.
MODEL_KEY: Final = "mlflow_model"


class BuildImageOperator(ReportsLineage, EngineCalls, BaseOperator):
    """Builds the image of a project folder, or finds the one that exists.

    With a registry in the workspace the result is a container image there, otherwise an image in the workspace's cache.
    The task signs in to the registry with the workspace's `registry_conn_id`. It returns the image's reference,
    `name@sha256:…`: hand `task.output` to the rollout. Relative paths start at the folder of the DAG file.

    Args:
        source_dir: The project folder, packaged as its `.amlignore` or `.gitignore` says.
        name: The image's name.
        models: The models, as `{name: path or address}` or as mappings with `name`, `path` and `version`.
        environment: The environment file; by default the project folder's own.
        entry_script: The file with `init()` and `run(...)`, relative to the project folder.
        conn_id: The connection of the workspace; without the default one, the local workspace.
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
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.source_dir = source_dir
        self.name = name
        self.models = models
        self.environment = environment
        self.entry_script = entry_script
        self.conn_id = conn_id

    def execute(self, context: "Context") -> str:
        """Build the image unless it exists, and return its reference `name@sha256:…`."""
        return self.run_with_registry_users(context, lambda workspace, users: self._build(context, workspace, users))

    async def _build(self, context: "Context", workspace: Workspace, users: "dict[str, Credentials]") -> str:
        """Build the image with paths relative to the DAG file's folder, and return its reference."""
        from controlled_rollout.image import build_image

        folder = Path(context["dag"].folder)
        source = folder / Path(self.source_dir).expanduser()
        read: list[ImageInputs] = []
        environment = None
        if self.environment:
            file = folder / Path(self.environment).expanduser()
            environment = file if file.is_file() else self.environment
        models = await asyncio.to_thread(with_versions, model_sources(self.models, folder))
        registered = [str(model.path) for model in models if str(model.path).startswith("models:/")]
        if len(registered) == 1:
            context["ti"].xcom_push(key=MODEL_KEY, value=registered[0])
        reference = await build_image(
            workspace,
            source,
            name=self.name,
            environment=environment,
            entry_script=self.entry_script,
            models=models,
            credentials=await with_azure_sign_in(workspace, users) if workspace.registry else None,
            owner=task_of(context),
            progress=self.log_progress,
            on_inputs=read.append,
        )
        self.lineage = build_lineage(str(source), models, read[0] if read else None, str(reference))
        return str(reference)

    def expected_lineage(self) -> Lineage:
        """Return the project folder and the models as the arguments name them."""
        folder = Path(self.get_dag().folder)  # type: ignore[union-attr] # a task that runs is in a DAG
        models = model_sources(self.models, folder)
        return build_lineage(str(folder / Path(self.source_dir).expanduser()), models, None, "")


def model_sources(models: Mapping[str, Any] | Sequence[Mapping[str, Any]], folder: Path) -> "list[ModelSource]":
    """Return the `models` argument of a DAG as model sources, with paths resolved against the DAG file's folder.

    Args:
        models: `{name: path}`, or mappings with `name`, `path` and, if wanted, `version`.
        folder: Where relative paths start.

    Raises:
        ArgumentError: A model has no name or no path, or other fields.
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


def with_versions(models: "Sequence[ModelSource]") -> "list[ModelSource]":
    """Return models with the version that an alias in MLflow's registry means now, in place of the alias.

    Args:
        models: The models of an image.

    Raises:
        ImageError: There is no such alias, or the registry refuses.
        ModelStoreUnavailableError: The registry does not answer.
    """
    from controlled_rollout.model_registry import resolve_model

    return [
        replace(model, path=resolve_model(model.path)) if isinstance(model.path, str) else model for model in models
    ]
