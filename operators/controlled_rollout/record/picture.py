"""A rollout as a picture: traffic, errors, latency and evidence over one time axis, with the thresholds drawn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.gate import Claim, Counts
from controlled_rollout.record.metrics import most_different_category
from controlled_rollout.record.summary import RolloutSummary, Span, spans_of
from controlled_rollout.visible_text import short_text

__all__ = ["FORMATS", "draw"]

FORMATS: Final = (".png", ".svg", ".pdf")
SPANS: Final = 120
# Rates of few requests scatter: they are drawn from more bins together.
COARSE_SPANS: Final = 40
# More of the author's metrics do not fit into one picture.
METRIC_PANELS: Final = 4
# Distinguishable by colour-blind people too (Okabe and Ito's palette).
CONTROL: Final = "#0072B2"
TREATMENT: Final = "#D55E00"
BAD: Final = "#CC79A7"
CLAIMS: Final = {
    "alarm": ("-", ("#D55E00", "#E69F00", "#CC79A7", "#882255")),
    "pass": (":", ("#009E73", "#56B4E9", "#0072B2", "#117733")),
    "split": ("-.", ("#000000", "#777777")),
}
# e-values beyond are drawn here: what matters is where they cross their thresholds.
LARGEST: Final = 1e6
# Steps so much later than the last look, or as much as the looks lasted, are not in the picture.
LATER_STEPS: Final = timedelta(hours=1)


def draw(summary: RolloutSummary, file: Path) -> None:
    """Draw a rollout's traffic, errors, latency and evidence over time into a PNG, SVG or PDF file.

    Raises:
        ControlledRolloutError: The file's name has another ending, or matplotlib is not installed.
    """
    if file.suffix.lower() not in FORMATS:
        raise ControlledRolloutError(f"{file} has no ending that can be drawn: give one of {', '.join(FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ControlledRolloutError(
            "pictures need the package matplotlib: install airflow-provider-controlled-rollout with the extra report"
        ) from error
    # Labels may come weeks after the rollout: it would be a line beside them.
    last = summary.looks[-1].time
    shown = last + max(last - summary.started, LATER_STEPS)
    summary = replace(summary, steps=tuple(step for step in summary.steps if step.time <= shown))
    panels = [
        _draw_traffic,
        _draw_errors,
        *([_draw_latency] if summary.shown_quantile is not None else []),
        *_metric_panels(summary),
        _draw_evidence,
    ]
    heights = [2.0] * (len(panels) - 1) + [3.2]
    figure = Figure(figsize=(11, 1.2 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        panel(axis, summary)
        axis.grid(True, axis="y", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        _mark_steps_and_blind_times(axis, summary)
    _label_steps(axes[0], summary)
    _label_time(axes[-1], summary)
    figure.suptitle(
        f"{summary.endpoint}: {summary.version} against {summary.control} – {summary.end}",
        x=0.01,
        ha="left",
        weight="bold",
    )
    figure.savefig(file, dpi=130)


def _draw_traffic(axis: Any, summary: RolloutSummary) -> None:
    """Draw both versions' requests per second over time."""
    spans = spans_of(summary, most=SPANS)
    for name, colour, treatment in ((summary.control, CONTROL, False), (summary.version, TREATMENT, True)):
        points: list[tuple[datetime, float]] = []
        for span, gap in _with_gaps(spans):
            rate = _version_counts(span, treatment).requests / span.length.total_seconds()
            points += [(span.start, rate), (span.start + span.length, math.nan if gap else rate)]
        times, rates = zip(*points, strict=True) if points else ((), ())
        axis.step(times, rates, where="post", color=colour, label=name, linewidth=1.6)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("requests/s")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def _draw_errors(axis: Any, summary: RolloutSummary) -> None:
    """Draw both versions' per cent of failed requests over time."""
    _draw_rates(axis, summary, lambda counts: counts.errors)
    axis.set_ylabel("errors, %")


