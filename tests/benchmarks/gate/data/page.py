"""The page of what the gate and other rules decide on collected data."""

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.gate.data.cells import CELLS, FAMILIES, Cell
from tests.benchmarks.gate.data.rollouts import BASELINE_VALUES, LOOKS, SHARE
from tests.benchmarks.gate.data.rules import COMPARISONS, ENOUGH, LABELLED_RULES, VALIDATIONS
from tests.benchmarks.gate.data.run import GATE, NEVER, Results
from tests.benchmarks.gate.picture import bars

__all__ = ["write"]

# What a healthy treatment may be taken back by rules that have no level of their own.
ALPHA = 0.05
MOST_MINUTES = 5
PICTURES = {
    "gate-benchmark-data-false-roll-backs.svg": (
        "Healthy treatments taken back or held, %",
        {
            "labels, alike, 30/min": "predictions: labels, total variation 0, 30/min",
            "labels, alike, 300/min": "predictions: labels, total variation 0, 300/min",
            "labels, alike, 3,000/min": "predictions: labels, total variation 0, 3,000/min",
            "labels, within tolerance, 300/min": "predictions: labels, total variation 0.05, 300/min",
            "numbers, alike, 300/min": "means: normal, 0 sd higher, 300/min",
            "heavy tail, clipped, 300/min": "means: Pareto, shape 1.5, clipped, worse: higher, 300/min",
        },
    ),
    "gate-benchmark-data-delays.svg": (
        "Bad treatments: median minute at which they are taken back (full height: not within the hour)",
        {
            "labels, variation 0.4, 30/min": "predictions: labels, total variation 0.4, 30/min",
            "labels, variation 0.4, 300/min": "predictions: labels, total variation 0.4, 300/min",
            "labels, variation 0.15, 3,000/min": "predictions: labels, total variation 0.15, 3,000/min",
            "numbers, mean 0.1 sd higher, 3,000/min": "means: normal, 0.1 sd higher, 3,000/min",
            "numbers, mean 0.3 sd higher, 300/min": "means: normal, 0.3 sd higher, 300/min",
        },
    ),
}


def write(docs: Path, results: Mapping[str, Results]) -> None:
    """Write the page and its pictures into the folder of the documentation."""
    (docs / "gate-benchmark-data.md").write_text(text(results), encoding="utf-8")
    for number, (name, (title, groups)) in enumerate(PICTURES.items()):
        (docs / name).write_text(_picture(title, groups, results, delays=number == 1), encoding="utf-8")


def text(results: Mapping[str, Results]) -> str:
    """Return the page."""
    lines = [*_introduction(), *_requirements(results)]
    for key, family in FAMILIES.items():
        cells = [cell for cell in CELLS if cell.family == key and _name(cell) in results]
        if cells:
            rules = (GATE, *family.rules)
            lines += ["", f"## {family.title}", "", family.words, ""]
            if key == "predictions":
                lines += [f"![{title}]({name})" for name, (title, _) in PICTURES.items()] + [""]
            lines += ["| | " + " | ".join(rules) + " |", "|---" * (len(rules) + 1) + "|"]
            lines += [_row(cell, results[_name(cell)], rules) for cell in cells]
    return "\n".join([*lines, *_ending(results)]) + "\n"


def _introduction() -> list[str]:
    """Return what was simulated, and the rules."""
    rules = [f"- **{name}**: {rule.what}." for name, rule in {**COMPARISONS, **VALIDATIONS, **LABELLED_RULES}.items()]
    return [
        "# The gate on collected data against other rules",
        "",
        f"Written by `make bench-gate`. Every rule judges the same simulated rollouts: {LOOKS} one-minute looks, "
        f"{100 * SHARE:g} % of the",
        "requests for the treatment. The gate has its default settings, one metric, and errors beside it: the metric "
        "has half of",
        f"alpha. The other rules compare, at every look at which both versions have {ENOUGH} values, all that was "
        "collected so far:",
        "",
        *rules,
        "",
        "Their thresholds were not made for a look a minute, and they know no tolerance: this is what they do when "
        "they are used as a",
        f"gate. The baseline has {BASELINE_VALUES:,} values of control's hour before.",
        "",
        "The tables have the per cent of the rollouts that a rule takes back (inputs: holds), in brackets the median "
        "minute of bad ones.",
        "Bold: a healthy treatment is taken back in more than 5 % (the gate: more than the metric's part of alpha), by "
        "more than three",
        "standard errors.",
    ]


