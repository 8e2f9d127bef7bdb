"""The tasks at both ends of a version's life: deploy it at 0 %, retire it."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowSkipException, XComNotFound

from controlled_rollout.arguments import (
    authentication,
    check_authentication,
    check_choice,
    choice,
    duration,
    mapping_of,
    optional_text,
    sticky_key,
    text,
)
from controlled_rollout.defaults import CONFLICT_TIMEOUT, KEEP_WARM, READY_TIMEOUT, RETIRE_TIMEOUT, SILENCE
from controlled_rollout.hooks.connection_secrets import Secrets, with_connections
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.model_registry import with_alias
from controlled_rollout.operators.base import TEMPORARY_WHEN_GOING_BACK, RolloutOperator, change_of, run_of
from controlled_rollout.operators.datasets import image_dataset, version_dataset
from controlled_rollout.operators.lineage import EndpointLineage
from controlled_rollout.rollout import OnSilence
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["DeleteVersionOperator", "RolloutVersionOperator"]

ON_CONFLICT: Final = ("fail", "wait")
# `retire_old` of a rollout runs whatever has become of the tasks before it.
NO_VERSION: Final = "no version is named, because the task that was to name it has not done so: nothing was promoted"


class RolloutVersionOperator(EndpointLineage, RolloutOperator):
    """Creates a version at 0 % and waits until it is ready; creates the endpoint if there is none.

    From now on this DAG run holds the endpoint, until the version is promoted or rolled back. The first version of a
    new endpoint becomes default and control and gets all the traffic at once.

    Args:
        version: The new version's name.
        image: What it runs: `name@sha256:…`.
        settings: Further fields of a version, such as `{"cpu_cores": 0.5, "autoscale_max_replicas": 4}`; a mapping or
            its JSON text. A value in `environment_variables` may also be `{"connection": …, "field": …}`: a field of a
            connection, which becomes a secret of the target.
        mlflow_alias: The alias in MLflow's registry that the model gets when the version becomes control, such as
            `champion`; a roll-back to a former control gives it back. None or empty moves none.
        mlflow_model: Of which model of the registry the version is made, `models:/<name>/<version>`.
        sticky: By what a new endpoint's callers stay with a version: `header:<name>` or `cookie:<name>`; None or empty
            splits at random.
        on_silence: What the local supervisor, or the agent in the cluster, does with a treatment that has traffic and
            that nobody has looked at for `silence`: `roll_back` or `keep`. A gate looks at its `interval`.
        silence: How long that is.
        auth: How callers of a new endpoint authenticate: `key`, `token`, `none`; or the fields of an outside issuer of
            tokens, as a mapping or its JSON text, see `TokenIssuer`. None is `key` for a new endpoint; an endpoint that
            exists keeps what it has, and another one is an error.
        on_conflict: `fail` or `wait`, while another run holds the endpoint. Of several runs that wait the one that was
            due first is next. A version of an earlier run than the control's is not rolled out: the task is skipped.
        conflict_timeout: How long to wait for that.
        timeout: How long the version may take to become ready.
        reason: The reason, for the history.
        **kwargs: `endpoint`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (
        *RolloutOperator.template_fields,
        "version",
        "image",
        "settings",
        "mlflow_alias",
        "mlflow_model",
        "auth",
        "sticky",
        "on_silence",
        "silence",
        "on_conflict",
        "conflict_timeout",
        "timeout",
        "reason",
    )
    ui_color = "#d6e9f8"
    lineage_step = "deploy"

    def __init__(
        self,
        *,
        version: str,
        image: str,
        settings: Mapping[str, Any] | str | None = None,
        mlflow_alias: str | None = None,
        mlflow_model: str | None = None,
        sticky: str | None = None,
        on_silence: str = "roll_back",
        silence: timedelta | float | str = SILENCE,
        auth: Mapping[str, Any] | str | None = None,
        on_conflict: str = "fail",
        conflict_timeout: timedelta | float | str = CONFLICT_TIMEOUT,
        timeout: timedelta | float | str = READY_TIMEOUT,
        reason: str = "",
        **kwargs: Any,
    ) -> None:
        """Store the arguments, whose templates are rendered later; raise ValueError for what cannot be meant."""
        check_choice("on_conflict", on_conflict, *ON_CONFLICT)
        check_choice("on_silence", on_silence, *OnSilence)
        check_authentication("auth", auth)
        if mlflow_model is not None and mlflow_alias is None:
            raise ValueError(
                f"mlflow_model={mlflow_model!r} was given without mlflow_alias, so it would change nothing: give the "
                "alias as well, such as 'champion', or leave it out"
            )
        super().__init__(**kwargs)
        self.version = version
        self.image = image
        self.settings = settings
        self.mlflow_alias = mlflow_alias
        self.mlflow_model = mlflow_model
        self.auth = auth
        self.sticky = sticky
        self.on_silence = on_silence
        self.silence = silence
        self.on_conflict = on_conflict
        self.conflict_timeout = conflict_timeout
        self.timeout = timeout
        self.reason = reason

    def execute(self, context: "Context") -> dict[str, Any]:
        """Create the version, wait until it is ready, and return its name, its role and the endpoint's revision."""

        def begin(workspace: Workspace) -> Coroutine[Any, Any, dict[str, Any]]:
            """Read the connections that the settings name before the event loop runs, because that blocks."""
            settings = with_alias(
                mapping_of("settings", self.settings),
                optional_text(self.mlflow_alias),
                optional_text(self.mlflow_model),
            )
            return self._deploy(context, workspace, *with_connections(settings, WorkspaceHook.get_connection))

        return self.run_in_workspace(context, begin)

    async def _deploy(
        self, context: "Context", workspace: Workspace, settings: dict[str, Any], secrets: Secrets
    ) -> dict[str, Any]:
        """Create the version with these settings, after these secrets are stored, and wait until it is ready."""
        from controlled_rollout import steps
        from controlled_rollout.image.reference import ImageReference

        waits = choice("on_conflict", self.on_conflict, *ON_CONFLICT) == "wait"
        stored = await steps.deploy(
            workspace,
            self.endpoint,
            self.version,
            image=str(ImageReference.parse(text("image", self.image))),
            owner=run_of(context),
            change=change_of(context, self.reason),
            sticky=sticky_key("sticky", self.sticky),
            on_silence=OnSilence(choice("on_silence", self.on_silence, *OnSilence)),
            silence=duration("silence", self.silence),
            auth=authentication("auth", self.auth),
            settings=settings,
            secrets=secrets,
            run_date=getattr(context.get("dag_run"), "run_after", None),
            conflict_timeout=duration("conflict_timeout", self.conflict_timeout) if waits else timedelta(0),
            timeout=duration("timeout", self.timeout),
            progress=self.log_progress,
        )
        version = stored.versions[self.version]
        if version.is_control:
            self.log_progress(
                f"{self.version!r} is the control of endpoint {self.endpoint!r}: nothing to compare it with"
            )
        self.changed(
            stored,
            self.version,
            inputs=[image_dataset(version.image)],
            outputs=[version_dataset(self.conn_id, stored.name, self.version, version.image)],
            reason=self.reason or None,
        )
        return {"version": self.version, "type": version.type.value, "revision": stored.revision}


