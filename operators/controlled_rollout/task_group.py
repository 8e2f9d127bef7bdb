"""All the steps of a rollout, wired: what most DAGs use instead of the single operators."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from airflow.sdk import BaseNotifier, BaseOperator, TaskGroup, TriggerRule, chain

from controlled_rollout.checks.plan import check_steps
from controlled_rollout.defaults import (
    BAKE,
    CONFLICT_TIMEOUT,
    DECISION_TIMEOUT,
    KEEP_WARM,
    LOOK_INTERVAL,
    READY_TIMEOUT,
    RETIRE_TIMEOUT,
    ROLL_BACK_TIMEOUT,
    SILENCE,
)
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.notifications.event import notifiers_of
from controlled_rollout.operators.approval import ApproveRolloutOperator
from controlled_rollout.operators.base import rule_after_skips
from controlled_rollout.operators.group_arguments import (
    check_fixed_arguments,
    check_looks_in_time,
    check_run_has_no_timeout,
    model_of,
)
from controlled_rollout.operators.group_tasks import create_task, execution_timeout_above, own_defaults
from controlled_rollout.operators.image_scan import ScanImageOperator
from controlled_rollout.operators.promotion import PromoteToControlOperator, RollBackOperator
from controlled_rollout.operators.rollout import DeleteVersionOperator, RolloutVersionOperator
from controlled_rollout.operators.rollout_check import CheckRolloutOperator
from controlled_rollout.operators.rollout_result import RolloutResultOperator
from controlled_rollout.operators.traffic_shift import ShiftTrafficOperator
from controlled_rollout.sensors.treatment_gate import TreatmentGateSensor

__all__ = ["ControlledRollout"]

Time = timedelta | float | str
Notifiers = Sequence[BaseNotifier] | BaseNotifier

# A worker may be killed at any moment. Errors that would come again fail the task without retries anyway.
RETRIES: Final[dict[str, Any]] = {"retries": 3, "retry_delay": timedelta(seconds=10)}
# Likewise of the tasks that go back: they come soon, whatever other tasks and runs do, and are tried again.
GOING_BACK: Final[dict[str, Any]] = {
    "retry_delay": RETRIES["retry_delay"],
    "retry_exponential_backoff": 0,
    "retry_policy": None,
    "max_active_tis_per_dag": None,
    "max_active_tis_per_dagrun": None,
    "pre_execute": None,
}
# Default arguments that the group cannot honour, and why. Airflow's own value changes nothing.
REFUSED: Final[dict[str, str]] = {
    "soft_fail": "it would let a treatment go on that the gate has stopped",
    "never_fail": "it would let a treatment go on that the gate has stopped",
    "silent_fail": "it would let a treatment go on that the gate has stopped",
    "trigger_rule": "the rules of the group's tasks decide between promotion and roll-back",
}
UNCHANGED: Final = (None, False, TriggerRule.ALL_SUCCESS)
VERSION_OF_RUN: Final = "{{ task.version_of_run(dag_run) }}"
WINDOW: Final = EvidenceWindow()


class ControlledRollout(TaskGroup):
    """Rolls a version out in steps, each behind a gate; promotes it, or rolls it back.

    `check → roll_out → shift_10 → gate_10 → … → promote → retire_old`, and on any failure `roll_back →
    retire_treatment`. The gates before the last need only that nothing alarms; the last one must pass. On
    hold the gate waits for a person, and goes on looking. A rollout that somebody else has ended is not rolled back. On
    the first version of a new endpoint the shifts and gates are skipped: there is nothing to compare with.

    Tasks after the group follow its task `result`, which succeeds after a promotion, fails after everything else, and
    is skipped if what comes before the group has skipped it. They do not wait for `keep_warm`.

    Times may be timedeltas, seconds, or text such as `5 min` or `PT5M`; all arguments but `steps`, `approval`,
    `keep_treatment`, `on_hold`, `on_promoted`, `on_rolled_back`, `deferrable`, the mappings `scan` and
    `approval_settings` themselves, and the group's own may be templates. `on_deadline` may be one, but not for `ask`.

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
        decision_timeout: How long each gate may wait; where waiting cannot help, `bake` and `baseline_length` together.
        on_deadline: What a gate does after that: `hold`; `roll_back` when there was evidence but not enough
            (else it holds); or `ask`, which adds a task after each gate that asks a person, with the evidence.
        unseen_timeout: On hold, how long no look may be able to see the evidence before the treatment is rolled back;
            None keeps it for as long as the hold lasts.
        on_hold, on_promoted, on_rolled_back: Notifiers, such as `RolloutNotifier`: called when the rollout goes on hold
            (no task fails then), when the version is promoted, when it is rolled back or could not be. What they raise
            changes nothing.
        approval: Whether a person has to approve the promotion even after a pass.
        approval_settings: Further arguments of the tasks that ask a person (see `ApproveRolloutOperator`), such as
            `assigned_users`, `notifiers` or `response_timeout`.
        interval: The time between two looks at the evidence.
        bin_width, allowed_lag, baseline_length: How the evidence is read (see `EvidenceWindow`).
        keep_warm: How long the former control stays after the promotion.
        keep_treatment: Whether a treatment that was rolled back stays, at 0 %, to be inspected.
        settings: Further fields of the version (see `RolloutVersionOperator`).
        mlflow_alias: The alias in MLflow's registry that moves to the version's model when the version becomes control,
            such as `champion`, and back to the former control's model when that takes its place again.
        mlflow_model: The version's model there, `models:/<name>/<version>`; by default the one that the
            `BuildImageOperator` which makes `image` has put into it.
        sticky: By what a new endpoint's callers stay with a version, such as `header:x-user`; None splits at random.
        on_silence: What the local supervisor, or the agent in the cluster, does with a treatment that has traffic and
            that nobody has looked at for `silence`, such as when Airflow is gone: `roll_back` or `keep`.
        silence: How long that is: twice `interval` at least, and more than Airflow takes to start the next task.
        on_conflict, conflict_timeout: `fail` or `wait` while another run holds the endpoint, and for how long.
        auth: How callers of a new endpoint authenticate: `key`, `token`, `none`, or an issuer of tokens as a mapping.
            None is `key`; an endpoint that exists keeps what it has, and `check` refuses another one.
        ready_timeout: How long the version may take to become ready.
        roll_back_timeout: How long a try of `roll_back` goes on while the target does not answer or refuses, or the
            router does not serve the new split. That task and `retire_treatment` have three retries at least and an
            `execution_timeout` above their time-outs, whatever `default_args` say.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        deferrable: Whether the gates and `keep_warm` wait in the triggerer, without a worker slot.
        default_args: Airflow's arguments for every task of the group, before the DAG's own. `trigger_rule`, and what
            would hide a failed gate, are refused here and in the DAG's.
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
    result: RolloutResultOperator
    subject: tuple[str, Any, Any]

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
        unseen_timeout: Time | None = None,
        on_hold: Notifiers = (),
        on_promoted: Notifiers = (),
        on_rolled_back: Notifiers = (),
        approval: bool = False,
        approval_settings: Mapping[str, Any] | None = None,
        interval: Time = LOOK_INTERVAL,
        bin_width: Time = WINDOW.bin_width,
        allowed_lag: Time = WINDOW.allowed_lag,
        baseline_length: Time = WINDOW.baseline_length,
        keep_warm: Time = KEEP_WARM,
        keep_treatment: bool = False,
        settings: Mapping[str, Any] | str | None = None,
        mlflow_alias: str | None = None,
        mlflow_model: str | None = None,
        sticky: str | None = None,
        on_silence: str = "roll_back",
        silence: Time = SILENCE,
        auth: Mapping[str, Any] | str | None = None,
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
        check_looks_in_time(on_silence, silence, interval)
        check_fixed_arguments(
            flags={"approval": approval, "keep_treatment": keep_treatment, "deferrable": deferrable},
            mappings={"scan": scan, "approval_settings": approval_settings},
            asks=approval or on_deadline == "ask",
        )
        super().__init__(
            group_id=group_id,
            tooltip=kwargs.pop("tooltip", "A controlled rollout: canary traffic, a gate, promotion or roll-back"),
            **kwargs,
        )
        check_default_args(self.dag.default_args, {**self.default_args, **(default_args or {})})
        check_run_has_no_timeout(self.dag)
        self.default_args = {**RETRIES, **self.dag.default_args, **self.default_args, **(default_args or {})}
        version = VERSION_OF_RUN if version is None else version
        on_endpoint: dict[str, Any] = {"endpoint": endpoint, "conn_id": conn_id, "version": version}
        looks: dict[str, Any] = {
            "gate": gate,
            "bake": bake,
            "min_requests": min_requests,
            "decision_timeout": decision_timeout,
            "on_deadline": on_deadline,
            "unseen_timeout": unseen_timeout,
            "interval": interval,
            "bin_width": bin_width,
            "allowed_lag": allowed_lag,
            "baseline_length": baseline_length,
        }
        creation: dict[str, Any] = {
            "settings": settings,
            "mlflow_alias": mlflow_alias,
            "mlflow_model": mlflow_model,
            "auth": auth,
            "sticky": sticky,
            "on_silence": on_silence,
            "silence": silence,
            "on_conflict": on_conflict,
            "conflict_timeout": conflict_timeout,
        }
        self.subject = (conn_id, endpoint, version)
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
                    # What another task makes is not there yet.
                    **({"image": image} if image is None or isinstance(image, str) else {}),
                    "roll_back_timeout": roll_back_timeout,
                },
                steps=tuple(steps),
                approval=approval,
                asks=on_deadline == "ask",
                keep_treatment=keep_treatment,
            )
            scanned: Any = self.scan.output if self.scan else image  # only what was scanned can be rolled out
            self.roll_out = create_task(
                RolloutVersionOperator,
                "roll_out",
                **on_endpoint,
                **{**creation, "mlflow_model": model_of(image, mlflow_alias, mlflow_model)},
                image=scanned,
                timeout=ready_timeout,
            )
            self._add_steps(
                steps,
                on_endpoint,
                {**looks, "on_hold": on_hold, "deferrable": deferrable},
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
                on_promoted=notifiers_of("on_promoted", on_promoted),
                on_rolled_back=notifiers_of("on_rolled_back", on_rolled_back),
            )
        self._add_group_names()

    def _add_group_names(self) -> None:
        """Give the tasks of all groups that roll out the same version on the same endpoint their group's name.

        Else they would be one owner, and what fails in one group would roll back what another one has rolled out.
        """
        groups = self.dag.task_group.get_task_group_dict().values()
        same = [group for group in groups if isinstance(group, type(self)) and group.subject == self.subject]
        for group in same if len(same) > 1 else []:
            for task in group:
                task.rollout_label = group.group_id

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
            self.scan = create_task(ScanImageOperator, "scan", scan, image=image, conn_id=on_endpoint["conn_id"])
        self.check = CheckRolloutOperator(
            **{**own_defaults(CheckRolloutOperator), **on_endpoint, **options},
            task_id="check",
            trigger_rule=TriggerRule.ALL_SUCCESS,
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
            # A task that did not need to ask is skipped, and the rollout goes on after it.
            rule = rule_after_skips(self) if self.approvals else TriggerRule.ALL_SUCCESS
            shift = create_task(
                ShiftTrafficOperator, f"shift_{name}", **on_endpoint, percentile=percentile, trigger_rule=rule
            )
            gate = create_task(
                TreatmentGateSensor,
                f"gate_{name}",
                **on_endpoint,
                require_pass=True if is_last else pass_every_step,
                **looks,
            )
            self.shifts.append(shift)
            self.gates.append(gate)
            if looks["on_deadline"] == "ask" or (approval and is_last):
                ask = create_task(
                    ApproveRolloutOperator,
                    f"ask_{name}",
                    approval_settings,
                    **on_endpoint,
                    gate_task_id=gate.task_id,
                    always=approval and is_last,
                )
                self.approvals.append(ask)

    # Long because every ending has its own rule, and says why.
    def _add_endings(
        self,
        on_endpoint: Mapping[str, Any],
        *,
        needs_approval: bool,
        keep_warm: Time,
        keep_treatment: bool,
        roll_back_timeout: Time,
        deferrable: bool,
        on_promoted: Sequence[BaseNotifier],
        on_rolled_back: Sequence[BaseNotifier],
    ) -> None:
        """Create the tasks that end a rollout, and connect all tasks."""
        endpoint = {name: value for name, value in on_endpoint.items() if name != "version"}
        self.promote = create_task(
            PromoteToControlOperator,
            "promote",
            **on_endpoint,
            needs_approval=needs_approval,
            trigger_rule=rule_after_skips(self),  # the gates of a first version are skipped, and it is promoted
            **self._callbacks("on_success_callback", on_promoted),
        )
        waits: Any = {"keep_warm": keep_warm, "deferrable": deferrable, "execution_timeout": None}  # it may take days
        self.retire_old = create_task(
            DeleteVersionOperator,
            "retire_old",
            **endpoint,
            replaced_by=on_endpoint["version"],
            trigger_rule=TriggerRule.ALL_DONE_SETUP_SUCCESS,
            **waits,
        )
        # What comes after the group does not wait for a teardown. It asks the endpoint, so it may run after anything.
        self.retire_old.as_teardown(on_failure_fail_dagrun=True)
        going_back = {**GOING_BACK, "retries": max(RETRIES["retries"], int(self.default_args["retries"] or 0))}
        self.roll_back = create_task(
            RollBackOperator,
            "roll_back",
            **on_endpoint,
            roll_back_timeout=roll_back_timeout,
            trigger_rule=TriggerRule.ONE_FAILED,
            execution_timeout=execution_timeout_above(roll_back_timeout),
            **self._callbacks("on_success_callback", on_rolled_back),
            **self._callbacks("on_failure_callback", on_rolled_back),
            **going_back,
        )
        self.result = create_task(
            RolloutResultOperator,
            "result",
            **on_endpoint,
            # Runs when everything is settled, after a roll-back too; skipped, or failed, with the group's first task.
            trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        )
        self._connect()
        self.roll_back >> self.result
        if not keep_treatment:
            retirement = create_task(
                DeleteVersionOperator,
                "retire_treatment",
                **on_endpoint,
                reason="rolled back",
                execution_timeout=execution_timeout_above(RETIRE_TIMEOUT),
                **going_back,
            )
            self.roll_back >> retirement >> self.result

    def _callbacks(self, kind: str, notifiers: Sequence[BaseNotifier]) -> dict[str, Any]:
        """Return the argument of a task that calls notifiers, beside the callbacks of `default_args`."""
        given = self.default_args.get(kind) or []
        own = list(given) if isinstance(given, list | tuple) else [given]
        return {kind: [*own, *notifiers]} if notifiers else {}

    def _connect(self) -> None:
        """Connect the tasks that go forward with each other, and with those that follow them."""
        by_gate = {ask.gate_task_id: ask for ask in self.approvals}
        forward: list[BaseOperator] = [self.check, *([self.scan] if self.scan else []), self.roll_out]
        for shift, gate in zip(self.shifts, self.gates, strict=True):
            forward += [shift, gate]
            if ask := by_gate.get(gate.task_id):
                forward.append(ask)
        chain(*forward, self.promote, self.retire_old)
        # Where a question may be skipped, what comes after it goes on only if the task before the question succeeded.
        for gate, shift in zip(self.gates, self.shifts[1:], strict=False):
            if gate.task_id in by_gate:
                gate >> shift
        self.roll_out >> self.promote
        [*forward, self.promote] >> self.roll_back
        # `roll_back` is skipped only once `promote` has succeeded: `result` waits for both.
        self.check >> self.result


def check_default_args(of_dag: Mapping[str, Any], of_group: Mapping[str, Any]) -> None:
    """Raise ValueError for default arguments that the group cannot honour.

    Args:
        of_dag: The DAG's `default_args`.
        of_group: The group's own.

    Raises:
        ValueError: One would change what a failed gate means, or is an argument of the rollout itself.
    """
    for whose, arguments in (("DAG", of_dag), ("group", of_group)):
        for name, reason in REFUSED.items():
            if arguments.get(name) not in UNCHANGED:
                raise ValueError(
                    f"default_args of the {whose} have {name}={arguments[name]!r}, which ControlledRollout cannot "
                    f"honour: {reason}. Give it to the tasks that it is meant for"
                )
    operators = (RolloutVersionOperator, ShiftTrafficOperator, TreatmentGateSensor, DeleteVersionOperator)
    own = {name for operator in operators for name in own_defaults(operator)} | {"endpoint", "version", "image"}
    if misplaced := sorted(own & of_group.keys()):
        raise ValueError(
            f"default_args of the group have {', '.join(misplaced)}: give that to ControlledRollout itself, if it is "
            "one of its arguments; default_args are for Airflow's own, such as retries or queue"
        )
