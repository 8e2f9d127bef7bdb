"""All the steps of a rollout, wired: what most DAGs use instead of the single operators."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule

from controlled_rollout.gate import Gate
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.approval import ApproveRolloutOperator
from controlled_rollout.operators.image_scan import ScanImageOperator
from controlled_rollout.operators.plan import PlanRolloutOperator, Time, plan_in_words
from controlled_rollout.operators.promotion import PromoteToControlOperator, RollBackOperator
from controlled_rollout.operators.rollout import DeleteVersionOperator, RolloutVersionOperator
from controlled_rollout.operators.traffic_shift import ShiftTrafficOperator
from controlled_rollout.sensors.treatment_gate import TreatmentGateSensor

__all__ = ["ControlledRollout"]

# A worker may be killed at any moment: what fails for good fails without retries anyway.
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=10)}


class ControlledRollout(TaskGroup):
    """Rolls a version out in steps, each behind a gate; promotes it, or rolls it back.

    `check → roll_out → shift_10 → gate_10 → … → promote → retire_old`, and on any failure `roll_back →
    retire_treatment`. The gates before the last need only that nothing alarms; the last one must pass. A rollout that
    is on hold, or that somebody else has ended, is not rolled back. On the first version of a new endpoint the shifts
    and gates are skipped: there is nothing to compare with.

    Times may be timedeltas, seconds, or text such as `5 min`; all arguments but `steps`, `keep_treatment`, `deferrable`
    and the group's own may be templates.

    Args:
        group_id: The group's name, and the prefix of its tasks' names.
        endpoint: The endpoint's name; created if there is none.
        version: The version's name: the same for all retries of a run, such as `version_of_run` makes.
        image: What it runs: `name@sha256:…`, such as `BuildImageOperator(…).output`.
        scan: Arguments of `ScanImageOperator`, such as `{"max_severity": "high"}`: the image is looked at before the
            version is created, and what stops it ends the rollout there. None looks at nothing.
        steps: The treatment's per cent at each step, ascending.
        gate: What the treatment has to show: a `Gate`, its fields, or their JSON text.
        bake: The least time at each step.
        min_requests: The fewest treatment requests at each step.
        pass_every_step: Whether every gate must pass, not only the last.
        decision_timeout: How long each gate may wait.
        on_no_decision: `hold`; `roll_back` when the evidence was seen and was not enough (else it holds); or `ask`,
            which adds a task after each gate that asks a person, with the evidence, when the gate could not decide.
        approval: Whether a person has to approve the promotion even after a pass.
        approval_settings: What the tasks that ask take besides (see `ApproveRolloutOperator`), such as
            `assigned_users`, `notifiers` or `response_timeout`.
        interval: The time between two looks at the evidence.
        bin_width, allowed_lag, baseline_length: How the evidence is read (see `TreatmentGateSensor`).
        keep_warm: How long the former control stays after the promotion.
        keep_treatment: Whether a treatment that was rolled back stays, at 0 %, to be looked at.
        settings: Further fields of the version (see `RolloutVersionOperator`).
        auth: How callers of a new endpoint show that they may call.
        on_conflict: `fail` or `wait`, while another run holds the endpoint.
        conflict_timeout: How long to wait for that.
        ready_timeout: How long the version may take to become ready.
        conn_id: The connection that describes the workspace; missing, it is the local one.
        deferrable: Whether the gates and `keep_warm` wait in the triggerer, without a worker slot.
        default_args: Arguments for every task of the group, before the DAG's own.
        **kwargs: What every task group takes.
    """

    check: PlanRolloutOperator
    scan: ScanImageOperator | None
    roll_out: RolloutVersionOperator
    shifts: list[ShiftTrafficOperator]
    gates: list[TreatmentGateSensor]
    approvals: list[ApproveRolloutOperator]
    promote: PromoteToControlOperator
    retire_old: DeleteVersionOperator
    roll_back: RollBackOperator

    def __init__(
        self,
        group_id: str = "rollout",
        *,
        endpoint: str,
        version: str,
        image: Any,
        scan: Mapping[str, Any] | None = None,
        steps: Sequence[float] = (10, 50),
        gate: Gate | dict[str, Any] | str | None = None,
        bake: Time = timedelta(minutes=10),
        min_requests: int | str = 0,
        pass_every_step: bool | str = False,
        decision_timeout: Time = timedelta(days=1),
        on_no_decision: str = "hold",
        approval: bool = False,
        approval_settings: Mapping[str, Any] | None = None,
        interval: Time = timedelta(minutes=1),
        bin_width: Time = timedelta(minutes=1),
        allowed_lag: Time = timedelta(minutes=3),
        baseline_length: Time = timedelta(hours=1),
        keep_warm: Time = timedelta(days=1),
        keep_treatment: bool = False,
        settings: Mapping[str, Any] | str | None = None,
        auth: str = "key",
        on_conflict: str = "fail",
        conflict_timeout: Time = timedelta(hours=1),
        ready_timeout: Time = timedelta(minutes=10),
        conn_id: str = WorkspaceHook.default_conn_name,
        deferrable: bool = True,
        default_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_steps(steps)
        super().__init__(
            group_id=group_id,
            tooltip=kwargs.pop("tooltip", "A controlled rollout: canary traffic, a gate, promotion or roll-back"),
            **kwargs,
        )
        self.default_args = {**RETRIES, **self.dag.default_args, **self.default_args, **(default_args or {})}
        where: dict[str, Any] = {"endpoint": endpoint, "conn_id": conn_id}
        evidence: dict[str, Any] = {
            "gate": gate,
            "bake": bake,
            "min_requests": min_requests,
            "decision_timeout": decision_timeout,
            "on_no_decision": on_no_decision,
            "interval": interval,
            "bin_width": bin_width,
            "allowed_lag": allowed_lag,
            "baseline_length": baseline_length,
            "deferrable": deferrable,
        }
        with self:
            self.check = PlanRolloutOperator(
                task_id="check",
                **where,
                version=version,
                steps=tuple(steps),
                plan=plan_in_words(
                    endpoint, version, steps, bake=bake, min_requests=min_requests,
                    decision_timeout=decision_timeout,
                    on_no_decision=on_no_decision, keep_warm=keep_warm,
                    keep_treatment=keep_treatment, approval=approval,
                ),
                gate=gate,
                bake=bake,
                decision_timeout=decision_timeout,
                bin_width=bin_width,
                allowed_lag=allowed_lag,
                baseline_length=baseline_length,
            )  # fmt: skip
            self.scan = (
                None if scan is None else ScanImageOperator(task_id="scan", image=image, conn_id=conn_id, **scan)
            )
            scanned: Any = self.scan.output if self.scan else image
            self.roll_out = RolloutVersionOperator(
                task_id="roll_out",
                **where,
                version=version,
                image=scanned,
                settings=settings,
                auth=auth,
                on_conflict=on_conflict,
                conflict_timeout=conflict_timeout,
                timeout=ready_timeout,
            )
            self.shifts = []
            self.gates = []
            self.approvals = []
            forward: list[Any] = [self.check, *([self.scan] if self.scan else []), self.roll_out]
            for percentile in steps:
                name = f"{percentile:g}".replace(".", "_")
                # A person who was not asked leaves a skipped task behind, after which one goes on.
                shift = ShiftTrafficOperator(
                    task_id=f"shift_{name}",
                    **where,
                    version=version,
                    percentile=percentile,
                    trigger_rule=TriggerRule.NONE_FAILED if self.approvals else TriggerRule.ALL_SUCCESS,
                )
                last = percentile == steps[-1]
                gate_task = TreatmentGateSensor(
                    task_id=f"gate_{name}",
                    **where,
                    version=version,
                    require_pass=True if last else pass_every_step,
                    **evidence,
                )
                self.shifts.append(shift)
                self.gates.append(gate_task)
                forward += [shift, gate_task]
                if on_no_decision == "ask" or (approval and last):
                    ask = ApproveRolloutOperator(
                        task_id=f"ask_{name}",
                        **where,
                        version=version,
                        gate_task_id=gate_task.task_id,
                        always=approval and last,
                        **(approval_settings or {}),
                    )
                    self.approvals.append(ask)
                    forward.append(ask)
            # Skipped gates mean a first version, which promotion leaves as it is and announces; failed ones stop it.
            self.promote = PromoteToControlOperator(
                task_id="promote", **where, version=version, trigger_rule=TriggerRule.NONE_FAILED
            )
            self.retire_old = DeleteVersionOperator(
                task_id="retire_old", **where, replaced_by=version, keep_warm=keep_warm, deferrable=deferrable
            )
            self.roll_back = RollBackOperator(
                task_id="roll_back", **where, version=version, trigger_rule=TriggerRule.ONE_FAILED
            )
            forward.append(self.promote)
            for before, after in zip(forward, [*forward[1:], self.retire_old], strict=True):
                before >> after
            forward >> self.roll_back
            if not keep_treatment:
                self.roll_back >> DeleteVersionOperator(
                    task_id="retire_treatment", **where, version=version, reason="rolled back"
                )


def check_steps(steps: Sequence[float]) -> None:
    """Refuse steps that are not a ladder of percentiles.

    Raises:
        ValueError: They are none, not numbers, not ascending, or not between 0 and 100.
    """
    numbers = all(isinstance(step, (int, float)) and not isinstance(step, bool) for step in steps)
    if not steps or not numbers or not all(0 < step <= 100 for step in steps) or list(steps) != sorted(set(steps)):
        raise ValueError(f"steps={steps!r}: give ascending percentiles above 0 and up to 100, such as (10, 50)")
