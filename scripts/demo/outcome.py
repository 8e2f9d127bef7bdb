"""How the demo ended: one line, and whether it ended as it should. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from scripts.demo.plan import Fault
from scripts.demo.report import LoadReport

__all__ = ["End", "Ending", "conclude"]


@dataclass(frozen=True)
class Ending:
    """Everything that says how the run ended.

    Attributes:
        fault: What was wrong with the treatment; None for nothing.
        outage: Whether the telemetry store was taken away.
        control: The control that the demo began with.
        run_state: The DAG run's last state.
        decisions: The record of the endpoint, oldest first.
        endpoint: The endpoint's newest revision.
        report: The load generator's last report.
        seconds: How long the demo took until the version was promoted or rolled back.
    """

    fault: Fault | None
    outage: bool
    control: str
    run_state: str
    decisions: Sequence[Decision]
    endpoint: Endpoint
    report: LoadReport
    seconds: float


@dataclass(frozen=True)
class End:
    """The demo's last words.

    Attributes:
        evidence: The numbers behind a roll-back in words; empty after a promotion.
        counts: The requests and failures of each version, in a line.
        result: The result line.
        as_expected: Whether it ended as it should.
    """

    evidence: str
    counts: str
    result: str
    as_expected: bool


def conclude(ending: Ending) -> End:
    """Return what the demo says last."""
    treatment = _treatment(ending)
    problems = _problems(ending, treatment)
    promoted = any(decision.step == "promote" and decision.version == treatment for decision in ending.decisions)
    rolled_back = any(decision.step == "roll_back" and decision.version == treatment for decision in ending.decisions)
    report = ending.report
    if promoted:
        said = (
            f"promoted {treatment} to control in {ending.seconds:.1f} s; "
            f"{report.requests} requests, {report.failed} failed"
        )
    elif rolled_back:
        said = f"rolled back {treatment}: {cause(ending.decisions, treatment)}"
    else:
        said = f"neither promoted nor rolled back: the run of the DAG ended as {ending.run_state!r}"
        problems = problems or [said]
    if problems and problems != [said]:
        said += ", but " + "; ".join(problems)
    details = [f"{claim['name']}: {claim['detail']}" for claim in _alarmed(ending.decisions, treatment)]
    return End("; ".join(details), _counts(ending), f"result: {said}", not problems)


def cause(decisions: Sequence[Decision], version: str) -> str:
    """Return why a version was rolled back: the claim that alarmed with its number, else the reason in the record."""
    if alarmed := _alarmed(decisions, version):
        return "; ".join(
            f"{claim['name']}, e-value {number(claim['e_value'])} of {number(claim['threshold'])}" for claim in alarmed
        )
    for decision in reversed(decisions):
        if decision.version == version and decision.step == "roll_back":
            why = " ".join(decision.why.split())
            return why.removeprefix(f"version {version!r} of endpoint {decision.endpoint!r} ")
    return "nobody said why"


def _alarmed(decisions: Sequence[Decision], version: str) -> list[dict[str, Any]]:
    """Return the claims that made a look fail."""
    for decision in reversed(decisions):
        if decision.version == version and decision.step == "look" and decision.outcome == "fail":
            claims = (decision.verdict or {}).get("claims", [])
            return [claim for claim in claims if claim["kind"] == "alarm" and claim["reached"]]
    return []


def number(value: float | str) -> str:
    """Write an e-value: the record writes an infinite one as text."""
    value = float(value)
    if math.isinf(value):
        return "infinite"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def _treatment(ending: Ending) -> str:
    """Return the version that the run rolled out."""
    others = [decision.version for decision in ending.decisions if decision.version != ending.control]
    return others[-1] if others else "no version"


def _problems(ending: Ending, treatment: str) -> list[str]:
    """Return what should not be; empty when the demo went as it should."""
    problems = []
    control = ending.endpoint.control.name if ending.endpoint.control else "none"
    expected = ending.control if ending.fault else treatment
    if control != expected:
        problems.append(f"the control is {control!r} and not {expected!r}")
    elif (share := ending.endpoint.effective_traffic()[expected]) != 100:
        problems.append(f"{expected!r} has {share:g} % of the traffic, not 100")
    if ending.endpoint.rollout is not None:
        problems.append(f"the endpoint is still held by {ending.endpoint.rollout.owner}")
    own = ending.report.failed_of(treatment) if ending.fault else 0
    if foreign := ending.report.failed - own:
        problems.append(f"{foreign} requests failed" + (" that were not the treatment's" if ending.fault else ""))
    if not ending.report.requests:
        problems.append("no request was answered")
    blind = any(decision.outcome == "cannot_see" for decision in ending.decisions)
    if ending.outage and not blind:
        problems.append("no look at the evidence said that it cannot see")
    if not ending.fault and ending.run_state != "success":
        problems.append(f"the run of the DAG ended as {ending.run_state!r}")
    return problems


def _counts(ending: Ending) -> str:
    parts = []
    for name, version in ending.report.versions.items():
        kinds = ", ".join(f"{count} × {kind}" for kind, count in sorted(version.failures.items()))
        parts.append(f"{name} {version.requests} requests, {version.failed} failed" + (f" ({kinds})" if kinds else ""))
    return "counts: " + "; ".join(parts)
