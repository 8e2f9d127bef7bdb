"""The task that judges a version by labels that come late, over days, and confirms it or takes it back."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import BaseSensorOperator, PokeReturnValue
from pydantic import BaseModel, ValidationError

from controlled_rollout.arguments import check_choice, choice, duration, mapping_of, read_all, text
from controlled_rollout.defaults import ROLL_BACK_TIMEOUT
from controlled_rollout.errors import (
    AccessError,
    ArgumentError,
    EvidenceUnavailableError,
    RecordUnavailableError,
    StorageError,
    TargetUnavailableError,
)
from controlled_rollout.gate import Outcome
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.links.task_links import LINKS
from controlled_rollout.operators.base import TEMPORARY_WHEN_GOING_BACK, EngineCalls, change_of, run_of, task_of
from controlled_rollout.operators.new_control import NEW_CONTROL, announce
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.gate import Verdict
    from controlled_rollout.labels import Labels, LabelSource
    from controlled_rollout.target.protocol import Revision

__all__ = ["JudgeByLabelsOperator"]

Settings = TypeVar("Settings", bound=BaseModel)

INTERVAL: Final = timedelta(hours=1)
DECISION_TIMEOUT: Final = timedelta(days=14)
ON_DEADLINE: Final = ("keep", "roll_back", "ask")
# An outage says nothing about the model: the next look may see more.
OUTAGES: Final = (AccessError, EvidenceUnavailableError, RecordUnavailableError, StorageError, TargetUnavailableError)


@dataclass
class _Seen:
    """What one look has found.

    Attributes:
        version: The version that is judged.
        since: From when on a decision is waited for.
        outcome, reason, table, verdict: Of the look.
        taken_back: The revision in which an earlier try of this run took the version back; None if none did.
        present: The endpoint at this look, if an earlier try took the version back.
        was_control: Whether the version is control, or was until it was taken back.
    """

    version: str
    since: datetime
    outcome: Outcome = Outcome.CANNOT_SEE
    reason: str = ""
    table: str = ""
    verdict: "Verdict | None" = None
    taken_back: "Revision | None" = None
    present: "Endpoint | None" = None
    was_control: bool = False


class JudgeByLabelsOperator(EngineCalls, BaseSensorOperator):
    """Judges a version by labels that come late, until they have shown whether it is good enough; then acts.

    The version is compared with the control that it shared the traffic with, which may be weeks ago, by the requests of
    that time before the run began: the endpoint's history has it. A version that is worse is taken back: a treatment to
    0 %; a control by giving all the traffic to the control before it again, which updates the endpoint's asset. A
    version that is good enough is confirmed in the record.

    The task succeeds with what was decided: `{"decision": "confirmed" | "rolled_back" | "kept" | "asks", "reason": …}`.
    It fails, and changes nothing, if it cannot do what it was asked, or cannot read labels when it begins; an outage
    later only makes it wait. Between two looks it
    has no worker. Every look reads everything again, so whatever is restarted, the same is concluded.

    Args:
        endpoint: The endpoint's name.
        labels: What the labels are compared with and what the version has to show: a `Labels`, its fields, or their
            JSON text.
        source: Where labels are: a `SqlLabels`, a `StoredLabels`, the fields of one, or their JSON text. Fields that
            are None or empty count as not given.
        version: The version; None or an empty text for what is the endpoint's control when the run begins.
        decision_timeout: How long to wait, from the begin of the run, or from when the version went live if that is
            later.
        on_deadline: What then: `keep` the version; `roll_back`, if labels were seen and were not enough; or `ask`: the
            task after this one asks a person.
        interval: The time between two looks.
        roll_back_timeout: How long a roll-back goes on trying.
        deferrable: Whether to wait in the triggerer. False waits as Airflow's sensors do, by `mode`.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What every sensor takes, but for `timeout`.
    """

    operator_extra_links = LINKS
    template_fields = (
        "conn_id",
        "endpoint",
        "labels",
        "source",
        "version",
        "decision_timeout",
        "on_deadline",
        "interval",
        "roll_back_timeout",
    )
    ui_color = "#e8e0f4"
    temporary_errors = TEMPORARY_WHEN_GOING_BACK

    def __init__(
        self,
        *,
        endpoint: str,
        labels: Any,
        source: Any,
        version: str | None = None,
        decision_timeout: timedelta | float | str = DECISION_TIMEOUT,
        on_deadline: str = "keep",
        interval: timedelta | float | str = INTERVAL,
        roll_back_timeout: timedelta | float | str = ROLL_BACK_TIMEOUT,
        deferrable: bool = True,
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Store the arguments; raise ValueError for a `timeout`, which would end the wait without a decision."""
        if kwargs.get("timeout") is not None:
            raise ValueError(
                f"timeout={kwargs['timeout']!r} was given: leave it out, decision_timeout says how long the task "
                "waits, and on_deadline what then"
            )
        check_choice("on_deadline", on_deadline, *ON_DEADLINE)
        outlets = [*kwargs.get("outlets", []), NEW_CONTROL]
        # Given here, it keeps that of the DAG's default_args away: looks come at `interval`.
        super().__init__(**{**kwargs, "exponential_backoff": False, "outlets": outlets})
        self.endpoint = endpoint
        self.labels = labels.model_dump(mode="json") if isinstance(labels, BaseModel) else labels
        self.source = source.model_dump(mode="json") if isinstance(source, BaseModel) else source
        # As written in the DAG file, before templates are rendered.
        self._written_labels, self._written_source = self.labels, self.source
        self.version = version
        self.decision_timeout = decision_timeout
        self.on_deadline = on_deadline
        self.interval = interval
        self.roll_back_timeout = roll_back_timeout
        self.deferrable = deferrable
        self.conn_id = conn_id

    def execute(self, context: "Context") -> Any:
        """Look, in this worker; return the decision, or wait for the next look."""
        interval = self._checked_interval(context)
        # A task that is rescheduled has looked before.
        if not self.reschedule or context["ti"].get_first_reschedule_date(context) is None:
            self.run_in_workspace(context, lambda workspace: self._check_source(context, workspace))
        if self.deferrable:
            return self._look_or_defer(context, interval)
        self.poke_interval = interval.total_seconds()
        self.timeout = float("inf")  # decision_timeout counts from the run's begin: a look ends the wait
        return super().execute(context)

    def execute_complete(self, context: "Context", event: Any = None) -> Any:
        """Look again."""
        return self._look_or_defer(context, self._checked_interval(context))

    def _checked_interval(self, context: "Context") -> timedelta:
        """Return the time between two looks; fail the task if an argument cannot be used."""
        try:
            interval: timedelta = self._arguments(Path(context["dag"].folder))["interval"]
        except ArgumentError as error:
            self.fail(context, str(error))
        return interval

    def _look_or_defer(self, context: "Context", interval: timedelta) -> dict[str, Any]:
        """Look, and return the decision; without one defer until the next look."""
        if (decision := self._look_once(context)) is not None:
            return decision
        self.defer(trigger=DateTimeTrigger(datetime.now(UTC) + interval), method_name=self.execute_complete.__name__)

    def poke(self, context: "Context") -> PokeReturnValue:
        """Look once, as a sensor that waits in a worker or is scheduled again."""
        decision = self._look_once(context)
        return PokeReturnValue(is_done=decision is not None, xcom_value=decision)

    async def _check_source(self, context: "Context", workspace: Workspace) -> None:
        """Ask for the labels of no time: what cannot be read now may be a mistake, that days of waiting would hide.

        Raises:
            EvidenceUnavailableError: They cannot be read; the task is retried.
        """
        values = self._arguments(Path(context["dag"].folder))
        source, now = values["source"](workspace), datetime.now(UTC)

        def read() -> None:
            """Read to the end, without a label."""
            for _ in source.read(since=now, until=now, limit=values["labels"].max_labels):
                pass

        await asyncio.to_thread(read)

    def _look_once(self, context: "Context") -> dict[str, Any] | None:
        """Look at the labels, and do what follows; return what was decided, None if nothing is yet."""
        return self.run_in_workspace(context, lambda workspace: self._judge(context, workspace))

    async def _judge(self, context: "Context", workspace: Workspace) -> dict[str, Any] | None:
        """Look at the labels once and act on what they show; return what was decided, None if nothing is yet."""
        from controlled_rollout.labels.decision import LabelAction, decide

        values = self._arguments(Path(context["dag"].folder))
        seen = await self._look(context, workspace, values)
        if seen.taken_back is not None:
            # Another version may have become control since this task was killed: that is not this task's to tell.
            controls = {one.control.name for one in (seen.taken_back.endpoint, seen.present) if one and one.control}
            return await self._rolled_back(
                context, workspace, seen, seen.taken_back.change.reason, seen.present if len(controls) == 1 else None
            )
        decision = decide(
            seen.outcome,
            seen.reason,
            waited=datetime.now(UTC) - seen.since,
            decision_timeout=values["decision_timeout"],
            on_deadline=values["on_deadline"],
        )
        self.log_progress(f"{decision.action.value.replace('_', ' ')}: {decision.reason}\n{seen.table}".rstrip())
        if decision.action is LabelAction.WAIT:
            return None
        if decision.action is LabelAction.ROLL_BACK:
            return await self._roll_back(context, workspace, seen, decision.reason, values["roll_back_timeout"])
        if decision.action is LabelAction.CONFIRM and not await self._record_confirmation(context, workspace, seen):
            return None
        what = {LabelAction.CONFIRM: "confirmed", LabelAction.KEEP: "kept", LabelAction.ASK: "asks"}[decision.action]
        return {"decision": what, "version": seen.version, "reason": decision.reason, "table": seen.table}

    async def _look(self, context: "Context", workspace: Workspace, values: dict[str, Any]) -> "_Seen":
        """Return what a look at endpoint and labels has found; during an outage it cannot see."""
        from controlled_rollout.gate import describe
        from controlled_rollout.labels.decision import (
            comparison_of,
            is_taken_back_by,
            version_to_judge,
            was_control_before,
        )
        from controlled_rollout.labels.look import look_at_labels
        from controlled_rollout.target.connect import connect

        source = values["source"](workspace)
        began = _run_start(context)
        seen = _Seen(values["version"], began)
        try:
            async with connect(workspace) as target:
                history = await target.history(self.endpoint)
                seen.version = version_to_judge(history, values["version"] or None, began=began)
                seen.taken_back = is_taken_back_by(history, seen.version, run_of(context))
                seen.was_control = was_control_before(history, seen.version, seen.taken_back)
                if seen.taken_back is not None:
                    seen.present = history[-1].endpoint
                    return seen
                compared = comparison_of(history, seen.version, began=began)
                seen.since = compared.waits_since
                look = await look_at_labels(
                    workspace,
                    target,
                    self.endpoint,
                    seen.version,
                    labels=values["labels"],
                    source=source,
                    who=task_of(context),
                    control=compared.control,
                    since=compared.since,
                    until=compared.until,
                )
        except OUTAGES as error:
            seen.reason = str(error)
        else:
            seen.verdict, seen.table = look.verdict, describe(look.verdict)
            seen.outcome, seen.reason = look.verdict.outcome, look.verdict.reason
        return seen

    async def _roll_back(
        self, context: "Context", workspace: Workspace, seen: "_Seen", reason: str, timeout: timedelta
    ) -> dict[str, Any]:
        """Take the version back, and return that it was."""
        from controlled_rollout import steps

        stored = await steps.roll_back(
            workspace,
            self.endpoint,
            seen.version,
            change=change_of(context, f"labels: {reason}"),
            to_former_control=True,
            timeout=timeout,
            progress=self.log_progress,
        )
        return await self._rolled_back(context, workspace, seen, reason, stored)

    async def _rolled_back(
        self, context: "Context", workspace: Workspace, seen: "_Seen", reason: str, stored: "Endpoint | None"
    ) -> dict[str, Any]:
        """Update the endpoint's asset if it has another control now, and return that the version was taken back."""
        if seen.was_control and stored is not None and stored.control is not None:
            await announce(context, self.conn_id, workspace, stored, self.log)
        return {"decision": "rolled_back", "version": seen.version, "reason": reason, "table": seen.table}

    async def _record_confirmation(self, context: "Context", workspace: Workspace, seen: "_Seen") -> bool:
        """Append to the record that the version is confirmed; return whether that worked, else the next look has to."""
        from controlled_rollout.evaluation.judgements import record_confirmation

        assert seen.verdict is not None  # noqa: S101 - nothing passes unseen
        try:
            await record_confirmation(
                workspace, self.endpoint, seen.version, seen.verdict, who=task_of(context), reason=seen.reason
            )
        except OUTAGES as error:
            self.log_progress(f"the confirmation cannot be recorded now: {error}")
            return False
        return True

    def _arguments(self, folder: Path) -> dict[str, Any]:
        """Return all arguments, read; raise one ArgumentError with the faults of all of them."""
        return read_all(
            {
                "labels": lambda: _label_settings(self.labels, self._written_labels),
                "source": lambda: _source_settings(self.source, self._written_source, folder, self.endpoint),
                "version": lambda: text("version", self.version or ""),
                "decision_timeout": lambda: duration("decision_timeout", self.decision_timeout),
                "on_deadline": lambda: choice("on_deadline", self.on_deadline, *ON_DEADLINE),
                "interval": lambda: _interval(self.interval),
                "roll_back_timeout": lambda: duration("roll_back_timeout", self.roll_back_timeout),
            }
        )


