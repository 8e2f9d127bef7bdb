"""How the demo ended, in one line, and whether that is the expected end. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from scripts.demo.load_report import LoadReport
from scripts.demo.settings import Fault

__all__ = ["DemoFacts", "DemoResult", "conclude", "evidence_text", "format_e_value", "undecided_because"]


@dataclass(frozen=True)
class DemoFacts:
    """What is known when the run has ended.

    Attributes:
        fault: What was wrong with the treatment; None for nothing.
        outage: Whether the telemetry store was stopped for a while.
        control: The control that the demo began with.
        run_state: The DAG run's last state.
        decisions: The record of the endpoint, oldest first.
        endpoint: The endpoint's newest revision.
        report: The load generator's last report.
        anew: That it was rolled out anew, and why; empty if it was not.
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
    anew: str = ""


@dataclass(frozen=True)
class DemoResult:
    """What the demo prints at its end.

    Attributes:
        evidence: That it was rolled out anew, and the evidence for a roll-back, in words; empty where there is neither.
        counts: A line with the requests and failures of each version.
        last_line: How it ended.
        as_expected: Whether the demo ended as it should.
    """

    evidence: str
    counts: str
    last_line: str
    as_expected: bool


def conclude(facts: DemoFacts) -> DemoResult:
    """Return what the demo prints at its end."""
    treatment = _treatment(facts)
    problems = _problems(facts, treatment)
    decided = {decision.step for decision in facts.decisions if decision.version == treatment}
    if "promote" in decided:
        ending = (
            f"promoted {treatment} to control in {facts.seconds:.1f} s; "
            f"{facts.report.requests} requests, {facts.report.failed} failed"
        )
    elif "roll_back" in decided:
        ending = f"rolled back {treatment}: {roll_back_cause(facts.decisions, treatment)}"
        if facts.anew and undecided_because(facts.decisions):
            ending += " (the second time: run the demo again while nothing else on this machine begins or ends)"
    else:
        ending = f"neither promoted nor rolled back: the run of the DAG ended as {facts.run_state!r}"
        problems = problems or [ending]
    if problems and problems != [ending]:
        ending += ", but " + "; ".join(problems)
    details = [f"{claim['name']}: {claim['detail']}" for claim in _alarms(facts.decisions, treatment)]
    return DemoResult(
        "\n".join(filter(None, (facts.anew, "; ".join(details)))),
        _counts(facts.report),
        f"result: {ending}",
        not problems,
    )


def undecided_because(decisions: Sequence[Decision]) -> str:
    """Return why the newest rollout was rolled back without a decision about its version; empty if it was not.

    Args:
        decisions: The record of the endpoint, oldest first.
    """
    back = next((decision for decision in reversed(decisions) if decision.step in ("promote", "roll_back")), None)
    if back is None or back.step != "roll_back":
        return ""
    looks = (one for one in reversed(decisions) if one.step == "look" and one.version == back.version)
    look = next(looks, None)
    if look is None or look.outcome != "not_enough_evidence":
        return ""
    # What to do follows each reason: it is done here.
    reasons: list[str] = (look.verdict or {}).get("needs_new_rollout", [])
    return "; ".join(reason.partition(";")[0] for reason in reasons)


def roll_back_cause(decisions: Sequence[Decision], version: str) -> str:
    """Return why a version was rolled back: the claims that alarmed with their e-values, else the recorded reason."""
    if alarms := _alarms(decisions, version):
        return "; ".join(f"{claim['name']}, e-value {evidence_text(claim)}" for claim in alarms)
    for decision in reversed(decisions):
        if decision.version == version and decision.step == "roll_back":
            reason = " ".join(decision.reason.split())
            return reason.removeprefix(f"version {version!r} of endpoint {decision.endpoint!r} ")
    return "no reason is recorded"


def _alarms(decisions: Sequence[Decision], version: str) -> list[dict[str, Any]]:
    """Return the claims that made the newest failed look fail."""
    for decision in reversed(decisions):
        if decision.version == version and decision.step == "look" and decision.outcome == "fail":
            claims = (decision.verdict or {}).get("claims", [])
            return [claim for claim in claims if claim["kind"] == "alarm" and claim["reached"]]
    return []


def evidence_text(claim: Mapping[str, Any]) -> str:
    """Return a claim's e-value and threshold, such as `29,598 of 2,000`."""
    return f"{format_e_value(claim['e_value'])} of {format_e_value(claim['threshold'])}"


def format_e_value(value: float | str) -> str:
    """Return an e-value in few digits; the record holds an infinite one as text."""
    value = float(value)
    if math.isinf(value):
        return "infinite"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def _treatment(facts: DemoFacts) -> str:
    """Return the version that the run rolled out."""
    treatments = [decision.version for decision in facts.decisions if decision.version != facts.control]
    return treatments[-1] if treatments else "no version"


def _problems(facts: DemoFacts, treatment: str) -> list[str]:
    """Return what is not as expected; empty if all is."""
    problems = []
    control = facts.endpoint.control.name if facts.endpoint.control else "none"
    expected = facts.control if facts.fault else treatment
    if control != expected:
        problems.append(f"the control is {control!r} and not {expected!r}")
    elif (share := facts.endpoint.effective_traffic()[expected]) != 100:
        problems.append(f"{expected!r} has {share:g} % of the traffic, not 100")
    if facts.endpoint.rollout is not None:
        problems.append(f"the endpoint is still held by {facts.endpoint.rollout.owner}")
    expected_failures = facts.report.failed_of(treatment) if facts.fault else 0
    if unexpected_failures := facts.report.failed - expected_failures:
        suffix = " that were not sent to the treatment" if facts.fault else ""
        problems.append(f"{unexpected_failures} requests failed{suffix}")
    if not facts.report.requests:
        problems.append("no request was answered")
    saw_outage = any(decision.outcome == "cannot_see" for decision in facts.decisions)
    if facts.outage and not saw_outage:
        problems.append("no look had the outcome cannot_see")
    if not facts.fault and facts.run_state != "success":
        problems.append(f"the run of the DAG ended as {facts.run_state!r}")
    return problems


def _counts(report: LoadReport) -> str:
    parts = []
    for name, version in report.versions.items():
        part = f"{name} {version.requests} requests, {version.failed} failed"
        failures = ", ".join(f"{count} × {error}" for error, count in sorted(version.failures.items()))
        parts.append(f"{part} ({failures})" if failures else part)
    return "counts: " + "; ".join(parts)
