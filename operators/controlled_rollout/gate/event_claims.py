"""The claims about events that are no errors, such as wrong answers: judged by their odds ratio, like errors."""

from collections.abc import Mapping

from controlled_rollout.gate.claims import ClaimResult, alarm_from, alarm_threshold, pass_from
from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.event_test import EventTest, more_frequent, not_worse
from controlled_rollout.gate.model import HAPPENED, NOT_HAPPENED, Event, Gate
from controlled_rollout.gate.restarts import at_present_share, process_starts

__all__ = ["event_claims"]


def event_claims(judged: Columns, gate: Gate) -> tuple[list[ClaimResult], list[ClaimResult]]:
    """Test for each event the alarm that the treatment has more of them, and the pass claim that it has not.

    Args:
        judged: The rollout's bins, warm-up left out.
        gate: Which events, and what is tolerated.
    """
    alarms: list[ClaimResult] = []
    passes: list[ClaimResult] = []
    spans = {first: judged.since(first) for first in process_starts(judged)} if gate.events else {}
    for name, event in gate.events.items():
        if name not in judged.categories:
            passes.append(pass_from(f"{name} is not worse", gate, 0.0, False, "no values yet"))
            continue
        tests = {first: _event_test(span, span.categories[name], gate) for first, span in spans.items()}
        present = judged.at(at_present_share(judged))
        alarms.append(_more_frequent(name, event, tests, gate))
        passes.append(_not_more_frequent(name, event, _event_test(present, present.categories[name], gate), gate))
    return alarms, passes


def _event_test(span: Columns, counts: Mapping[str, Metric], gate: Gate) -> EventTest:
    """Return the test of an event among the requests of which it is known, in place of all requests."""
    judged, happened = span.judged_by(counts, HAPPENED, NOT_HAPPENED)
    return EventTest(judged, happened, gate, 1.0)


def _more_frequent(name: str, event: Event, tests: Mapping[int, EventTest], gate: Gate) -> ClaimResult:
    """Test the alarm claim: odds of the event above the tolerated ratio, and its rate higher by more than the margin.

    Args:
        name: The metric's name.
        event: What is tolerated.
        tests: By first bin the event's test in each process.
        gate: The shares of alpha.
    """
    threshold = alarm_threshold(gate, name, latency=bool(tests[0].judged.slow))
    evidence = more_frequent(tests, ratio=event.ratio, difference=event.margin, threshold=threshold)
    test = tests[evidence.since]
    detail = f"{event.counted}: {test.rates_text()}{test.difference_text(event.margin)}"
    return alarm_from(f"{name} is worse", "alarm", evidence, threshold, detail)


def _not_more_frequent(name: str, event: Event, test: EventTest, gate: Gate) -> ClaimResult:
    """Test the pass claim: odds of the event below `pass_ratio` times control's, or an acceptable rate."""
    result = not_worse(test, event.acceptable_rate, pass_ratio=event.pass_ratio, beta=gate.beta)
    detail = (
        f"odds of {event.counted} below {event.pass_ratio:g} times control's, or rate below "
        f"{100 * event.acceptable_rate:.3g} %; {test.rates_text()}"
    )
    return pass_from(f"{name} is not worse", gate, result.peak, result.reached, detail, result.needed)