def _run_start(context: "Context") -> datetime:
    """Return when the DAG run began: the same for all tries of the task, and a run that is cleared begins anew."""
    began = getattr(context.get("dag_run"), "start_date", None)
    return began if isinstance(began, datetime) else datetime.now(UTC)


def _interval(value: timedelta | float | str) -> timedelta:
    """Return the time between two looks; raise ArgumentError if it is none."""
    interval = duration("interval", value)
    if interval <= timedelta(0):
        raise ArgumentError(f"interval = {value!r} is no time between two looks: give one above 0, such as '1 h'")
    return interval


def _label_settings(value: Any, written: Any) -> "Labels":
    """Return what an argument says that labels have to show.

    Args:
        value: The argument.
        written: The argument as the DAG file has it, with its templates.

    Raises:
        ArgumentError: A field is not valid, or a template has chosen a function.
    """
    from controlled_rollout.labels import Labels

    labels = _settings_of("labels", Labels, mapping_of("labels", value))
    text_of_file = json.dumps(written, default=str)
    for name, metric in labels.metrics.items():
        if metric.function is not None and metric.function not in text_of_file:
            raise ArgumentError(
                f"labels.metrics.{name} has a function that comes from a template: who may start a run may not choose "
                "what code runs; write the function into the DAG file"
            )
    return labels


