"""The forecast: what each step of a rollout can show at the present traffic, before the rollout begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout.checks.plan import RolloutPlan
from controlled_rollout.errors import ControlledRolloutError, EndpointNotFoundError, EvidenceError
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate, power
from controlled_rollout.workspace import Workspace

__all__ = ["ControlTraffic", "forecast", "forecast_of_plan", "read_control_traffic"]

# With fewer requests the error rate that was measured says little: a usual one is assumed instead.
MIN_REQUESTS: Final = 1_000
USUAL_ERROR_RATE: Final = 0.005


@dataclass(frozen=True, slots=True)
class ControlTraffic:
    """The requests that control has answered just before a rollout.

    Attributes:
        requests: The number of requests.
        errors: How many of them were errors.
        period: The length of time in which they came.
    """

    requests: int
    errors: int
    period: timedelta


async def forecast_of_plan(workspace: Workspace, plan: RolloutPlan, *, gate: Gate, window: EvidenceWindow) -> str:
    """Return what each step of a plan can show at control's present traffic as text, or why that is not known.

    A rollout does not need it, and a connectivity check says better what does not work.

    Args:
        workspace: Where the endpoint and its evidence are.
        plan: The rollout.
        gate: What the version has to show.
        window: How the evidence is read.
    """
    try:
        traffic = await read_control_traffic(workspace, plan.endpoint, plan.version, gate=gate, window=window)
    except ControlledRolloutError as error:
        reason, _, _ = str(error).partition("\n")
        return f"Forecast: not known: {reason}"
    return forecast(gate, plan.steps, traffic, bake=plan.bake, decision_timeout=plan.decision_timeout)


async def read_control_traffic(
    workspace: Workspace, endpoint: str, version: str, *, gate: Gate, window: EvidenceWindow
) -> ControlTraffic | None:
    """Read control's traffic of the last `window.baseline_length` from the metric store; None if there is no control.

    Args:
        workspace: Where the endpoint and its evidence are.
        endpoint: The endpoint's name.
        version: The version that will be rolled out.
        gate: What the version will have to show; decides which counts are read.
        window: How the evidence is read.

    Returns:
        The traffic; None if there is no control to compare `version` with.

    Raises:
        EvidenceUnavailableError: The metric store cannot be read.
        TargetUnavailableError: The target does not answer.
    """
    from controlled_rollout.evidence import EvidenceQuery, evidence_source
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        try:
            control = (await target.endpoint(endpoint)).control
        except EndpointNotFoundError:
            return None
        if control is None or control.name == version:
            return None
        clusters = (await target.status(endpoint, inspect=False)).clusters
    now = datetime.now(UTC)
    query = EvidenceQuery(
        endpoint=endpoint,
        control=control.name,
        treatment=version,
        started=now,
        now=now,
        window=window,
        splits=(),
        # The author's metrics are not part of a forecast.
        gate=gate.model_copy(update={"means": {}, "categories": {}}),
        clusters={version: "-", **clusters},  # the version does not exist yet: no cluster has this name
    )
    evidence = await evidence_source(workspace).read(query)
    counts = [evidence_bin.control for evidence_bin in evidence.baseline]
    period = evidence.until - (now - window.baseline_length)
    return ControlTraffic(sum(count.requests for count in counts), sum(count.errors for count in counts), period)


def forecast(
    gate: Gate, steps: Sequence[float], traffic: ControlTraffic | None, *, bake: timedelta, decision_timeout: timedelta
) -> str:
    """Return a text of what each rollout step can detect at control's present traffic, one line per step.

    Args:
        gate: What the treatment will have to show.
        steps: The treatment's per cent at each step.
        traffic: Control's present traffic; None for the first version of an endpoint.
        bake: The least time at each step, counted in evidence that was seen.
        decision_timeout: The most time at each step; counts where `bake` is 0.
    """
    if gate.unit == "user":
        return (
            "Forecast: not known where users are counted: a step shows as much as there are users whom it draws anew, "
            "however many requests they send."
        )
    if traffic is None:
        return "Forecast: none, because the first version of an endpoint has nothing to be compared with, and no gate."
    if not traffic.requests or traffic.period <= timedelta(0):
        return (
            "Forecast: not known, because the metric store has no requests to control. Send some before the rollout: "
            "without them latency is not judged."
        )
    measured = traffic.requests >= MIN_REQUESTS
    error_rate = traffic.errors / traffic.requests if measured else USUAL_ERROR_RATE
    requests_per_second = traffic.requests / traffic.period.total_seconds()
    errors = f"{100 * error_rate:.3g} % of them errors" if measured else f"errors assumed to be {100 * error_rate:g} %"
    lines = [f"Forecast: what the steps can show at control's present {requests_per_second:.3g} requests/s, {errors}:"]
    for step in steps:
        if step >= 100:
            lines.append(
                f"  at {step:g} %: compared with control's last requests, as it gets none then: an alarm needs "
                f"more than {gate.pass_ratio:g} times its odds of an error, a pass errors of at most "
                f"{100 * gate.acceptable_error_rate:g} %"
            )
            continue
        try:
            step_power = power(
                gate,
                share=step / 100,
                requests_per_second=requests_per_second,
                error_rate=error_rate,
                within=bake or decision_timeout,
                latency=bool(gate.latency_quantiles),
            )
        except EvidenceError as error:
            lines.append(f"  at {step:g} %: {error}")
        else:
            lines.append(f"  {step_power}")
    return "\n".join(lines)
