"""The pictures about what is counted: quantiles instead of means, errors in bursts, telemetry that comes late."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from controlled_rollout.gate import Bin, Gate, judge
from tests.benchmarks.gate import vectorised_gate
from tests.benchmarks.gate.explained.evidence import HALF_HOURS, e_value, verdicts
from tests.benchmarks.gate.explained.panels import BAD, BLUE, GOOD, GREY, Bars, Line, Panel, picture
from tests.benchmarks.gate.traffic import BASELINE_MINUTES, MINUTES, Cell, simulate, thresholds_ms

HANGS, HANGS_MS = 0.0004, 30_000.0
RUNS = 500
LAG = 3


def quantiles() -> tuple[str, str]:
    """Draw the mean duration of two versions that are alike, and the part that is slower than control's p95."""
    rng = np.random.default_rng(21)
    minutes = list(range(1, MINUTES + 1))
    limit = float(thresholds_ms((0.95,))[0])
    means, slow = [], []
    for requests in (1500, 150):
        durations = 100.0 * np.exp(0.6 * rng.standard_normal((MINUTES, requests)))
        durations[rng.random(durations.shape) < HANGS] = HANGS_MS
        means.append(durations.mean(axis=1))
        slow.append((durations > limit).mean(axis=1))
    names = ("control", "treatment, as good as control")
    styles = tuple(zip(names, (GREY, GOOD), strict=True))
    panels = [
        Panel(
            "Mean duration in each minute, ms",
            (0, MINUTES),
            (0, 400),
            HALF_HOURS,
            [(float(tick), str(tick)) for tick in range(0, 401, 100)],
            [Line(minutes, y.tolist(), colour, name) for y, (name, colour) in zip(means, styles, strict=True)],
        ),
        Panel(
            "Requests slower than control's p95 from before the rollout, in each minute",
            (0, MINUTES),
            (0, 0.2),
            HALF_HOURS,
            [(0.0, "0 %"), (0.05, "5 %"), (0.1, "10 %"), (0.15, "15 %"), (0.2, "20 %")],
            [Line(minutes, y.tolist(), colour, name) for y, (name, colour) in zip(slow, styles, strict=True)],
        ),
    ]
    figures = f"highest mean of a minute {means[1].max():.0f} ms, median {np.median(means[1]):.0f} ms"
    return picture(panels), figures


def bursts(runs: int = RUNS) -> tuple[str, str]:
    """Draw errors that come in bursts in both versions, and the evidence with and without the discount for them."""
    cell = Cell("bursts", 300, True, bursts=True)
    traffic = simulate(cell, runs, np.random.default_rng(22))
    calm = simulate(replace(cell, bursts=False), runs, np.random.default_rng(23)).before
    blind = replace(traffic, before=calm)
    failed = vectorised_gate.looks(traffic).failed < MINUTES
    undiscounted = vectorised_gate.looks(blind).failed < MINUTES
    # One that shows the difference; how often it happens is in the figures.
    run = int(np.flatnonzero(undiscounted & ~failed)[0])
    bins, baseline = vectorised_gate.bins_of(traffic, run)
    _, without = vectorised_gate.bins_of(blind, run)
    paths = [
        _path(bins, without, BAD, "without a discount"),
        _path(bins, baseline, GOOD, "discounted by what control did before the rollout"),
    ]
    detail = next(c.detail for c in judge(bins, Gate(), baseline=baseline).claims if c.name == "errors are higher")
    before = [-float(BASELINE_MINUTES - minute) for minute in range(BASELINE_MINUTES)]
    both = [*before, *(float(minute) for minute in range(MINUTES))]
    ticks = ((-60.0, "−60 min"), (-30.0, "−30 min"), *HALF_HOURS)
    panels = [
        Panel(
            "Errors in each minute; the rollout begins at 0",
            (-BASELINE_MINUTES, MINUTES),
            (0, 30),
            ticks,
            [(0.0, "0"), (10.0, "10"), (20.0, "20"), (30.0, "30")],
            [
                Line(
                    both,
                    [*traffic.before.errors[run], *traffic.control.errors[run]],
                    GREY,
                    "control (270 requests a minute)",
                ),
                Line(
                    both[BASELINE_MINUTES:],
                    traffic.treatment.errors[run].tolist(),
                    BLUE,
                    "treatment (30), as good as control",
                ),
            ],
            moments=[(0, "")],
            height=150,
        ),
        Panel(
            "The e-value of “errors are higher”",
            (-BASELINE_MINUTES, MINUTES),
            (0.8, 10_000),
            ticks,
            [(1.0, "1"), (100.0, "100"), (10_000.0, "10,000")],
            paths,
            levels=[(40, "alarm: 40")],
            moments=[(0, "")],
            log=True,
            height=150,
        ),
    ]
    figures = f"taken back: {undiscounted.mean():.1%} without, {failed.mean():.1%} with; shown: {detail}"
    return picture(panels), figures


def _path(bins: Sequence[Bin], baseline: Sequence[Bin], colour: str, name: str) -> Line:
    """Return the e-value of `errors are higher` over time as a line."""
    looks = verdicts(bins, baseline, every=2)
    values = [e_value(verdict, "errors are higher") for _, verdict in looks]
    return Line([0.0, *(minute for minute, _ in looks)], [1.0, *values], colour, name)


def late() -> tuple[str, str]:
    """Draw which rows of each minute have arrived at one look, and the error rate that they show."""
    rng = np.random.default_rng(24)
    now, requests, rate = 12.0, 600, 0.05
    minutes = np.arange(0, 12)
    heights, seen, whole = [], [], []
    for minute in minutes:
        begins = minute + rng.random(requests)
        timed_out = rng.random(requests) < rate
        # A request that times out has its row a minute after it began; then the row is on its way.
        arrives = begins + np.where(timed_out, 1.0, 0.002) + rng.gamma(4.0, 0.1, requests)
        here = arrives <= now
        heights.append((float(here.sum()), float((~here).sum())))
        seen.append(float(timed_out[here].mean()) if here.any() else 0.0)
        whole.append(float(timed_out.mean()))
    middle = (minutes + 0.5).tolist()
    ticks = [(float(minute), f"12:{minute:02d}") for minute in range(0, 13, 2)]
    closed = [(now - LAG, "closed"), (now, "look")]
    panels = [
        Panel(
            "Rows of each minute that the store has at 12:12",
            (0, 12.6),
            (0, 700),
            ticks,
            [(0.0, "0"), (300.0, "300"), (600.0, "600")],
            bars=Bars(middle, heights, (BLUE, "#d5dbe3"), ("arrived", "still on their way"), 0.8),
            moments=closed,
            height=140,
        ),
        Panel(
            "Errors of each minute: requests that time out after 60 s",
            (0, 12.6),
            (0, 0.1),
            ticks,
            [(0.0, "0 %"), (0.05, "5 %"), (0.1, "10 %")],
            [
                Line(middle, whole, GREY, "all rows", "6 3"),
                Line(middle, seen, BAD, "rows that have arrived"),
            ],
            moments=closed,
            height=140,
        ),
    ]
    return picture(panels), f"newest minutes show {', '.join(f'{part:.1%}' for part in seen[-3:])} of {rate:.0%}"