def _source_settings(value: Any, written: Any, folder: Path, endpoint: str) -> "Callable[[Workspace], LabelSource]":
    """Return what opens the source that an argument describes: a query, or files in the workspace's storage.

    Args:
        value: The argument.
        written: The argument as the DAG file has it, with its templates.
        folder: The DAG file's folder.
        endpoint: The endpoint's name.

    Raises:
        ArgumentError: It is neither, or both, a field is not valid, or a template has made the text of a query.
    """
    from controlled_rollout.hooks.sql_labels import QUERY_FILE, SqlLabels
    from controlled_rollout.labels import StoredLabels

    fields = {name: field for name, field in mapping_of("source", value).items() if field not in (None, "")}
    if ("prefix" in fields) == ("query" in fields):
        raise ArgumentError(
            "source has to say where the labels are: give conn_id and query for a database, or prefix for files in the "
            f"workspace's storage; the fields {', '.join(fields) or 'none'} were given"
        )
    if "prefix" in fields:
        stored = _settings_of("source", StoredLabels, fields)
        return stored.source
    query = written.get("query") if isinstance(written, Mapping) else written
    is_template = isinstance(query, str) and ("{{" in query or "{%" in query)
    if is_template and not str(fields["query"]).strip().endswith(QUERY_FILE):
        raise ArgumentError(
            "source.query comes from a template, which may only choose a file that ends with .sql: who may start a run "
            "may not write SQL; write :endpoint, :since and :until for what is bound to the query"
        )
    from_database = _settings_of("source", SqlLabels, fields).read_query(folder).source(endpoint)
    return lambda _: from_database


def _settings_of(name: str, model: type[Settings], fields: dict[str, Any]) -> Settings:
    """Return the settings of these fields; raise ArgumentError, without their values, if one is not valid."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(
            f"{name}.{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise ArgumentError(f"{name} is not valid: {faults}; known are {', '.join(model.model_fields)}") from None
