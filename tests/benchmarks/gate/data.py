"""The gate on collected data against what people use: `python -m tests.benchmarks.gate.data`.

Every cell is a rollout of an hour with a look a minute. A request is one observation. The gate's claims are computed by
its own code, bin by bin; the other rules compare all that both versions have collected so far, at each look.
"""

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from scipy.special import kolmogorov
from scipy.stats import chi2

from controlled_rollout.gate import Bin, Category, Counts, Gate, Mean, Moments, judge
from controlled_rollout.gate.columns import columns
from controlled_rollout.gate.metric_claims import metric_claims

Floats = NDArray[np.float64]
PAGE = Path(__file__).parents[3] / "docs" / "gate-benchmark-data.md"
START = datetime(2026, 1, 1, tzinfo=UTC)
LOOKS = 60
SHARE = 0.1
ALPHA = 0.05
CHUNK = 50
CHECKED = 3
BASELINE_VALUES = 18_000
LABELS = 10
TOLERANCE = 0.1
CLIP = 0.01
# The values of numbers are kept in so many cells for the rules that compare distributions.
CELLS_OF_NUMBERS = 200
# What takes the place of a share of 0 in PSI.
LEAST_SHARE = 1e-4
# Nobody compares distributions of fewer.
ENOUGH = 30
NEVER = math.inf
Draw = Callable[[np.random.Generator, int], Floats]

CATEGORY = Category(column="predictions.label", tolerance=TOLERANCE, on_difference="fail")


@dataclass(frozen=True)
class Cell:
    """One kind of rollout.

    Attributes:
        name: What the table calls it.
        per_minute: Requests to both versions together.
        healthy: Whether nothing is wrong by what the gate tolerates.
        variation: Labels: the total variation between the versions; None for numbers.
        draw: Numbers: how control's are drawn.
        shift: Numbers: how much higher the treatment's are, in the unit of `draw`.
        setting: Numbers: the gate's setting.
    """

    name: str
    per_minute: int
    healthy: bool
    variation: float | None = None
    draw: Draw | None = None
    shift: float = 0.0
    setting: Mean = field(default_factory=lambda: Mean(worse="higher", column="predictions.score"))


def normal(rng: np.random.Generator, size: int) -> Floats:
    return rng.standard_normal(size)


def log_normal(sigma: float) -> Draw:
    return lambda rng, size: np.exp(sigma * rng.standard_normal(size))


def pareto(shape: float) -> Draw:
    return lambda rng, size: 1 + rng.pareto(shape, size)


def tails() -> list[Cell]:
    """Heavy tails, alike in both versions, as they are and clipped, in both directions."""
    kinds = {
        "log-normal, sigma 1": log_normal(1.0), "log-normal, sigma 2": log_normal(2.0),
        "Pareto, shape 2.5": pareto(2.5), "Pareto, shape 1.5": pareto(1.5),
    }  # fmt: skip
    return [
        Cell(
            f"{name}{', clipped' if clip else ''}, worse: {worse}, {rate}/min",
            rate,
            True,
            draw=draw,
            setting=Mean(worse=worse, column="predictions.score", clip=clip),
        )
        for name, draw in kinds.items()
        for clip in (None, CLIP)
        for worse in ("higher", "lower")
        for rate in (300,)
    ]


CELLS = [
    *(
        Cell(f"labels, total variation {variation:g}, {rate:,}/min", rate, variation <= TOLERANCE, variation)
        for variation in (0.0, 0.05, 0.1, 0.15, 0.4)
        for rate in (30, 300, 3_000)
    ),
    *(
        Cell(f"mean, {shift:g} sd higher, {rate:,}/min", rate, shift == 0, draw=normal, shift=shift)
        for shift in (0.0, 0.1, 0.3)
        for rate in (30, 300, 3_000)
    ),
    *tails(),
    *(
        Cell(
            f"log-normal, sigma 1, {shift:g} higher{', clipped' if clip else ''}, 300/min",
            300,
            False,
            draw=log_normal(1.0),
            shift=shift,
            setting=Mean(worse="higher", column="predictions.score", clip=clip),
        )
        for shift in (0.3, 1.0)
        for clip in (None, CLIP)
    ),
]