def _requirements(results: Mapping[str, Results]) -> list[str]:
    """Return what is required of the gate, and what was measured."""
    rows = []
    healthy = [cell for cell in CELLS if cell.kind == "healthy" and _name(cell) in results]
    for words, cells in (
        ("healthy predictions, means and expectations", [cell for cell in healthy if cell.family != "inputs"]),
        ("healthy inputs", [cell for cell in healthy if cell.family == "inputs"]),
    ):
        if cells:
            worst = max(cells, key=lambda cell: _rate(results[_name(cell)].minutes[GATE]))
            minutes = results[_name(worst)].minutes[GATE]
            most, rate = _most(worst.level, len(minutes)), _rate(minutes)
            where = f"worst of {len(cells)} cells: {worst.family}, {worst.name}" if rate else f"{len(cells)} cells"
            rows.append((f"{words} ({where})", f"<= {100 * most:.2g} %", f"{100 * rate:.2g} %", rate <= most))
    collapse = results.get("predictions: labels, total variation 0.4, 300/min")
    if collapse:
        median = statistics.median(collapse.minutes[GATE])
        required = f"<= {MOST_MINUTES} min"
        rows.append(
            ("labels, total variation 0.4, 300/min: median", required, _minutes(median), median <= MOST_MINUTES)
        )
    lines = ["", "## Requirements", "", "| | required | measured | |", "|---|---|---|---|"]
    return lines + [f"| {a} | {b} | {c} | {'met' if met else '**not met**'} |" for a, b, c, met in rows]


def _row(cell: Cell, results: Results, rules: Sequence[str]) -> str:
    """Return a cell's row of its table."""
    texts = [f"{cell.name}{'' if cell.kind == 'healthy' else f', **{cell.kind}**'}"]
    for rule in rules:
        minutes = results.minutes[rule]
        rate = _rate(minutes)
        words = f"{100 * rate:.3g}" if 0 < rate < 0.001 else f"{100 * rate:.1f}"
        if cell.kind == "bad":
            words += f" ({_minutes(statistics.median(minutes)).removesuffix(' min')})"
        elif rate > _most(cell.level if rule == GATE else ALPHA, len(minutes)):
            words = f"**{words}**"
        texts.append(words)
    return f"| {' | '.join(texts)} |"


def _ending(results: Mapping[str, Results]) -> list[str]:
    """Return how it was measured."""
    counted = []
    for what in ("healthy", "other"):
        cells = [cell for cell in CELLS if _name(cell) in results and (cell.kind == "healthy") == (what == "healthy")]
        runs = sorted({len(results[_name(cell)].minutes[GATE]) for cell in cells})
        if runs:
            counted.append(f"{runs[0]:,}{f' to {runs[-1]:,}' if len(runs) > 1 else ''} of each {what} cell")
    checked, seconds = sum(one.checked for one in results.values()), sum(one.seconds for one in results.values())
    return [
        "",
        "## How it was measured",
        "",
        f"{len(results)} cells; runs: {', '.join(counted)}. The gate's claims were computed by its own code; {checked} "
        "rollouts were also judged as a",
        "whole by `judge`, with the same outcome at every look at which it changes. "
        f"{seconds / 60:.0f} min of processor time (Python",
        f"{platform.python_version()}, {platform.machine()}).",
    ]


def _picture(title: str, groups: Mapping[str, str], results: Mapping[str, Results], *, delays: bool) -> str:
    """Return a picture of the rates or the median minutes of some cells."""
    series: dict[str, list[float]] = {rule: [] for rule in (GATE, *COMPARISONS)}
    for cell in groups.values():
        for rule, values in series.items():
            minutes = results[cell].minutes[rule] if cell in results else [NEVER]
            values.append(min(statistics.median(minutes), float(LOOKS)) if delays else 100 * _rate(minutes))
    return bars(
        title, list(groups), series, highest=float(LOOKS) if delays else 100.0, line=None if delays else 100 * ALPHA
    )


def _name(cell: Cell) -> str:
    """Return what a cell's results are kept under."""
    return f"{cell.family}: {cell.name}"


def _rate(minutes: Sequence[float]) -> float:
    """Return which part of the rollouts was taken back or held."""
    return sum(minute < NEVER for minute in minutes) / len(minutes)


def _most(level: float, runs: int) -> float:
    """Return a level and three standard errors."""
    return level + 3 * math.sqrt(level * (1 - level) / runs)


def _minutes(minutes: float) -> str:
    """Return a number of minutes as text."""
    return f"> {LOOKS} min" if minutes == NEVER else f"{minutes:g} min"
