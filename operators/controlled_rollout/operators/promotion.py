"""The steps that end a rollout: promote the treatment to control, or roll it back."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowSkipException

from controlled_rollout.arguments import duration
from controlled_rollout.defaults import SERVED_TIMEOUT
from controlled_rollout.errors import EndpointError, EndpointNotFoundError
from controlled_rollout.operators.base import FAILURE_KEY, RolloutOperator, run_of, task_of
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.record import Decision
    from controlled_rollout.target.protocol import Revision

__all__ = ["NEW_CONTROL", "PromoteToControlOperator", "RollBackOperator", "control_asset"]

# Gets an event when a version becomes control of any endpoint; `control_asset` gives the one of a single endpoint.
NEW_CONTROL = AssetAlias("controlled-rollout-new-control")


def control_asset(endpoint: str) -> Asset:
    """Return the asset that is updated when a version becomes control of `endpoint`: schedule a DAG on it."""
    return Asset(f"controlled-rollout://{endpoint}/control")


class PromoteToControlOperator(RolloutOperator):
    """Makes a version default and control with all the traffic; the old control stays, ready, at 0 %.

    Updates the asset `controlled-rollout://<endpoint>/control`, with the version in the event's `extra`.

    Args:
        version: The version to promote.
        reason: Why, for the history.
        timeout: How long the version may take to be ready, and the router to confirm.
        **kwargs: `endpoint`, `own_rollout`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "version", "reason", "timeout")
    ui_color = "#d5f0d5"

    def __init__(
        self,
        *,
        version: str,
        reason: str = "",
        timeout: timedelta | float | str = SERVED_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "outlets": [*kwargs.get("outlets", []), NEW_CONTROL]})
        self.version = version
        self.reason = reason
        self.timeout = timeout

    async def step(self, context: "Context", workspace: Workspace) -> dict[str, float]:
        """Promote, and return every version's effective per cent."""
        from controlled_rollout import steps

        stored = await steps.promote(
            workspace,
            self.endpoint,
            self.version,
            who=task_of(context),
            why=self.reason,
            owner=self.holder(context),
            timeout=duration("timeout", self.timeout),
            progress=self.log_progress,
        )
        announce(context, self.endpoint, self.version)
        return stored.effective_traffic()


class RollBackOperator(RolloutOperator):
    """Sets a treatment to 0 % at once and lets go of the endpoint; everything else stays as it is.

    As the last task of a rollout (`trigger_rule="one_failed"`) it is skipped, with the reason, when there is nothing
    of this run to roll back, when a person has the decision (the rollout is on hold), and when the endpoint belongs to
    somebody else's rollout. An endpoint that this run has created, and whose first version never became ready, is
    deleted: else no later rollout would have a control.

    Args:
        version: The version to roll back.
        to: The version that takes all the traffic as the new control, for rolling back a version that is the control.
        reason: Why, for the history. By default what the failed tasks before this one say.
        timeout: How long the router may take to confirm.
        **kwargs: `endpoint`, `own_rollout`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "version", "to", "reason", "timeout")
    ui_color = "#f8d6d6"

    def __init__(
        self,
        *,
        version: str,
        to: str | None = None,
        reason: str = "",
        timeout: timedelta | float | str = SERVED_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, "outlets": [*kwargs.get("outlets", []), NEW_CONTROL]})
        self.version = version
        self.to = to
        self.reason = reason
        self.timeout = timeout

    async def step(self, context: "Context", workspace: Workspace) -> dict[str, float] | None:
        """Roll back, and return every version's effective per cent; None if the version is not there."""
        from controlled_rollout import record, steps
        from controlled_rollout.target.connect import connect

        try:
            async with connect(workspace) as target:
                history = await target.history(self.endpoint)
        except EndpointNotFoundError:
            history = []
        if self.own_rollout and created_endpoint(history, self.version, run_of(context)):
            await self._undo_creation(context, workspace)
            return None
        last = record.last(workspace, self.endpoint, self.version)
        if self.own_rollout and (left := why_left(history, last, self.version, run_of(context))):
            raise AirflowSkipException(left)
        why = self.reason or self._causes(context)
        timeout = duration("timeout", self.timeout)
        if self.to:
            check_replacement(history, self.version, self.to)
            stored = await steps.promote(
                workspace,
                self.endpoint,
                self.to,
                who=task_of(context),
                why=why,
                going_back=True,
                timeout=timeout,
                progress=self.log_progress,
            )
            announce(context, self.endpoint, self.to)
            return stored.effective_traffic()
        check_is_treatment(history, self.version)
        rolled_back = await steps.roll_back(
            workspace,
            self.endpoint,
            self.version,
            who=task_of(context),
            why=why,
            owner=self.holder(context),
            timeout=timeout,
            progress=self.log_progress,
        )
        return rolled_back.effective_traffic() if rolled_back is not None else None

    async def _undo_creation(self, context: "Context", workspace: Workspace) -> None:
        from controlled_rollout.target.connect import connect
        from controlled_rollout.target.protocol import Change

        async with connect(workspace) as target:
            if (await target.status(self.endpoint)).versions[self.version].ready:
                raise AirflowSkipException(
                    f"version {self.version!r} is the first of endpoint {self.endpoint!r} and answers: it stays"
                )
            await target.delete(self.endpoint, Change(who=task_of(context), why=self.reason or self._causes(context)))
        self.log_progress(
            f"endpoint {self.endpoint!r} is deleted: its first version {self.version!r} never became ready"
        )

    def _causes(self, context: "Context") -> str:
        """Return what the failed tasks before this one have left."""
        upstream = sorted(self.upstream_task_ids)
        causes = context["ti"].xcom_pull(task_ids=upstream, key=FAILURE_KEY) if upstream else []
        return "; ".join(cause for cause in causes if cause) or f"roll back {self.version}: a task before it failed"


