"""A rollout as plain text: for a terminal, a ticket or a log."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from controlled_rollout.gate import Bin, Claim, Counts, describe
from controlled_rollout.record.decision import Decision
from controlled_rollout.record.metrics import compared_metrics
from controlled_rollout.record.summary import END_WORDS, RolloutSummary, spans_of, without_repetitions
from controlled_rollout.text_table import text_table

__all__ = ["text_of_steps", "text_report"]

ROWS: Final = 24


def text_report(summary: RolloutSummary) -> str:
    """Return a rollout's steps, traffic and e-values as text tables."""
    last = summary.looks[-1]
    # Its end may be long after the last look, such as after one that nobody looked at any more.
    end = max([last.until or last.time, *(step.time for step in summary.steps if step.label in END_WORDS)])
    title = (
        f"{summary.endpoint}: {summary.version} against {summary.control}, "
        f"{summary.started:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC, {summary.end}"
    )
    parts = [
        title,
        "=" * len(title),
        "",
        _steps_table(summary),
        "",
        _traffic_table(summary),
        "",
        *([_metrics_table(summary), ""] if any(map(_has_metrics, summary.bins)) else []),
        _looks_table(summary),
        "",
    ]
    verdicts = [look.verdict for look in summary.looks if look.verdict.claims]
    if verdicts:
        parts += [describe(verdicts[-1]), ""]
    parts.append(f"{last.verdict.outcome.value.replace('_', ' ')}: {last.verdict.reason}")
    if (labels := summary.by_labels) is not None:
        title = f"By labels, {labels.time:%Y-%m-%d %H:%M:%S} UTC"
        parts += ["", title, "-" * len(title), describe(labels.verdict)]
        if labels.verdict.claims:
            parts += ["", f"{labels.verdict.outcome.value.replace('_', ' ')}: {labels.verdict.reason}"]
    return "\n".join(parts) + "\n"


def text_of_steps(decisions: Iterable[Decision]) -> str:
    """Return the steps of a record as a text table: of rollouts by hand, at which no gate looked."""
    rows = (
        (
            f"{decision.time.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
            decision.version,
            decision.step.replace("_", " "),
            "" if decision.share is None else f"{decision.share:g} %",
            decision.who,
            decision.reason.partition("\n")[0],
        )
        for decision in without_repetitions(decisions)
    )
    return text_table([("time (UTC)", "version", "step", "share", "by", "reason"), *rows])


def _steps_table(summary: RolloutSummary) -> str:
    """Return a table of the rollout's steps: time, step, author and reason."""
    rows: list[tuple[str, ...]] = [("time", "step", "by", "reason")]
    for step in summary.steps:
        reason = step.reason.partition("\n")[0][:80]
        rows.append((_format_time(step.time, summary.started), step.label, step.who, reason))
    return text_table(rows, left_columns=4)


def _traffic_table(summary: RolloutSummary) -> str:
    """Return a table of both versions' requests, errors and slow requests over time."""
    quantile = summary.shown_quantile
    header = ["from", "set", "requests", "control", "errors", "control"]
    if quantile is not None:
        header += [f"beyond p{100 * summary.gate.latency_quantiles[quantile]:g}", "control"]
    rows = [tuple(header)]
    for span in spans_of(summary, most=ROWS):
        row = [
            _format_clock(span.start),
            "" if span.share is None else f"{100 * span.share:g} %",
            f"{span.treatment.requests:,}",
            f"{span.control.requests:,}",
            _format_percent(span.treatment.errors, span.treatment),
            _format_percent(span.control.errors, span.control),
        ]
        if quantile is not None:
            row += [
                _format_percent(counts.slow[quantile], counts) if counts.slow else ""
                for counts in (span.treatment, span.control)
            ]
        rows.append(tuple(row))
    return text_table(rows, left_columns=1)


def _has_metrics(bin_: Bin) -> bool:
    """Return whether a bin has values of the author's metrics."""
    return any(counts.means or counts.categories for counts in (bin_.treatment, bin_.control))


def _metrics_table(summary: RolloutSummary) -> str:
    """Return a table of the author's metrics over the whole rollout: means, and the shares of categories."""
    rows = [("metric", "treatment", "control", "difference")]
    for metric in compared_metrics(summary.bins):
        known = metric.treatment is not None and metric.control is not None
        difference = (metric.treatment or 0.0) - (metric.control or 0.0)
        shown = (f"{100 * difference:+.2f} points" if metric.is_share else f"{difference:+.4g}") if known else "-"
        rows.append(
            (
                metric.name,
                _format_value(metric.treatment, metric.is_share),
                _format_value(metric.control, metric.is_share),
                shown,
            )
        )
    return text_table(rows, left_columns=1)


def _format_value(value: float | None, is_share: bool) -> str:
    """Return a mean, or a share as per cent, as text; `-` without one."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if is_share else f"{value:.4g}"


def _looks_table(summary: RolloutSummary) -> str:
    """Return a table of the e-values: a row for each change of the outcome, and some rows in between."""
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
                (
                    _format_clock(look.time),
                    outcome.replace("_", " "),
                    *(_format_e_value(claims.get(name)) for name in names),
                )
            )
    thresholds = {claim.name: claim.threshold for look in summary.looks for claim in look.verdict.claims}
    rows.append(("", "threshold", *(f"{thresholds[name]:,.4g}" for name in names)))
    return text_table(rows, left_columns=2)


def _format_e_value(claim: Claim | None) -> str:
    """Return a claim's e-value as text, with ` !` if its threshold is reached; empty without a claim."""
    return "" if claim is None else f"{claim.e_value:,.3g}{' !' if claim.reached else ''}"


def _format_percent(events: int, counts: Counts) -> str:
    """Return events as per cent of the requests, as text; `-` without requests."""
    return f"{100 * events / counts.requests:.2f} %" if counts.requests else "-"


def _format_time(moment: datetime, started: datetime) -> str:
    """Return the time of a step: of the day on which the rollout began without the date."""
    return _format_clock(moment) if moment.date() == started.date() else f"{moment:%Y-%m-%d %H:%M}"


def _format_clock(moment: datetime) -> str:
    """Return a time of day as HH:MM:SS."""
    return f"{moment:%H:%M:%S}"