def _draw_latency(axis: Any, summary: RolloutSummary) -> None:
    """Draw both versions' per cent of requests slower than one of control's latency quantiles."""
    index = summary.shown_quantile
    assert index is not None  # noqa: S101 - else this panel is not drawn
    _draw_rates(axis, summary, lambda counts: counts.slow[index] if counts.slow else 0)
    quantile = summary.gate.latency_quantiles[index]
    usual = 100 * (1 - quantile)
    axis.axhline(usual, color=CONTROL, linestyle=(0, (1, 2)), linewidth=1)
    axis.text(
        1.005, usual, f"{usual:.3g} % before\nthe rollout", transform=axis.get_yaxis_transform(), fontsize=8,
        va="center", color=CONTROL,
    )  # fmt: skip
    axis.set_ylabel(f"slower than control's\np{100 * quantile:g} ({summary.thresholds_ms[index]:.3g} ms), %")


def _metric_panels(summary: RolloutSummary) -> Sequence[Callable[[Any, RolloutSummary], None]]:
    """Return what draws the author's metrics: the means, and of categories the one that differs most; a few of them."""
    every = [counts for bin_ in summary.bins for counts in (bin_.treatment, bin_.control)]
    means = sorted({name for counts in every for name in counts.means})
    categories = sorted({name for counts in every for name in counts.categories})
    panels = [partial(_draw_mean, name=name) for name in means]
    panels += [partial(_draw_category, name=name) for name in categories]
    return panels[:METRIC_PANELS]


def _draw_mean(axis: Any, summary: RolloutSummary, *, name: str) -> None:
    """Draw both versions' mean of a metric over time."""
    _draw_values(axis, summary, lambda counts: counts.means[name].mean if name in counts.means else None)
    axis.set_ylabel(f"{name}, mean")


def _draw_category(axis: Any, summary: RolloutSummary, *, name: str) -> None:
    """Draw both versions' per cent of the category that differs most."""
    category = most_different_category(summary.bins, name)

    def share(counts: Counts) -> float | None:
        """Return the category's per cent; None without values."""
        tally = counts.categories.get(name, {})
        number = sum(tally.values())
        return 100 * tally.get(category or "", 0) / number if number else None

    _draw_values(axis, summary, share)
    # A dollar sign would begin a formula.
    axis.set_ylabel(f"{name}, %:\n{short_text(category or '')}".replace("$", r"\$"))


def _draw_rates(axis: Any, summary: RolloutSummary, events: Callable[[Counts], int]) -> None:
    """Draw the per cent of events of each version over time."""
    _draw_values(axis, summary, lambda counts: 100 * events(counts) / counts.requests if counts.requests else None)
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))


def _draw_values(axis: Any, summary: RolloutSummary, value: Callable[[Counts], float | None]) -> None:
    """Draw a value of each version over time, where it has one; a larger dot stands for more requests."""
    spans = spans_of(summary, most=COARSE_SPANS)
    most = max((counts.requests for span in spans for counts in (span.control, span.treatment)), default=1) or 1
    for colour, treatment in ((CONTROL, False), (TREATMENT, True)):
        points: list[tuple[datetime, float, int]] = []
        known = [span for span in spans if value(_version_counts(span, treatment)) is not None]
        for span, gap in _with_gaps(known):
            counts = _version_counts(span, treatment)
            points.append((span.start + span.length / 2, value(counts) or 0.0, counts.requests))
            if gap:
                points.append((span.start + span.length, math.nan, 0))
        if points:
            times, parts, requests = zip(*points, strict=True)
            axis.plot(times, parts, color=colour, linewidth=1.0, alpha=0.6)
            axis.scatter(times, parts, s=[6 + 30 * number / most for number in requests], color=colour, linewidths=0)


