"""The charts of a rollout: a treatment against its control, in as many points as a chart can show. Pure."""

import math
from typing import Final

from controlled_rollout.gate import Claim, Gate
from controlled_rollout.record.summary import end_of
from controlled_rollout.view.models import (
    ClaimSeries,
    Comparison,
    LookEntry,
    Mark,
    QuantileThreshold,
    VerdictExplanation,
    VersionCounts,
)
from controlled_rollout.view.rollout_series import LookPoint, RolloutSeries
from controlled_rollout.view.runs import run_of_author
from controlled_rollout.view.sentences import claim_meaning, verdict_explanation, verdict_sentence
from controlled_rollout.visible_text import short_text, visible_text

__all__ = ["POINTS", "comparison"]

# As many points as a chart has.
POINTS: Final = 200
MARKS: Final = 100
# What matters of an e-value is where it crosses its threshold; JSON has no infinity.
LARGEST: Final = 1e6
LONGEST_REASON: Final = 1_000


def comparison(series: RolloutSeries) -> Comparison | None:
    """Return the charts of the newest rollout that a gate has looked at; None if no look could see.

    Args:
        series: What was read of the record.
    """
    settings, counts = series.settings, series.counts
    if settings is None or counts is None:
        return None
    spans, quantiles = counts.spans(POINTS), _quantiles(series.thresholds_ms, settings.gate)
    points = list(series.chart_looks())
    marks = _marks(series)
    return Comparison(
        treatment=settings.treatment,
        control=settings.control,
        started=settings.started,
        end=end_of(mark.label for mark in marks),
        times=tuple(span.start for span in spans),
        span_seconds=counts.span_width(POINTS),
        quantiles=quantiles,
        treatment_counts=_version_counts([span.treatment for span in spans], len(quantiles)),
        control_counts=_version_counts([span.control for span in spans], len(quantiles)),
        shares=tuple(None if span.share is None else 100 * span.share for span in spans),
        look_times=tuple(point.time.timestamp() for point in points),
        outcomes=tuple(point.outcome for point in points),
        claims=_claims(series, points),
        marks=marks[-MARKS:],
        verdict=_verdict(series),
        looks=_looks(series),
        look_count=series.look_count,
    )


def _quantiles(thresholds_ms: tuple[float, ...], gate: Gate) -> tuple[QuantileThreshold, ...]:
    """Return control's quantiles from before the rollout; none if latency is not judged."""
    return tuple(
        QuantileThreshold(quantile=quantile, threshold_ms=threshold, usual=1 - quantile)
        for quantile, threshold in zip(gate.latency_quantiles, thresholds_ms, strict=False)
    )


def _version_counts(counts: list[tuple[int, ...]], quantiles: int) -> VersionCounts:
    """Return a version's counts over time: requests, and of them the shares that failed or were slow."""

    def share(position: int) -> tuple[float | None, ...]:
        """Return the share of what is counted at a position, for each span."""
        return tuple(round(one[position] / one[0], 6) if one[0] else None for one in counts)

    return VersionCounts(
        requests=tuple(one[0] for one in counts),
        error_rate=share(1),
        slower=tuple(share(2 + quantile) for quantile in range(quantiles)),
    )


def _claims(series: RolloutSeries, points: list[LookPoint]) -> tuple[ClaimSeries, ...]:
    """Return the evidence for each claim of the newest look, over the looks."""
    claims = series.verdict.claims if series.verdict else ()
    gate = series.settings.gate if series.settings else Gate()
    return tuple(_claim(claim, gate, points) for claim in claims)


def _claim(claim: Claim, gate: Gate, points: list[LookPoint]) -> ClaimSeries:
    """Return the evidence for one claim over the looks."""
    about_data = any(name in claim.name for name in (*gate.means, *gate.categories, *gate.expectation_names))
    return ClaimSeries(
        name=visible_text(claim.name),
        kind=claim.kind,
        about_data=about_data,
        threshold=min(claim.threshold, LARGEST),
        reached=claim.reached,
        e_values=tuple(_e_value(point.e_values.get(claim.name)) for point in points),
        detail=short_text(claim.detail, most=LONGEST_REASON),
        needed_requests=claim.needed_requests,
        meaning=claim_meaning(claim),
    )


def _e_value(value: float | None) -> float | None:
    """Return an e-value as a chart shows it: of few digits, and finite."""
    if value is None or math.isnan(value):
        return None
    return float(f"{min(value, LARGEST):.4g}")


def _marks(series: RolloutSeries) -> tuple[Mark, ...]:
    """Return the steps of the rollout, oldest first."""
    settings = series.settings
    return tuple(
        Mark(
            time=step.time.timestamp(),
            label=visible_text(step.label),
            who=visible_text(step.who),
            reason=short_text(step.reason, most=LONGEST_REASON),
            run=run_of_author(step.who),
        )
        for step in series.steps
        if settings is not None and step.version == settings.treatment and step.time >= settings.started
    )


def _verdict(series: RolloutSeries) -> VerdictExplanation | None:
    """Return the newest look's verdict, explained; None without one."""
    verdict, settings = series.verdict, series.settings
    if verdict is None or settings is None or series.looked is None:
        return None
    return VerdictExplanation(
        outcome=verdict.outcome.value,
        sentence=verdict_sentence(verdict.outcome, treatment=settings.treatment, control=settings.control),
        explanation=tuple(visible_text(sentence) for sentence in verdict_explanation(verdict)),
        reason=short_text(verdict.reason, most=LONGEST_REASON),
        time=series.looked,
    )


def _looks(series: RolloutSeries) -> tuple[LookEntry, ...]:
    """Return the newest looks, the newest first."""
    return tuple(
        LookEntry(
            time=look.time,
            outcome=look.outcome,
            reason=short_text(look.reason, most=LONGEST_REASON),
            share=look.share,
            control_requests=look.control_requests,
            treatment_requests=look.treatment_requests,
        )
        for look in reversed(series.newest)
    )
