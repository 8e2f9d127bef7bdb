"""The gate as a task: looks at a treatment's evidence until the rollout goes on, is rolled back, or is held."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast

from airflow.sdk import BaseNotifier, BaseSensorOperator, PokeReturnValue, conf
from airflow.sdk.exceptions import AirflowSkipException

from controlled_rollout.arguments import (
    check_choice,
    choice,
    duration,
    evidence_window,
    flag,
    gate_of,
    optional_duration,
    whole_number,
)
from controlled_rollout.defaults import BAKE, DECISION_TIMEOUT, LOOK_INTERVAL
from controlled_rollout.errors import ArgumentError
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction, decide_after_error, take_look
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate
from controlled_rollout.hooks.workspace import WorkspaceHook, quieten_clients
from controlled_rollout.links.task_links import LINKS
from controlled_rollout.notifications.event import Event, call_each, notifiers_of, with_event
from controlled_rollout.operators.approval import ApproveRolloutOperator
from controlled_rollout.operators.base import EngineCalls, run_of, task_of
from controlled_rollout.triggers.treatment_gate import FIRST_LOOK_AFTER_S, TreatmentGateTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["TreatmentGateSensor"]

WINDOW: Final = EvidenceWindow()
ON_DEADLINE: Final = ("hold", "roll_back", "ask")


class TreatmentGateSensor(EngineCalls, BaseSensorOperator):
    """Waits until a treatment has shown that it is as good as control, or fails.

    Every look reads all the evidence again, so a task that was killed comes to the same decision. The task succeeds
    when the gate passes (or, with `require_pass=False`, when nothing alarms) after `bake` and `min_requests`; it fails
    without retries when a claim alarms, and after `decision_timeout` the rollout is on hold: the task waits for a
    person, and goes on looking, so that an alarm still fails it. A metric store that cannot be read, or a split that is
    not what was set, only makes it wait and in the end hold. On the first version of an endpoint there is nothing to
    compare: the task is skipped and says so.

    Times may be timedeltas, seconds, or text such as `5 min` or `PT5M`, and like all arguments may be templates.

    Args:
        endpoint: The endpoint's name.
        version: The treatment.
        gate: What the treatment has to show: a `Gate`, its fields, or their JSON text.
        bake: The least time at the present share of traffic, counted in evidence that was seen.
        min_requests: The fewest treatment requests at the present share.
        require_pass: Whether the gate must pass; False is enough for a step at which little traffic is at stake.
        decision_timeout: How long to wait after the split was set; where waiting cannot help, as with a latency
            baseline of another time, `bake` and `baseline_length` together.
        on_deadline: `hold`; `roll_back` when there was evidence but not enough (else it holds); or `ask`: the
            task succeeds, and the `ApproveRolloutOperator` that has to come after it asks a person.
        unseen_timeout: On hold, how long no look may be able to see the evidence before the treatment is rolled back;
            None keeps it for as long as the hold lasts.
        on_hold: Notifiers, such as `RolloutNotifier`: called with the task's context when the rollout goes on hold: no
            task fails then.
        interval: The time between two looks.
        bin_width: The length of a time bin of the evidence.
        allowed_lag: How late telemetry may arrive.
        baseline_length: How far before the rollout control's latency is taken from.
        own_rollout: Whether this DAG run has to hold the endpoint.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        deferrable: Whether to wait in the triggerer, without a worker slot.
        **kwargs: What every sensor takes, but for those that would hide a failed gate.
    """

    template_fields = (
        "conn_id",
        "endpoint",
        "version",
        "gate",
        "bake",
        "min_requests",
        "require_pass",
        "decision_timeout",
        "on_deadline",
        "unseen_timeout",
        "interval",
        "bin_width",
        "allowed_lag",
        "baseline_length",
    )
    operator_extra_links = LINKS
    ui_color = "#f4e8c1"
    _terms: GateTerms | None = None

    def __init__(
        self,
        *,
        endpoint: str,
        version: str,
        gate: Gate | dict[str, Any] | str | None = None,
        bake: timedelta | float | str = BAKE,
        min_requests: int | str = 0,
        require_pass: bool | str = True,
        decision_timeout: timedelta | float | str = DECISION_TIMEOUT,
        on_deadline: str = "hold",
        unseen_timeout: timedelta | float | str | None = None,
        on_hold: Sequence[BaseNotifier] | BaseNotifier = (),
        interval: timedelta | float | str = LOOK_INTERVAL,
        bin_width: timedelta | float | str = WINDOW.bin_width,
        allowed_lag: timedelta | float | str = WINDOW.allowed_lag,
        baseline_length: timedelta | float | str = WINDOW.baseline_length,
        own_rollout: bool = True,
        conn_id: str = WorkspaceHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        """Store the arguments; raise ValueError for those of a sensor that would hide a failed gate or end it early."""
        if kwargs.get("execution_timeout") is not None:
            raise ValueError(
                "execution_timeout would fail a gate, and roll its treatment back, because time has passed: leave it "
                "out; decision_timeout and on_deadline say how long the gate waits, and what then"
            )
        if kwargs.get("timeout") is not None:
            raise ValueError(
                f"timeout={kwargs['timeout']!r} was given to a gate: leave it out, decision_timeout says how long it "
                "waits after the split was set, and on_deadline what then"
            )
        check_choice("on_deadline", on_deadline, *ON_DEADLINE)
        # Given here, they keep the DAG's default_args away: looks come at `interval`, and end by a decision.
        super().__init__(**{**kwargs, "execution_timeout": None, "exponential_backoff": False})
        # Read from the task, because the DAG's default_args may have set them too.
        for name in ("soft_fail", "never_fail", "silent_fail"):
            if kwargs.get(name) or getattr(self, name, False):
                raise ValueError(f"{name}=True would let a treatment go on that the gate has stopped: leave it out")
        self.endpoint = endpoint
        self.version = version
        self.gate = gate
        self.bake = bake
        self.min_requests = min_requests
        self.require_pass = require_pass
        self.decision_timeout = decision_timeout
        self.on_deadline = on_deadline
        self.unseen_timeout = unseen_timeout
        self.on_hold = notifiers_of("on_hold", on_hold)
        self.interval = interval
        self.bin_width = bin_width
        self.allowed_lag = allowed_lag
        self.baseline_length = baseline_length
        self.own_rollout = own_rollout
        self.conn_id = conn_id
        self.deferrable = deferrable

    def execute(self, context: "Context") -> Any:
        """Wait for the gate's decision, in the triggerer or in the worker; return it as the XCom value."""
        self._terms = self._own_terms(context)
        self._show_links(context)
        if self.deferrable:
            self._wait_in_triggerer(self._terms)
        self.poke_interval = self._terms.interval.total_seconds()
        self.timeout = float("inf")  # decision_timeout counts from the shift: the gate itself ends the wait
        return super().execute(context)

    def execute_complete(self, context: "Context", event: Mapping[str, Any]) -> dict[str, Any]:
        """Return, skip, fail or go on waiting on hold, according to the trigger's last look."""
        result = LookResult.from_event(event)
        if result.action is NextAction.HOLD:
            self._wait_in_triggerer(self._hold(context, result, GateTerms.model_validate(event["terms"])))
        return self._return_or_raise(context, result)

    def poke(self, context: "Context") -> PokeReturnValue:
        """Look at the evidence once; return done with the decision, or not done to be called again."""
        self._terms = self._terms or self._own_terms(context)
        if self.reschedule and self._began(context) is None:
            # Airflow knows only of later looks since when the task waits: to them, a hold of this one would be older.
            self.poke_interval = min(self._terms.interval.total_seconds(), FIRST_LOOK_AFTER_S)
            return PokeReturnValue(is_done=False)
        result = self._look(self._terms)
        if result.action is NextAction.HOLD:
            self._terms = self._hold(context, result, self._terms)
        if result.action in (NextAction.WAIT, NextAction.HOLD):
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._return_or_raise(context, result))

    def _wait_in_triggerer(self, terms: GateTerms) -> NoReturn:
        """Defer until a look has decided."""
        self.defer(
            trigger=TreatmentGateTrigger(self.conn_id, terms.model_dump(mode="json")),
            method_name=self.execute_complete.__name__,
        )

    def _show_links(self, context: "Context") -> None:
        """Push where the task's buttons lead, before it is deferred; without the connection, those that need none."""
        workspace = None
        with suppress(Exception):
            workspace = self.workspace()
        self.push_links(context, workspace)

    def _look(self, terms: GateTerms) -> LookResult:
        """Look at the evidence once from this worker; a connection that cannot be read now only makes the gate wait."""
        quieten_clients()
        try:
            workspace = self.workspace()
        except Exception as error:
            self.log.warning("the connection %r cannot be read: %s", self.conn_id, error)
            return decide_after_error(terms, error, now=datetime.now(UTC))
        return asyncio.run(self._run_cancellable(take_look(workspace, terms, self.log_progress)))

    def _hold(self, context: "Context", result: LookResult, terms: GateTerms) -> GateTerms:
        """Say wherever people look that the rollout is on hold; return the terms of the looks that go on meanwhile."""
        from controlled_rollout.evaluation.hold import put_on_hold, recorded_hold

        # Not before its begin, should the clock have been set back: that would be a hold that has ended.
        held = terms.model_copy(update={"held": max(datetime.now(UTC), terms.waiting_since)})
        if self.reschedule:  # every look is a new process, which has not told anybody yet
            with suppress(Exception):
                known = asyncio.run(self._run_cancellable(recorded_hold(self.workspace(), terms)))
                if known is not None:
                    return terms.model_copy(update={"held": known})
        self.log.warning(
            "on hold: %s\n%s\nThe looks go on, and an alarm rolls back. Clear this task to wait again, or run the DAG "
            "promote or roll_back for version %r of endpoint %r",
            *(result.reason, result.table, self.version, self.endpoint),
        )
        try:
            workspace = self.workspace()
            asyncio.run(self._run_cancellable(put_on_hold(workspace, held, result.reason, self.log_progress)))
        except Exception as error:  # nothing of this may end the looks
            self.log.warning("the hold could not be reported everywhere: %s", error)
        call_each(self.on_hold, with_event(context, Event.ON_HOLD, result.reason, result.table), self.log_progress)
        return held

    def gate_terms(self, context: "Context") -> GateTerms:
        """Check the arguments and return them as the terms of the gate's looks."""
        return GateTerms(
            endpoint=self.endpoint,
            version=self.version,
            who=task_of(context),
            owner=run_of(context) if self.own_rollout else None,
            gate=gate_of(self.gate),
            bake=duration("bake", self.bake),
            min_requests=whole_number("min_requests", self.min_requests),
            require_pass=flag("require_pass", self.require_pass),
            decision_timeout=duration("decision_timeout", self.decision_timeout),
            on_deadline=cast(
                "Literal['hold', 'roll_back', 'ask']",
                choice("on_deadline", self.on_deadline, *ON_DEADLINE),
            ),
            interval=duration("interval", self.interval),
            window=evidence_window(self.bin_width, self.allowed_lag, self.baseline_length),
            waiting_since=datetime.now(UTC),
            unseen_timeout=optional_duration("unseen_timeout", self.unseen_timeout),
        )

    def _own_terms(self, context: "Context") -> GateTerms:
        """Return the terms of this task's looks; fail the task if an argument cannot be used."""
        try:
            terms = self.gate_terms(context)
            if terms.on_deadline == "ask" and not any(
                isinstance(task, ApproveRolloutOperator) for task in self.downstream_list
            ):
                raise ArgumentError(
                    "on_deadline = 'ask', but no ApproveRolloutOperator comes directly after this task: add one"
                )
        except ArgumentError as error:
            self.fail(context, str(error))
        began = self._began(context) or terms.waiting_since
        return terms.model_copy(update={"waiting_since": began, "forgets_hold": self.reschedule})

    def _began(self, context: "Context") -> datetime | None:
        """Return when a task that is rescheduled was so first: a hold since then is its own; None if it was not yet."""
        began: datetime | None = context["ti"].get_first_reschedule_date(context) if self.reschedule else None
        return began

    def _return_or_raise(self, context: "Context", result: LookResult) -> dict[str, Any]:
        """Return the gate's XCom value if the rollout goes on or a person is asked; otherwise skip or fail the task."""
        if result.action is NextAction.NOTHING_TO_COMPARE:
            raise AirflowSkipException(result.reason)
        if result.action not in (NextAction.GO_ON, NextAction.ASK):
            self.fail(
                context, f"{result.action.value}: {result.reason}" + (f"\n{result.table}" if result.table else "")
            )
        self.log.info("%s\n%s", result.reason, result.table)
        return {
            "outcome": result.outcome,
            "reason": result.reason,
            "table": result.table,
            "asks": result.action is NextAction.ASK,
        }
