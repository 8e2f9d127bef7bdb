"""The plan of a rollout, logged before anything happens: its steps, and what each of them can show."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.arguments import duration, gate_of
from controlled_rollout.errors import ControlledRolloutError, EvidenceError
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate, power
from controlled_rollout.operators.connectivity import CheckConnectivityOperator
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["PlanRolloutOperator", "Time", "Traffic", "plan_in_words", "power_in_words", "traffic_of"]

Time = timedelta | float | str

IN_WORDS: Final = {
    "hold": "it holds, and a person decides",
    "roll_back": "it goes back to 0 %, or holds if the evidence could not be seen",
    "ask": "it asks a person",
}
# Fewer say too little of how often control fails.
ENOUGH_REQUESTS: Final = 1_000
USUAL_ERROR_RATE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Traffic:
    """What control has to do before a rollout.

    Attributes:
        requests: How many requests were counted.
        errors: How many of them were errors.
        length: In how long.
    """

    requests: int
    errors: int
    length: timedelta


class PlanRolloutOperator(CheckConnectivityOperator):
    """Logs what a rollout will do and what each step can show, then checks that everything it needs answers.

    What a step can show depends on the traffic: it is read from the workspace's evidence, control's last
    `baseline_length`. Where there is none yet, the plan says so and goes on.

    Args:
        version: The version that will be rolled out.
        steps: The treatment's per cent at each step.
        gate: What the treatment has to show.
        bake, decision_timeout: How long a gate looks at least, and at most.
        bin_width, allowed_lag, baseline_length: How the evidence is read.
        **kwargs: What `CheckConnectivityOperator` takes.
    """

    template_fields = (
        *CheckConnectivityOperator.template_fields,
        "version",
        "gate",
        "bake",
        "decision_timeout",
        "bin_width",
        "allowed_lag",
        "baseline_length",
    )

    def __init__(
        self,
        *,
        version: str,
        steps: Sequence[float],
        gate: Gate | dict[str, Any] | str | None = None,
        bake: Time = timedelta(minutes=10),
        decision_timeout: Time = timedelta(days=1),
        bin_width: Time = timedelta(minutes=1),
        allowed_lag: Time = timedelta(minutes=3),
        baseline_length: Time = timedelta(hours=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.version = version
        self.steps = steps
        self.gate = gate
        self.bake = bake
        self.decision_timeout = decision_timeout
        self.bin_width = bin_width
        self.allowed_lag = allowed_lag
        self.baseline_length = baseline_length

    async def step(self, context: "Context", workspace: Workspace) -> None:
        """Log the plan, then check."""
        gate, bake = gate_of(self.gate), duration("bake", self.bake)
        decision_timeout = duration("decision_timeout", self.decision_timeout)
        try:
            traffic = await traffic_of(
                workspace,
                self.endpoint,
                self.version,
                gate=gate,
                window=EvidenceWindow(
                    bin_width=duration("bin_width", self.bin_width),
                    allowed_lag=duration("allowed_lag", self.allowed_lag),
                    baseline_length=duration("baseline_length", self.baseline_length),
                ),
            )
            shown = power_in_words(gate, self.steps, traffic, bake=bake, decision_timeout=decision_timeout)
        except ControlledRolloutError as error:
            # Nothing depends on the forecast: the checks below say what is missing.
            first_line, _, _ = str(error).partition("\n")
            shown = f"What the steps can show is not known: {first_line}"
        self.say(f"{self.plan}\n{shown}")
        self.plan = ""
        await super().step(context, workspace)


async def traffic_of(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    gate: Gate,
    window: EvidenceWindow,
) -> Traffic | None:
    """Return what control has had to do lately; None for an endpoint that does not exist or is at its first version.

    Raises:
        EvidenceUnavailableError: The store cannot be read.
        TargetUnavailableError: The target does not answer.
    """
    from controlled_rollout.errors import EndpointNotFoundError
    from controlled_rollout.evidence import Question, evidence_source
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        try:
            control = (await target.endpoint(endpoint)).control
        except EndpointNotFoundError:
            return None
        if control is None or control.name == version:
            return None
        clusters = (await target.status(endpoint)).clusters
    now = datetime.now(UTC)
    question = Question(
        endpoint=endpoint,
        control=control.name,
        treatment=version,
        started=now,
        now=now,
        window=window,
        splits=(),
        gate=gate.model_copy(update={"means": {}, "categories": {}}),
        clusters={version: "-", **clusters},  # the version is not there yet: nothing is counted under this name
    )
    evidence = await evidence_source(workspace).read(question)
    counted = [one.control for one in evidence.baseline]
    length = evidence.until - (now - window.baseline_length)
    return Traffic(sum(one.requests for one in counted), sum(one.errors for one in counted), length)


def power_in_words(
    gate: Gate, steps: Sequence[float], traffic: Traffic | None, *, bake: timedelta, decision_timeout: timedelta
) -> str:
    """Return what each step can show at the present traffic, one line a step."""
    if traffic is None:
        return "It is the first version: there is nothing to compare with, and no gate."
    if not traffic.requests or traffic.length <= timedelta(0):
        return "What the steps can show is not known: control has had no requests that the evidence knows of."
    known = traffic.requests >= ENOUGH_REQUESTS
    rate = traffic.errors / traffic.requests if known else USUAL_ERROR_RATE
    per_second = traffic.requests / traffic.length.total_seconds()
    said = f"{100 * rate:.3g} % of them errors" if known else f"errors taken to be {100 * rate:g} %"
    lines = [f"What the steps can show, at control's {per_second:.3g} requests/s of late, {said}:"]
    for step in steps:
        if step >= 100:
            lines.append(f"  at {step:g} %: nothing, because control has no requests to compare with")
            continue
        try:
            shown = power(
                gate,
                share=step / 100,
                requests_per_second=per_second,
                error_rate=rate,
                within=bake or decision_timeout,
                latency=bool(gate.latency_quantiles),
            )
        except EvidenceError as error:
            lines.append(f"  at {step:g} %: {error}")
        else:
            lines.append(f"  {shown}")
    return "\n".join(lines)


def plan_in_words(
    endpoint: str,
    version: str,
    steps: Sequence[float],
    *,
    bake: Time,
    min_requests: int | str,
    decision_timeout: Time,
    on_no_decision: str,
    keep_warm: Time,
    keep_treatment: bool,
    approval: bool = False,
) -> str:
    """Return what the rollout will do, for a person to read before it happens."""
    stops = "\n".join(
        f"  {number}. send {step:g} % of the requests to it; go on after {bake} and {min_requests} requests"
        + (", when the gate passes" if step == steps[-1] else ", unless a claim alarms")
        for number, step in enumerate(steps, start=2)
    )
    after = len(steps) + 2
    return (
        f"The plan for version {version} of endpoint {endpoint}:\n"
        f"  1. create it at 0 % and wait until it is ready (the first version of an endpoint takes all the traffic, "
        f"and steps 2 to {after - 1} are left out)\n"
        f"{stops}\n"
        f"  {after}. {'when a person approves, ' if approval else ''}promote it to control with all the traffic\n"
        f"  {after + 1}. delete the former control after {keep_warm}\n"
        f"A gate without a decision after {decision_timeout}: {IN_WORDS.get(on_no_decision, on_no_decision)}. "
        "After a failure: back to 0 % at once"
        + (", and the version stays to be looked at." if keep_treatment else ", and the version is deleted.")
    )