class DeleteVersionOperator(RolloutOperator):
    """Deletes a version that has no traffic: a given one, or the control that a promoted version has replaced.

    A version that does not exist is no error.

    Args:
        version: The version to delete.
        replaced_by: Instead of `version`: delete the version that was control before this one. Skipped when somebody
            has gone back to it or uses it again, or when (`own_rollout`) not this DAG run has promoted.
        keep_warm: With `replaced_by`: how long after the promotion the former control stays, ready to take the traffic
            back.
        reason: The reason, for the history.
        timeout: How long the deletion may take.
        deferrable: Whether to spend `keep_warm` in the triggerer, without a worker slot.
        **kwargs: `endpoint`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "version", "replaced_by", "keep_warm", "reason", "timeout")
    ui_color = "#e6e6e6"
    temporary_errors = TEMPORARY_WHEN_GOING_BACK

    def __init__(
        self,
        *,
        version: str | None = None,
        replaced_by: str | None = None,
        keep_warm: timedelta | float | str = KEEP_WARM,
        reason: str = "",
        timeout: timedelta | float | str = RETIRE_TIMEOUT,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        """Store the arguments; raise ValueError unless exactly one of `version` and `replaced_by` is given."""
        if (version is None) == (replaced_by is None):
            raise ValueError(f"give either version or replaced_by: {version=}, {replaced_by=}")
        super().__init__(**kwargs)
        self.version = version
        self.replaced_by = replaced_by
        self.keep_warm = keep_warm
        self.reason = reason
        self.timeout = timeout
        self.deferrable = deferrable

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], context: "Context", jinja_env: Any, seen_oids: set[int]
    ) -> None:
        """Render the templates; skip the task if the one that was to name the promoted version has not done so."""
        from jinja2 import UndefinedError

        names_former_control = self.replaced_by is not None
        try:
            super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
        except (XComNotFound, UndefinedError) as error:
            if not names_former_control:
                raise
            raise AirflowSkipException(f"{NO_VERSION}: {error}") from error

    def execute(self, context: "Context") -> str | None:
        """Wait for `keep_warm`, then delete the version; return its name, or None if there is no endpoint."""
        if self.version is None and self.replaced_by in (None, "None", ""):
            raise AirflowSkipException(NO_VERSION)
        due = self.run_in_workspace(context, lambda workspace: self._deletion_time(context, workspace))
        if due is not None and due > datetime.now(UTC):
            self.log_progress(f"the former control stays warm until {due:%Y-%m-%d %H:%M:%S %Z}")
            if self.deferrable:
                from airflow.providers.standard.triggers.temporal import DateTimeTrigger

                self.defer(trigger=DateTimeTrigger(moment=due), method_name=self.execute_complete.__name__)
            self.run_in_workspace(context, lambda _: asyncio.sleep((due - datetime.now(UTC)).total_seconds()))
        return self.execute_complete(context)

    def execute_complete(self, context: "Context", event: Any = None) -> str | None:
        """Delete the version after `keep_warm`; skip the task if somebody has gone back to the version meanwhile."""
        return self.run_in_workspace(context, lambda workspace: self.step(context, workspace))

    async def step(self, context: "Context", workspace: Workspace) -> str | None:
        """Delete the version and return its name; None if there is no endpoint."""
        from controlled_rollout import steps

        change, timeout = change_of(context, self.reason), duration("timeout", self.timeout)
        if self.replaced_by is not None:
            return await steps.retire_former_control(
                workspace,
                self.endpoint,
                self.replaced_by,
                change=change,
                owner=self.required_owner(context),
                timeout=timeout,
                progress=self.log_progress,
            )
        assert self.version is not None  # noqa: S101 - __init__ requires one of the two
        deleted = await steps.retire(
            workspace, self.endpoint, self.version, change=change, timeout=timeout, progress=self.log_progress
        )
        return self.version if deleted is not None else None

    async def _deletion_time(self, context: "Context", workspace: Workspace) -> datetime | None:
        """Return when `keep_warm` after the promotion ends; None if the version is to be deleted at once."""
        from controlled_rollout import steps

        if self.replaced_by is None:
            return None
        owner = self.required_owner(context)
        promotion = await steps.former_control(workspace, self.endpoint, self.replaced_by, owner=owner)
        return promotion.at + duration("keep_warm", self.keep_warm)