def _draw_evidence(axis: Any, summary: RolloutSummary) -> None:
    """Draw the e-value of each claim on a logarithmic axis, with its threshold and a dot where it is reached."""
    claims: dict[str, list[tuple[datetime, Claim]]] = {}
    for look in summary.looks:
        for claim in look.verdict.claims:
            claims.setdefault(claim.name, []).append((look.until or look.time, claim))
    labelled: dict[float, list[str]] = {}
    drawn = dict.fromkeys(CLAIMS, 0)
    for name, points in sorted(claims.items(), key=lambda item: list(CLAIMS).index(item[1][-1][1].kind)):
        style, colours = CLAIMS[points[-1][1].kind]
        colour = colours[drawn[points[-1][1].kind] % len(colours)]
        drawn[points[-1][1].kind] += 1
        times = [time for time, _ in points]
        values = [min(claim.e_value, LARGEST) for _, claim in points]
        axis.step(times, values, where="post", color=colour, linestyle=style, linewidth=1.8, label=name)
        reached = next(
            ((time, value) for (time, claim), value in zip(points, values, strict=True) if claim.reached), None
        )
        if reached:
            axis.plot(*reached, marker="o", color=colour, markersize=7)
        threshold = points[-1][1].threshold
        axis.axhline(threshold, color="#555555", linestyle="--", linewidth=0.8)
        labelled.setdefault(threshold, []).append(name)
    for threshold, names in labelled.items():
        axis.text(
            1.005, threshold, f"{threshold:,.4g}: {_short_claim_names(names)}", transform=axis.get_yaxis_transform(),
            fontsize=8, va="center",
        )  # fmt: skip
    axis.set_yscale("log")
    highest = max((min(claim.e_value, LARGEST) for points in claims.values() for _, claim in points), default=1.0)
    axis.set_ylim(0.8, 1.5 * max(10 * max(labelled, default=10.0), highest))
    axis.set_ylabel("evidence (e-value)" + ("\nup to a million" if highest >= LARGEST else ""))
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def _mark_steps_and_blind_times(axis: Any, summary: RolloutSummary) -> None:
    """Draw a vertical line for each step, and shade the times in which the gate could not judge."""
    for step in summary.steps:
        axis.axvline(step.time, color="#888888", linewidth=0.8)
    for start, end in _blind_times(summary):
        axis.axvspan(start, end, color=BAD, alpha=0.18, linewidth=0)


def _blind_times(summary: RolloutSummary) -> list[tuple[datetime, datetime]]:
    """Return the times from each look that could not judge to the next one that could."""
    spans: list[tuple[datetime, datetime]] = []
    begun: datetime | None = None
    for look in summary.looks:
        blind = look.verdict.outcome.value in ("cannot_see", "split_is_wrong")
        if blind and begun is None:
            begun = look.time
        if not blind and begun is not None:
            spans.append((begun, look.time))
            begun = None
    if begun is not None:
        spans.append((begun, summary.looks[-1].time))
    return spans


def _label_steps(axis: Any, summary: RolloutSummary) -> None:
    """Write the steps' names above the picture; names that would overlap go into further rows."""
    if not summary.steps:
        return
    first, last = summary.steps[0].time, max(summary.steps[-1].time, summary.looks[-1].time)
    width = max((last - first).total_seconds(), 1.0)
    ends: list[float] = []
    for step in summary.steps:
        place = (step.time - first).total_seconds() / width
        row = next((row for row, end in enumerate(ends) if place >= end), len(ends))
        ends[row : row + 1] = [place + 0.012 * (len(step.label) + 1)]
        axis.annotate(
            step.label, (step.time, 1.0), xycoords=("data", "axes fraction"), xytext=(2, 3 + 11 * row),
            textcoords="offset points", fontsize=8, color="#444444",
        )  # fmt: skip


def _label_time(axis: Any, summary: RolloutSummary) -> None:
    """Format the time axis, and explain the shaded times if there are any."""
    from matplotlib import dates

    locator: Any = dates.AutoDateLocator()  # type: ignore[no-untyped-call] # matplotlib's
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    blind = " – shaded: the gate could not see, or the split was not what was set" if _blind_times(summary) else ""
    axis.set_xlabel(f"UTC{blind}", fontsize=9)


def _with_gaps(spans: Sequence[Span]) -> list[tuple[Span, bool]]:
    """Return each span with whether a gap without counts follows it; no line is drawn across a gap."""
    after = [*(span.start for span in spans[1:]), None]
    return [
        (span, following is not None and following > span.start + 2 * span.length)
        for span, following in zip(spans, after, strict=True)
    ]


def _version_counts(span: Span, treatment: bool) -> Counts:
    """Return the treatment's or control's counts of a span."""
    return span.treatment if treatment else span.control


def _short_claim_names(names: Sequence[str]) -> str:
    """Return a short label for claims that share a threshold, such as "alarms and passes"."""
    words_by_end = {
        "is higher": "alarms",
        "is lower": "alarms",
        "are higher": "alarms",
        "not worse": "passes",
        "is wrong": "split",
    }
    words = dict.fromkeys(
        next((word for end, word in words_by_end.items() if name.endswith(end)), name) for name in names
    )
    return " and ".join(words)
