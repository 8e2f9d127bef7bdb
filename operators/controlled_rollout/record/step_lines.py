"""The lines of steps that a record lacks, made from the endpoint's revisions. Pure.

A step stores its revision first and its line after that: it may be killed in between, or the record may be away. Every
revision says who made it and why, so whoever appends next appends the missing lines as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record.decision import Decision, Step
from controlled_rollout.target.protocol import Revision

__all__ = ["STEPS", "StepMark", "lines_with", "missing_lines", "steps_of"]

# Steps that store a revision.
STEPS: Final = ("deploy", "shift", "promote", "roll_back", "retire")


@dataclass(frozen=True, slots=True)
class StepMark:
    """Which step a line of the record is about.

    Attributes:
        revision: The revision that the step led to.
        step: Its name.
        version: The version that it is about.
        time: The line's time. An endpoint of the same name that was deleted had the same revision numbers earlier.
    """

    revision: int
    step: str
    version: str
    time: datetime

    @classmethod
    def of(cls, decision: Decision) -> Self | None:
        """Return the mark of a line; None if it is not about a step that stores a revision."""
        if decision.step not in STEPS or decision.revision is None:
            return None
        return cls(decision.revision, decision.step, decision.version, decision.time)


def lines_with(decision: Decision, history: Sequence[Revision], recorded: Sequence[StepMark]) -> list[Decision]:
    """Return what to append so that the record has a decision and all steps before it, oldest first.

    The decision itself is left out if it is a step that the record has already: its task was killed after it had
    appended the line, or somebody else has made the line from the revision. If somebody else has taken that very step,
    it is in the record as theirs.

    Args:
        decision: The decision.
        history: The endpoint's revisions, oldest first, as the decision knows them; empty if it knows none.
        recorded: The steps in the record, oldest first.
    """
    mark = StepMark.of(decision)
    missing = missing_lines(history, recorded)
    if mark is None or not history:
        return [*missing, decision]
    present = _of_this_endpoint(history, recorded)
    if any((mark.revision, mark.step, mark.version) == (one.revision, one.step, one.version) for one in present):
        return missing
    # The step has found everything done, such as a roll-back what was taken back before: it is whose revision it is.
    done = [line for line in missing if StepMark.of(line) == replace(mark, time=line.time)]
    decision = next((line for line in done if line.who != decision.who), decision)
    # Its own line says more exactly which step it was than one that is made from the revision.
    older = [line for line in missing if (line.revision or 0) < mark.revision]
    newer = [line for line in missing if (line.revision or 0) > mark.revision]
    return [*older, decision, *newer]


def missing_lines(history: Sequence[Revision], recorded: Sequence[StepMark]) -> list[Decision]:
    """Return the lines of the steps that the record lacks, oldest first: those after the newest step that it has.

    Args:
        history: The endpoint's revisions, oldest first.
        recorded: The steps in the record, oldest first.
    """
    newest = max((mark.revision for mark in _of_this_endpoint(history, recorded)), default=0)
    missing: list[Decision] = []
    before: Endpoint | None = None
    for revision in history:
        # What the oldest kept revision has changed is not known, unless it is the first.
        if revision.number > newest and (before is not None or revision.number == 1):
            missing.extend(steps_of(before, revision))
        before = revision.endpoint
    return missing


def steps_of(before: Endpoint | None, revision: Revision) -> list[Decision]:
    """Return the steps that have made a revision from the endpoint before it; none for other changes of an endpoint.

    Args:
        before: The endpoint before it; None for the first revision.
        revision: The revision.
    """
    return [
        Decision.about(
            revision.endpoint,
            version,
            step=step,
            who=revision.change.who,
            reason=revision.change.reason,
            time=revision.created,
        )
        for step, version in _steps_between(before or Endpoint(name=revision.endpoint.name), revision.endpoint)
    ]


def _steps_between(before: Endpoint, after: Endpoint) -> Iterator[tuple[Step, str]]:
    """Yield the name and the version of each step between two revisions."""
    created = [name for name in after.versions if name not in before.versions]
    deleted = [name for name in before.versions if name not in after.versions]
    yield from (("deploy", name) for name in created)
    yield from (("retire", name) for name in deleted)
    if created or deleted:
        return
    held, holds = before.rollout, after.rollout
    if after.control is not None and (before.control is None or before.control.name != after.control.name):
        yield "promote", after.control.name
    elif holds is not None and (held is None or held.version != holds.version):
        yield "deploy", holds.version
    elif held is not None and holds is None:
        yield "promote" if after.versions[held.version].is_control else "roll_back", held.version
    else:
        # A roll-back ends a rollout, if there is one; without one, to have no traffic any more is one as well.
        to_nothing: Step = "shift" if after.rollout else "roll_back"
        percent = after.effective_traffic()
        yield from (("shift" if percent[name] else to_nothing, name) for name in _shifted_versions(before, after))


def _shifted_versions(before: Endpoint, after: Endpoint) -> list[str]:
    """Return the versions whose traffic was shifted between two revisions: the others get what is left."""
    then = before.effective_traffic()
    changed = [name for name, percent in after.effective_traffic().items() if percent != then[name]]
    if after.rollout is not None and after.rollout.version in changed:
        return [after.rollout.version]
    return [name for name in changed if not after.versions[name].is_default]


def _of_this_endpoint(history: Sequence[Revision], recorded: Sequence[StepMark]) -> list[StepMark]:
    """Return the marks that are about these revisions, and not about those of a deleted endpoint of the same name."""
    return [mark for mark in recorded if history and mark.time >= history[0].created]
