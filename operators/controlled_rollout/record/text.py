"""A rollout as plain text: for a terminal, a ticket or a log."""

from datetime import datetime
from typing import Final

from controlled_rollout.gate import Claim, Counts, describe
from controlled_rollout.record.summary import RolloutSummary, spans_of
from controlled_rollout.text_table import text_table

__all__ = ["text_report"]

ROWS: Final = 24


def text_report(summary: RolloutSummary) -> str:
    """Return a rollout's steps, its traffic over time, and the gate's claims, as text."""
    last = summary.looks[-1]
    end = last.until or last.time
    title = (
        f"{summary.endpoint}: {summary.version} against {summary.control}, "
        f"{summary.started:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC, {summary.end}"
    )
    parts = [title, "=" * len(title), "", _steps(summary), "", _traffic(summary), "", _looks(summary), ""]
    verdicts = [look.verdict for look in summary.looks if look.verdict.claims]
    if verdicts:
        parts += [describe(verdicts[-1]), ""]
    parts.append(f"{last.verdict.outcome.value.replace('_', ' ')}: {last.verdict.reason}")
    return "\n".join(parts) + "\n"


def _steps(summary: RolloutSummary) -> str:
    rows: list[tuple[str, ...]] = [("time", "step", "by", "why"), *(
        (_clock(step.time), step.label, step.who, step.why.partition("\n")[0][:80]) for step in summary.steps
    )]  # fmt: skip
    return text_table(rows, left_columns=4)


def _traffic(summary: RolloutSummary) -> str:
    quantile = summary.shown_quantile
    header = ["from", "set", "requests", "control", "errors", "control"]
    if quantile is not None:
        header += [f"beyond p{100 * summary.gate.latency_quantiles[quantile]:g}", "control"]
    rows = [tuple(header)]
    for span in spans_of(summary, most=ROWS):
        row = [
            _clock(span.start),
            "" if span.share is None else f"{100 * span.share:g} %",
            f"{span.treatment.requests:,}",
            f"{span.control.requests:,}",
            _percent(span.treatment.errors, span.treatment),
            _percent(span.control.errors, span.control),
        ]
        if quantile is not None:
            row += [
                _percent(counts.slow[quantile], counts) if counts.slow else ""
                for counts in (span.treatment, span.control)
            ]
        rows.append(tuple(row))
    return text_table(rows, left_columns=1)


def _looks(summary: RolloutSummary) -> str:
    """Return a table of the e-values at the looks that changed the outcome, and at some in between."""
    names = list(dict.fromkeys(claim.name for look in summary.looks for claim in look.verdict.claims))
    rows = [("look", "outcome", *names)]
    every = max(1, len(summary.looks) // ROWS)
    outcome = ""
    for number, look in enumerate(summary.looks):
        changed = look.verdict.outcome.value != outcome
        outcome = look.verdict.outcome.value
        if changed or number % every == 0 or number == len(summary.looks) - 1:
            claims = {claim.name: claim for claim in look.verdict.claims}
            rows.append(
                (_clock(look.time), outcome.replace("_", " "), *(_evidence(claims.get(name)) for name in names))
            )
    thresholds = {claim.name: claim.threshold for look in summary.looks for claim in look.verdict.claims}
    rows.append(("", "threshold", *(f"{thresholds[name]:,.4g}" for name in names)))
    return text_table(rows, left_columns=2)


def _evidence(claim: Claim | None) -> str:
    return "" if claim is None else f"{claim.e_value:,.3g}{' !' if claim.reached else ''}"


def _percent(events: int, counts: Counts) -> str:
    return f"{100 * events / counts.requests:.2f} %" if counts.requests else "-"


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}"
