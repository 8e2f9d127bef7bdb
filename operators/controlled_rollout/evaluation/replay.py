"""Judge the looks of a record again and compare with what was decided then."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from controlled_rollout.errors import EvidenceError
from controlled_rollout.evaluation.conclusion import conclude
from controlled_rollout.gate import Verdict, verdict_from_dict
from controlled_rollout.record import Decision, LookInput
from controlled_rollout.record.reconstruction import recorded_looks

__all__ = ["ReplayedLook", "replay"]

# Two machines may round a long sum of logarithms differently in its last digits.
TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class ReplayedLook:
    """One look of a record, judged again.

    Attributes:
        decision: The look as it was recorded.
        look: What its verdict rests on; None where it could not read the metric store, or the record is damaged.
        verdict: What follows from that now; None likewise.
        difference: How the verdict differs from the recorded one, or what is damaged in the record; empty if nothing.
    """

    decision: Decision
    look: LookInput | None = None
    verdict: Verdict | None = None
    difference: str = ""


def replay(decisions: Iterable[Decision]) -> Iterator[ReplayedLook]:
    """Yield the looks of one part of a record, each with the verdict that the present gate gives for its evidence.

    Args:
        decisions: The part's decisions, oldest first; every part can be replayed by itself.
    """
    for recorded in recorded_looks(decisions):
        if recorded.look is None:
            yield ReplayedLook(recorded.decision, difference=recorded.problem)
        else:
            verdict = conclude(recorded.look)
            yield ReplayedLook(
                recorded.decision, recorded.look, verdict, _verdict_difference(recorded.decision, verdict)
            )


def _verdict_difference(decision: Decision, now: Verdict) -> str:
    """Return in words how a new verdict differs from the recorded one; empty if both agree."""
    if decision.outcome != now.outcome.value:
        return f"outcome {decision.outcome}, now {now.outcome.value}"
    try:
        then = verdict_from_dict(decision.verdict or {})
    except EvidenceError as error:
        return str(error)
    if [claim.name for claim in then.claims] != [claim.name for claim in now.claims]:
        return f"claims {[claim.name for claim in then.claims]}, now {[claim.name for claim in now.claims]}"
    for old, new in zip(then.claims, now.claims, strict=True):
        same = math.isclose(old.e_value, new.e_value, rel_tol=TOLERANCE)
        if (old.reached, old.threshold) != (new.reached, new.threshold) or not same:
            return (
                f"{old.name!r} e-value {old.e_value!r} of {old.threshold!r} ({'' if old.reached else 'not '}reached), "
                f"now {new.e_value!r} of {new.threshold!r} ({'' if new.reached else 'not '}reached)"
            )
    requests_then = (then.control_requests, then.treatment_requests)
    requests_now = (now.control_requests, now.treatment_requests)
    return "" if requests_then == requests_now else f"requests {requests_then}, now {requests_now}"