def why_left(history: "Sequence[Revision]", last: "Decision | None", version: str, owner: str) -> str | None:
    """Say why a run's roll-back leaves a version alone; None if the version is this run's to roll back.

    Args:
        history: The endpoint's revisions, oldest first; empty if there is no endpoint.
        last: The newest entry of the version's record.
        version: The version.
        owner: The run that would roll back.
    """
    if not history or version not in history[-1].endpoint.versions:
        return f"version {version!r} was not rolled out: there is nothing to roll back"
    endpoint = history[-1].endpoint
    holder = endpoint.rollout.owner if endpoint.rollout and endpoint.rollout.version == version else None
    if holder not in (None, owner):
        return f"version {version!r} is in the rollout of {holder}: it is not for {owner} to roll back"
    if holder is None and not creator(history, version).startswith(f"{owner}/"):
        return f"version {version!r} was created by {creator(history, version)}: it is not for {owner} to roll back"
    if endpoint.versions[version].is_control:
        return f"version {version!r} is the control of endpoint {endpoint.name!r}: " + (
            "it is the first, and there is none to go back to" if len(endpoint.versions) == 1 else "it stays"
        )
    if last is not None and last.step == "hold":
        return f"version {version!r} is on hold, a person decides: {last.why}"
    return None


def created_endpoint(history: "Sequence[Revision]", version: str, owner: str) -> bool:
    """Whether `version` is the only one of an endpoint that this run has created."""
    return bool(
        history
        and history[0].number == 1
        and history[0].change.who.startswith(f"{owner}/")
        and list(history[-1].endpoint.versions) == [version]
    )


def creator(history: "Sequence[Revision]", version: str) -> str:
    """Return who created the version that the newest revision has: a name may have been used before."""
    who = history[-1].change.who
    for revision in reversed(history):
        if version not in revision.endpoint.versions:
            break
        who = revision.change.who
    return who


def check_is_treatment(history: "Sequence[Revision]", version: str) -> None:
    """Refuse to roll back a control to nothing, and name the version that was control before.

    Raises:
        EndpointError: The version is the control.
    """
    from controlled_rollout.steps import promotion_of

    promotion = promotion_of(history, version)
    if promotion is None:
        return
    endpoint = history[-1].endpoint
    others = [name for name in endpoint.versions if name != version]
    known = f"{promotion.former_control!r} was control before it, " if promotion.former_control in others else ""
    raise EndpointError(
        f"version {version!r} is the control of endpoint {endpoint.name!r}: name the version that takes its place in "
        f"`to` ({known}there are: {', '.join(others) or 'none'})"
    )


def check_replacement(history: "Sequence[Revision]", version: str, to: str) -> None:
    """Refuse a replacement for a version that is not the control, unless it has taken its place already.

    Raises:
        EndpointError: The version is a treatment, or one of the two is not there.
    """
    if not history:
        raise EndpointError(f"version {version!r} was to be replaced by {to!r}, and there is no such endpoint")
    endpoint = history[-1].endpoint
    endpoint.version(version)
    if endpoint.version(to).is_control:
        return
    if not endpoint.version(version).is_control or version == to:
        raise EndpointError(
            f"version {version!r} of endpoint {endpoint.name!r} is a treatment: leave `to` out to roll it back "
            f"(to={to!r} was given)"
        )


def announce(context: "Context", endpoint: str, version: str) -> None:
    """Update the endpoint's asset: a version has become control."""
    context["outlet_events"][NEW_CONTROL].add(
        control_asset(endpoint), extra={"endpoint": endpoint, "version": version, "who": task_of(context)}
    )
