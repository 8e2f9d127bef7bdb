"""The pictures about e-values: how they grow, why looking often is allowed, and the three outcomes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from controlled_rollout.gate import Bin, Gate, Verdict, judge
from tests.benchmarks.gate import vectorised_gate
from tests.benchmarks.gate.explained.panels import BAD, BLUE, GOOD, Line, Panel, picture
from tests.benchmarks.gate.traffic import MINUTES, Cell, Traffic, constant, simulate

HALF_HOURS = tuple((float(minute), f"{minute} min") for minute in range(0, 121, 30))
RUNS = 1000
LEVEL = 0.05
OUTCOMES = {
    "Alarm: 5 % errors where control has 1 %, 300 requests a minute": Cell(
        "worse", 300, False, errors=constant(0.01), ratio=5.0, share=constant(0.2)
    ),
    "Pass: as good as control, 300 requests a minute": Cell(
        "healthy", 300, True, errors=constant(0.01), share=constant(0.2)
    ),
    "Not enough evidence: as good as control, 20 requests a minute": Cell(
        "quiet", 20, True, errors=constant(0.01), share=constant(0.2)
    ),
}


def verdicts(bins: Sequence[Bin], baseline: Sequence[Bin], every: int) -> list[tuple[float, Verdict]]:
    """Return the gate's verdict after so many minutes each time."""
    looks = range(every, len(bins) + 1, every)
    return [(float(look), judge(bins[:look], Gate(), baseline=baseline)) for look in looks]


def e_value(verdict: Verdict, claim: str) -> float:
    """Return the evidence for a claim."""
    return next(one.e_value for one in verdict.claims if one.name == claim)


def evidence(runs: int = 12) -> tuple[str, str]:
    """Draw the evidence that errors are higher, of some healthy treatments and some worse ones."""
    healthy = Cell("healthy", 300, True, errors=constant(0.01))
    worse = Cell("worse", 300, False, errors=constant(0.01), ratio=3.0)
    lines: list[Line] = []
    reached: dict[str, int] = {}
    for cell, colour in ((healthy, GOOD), (worse, BAD)):
        traffic = simulate(cell, runs, np.random.default_rng(11))
        reached[cell.name] = 0
        for run in range(runs):
            looks = verdicts(*vectorised_gate.bins_of(traffic, run), every=5)
            values = [e_value(verdict, "errors are higher") for _, verdict in looks]
            reached[cell.name] += values[-1] >= 1 / (LEVEL / 2)
            words = {GOOD: "as good as control (1 % errors)", BAD: "worse (3 % errors)"}[colour]
            name = words if run == 0 else ""
            lines.append(Line([0, *(minute for minute, _ in looks)], [1, *values], colour, name, width=1.3))
    panel = Panel(
        f"The e-value of “errors are higher” in {runs} rollouts of each kind",
        (0, MINUTES),
        (0.8, 10_000),
        HALF_HOURS,
        [(10.0**power, f"{10**power:,}") for power in range(5)],
        lines,
        levels=[(40, "alarm: 40")],
        log=True,
        height=250,
    )
    return picture([panel]), f"of {runs}, 40 was reached by {reached}"


def looking_often(runs: int = RUNS) -> tuple[str, str]:
    """Draw how many healthy treatments were taken back so far, by the gate and by a test at each look."""
    cell = Cell("healthy", 300, True, errors=constant(0.02), share=constant(0.5))
    traffic = simulate(cell, runs, np.random.default_rng(12))
    p_values = _fisher(traffic)
    at_each_look = np.logical_or.accumulate(p_values < LEVEL, axis=1).mean(axis=0)
    at_the_end = float((p_values[:, -1] < LEVEL).mean())
    failed = vectorised_gate.looks(traffic).failed
    by_gate = np.array([(failed <= minute).mean() for minute in range(MINUTES)])
    minutes = list(range(1, MINUTES + 1))
    panel = Panel(
        f"Healthy treatments taken back so far, in per cent of {runs:,} rollouts",
        (0, MINUTES),
        (0, 40),
        HALF_HOURS,
        [(float(tick), f"{tick} %") for tick in range(0, 41, 10)],
        [
            Line(minutes, (100 * at_each_look).tolist(), BAD, "p < 5 % at any look (Fisher's test each minute)"),
            Line(minutes, (100 * by_gate).tolist(), GOOD, "the gate, one look each minute"),
        ],
        levels=[(5, "alpha: 5 %")],
        height=220,
    )
    figures = (
        f"a test at each look {at_each_look[-1]:.1%}, one test at the end {at_the_end:.1%}, the gate {by_gate[-1]:.1%}"
    )
    return picture([panel]), figures


def _fisher(traffic: Traffic) -> NDArray[np.float64]:
    """Return the p-value of Fisher's exact test of all requests so far: runs x minutes."""
    total = {name: np.cumsum(getattr(traffic.treatment, name), axis=1) for name in ("requests", "errors")}
    both = {name: total[name] + np.cumsum(getattr(traffic.control, name), axis=1) for name in ("requests", "errors")}
    p: NDArray[np.float64] = hypergeom.sf(total["errors"] - 1, both["requests"], both["errors"], total["requests"])
    return p


def rollout(cell: Cell) -> tuple[Sequence[Bin], Sequence[Bin]]:
    """Return the bins of the rollout of such a kind that is shown, and those of before."""
    return vectorised_gate.bins_of(simulate(cell, 1, np.random.default_rng(13)), 0)


def outcomes() -> tuple[str, str]:
    """Draw the evidence of three rollouts, one for each outcome, as a multiple of its threshold."""
    panels, figures = [], []
    for title, cell in OUTCOMES.items():
        looks = verdicts(*rollout(cell), every=2)
        minutes = [0.0, *(minute for minute, _ in looks)]
        alarm = [1 / 40, *(_multiple(verdict, "alarm") for _, verdict in looks)]
        passes = [1 / 20, *(_multiple(verdict, "pass") for _, verdict in looks)]
        decided = next(((m, v.outcome) for m, v in looks if v.outcome in ("fail", "pass")), None)
        figures.append(f"{cell.name}: {decided or looks[-1][1].outcome}")
        panels.append(
            Panel(
                title,
                (0, MINUTES),
                (0.01, 100),
                HALF_HOURS,
                [(0.01, "0.01"), (0.1, "0.1"), (1.0, "1"), (10.0, "10"), (100.0, "100")],
                [
                    Line(minutes, alarm, BAD, "the strongest claim against it"),
                    Line(minutes, passes, BLUE, "the weakest claim that a pass needs", "6 3"),
                ],
                levels=[(1, "established")],
                moments=[(decided[0], f"{decided[1]}: {decided[0]:.0f} min")] if decided else [],
                log=True,
                height=140,
            )
        )
    return picture(panels), "; ".join(figures)


def _multiple(verdict: Verdict, kind: str) -> float:
    """Return the evidence as a multiple of its threshold: the strongest alarm's, or the weakest pass claim's."""
    multiples = [claim.e_value / claim.threshold for claim in verdict.claims if claim.kind == kind]
    return max(multiples) if kind == "alarm" else min(multiples)