@dataclass(frozen=True)
class Counted:
    """What the rules see of one rollout.

    Attributes:
        treatment, control: By minute how many observations are in each cell of values, or of each label.
        bins: The gate's bins.
        edges: The cells' inner edges; None for labels.
    """

    treatment: Floats
    control: Floats
    bins: list[Bin]
    edges: Floats | None = None


def simulate(cell: Cell, rng: np.random.Generator) -> Counted:
    """Draw one rollout."""
    sizes = rng.poisson(cell.per_minute * SHARE, LOOKS), rng.poisson(cell.per_minute * (1 - SHARE), LOOKS)
    if cell.variation is not None:
        return labelled(cell.variation, sizes, rng)
    assert cell.draw is not None
    baseline = np.sort(cell.draw(rng, BASELINE_VALUES))
    edges = np.unique(np.quantile(baseline, np.arange(1, CELLS_OF_NUMBERS) / CELLS_OF_NUMBERS))
    clip = cell.setting.clip
    bounds = None if clip is None else tuple(np.quantile(baseline, [clip, 1 - clip], method="inverted_cdf"))
    histograms, moments = [], []
    for number, shift in zip(sizes, (cell.shift, 0.0), strict=True):
        values = cell.draw(rng, int(number.sum())) + shift
        minute = np.repeat(np.arange(LOOKS), number)
        where = minute * (len(edges) + 1) + np.searchsorted(edges, values)
        histograms.append(np.bincount(where, minlength=LOOKS * (len(edges) + 1)).reshape(LOOKS, -1).astype(float))
        observed = values if bounds is None else np.clip(values, *bounds)
        parts = np.split(observed, np.cumsum(number)[:-1])
        moments.append(
            [
                Moments(len(part), float(part.mean()), float(part.var(ddof=1))) if len(part) > 1 else Moments(0)
                for part in parts
            ]
        )
    bins = [
        Bin(START + timedelta(minutes=look), Counts(int(sizes[1][look]), 0, means={"score": control}),
            Counts(int(sizes[0][look]), 0, means={"score": treatment}), share=SHARE)
        for look, (treatment, control) in enumerate(zip(*moments, strict=True))
    ]  # fmt: skip
    return Counted(histograms[0], histograms[1], bins, edges)


