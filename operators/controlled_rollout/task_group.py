"""All the steps of a rollout, wired: what most DAGs use instead of the single operators."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from airflow.sdk import BaseNotifier, BaseOperator, TaskGroup, TriggerRule, chain

from controlled_rollout.defaults import (
    BAKE,
    CONFLICT_TIMEOUT,
    DECISION_TIMEOUT,
    KEEP_WARM,
    LOOK_INTERVAL,
    READY_TIMEOUT,
    RETIRE_TIMEOUT,
    ROLL_BACK_TIMEOUT,
)
from controlled_rollout.duration import parse_duration
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.approval import ApproveRolloutOperator
from controlled_rollout.operators.image_scan import ScanImageOperator
from controlled_rollout.operators.promotion import PromoteToControlOperator, RollBackOperator
from controlled_rollout.operators.rollout import DeleteVersionOperator, RolloutVersionOperator
from controlled_rollout.operators.rollout_check import CheckRolloutOperator
from controlled_rollout.operators.traffic_shift import ShiftTrafficOperator
from controlled_rollout.sensors.treatment_gate import TreatmentGateSensor

__all__ = ["ControlledRollout"]

Time = timedelta | float | str

# A worker may be killed at any moment. Errors that would come again fail the task without retries anyway.
RETRIES: Final[dict[str, Any]] = {"retries": 3, "retry_delay": timedelta(seconds=10)}
# Arguments of the tasks that go back, which no `default_args` replace: they come soon, and wait for no earlier run.
GOING_BACK: Final[dict[str, Any]] = {
    "retry_delay": RETRIES["retry_delay"],
    "depends_on_past": False,
    "wait_for_downstream": False,
}
# What a task that goes back needs beyond its time-out, such as for Airflow's own start of it.
MARGIN: Final = timedelta(minutes=10)
VERSION_OF_RUN: Final = "{{ task.version_of_run(dag_run) }}"
WINDOW: Final = EvidenceWindow()


class ControlledRollout(TaskGroup):
    """Rolls a version out in steps, each behind a gate; promotes it, or rolls it back.

    `check → roll_out → shift_10 → gate_10 → … → promote → retire_old`, and on any failure `roll_back →
    retire_treatment`. The gates before the last need only that nothing alarms; the last one must pass. On
    hold the gate waits for a person, and goes on looking. A rollout that somebody else has ended is not rolled back. On
    the first version of a new endpoint the shifts and gates are skipped: there is nothing to compare with.

    Times may be timedeltas, seconds, or text such as `5 min` or `PT5M`; all arguments but `steps`, `approval`,
    `keep_treatment`, `deferrable` and the group's own may be templates.

    Args:
        group_id: The group's name, and the prefix of its tasks' names.
        endpoint: The endpoint's name; created if there is none.
        version: The version's name, the same for all retries of a DAG run. None: the name that `version_of_run` makes
            of the DAG run.
        image: What it runs: `name@sha256:…`, such as `BuildImageOperator(…).output`.
        scan: Arguments of `ScanImageOperator`, such as `{"max_severity": "high"}`: the image is scanned before the
            version is created, and a scan that fails ends the rollout there. None scans nothing.
        steps: The treatment's per cent at each step, ascending.
        gate: What the treatment has to show: a `Gate`, its fields, or their JSON text.
        bake: The least time at each step, counted in evidence that was seen.
        min_requests: The fewest treatment requests at each step.
        pass_every_step: Whether every gate must pass, not only the last.
        decision_timeout: How long each gate may wait.
        on_deadline: What a gate does after that: `hold`; `roll_back` when there was evidence but not enough
            (else it holds); or `ask`, which adds a task after each gate that asks a person, with the evidence.
        silence: On hold, how long no look may be able to see the evidence before the treatment is rolled back; None
            keeps it for as long as the hold lasts.
        hold_notifiers: Called with the gate's context when the rollout goes on hold: no task fails then.
        approval: Whether a person has to approve the promotion even after a pass.
        approval_settings: Further arguments of the tasks that ask a person (see `ApproveRolloutOperator`), such as
            `assigned_users`, `notifiers` or `response_timeout`.
        interval: The time between two looks at the evidence.
        bin_width: The length of a time bin of the evidence.
        allowed_lag: How late telemetry may arrive.
        baseline_length: How far before the rollout control's latency is taken from.
        keep_warm: How long the former control stays after the promotion.
        keep_treatment: Whether a treatment that was rolled back stays, at 0 %, to be inspected.
        settings: Further fields of the version (see `RolloutVersionOperator`).
        auth: How callers of a new endpoint authenticate: `key`, `token`, `none`.
        on_conflict: `fail` or `wait`, while another run holds the endpoint.
        conflict_timeout: How long to wait for that.
        ready_timeout: How long the version may take to become ready.
        roll_back_timeout: How long a try of `roll_back` goes on while the target does not answer or refuses, or the
            router does not serve the new split. That task and `retire_treatment` have three retries at least and an
            `execution_timeout` above their time-outs, whatever `default_args` say.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        deferrable: Whether the gates and `keep_warm` wait in the triggerer, without a worker slot.
        default_args: Arguments for every task of the group, before the DAG's own.
        **kwargs: What every task group takes.
    """

    check: CheckRolloutOperator
    scan: ScanImageOperator | None
    roll_out: RolloutVersionOperator
    shifts: list[ShiftTrafficOperator]
    gates: list[TreatmentGateSensor]
    approvals: list[ApproveRolloutOperator]
    promote: PromoteToControlOperator
    retire_old: DeleteVersionOperator
    roll_back: RollBackOperator

    # Long because every argument of a rollout has a line, with its default.
    def __init__(
        self,
        group_id: str = "rollout",
        *,
        endpoint: str,
        version: str | None = None,
        image: Any,
        scan: Mapping[str, Any] | None = None,
        steps: Sequence[float] = (10, 50),
        gate: Gate | dict[str, Any] | str | None = None,
        bake: Time = BAKE,
        min_requests: int | str = 0,
        pass_every_step: bool | str = False,
        decision_timeout: Time = DECISION_TIMEOUT,
        on_deadline: str = "hold",
        silence: Time | None = None,
        hold_notifiers: Sequence[BaseNotifier] | BaseNotifier = (),
        approval: bool = False,
        approval_settings: Mapping[str, Any] | None = None,
        interval: Time = LOOK_INTERVAL,
        bin_width: Time = WINDOW.bin_width,
        allowed_lag: Time = WINDOW.allowed_lag,
        baseline_length: Time = WINDOW.baseline_length,
        keep_warm: Time = KEEP_WARM,
        keep_treatment: bool = False,
        settings: Mapping[str, Any] | str | None = None,
        auth: str = "key",
        on_conflict: str = "fail",
        conflict_timeout: Time = CONFLICT_TIMEOUT,
        ready_timeout: Time = READY_TIMEOUT,
        roll_back_timeout: Time = ROLL_BACK_TIMEOUT,
        conn_id: str = WorkspaceHook.default_conn_name,
        deferrable: bool = True,
        default_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Create all tasks of the rollout inside this group and connect them."""
        check_steps(steps)
        super().__init__(
            group_id=group_id,
            tooltip=kwargs.pop("tooltip", "A controlled rollout: canary traffic, a gate, promotion or roll-back"),
            **kwargs,
        )
        self.default_args = {**RETRIES, **self.dag.default_args, **self.default_args, **(default_args or {})}
        version = VERSION_OF_RUN if version is None else version
        on_endpoint: dict[str, Any] = {"endpoint": endpoint, "conn_id": conn_id, "version": version}
        looks: dict[str, Any] = {
            "gate": gate,
            "bake": bake,
            "min_requests": min_requests,
            "decision_timeout": decision_timeout,
            "on_deadline": on_deadline,
            "silence": silence,
            "interval": interval,
            "bin_width": bin_width,
            "allowed_lag": allowed_lag,
            "baseline_length": baseline_length,
        }
        creation: dict[str, Any] = {
            "settings": settings,
            "auth": auth,
            "on_conflict": on_conflict,
            "conflict_timeout": conflict_timeout,
        }
        with self:
            self._add_checks(
                image,
                scan,
                on_endpoint,
                {
                    **looks,
                    **creation,
                    "pass_every_step": pass_every_step,
                    "keep_warm": keep_warm,
                    "ready_timeout": ready_timeout,
                    "roll_back_timeout": roll_back_timeout,
                },
                steps=tuple(steps),
                approval=approval,
                keep_treatment=keep_treatment,
            )
            scanned: Any = self.scan.output if self.scan else image  # only what was scanned can be rolled out
            self.roll_out = RolloutVersionOperator(
                task_id="roll_out",
                **on_endpoint,
                **creation,
                image=scanned,
                timeout=ready_timeout,
            )
            self._add_steps(
                steps,
                on_endpoint,
                {**looks, "hold_notifiers": hold_notifiers, "deferrable": deferrable},
                pass_every_step=pass_every_step,
                approval=approval,
                approval_settings=approval_settings or {},
            )
            self._add_endings(
                on_endpoint,
                needs_approval=approval,
                keep_warm=keep_warm,
                keep_treatment=keep_treatment,
                roll_back_timeout=roll_back_timeout,
                deferrable=deferrable,
            )

    def _add_checks(
        self,
        image: Any,
        scan: Mapping[str, Any] | None,
        on_endpoint: Mapping[str, Any],
        arguments: Mapping[str, Any],
        **options: Any,
    ) -> None:
        """Create the task `check` and, if `scan` is given, the task `scan`."""
        self.scan = None
        if scan is not None:
            self.scan = ScanImageOperator(task_id="scan", image=image, conn_id=on_endpoint["conn_id"], **scan)
        self.check = CheckRolloutOperator(
            task_id="check",
            **on_endpoint,
            **options,
            arguments={**arguments, "scan": self.scan.arguments() if self.scan else None},
        )

    def _add_steps(
        self,
        steps: Sequence[float],
        on_endpoint: Mapping[str, Any],
        looks: Mapping[str, Any],
        *,
        pass_every_step: bool | str,
        approval: bool,
        approval_settings: Mapping[str, Any],
    ) -> None:
        """Create a shift task and a gate task per step, and an approval task where a person may be asked."""
        self.shifts, self.gates, self.approvals = [], [], []
        for percentile in steps:
            name = f"{percentile:g}".replace(".", "_")
            is_last = percentile == steps[-1]
            shift = ShiftTrafficOperator(
                task_id=f"shift_{name}",
                **on_endpoint,
                percentile=percentile,
                # A task that did not need to ask is skipped, and the rollout goes on after it.
                trigger_rule=TriggerRule.NONE_FAILED if self.approvals else TriggerRule.ALL_SUCCESS,
            )
            gate = TreatmentGateSensor(
                task_id=f"gate_{name}", **on_endpoint, require_pass=True if is_last else pass_every_step, **looks
            )
            self.shifts.append(shift)
            self.gates.append(gate)
            if looks["on_deadline"] == "ask" or (approval and is_last):
                ask = ApproveRolloutOperator(
                    task_id=f"ask_{name}",
                    **on_endpoint,
                    gate_task_id=gate.task_id,
                    always=approval and is_last,
                    **approval_settings,
                )
                self.approvals.append(ask)

    def _add_endings(
        self,
        on_endpoint: Mapping[str, Any],
        *,
        needs_approval: bool,
        keep_warm: Time,
        keep_treatment: bool,
        roll_back_timeout: Time,
        deferrable: bool,
    ) -> None:
        """Create the tasks `promote`, `retire_old`, `roll_back` and `retire_treatment`, and connect all tasks."""
        endpoint = {name: value for name, value in on_endpoint.items() if name != "version"}
        # The gates of a first version are skipped, and it is promoted; a failed gate keeps this task from running.
        self.promote = PromoteToControlOperator(
            task_id="promote", **on_endpoint, needs_approval=needs_approval, trigger_rule=TriggerRule.NONE_FAILED
        )
        self.retire_old = DeleteVersionOperator(
            task_id="retire_old",
            **endpoint,
            replaced_by=on_endpoint["version"],
            keep_warm=keep_warm,
            deferrable=deferrable,
        )
        going_back = {**GOING_BACK, "retries": max(RETRIES["retries"], self.default_args["retries"] or 0)}
        self.roll_back = RollBackOperator(
            task_id="roll_back",
            **on_endpoint,
            roll_back_timeout=roll_back_timeout,
            trigger_rule=TriggerRule.ONE_FAILED,
            execution_timeout=execution_timeout_above(roll_back_timeout),
            **going_back,
        )
        forward = [*self._tasks_before_promotion(), self.promote]
        chain(*forward, self.retire_old)
        forward >> self.roll_back
        if not keep_treatment:
            self.roll_back >> DeleteVersionOperator(
                task_id="retire_treatment",
                **on_endpoint,
                reason="rolled back",
                execution_timeout=execution_timeout_above(RETIRE_TIMEOUT),
                **going_back,
            )

    def _tasks_before_promotion(self) -> list[BaseOperator]:
        """Return the tasks before `promote`, in the order in which they run."""
        by_gate = {ask.gate_task_id: ask for ask in self.approvals}
        steps: list[BaseOperator] = []
        for shift, gate in zip(self.shifts, self.gates, strict=True):
            steps += [shift, gate, *([by_gate[gate.task_id]] if gate.task_id in by_gate else [])]
        return [self.check, *([self.scan] if self.scan else []), self.roll_out, *steps]


def check_steps(steps: Sequence[float]) -> None:
    """Raise ValueError unless the steps are ascending percentiles above 0 and up to 100.

    Raises:
        ValueError: There are none, or they are not numbers, not ascending, or not between 0 and 100.
    """
    numbers = isinstance(steps, Sequence) and all(
        isinstance(step, (int, float)) and not isinstance(step, bool) for step in steps
    )
    if not steps or not numbers or not all(0 < step <= 100 for step in steps) or list(steps) != sorted(set(steps)):
        raise ValueError(f"steps={steps!r}: give ascending percentiles above 0 and up to 100, such as (10, 50)")


def execution_timeout_above(timeout: Time) -> timedelta | None:
    """Return an `execution_timeout` that leaves a task all of its own time-out; None if that is a template."""
    try:
        return parse_duration(timeout) + MARGIN
    except ValueError:
        return None
