"""A rollout as plain text: for a terminal, a ticket or a log."""

from datetime import datetime
from typing import Final

from controlled_rollout.gate import Claim, Counts, describe
from controlled_rollout.record.course import Course, spans_of
from controlled_rollout.text_table import text_table

__all__ = ["text_report"]

ROWS: Final = 24


def text_report(course: Course) -> str:
    """Return what happened: the steps, what callers saw over time, and what the gate concluded."""
    last = course.looks[-1]
    end = course.looks[-1].until or last.time
    title = (
        f"{course.endpoint}: {course.version} against {course.control}, "
        f"{course.started:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC, {course.end}"
    )
    parts = [title, "=" * len(title), "", _steps(course), "", _traffic(course), "", _looks(course), ""]
    seen = [look for look in course.looks if look.verdict.claims]
    if seen:
        parts += [describe(seen[-1].verdict), ""]
    parts.append(f"{last.verdict.outcome.value.replace('_', ' ')}: {last.verdict.reason}")
    return "\n".join(parts) + "\n"


def _steps(course: Course) -> str:
    rows: list[tuple[str, ...]] = [("time", "step", "by", "why"), *(
        (_clock(event.time), event.label, event.who, event.why.partition("\n")[0][:80]) for event in course.events
    )]  # fmt: skip
    return text_table(rows, left_columns=4)


def _traffic(course: Course) -> str:
    slow = course.slow_index
    header = ["from", "set", "requests", "control", "errors", "control"]
    if slow is not None:
        header += [f"beyond p{100 * course.gate.latency_quantiles[slow]:g}", "control"]
    rows = [tuple(header)]
    for span in spans_of(course, most=ROWS):
        row = [
            _clock(span.start),
            "" if span.share is None else f"{100 * span.share:g} %",
            f"{span.treatment.requests:,}",
            f"{span.control.requests:,}",
            _part(span.treatment.errors, span.treatment),
            _part(span.control.errors, span.control),
        ]
        if slow is not None:
            row += [_part(one.slow[slow], one) if one.slow else "" for one in (span.treatment, span.control)]
        rows.append(tuple(row))
    return text_table(rows, left_columns=1)


def _looks(course: Course) -> str:
    """The e-values at the looks that changed something, and at some in between."""
    names = list(dict.fromkeys(claim.name for look in course.looks for claim in look.verdict.claims))
    rows = [("look", "outcome", *names)]
    every = max(1, len(course.looks) // ROWS)
    outcome = ""
    for number, look in enumerate(course.looks):
        changed = look.verdict.outcome.value != outcome
        outcome = look.verdict.outcome.value
        if changed or number % every == 0 or number == len(course.looks) - 1:
            claims = {claim.name: claim for claim in look.verdict.claims}
            rows.append(
                (_clock(look.time), outcome.replace("_", " "), *(_evidence(claims.get(name)) for name in names))
            )
    thresholds = {claim.name: claim.threshold for look in course.looks for claim in look.verdict.claims}
    rows.append(("", "threshold", *(f"{thresholds[name]:,.4g}" for name in names)))
    return text_table(rows, left_columns=2)


def _evidence(claim: Claim | None) -> str:
    return "" if claim is None else f"{claim.e_value:,.3g}{' !' if claim.reached else ''}"


def _part(events: int, counts: Counts) -> str:
    return f"{100 * events / counts.requests:.2f} %" if counts.requests else "-"


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}"