def labelled(variation: float, sizes: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> Counted:
    """Draw labels: control's are equally frequent, and the treatment has half of them more often."""
    control = np.full(LABELS, 1 / LABELS)
    treatment = control + np.where(np.arange(LABELS) < LABELS // 2, 1, -1) * 2 * variation / LABELS
    counts = [rng.multinomial(number, shares) for number, shares in zip(sizes, (treatment, control), strict=True)]
    names = [f"label {number}" for number in range(LABELS)]

    def counted(arm: NDArray[np.int64]) -> Counts:
        """Return one version's counts of one minute."""
        return Counts(int(arm.sum()), 0, categories={"label": dict(zip(names, map(int, arm), strict=True))})

    bins = [
        Bin(START + timedelta(minutes=look), counted(counts[1][look]), counted(counts[0][look]), share=SHARE)
        for look in range(LOOKS)
    ]
    return Counted(counts[0].astype(float), counts[1].astype(float), bins)


def gate_of(cell: Cell) -> Gate:
    """Return the gate with one metric beside errors: it has half of alpha."""
    if cell.variation is not None:
        return Gate(latency_quantiles=(), categories={"label": CATEGORY})
    return Gate(latency_quantiles=(), means={"score": cell.setting})


def gate_minute(cell: Cell, counted: Counted) -> float:
    """Return after how many minutes the gate alarms."""
    gate = gate_of(cell)
    judged = columns(counted.bins, quantiles=0, means=gate.means, categories=gate.categories)
    (alarm,) = metric_claims(judged, gate).alarms
    return NEVER if alarm.established_at is None else alarm.established_at + 1.0


def check(cell: Cell, counted: Counted, minute: float) -> None:
    """Judge the rollout as a whole at the looks around the alarm; raise AssertionError if that says otherwise."""
    last = LOOKS if minute == NEVER else int(minute)
    for looks in {last, last - 1} - {0}:
        failed = judge(counted.bins[:looks], gate_of(cell)).outcome == "fail"
        assert failed == (looks >= minute), f"{cell.name}: {looks} bins"


# Rules that people use, each at every look on all that was collected so far.


def sums(counted: Counted) -> tuple[Floats, Floats]:
    """Return both versions' counts so far, by look."""
    return np.cumsum(counted.treatment, axis=0), np.cumsum(counted.control, axis=0)


def psi(counted: Counted) -> NDArray[np.bool_]:
    """The population stability index of ten labels, or of control's ten deciles, is above 0.2."""
    treatment, control = sums(counted)
    if counted.edges is not None:
        cells = treatment.shape[1]
        groups = np.arange(cells) * 10 // cells
        treatment, control = (
            np.stack([arm[:, groups == group].sum(axis=1) for group in range(10)], axis=1)
            for arm in (treatment, control)
        )
    p, q = (
        np.maximum(arm / np.maximum(arm.sum(axis=1, keepdims=True), 1), LEAST_SHARE) for arm in (treatment, control)
    )
    index: NDArray[np.bool_] = ((p - q) * np.log(p / q)).sum(axis=1) > 0.2
    return index


def p_value(counted: Counted) -> Floats:
    """The p-value of Kolmogorov and Smirnov's test of two samples, for labels of the chi-squared test."""
    treatment, control = sums(counted)
    n, m = treatment.sum(axis=1), control.sum(axis=1)
    comparable = (n > 0) & (m > 0)
    n, m = np.maximum(n, 1), np.maximum(m, 1)
    if counted.edges is None:
        total = treatment + control
        expected = total * (n / (n + m))[:, None]
        both = np.where(
            total > 0, (treatment - expected) ** 2 / np.maximum(expected * (m / (n + m))[:, None], 1e-12), 0
        )
        found = chi2.sf(both.sum(axis=1), np.maximum((total > 0).sum(axis=1) - 1, 1))
    else:
        distance = np.abs(np.cumsum(treatment, axis=1) / n[:, None] - np.cumsum(control, axis=1) / m[:, None]).max(
            axis=1
        )
        found = kolmogorov(distance * np.sqrt(n * m / (n + m)))
    return np.where(comparable, found, 1.0)


def tested(counted: Counted) -> NDArray[np.bool_]:
    """That p-value is below 0.05."""
    low: NDArray[np.bool_] = p_value(counted) < 0.05
    return low


def evidently(counted: Counted) -> NDArray[np.bool_]:
    """Evidently's default: the test up to 1,000 reference values, above them a distance of 0.1 or more.

    The distance is Jensen and Shannon's for labels, and Wasserstein's in standard deviations for numbers.
    """
    treatment, control = sums(counted)
    p, q = (arm / np.maximum(arm.sum(axis=1, keepdims=True), 1) for arm in (treatment, control))
    if counted.edges is None:
        middle = np.maximum((p + q) / 2, 1e-300)
        parts = [np.where(x > 0, x * np.log(np.maximum(x, 1e-300) / middle), 0).sum(axis=1) for x in (p, q)]
        distance = np.sqrt(np.maximum(sum(parts) / 2, 0))
    else:
        width = np.diff(counted.edges)
        middles = np.concatenate([counted.edges[:1], (counted.edges[1:] + counted.edges[:-1]) / 2, counted.edges[-1:]])
        spread = np.sqrt(np.maximum((q * middles**2).sum(axis=1) - (q * middles).sum(axis=1) ** 2, 1e-12))
        gap = np.abs(np.cumsum(p, axis=1) - np.cumsum(q, axis=1))[:, :-2]
        distance = (gap * width).sum(axis=1) / spread
    small = control.sum(axis=1) <= 1_000
    return np.where(small, tested(counted), distance >= 0.1)


PEERS: dict[str, Callable[[Counted], NDArray[np.bool_]]] = {
    "PSI > 0.2": psi,
    "KS (labels: chi²) p < 0.05": tested,
    "Evidently's default": evidently,
}
RULES = ("this gate", *PEERS)


def chunk(index: int, runs: int, seed: int) -> dict[str, list[float]]:
    """Return by rule after how many minutes each of some rollouts of a cell is taken back."""
    cell, rng = CELLS[index], np.random.default_rng((index, seed))
    minutes: dict[str, list[float]] = {rule: [] for rule in RULES}
    for run in range(runs):
        counted = simulate(cell, rng)
        minute = gate_minute(cell, counted)
        if seed == 0 and run < CHECKED:
            check(cell, counted, minute)
        minutes[RULES[0]].append(minute)
        enough = np.minimum(*(arm.sum(axis=1) for arm in sums(counted))) >= ENOUGH
        for name, rule in PEERS.items():
            alarms = rule(counted) & enough
            minutes[name].append(float(alarms.argmax()) + 1 if alarms.any() else NEVER)
    return minutes


def run_all(runs: int, processes: int, only: str) -> dict[str, dict[str, list[float]]]:
    """Return by cell and rule the minutes of all rollouts."""
    wanted = [index for index, cell in enumerate(CELLS) if only in cell.name]
    results: dict[str, dict[str, list[float]]] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            (index, pool.submit(chunk, index, min(CHUNK, runs - part * CHUNK), part))
            for index in wanted
            for part in range(-(-runs // CHUNK))
        ]
        for index, job in jobs:
            found = results.setdefault(CELLS[index].name, {rule: [] for rule in RULES})
            for rule, minutes in job.result().items():
                found[rule] += minutes
    return results


def page(results: dict[str, dict[str, list[float]]], runs: int, took: float) -> str:
    """Return the page."""
    most = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    judged_tails = {cell.name for cell in tails() if cell.setting.clip is None}
    lines = [
        "# The gate on collected data against other rules",
        "",
        f"Written by `python -m tests.benchmarks.gate.data --runs {runs}`, a part of `make bench-gate`. An hour of",
        f"one-minute looks, {100 * SHARE:g} % of the requests for the treatment. Labels are ten, equally frequent with",
        "control, and half of them more frequent with the treatment; the gate tolerates a total variation of "
        f"{TOLERANCE:g}. Numbers are",
        f"normal, or have heavy tails; clipped at control's {100 * CLIP:g} and {100 - 100 * CLIP:g} % quantiles of "
        f"{BASELINE_VALUES:,} values from before.",
        "The gate judges errors besides, so the metric has half of its 5 %. The other rules compare, at every look at",
        f"which both versions have {ENOUGH} requests, all that both have collected so far.",
        "",
        "Per cent of the rollouts that a rule takes back, in brackets the median minute. "
        "Bold: a healthy treatment that is",
        f"taken back in more than {100 * most:.1f} % (5 % and three standard errors).",
        "",
        "| | " + " | ".join(RULES) + " |",
        "|---" * (len(RULES) + 1) + "|",
    ]
    worst: tuple[float, str] = (0.0, "")
    for cell in CELLS:
        if cell.name not in results:
            continue
        texts = []
        for rule in RULES:
            minutes = results[cell.name][rule]
            rate = sum(minute < NEVER for minute in minutes) / len(minutes)
            text = f"{100 * rate:.1f}"
            if cell.healthy and rate > most:
                text = f"**{text}**"
            elif not cell.healthy:
                median = statistics.median(minutes)
                text += " (> 60)" if median == NEVER else f" ({median:g})"
            texts.append(text)
            if rule == RULES[0] and cell.healthy and cell.name not in judged_tails:
                worst = max(worst, (rate, cell.name))
        lines.append(f"| {cell.name}{'' if cell.healthy else ', **bad**'} | {' | '.join(texts)} |")
    lines += ["", "## Requirements", "", "| | required | measured | |", "|---|---|---|---|"]
    lines.append(
        f"| every healthy cell but heavy tails that are not clipped (worst: {worst[1]}) | <= {100 * most:.1f} % | "
        f"{100 * worst[0]:.1f} % | {'met' if worst[0] <= most else '**not met**'} |"
    )
    collapse = results.get("labels, total variation 0.4, 300/min")
    if collapse:
        median = statistics.median(collapse[RULES[0]])
        met = "met" if median <= 5 else "**not met**"
        lines.append(f"| total variation 0.4, 300/min: median | <= 5 min | {median:g} min | {met} |")
    lines += [
        "",
        f"{runs:,} rollouts of each cell; {took / 60:.0f} min by the clock on {os.cpu_count()} processors (Python",
        f"{platform.python_version()}). The first {CHECKED} of each cell were judged as a whole by `judge` too, with "
        "the same outcome.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2_000, help="rollouts of every cell")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="cells whose name contains this; writes no page")
    given = parser.parse_args()
    begin = time.monotonic()
    text = page(run_all(given.runs, given.processes, given.only), given.runs, time.monotonic() - begin)
    print(text)
    if not given.only:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
