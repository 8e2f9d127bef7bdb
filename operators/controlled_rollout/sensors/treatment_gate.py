"""The gate as a task: looks at a treatment's evidence until the rollout goes on, is rolled back, or is held."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast

from airflow.sdk import BaseSensorOperator, PokeReturnValue, conf
from airflow.sdk.exceptions import AirflowSkipException

from controlled_rollout.arguments import choice, duration, evidence_window, flag, gate_of, whole_number
from controlled_rollout.defaults import BAKE, DECISION_TIMEOUT, LOOK_INTERVAL
from controlled_rollout.errors import ArgumentError
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction, take_look
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.approval import ApproveRolloutOperator
from controlled_rollout.operators.base import EngineCalls, change_of, run_of, task_of
from controlled_rollout.triggers.treatment_gate import TreatmentGateTrigger
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["TreatmentGateSensor"]

WINDOW: Final = EvidenceWindow()


class TreatmentGateSensor(EngineCalls, BaseSensorOperator):
    """Waits until a treatment has shown that it is as good as control, or fails.

    Every look reads all the evidence again, so a task that was killed comes to the same decision. The task succeeds
    when the gate passes (or, with `require_pass=False`, when nothing alarms) after `bake` and `min_requests`; it fails
    without retries when a claim alarms, and it holds (fails, but nothing is rolled back) after `decision_timeout`. A
    metric store that cannot be read, or a split that is not what was set, only makes it wait and in the end hold. On
    the first version of an endpoint there is nothing to compare: the task is skipped and says so.

    Times may be timedeltas, seconds, or text such as `5 min` or `PT5M`, and like all arguments may be templates.

    Args:
        endpoint: The endpoint's name.
        version: The treatment.
        gate: What the treatment has to show: a `Gate`, its fields, or their JSON text.
        bake: The least time at the present share of traffic.
        min_requests: The fewest treatment requests at the present share.
        require_pass: Whether the gate must pass; False is enough for a step at which little traffic is at stake.
        decision_timeout: How long to wait after the split was set.
        on_deadline: `hold`; `roll_back` when there was evidence but not enough (else it holds); or `ask`: the
            task succeeds, and the `ApproveRolloutOperator` that has to come after it asks a person.
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
        "interval",
        "bin_width",
        "allowed_lag",
        "baseline_length",
    )
    ui_color = "#f4e8c1"

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
        # None given here keeps away that of the DAG's default_args, which is meant for other tasks.
        super().__init__(**{**kwargs, "execution_timeout": None})
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
        self.interval = interval
        self.bin_width = bin_width
        self.allowed_lag = allowed_lag
        self.baseline_length = baseline_length
        self.own_rollout = own_rollout
        self.conn_id = conn_id
        self.deferrable = deferrable

    def execute(self, context: "Context") -> Any:
        """Wait for the gate's decision, in the triggerer or in the worker; return it as the XCom value."""
        terms = self.run_in_workspace(context, lambda workspace: self._own_terms(context, workspace))
        if self.deferrable:
            self.defer(
                trigger=TreatmentGateTrigger(self.conn_id, terms.model_dump(mode="json")),
                method_name=self.execute_complete.__name__,
            )
        self.poke_interval = terms.interval.total_seconds()
        self.timeout = float("inf")  # decision_timeout counts from the shift: the gate itself ends the wait
        return super().execute(context)

    def execute_complete(self, context: "Context", event: Mapping[str, Any]) -> dict[str, Any]:
        """Return, skip or fail according to the trigger's last look."""
        return self._return_or_raise(context, LookResult.from_event(event))

    def poke(self, context: "Context") -> PokeReturnValue:
        """Look at the evidence once; return done with the decision, or not done to be called again."""

        async def look_once(workspace: Workspace) -> LookResult:
            """Read the gate's terms and look at the evidence once."""
            return await take_look(workspace, await self._own_terms(context, workspace), self.log_progress)

        result = self.run_in_workspace(context, look_once)
        if result.action is NextAction.WAIT:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._return_or_raise(context, result))

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
                choice("on_deadline", self.on_deadline, "hold", "roll_back", "ask"),
            ),
            interval=duration("interval", self.interval),
            window=evidence_window(self.bin_width, self.allowed_lag, self.baseline_length),
            waiting_since=datetime.now(UTC),
        )

    async def _own_terms(self, context: "Context", workspace: Workspace) -> GateTerms:
        """Return the terms of this task's looks; raise ArgumentError if it would ask, and no task after it does."""
        terms = self.gate_terms(context)
        if terms.on_deadline == "ask" and not any(
            isinstance(task, ApproveRolloutOperator) for task in self.downstream_list
        ):
            raise ArgumentError(
                "on_deadline = 'ask', but no ApproveRolloutOperator comes directly after this task: add one"
            )
        return terms

    def _return_or_raise(self, context: "Context", result: LookResult) -> dict[str, Any]:
        """Return the gate's XCom value if the rollout goes on or a person is asked; otherwise skip or fail the task."""
        if result.action is NextAction.NOTHING_TO_COMPARE:
            raise AirflowSkipException(result.reason)
        if result.action is NextAction.HOLD:
            self._hold_and_fail(context, result)
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

    def _hold_and_fail(self, context: "Context", result: LookResult) -> NoReturn:
        """Put the rollout on hold, then fail the task without retries; nothing is rolled back."""
        from controlled_rollout.evaluation.hold import hold_rollout

        self.run_in_workspace(
            context,
            lambda workspace: hold_rollout(
                workspace,
                self.endpoint,
                self.version,
                owner=run_of(context) if self.own_rollout else None,
                change=change_of(context, result.reason),
                progress=self.log_progress,
            ),
        )
        self.fail(
            context,
            f"on hold: {result.reason}. Nothing is rolled back: clear this task to wait again, or run the DAG promote "
            f"or roll_back for version {self.version!r} of endpoint {self.endpoint!r}",
        )
