"""The page of what the gate and other rules decide on collected data."""

import math
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.gate.data.cells import CELLS, FAMILIES, Cell
from tests.benchmarks.gate.data.clusters import TIMES, USERS_REQUESTS
from tests.benchmarks.gate.data.rollouts import BASELINE_VALUES, LOOKS, SHARE
from tests.benchmarks.gate.data.rules import COMPARISONS, ENOUGH, LABELLED_RULES, VALIDATIONS
from tests.benchmarks.gate.data.run import GATE, NEVER, Results
from tests.benchmarks.gate.picture import bars

__all__ = ["write"]

# What a healthy treatment may be taken back by rules that have no level of their own.
ALPHA = 0.05
MOST_MINUTES = 5


@dataclass(frozen=True)
class Picture:
    """A picture of some cells: the rates at which they are stopped, or the median minutes.

    Attributes:
        name: The file's name.
        family: The family in whose section it stands, and whose rules it shows.
        title: What it shows.
        groups: By words, with a line for each part between commas, the cell.
        delays: Whether it shows minutes.
    """

    name: str
    family: str
    title: str
    groups: Mapping[str, str]
    delays: bool = False


PICTURES = (
    Picture(
        "gate-benchmark-data-false-roll-backs.svg",
        "predictions",
        "Healthy treatments taken back, %",
        {
            "labels, alike, 30/min": "predictions: labels, total variation 0, 30/min",
            "labels, alike, 300/min": "predictions: labels, total variation 0, 300/min",
            "labels, alike, 3,000/min": "predictions: labels, total variation 0, 3,000/min",
            "labels, within tolerance, 300/min": "predictions: labels, total variation 0.05, 300/min",
            "means, alike, 300/min": "means: normal, 0 sd higher, 300/min",
            "batches, alike, 30/min": "clusters: batches, labels, total variation 0, one row of each request, 30/min",
        },
    ),
    Picture(
        "gate-benchmark-data-delays.svg",
        "predictions",
        "Bad treatments: median minute at which they are taken back (full height: not within the hour)",
        {
            "labels, variation 0.4, 30/min": "predictions: labels, total variation 0.4, 30/min",
            "labels, variation 0.4, 300/min": "predictions: labels, total variation 0.4, 300/min",
            "labels, variation 0.15, 3,000/min": "predictions: labels, total variation 0.15, 3,000/min",
            "buckets, 0.5 sd higher, 300/min": "predictions: numbers in ten buckets, 0.5 sd higher, 300/min",
            "means, 0.1 sd higher, 3,000/min": "means: normal, 0.1 sd higher, 3,000/min",
            "means, 0.3 sd higher, 300/min": "means: normal, 0.3 sd higher, 300/min",
        },
        delays=True,
    ),
    Picture(
        "gate-benchmark-data-expectations.svg",
        "expectations",
        "Healthy treatments taken back because of an expectation, %",
        {
            "0.5 % unexpected, mostly 99 %, 300/min": "expectations: 0.5 % unexpected, mostly 99 %, 300/min",
            "3 % in both, mostly 99 %, 300/min": "expectations: 3 % unexpected in both, mostly 99 %, 300/min",
            "30 % in both, for 20 min, 300/min": (
                "expectations: 30 % unexpected in both for 20 min, mostly 99 %, 300/min"
            ),
            "1 % null, mostly 97 %, 300/min": "expectations: null 1 %, mostly 97 %, 300/min",
        },
    ),
)


def write(docs: Path, results: Mapping[str, Results]) -> None:
    """Write the page and its pictures into the folder of the documentation."""
    (docs / "gate-benchmark-data.md").write_text(text(results), encoding="utf-8")
    for picture in PICTURES:
        (docs / picture.name).write_text(_drawn(picture, results), encoding="utf-8")


def text(results: Mapping[str, Results]) -> str:
    """Return the page."""
    lines = [*_introduction(), *_requirements(results), *_findings(results)]
    for key, family in FAMILIES.items():
        cells = [cell for cell in CELLS if cell.family == key and _name(cell) in results]
        if cells:
            rules = (GATE, *family.rules)
            lines += ["", f"## {family.title}", "", family.words, ""]
            for picture in PICTURES:
                lines += [f"![{picture.title}]({picture.name})", ""] if picture.family == key else []
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
    for level in sorted({cell.level for cell in healthy}, reverse=True):
        cells = [cell for cell in healthy if cell.level == level]
        worst = max(cells, key=lambda cell: _rate(results[_name(cell)].minutes[GATE]) / _most_of(cell, results))
        rate, most = _rate(results[_name(worst)].minutes[GATE]), _most_of(worst, results)
        where = f"worst of {len(cells)}: {_name(worst)}" if rate else f"{len(cells)} cells"
        words = f"healthy, {100 * level:.2g} % allowed ({where})"
        rows.append((words, f"<= {100 * most:.2g} %", f"{100 * rate:.2g} %", rate <= most))
    collapse = results.get("predictions: labels, total variation 0.4, 300/min")
    if collapse:
        median = statistics.median(collapse.minutes[GATE])
        required = f"<= {MOST_MINUTES} min"
        rows.append(
            ("labels, total variation 0.4, 300/min: median", required, _minutes(median), median <= MOST_MINUTES)
        )
    lines = ["", "## Requirements", "", "| | required | measured | |", "|---|---|---|---|"]
    return lines + [f"| {a} | {b} | {c} | {'met' if met else '**not met**'} |" for a, b, c, met in rows]


def _findings(results: Mapping[str, Results]) -> Iterator[str]:
    """Yield what the tables show, once all cells are measured."""
    if len(results) == len(CELLS):
        yield from ("", "## What it shows", "", *_about_rules(results), *_about_validity(results))


def _about_rules(results: Mapping[str, Results]) -> Iterator[str]:
    """Yield which other rules keep their level, and what that costs them."""
    healthy = [cell for cell in CELLS if cell.kind == "healthy" and cell.family in ("predictions", "means", "inputs")]
    valid = [
        rule
        for rule in COMPARISONS
        if all(_rate(of) <= _most(ALPHA, len(of)) for cell in healthy for of in [results[_name(cell)].minutes[rule]])
    ]
    yield f"- Other rules that keep 5 % in every healthy cell of independent rows: {', '.join(valid) or 'none'}."
    buckets = results["predictions: numbers in ten buckets, 0.5 sd higher, 300/min"].minutes
    gate, robust = (_minutes(statistics.median(buckets[rule])) for rule in (GATE, "SageMaker, Robust"))
    labels = _per_cent(results["predictions: labels, total variation 0.4, 300/min"].minutes["SageMaker, Robust"])
    yield (
        f"- SageMaker's `Robust` finds a number in buckets that is half a standard deviation higher after {robust} "
        f"(the gate: {gate}). Of treatments that predict five of ten labels nine times as often as the others it "
        f"finds {labels}: no share differs by 0.1 then. Rows of one request mislead it."
    )
    means, inputs = (
        "means: normal, 0.3 sd higher, 3,000/min",
        "inputs: numbers in ten buckets, 0.3 sd higher, 3,000/min",
    )
    waited, found = (_minutes(statistics.median(results[cell].minutes[GATE])) for cell in (means, inputs))
    yield (
        "- The gate's means conclude nothing before 20 bins: 0.3 standard deviations at 3,000 a minute are found "
        f"after {waited}, in buckets of an input after {found}."
    )
    yield (
        "- A distance above a threshold happens by chance while there are few values, and a small difference that is "
        "real is below it. A test at each look finds whatever is there, tolerated or not, and in time what is not."
    )


def _about_validity(results: Mapping[str, Results]) -> Iterator[str]:
    """Yield where the gate's claims are not valid, and by how much."""

    def rate(cell: str) -> str:
        return _per_cent(results[cell].minutes[GATE])

    def tails(suffix: str) -> str:
        names = ("log-normal, sigma 1", "log-normal, sigma 2", "Pareto, shape 2.5", "Pareto, shape 1.5")
        return ", ".join(f"{name}: {rate(f'means: {name}{suffix}, worse: lower, 300/min')}" for name in names)

    yield (
        "- **Heavy tails.** Healthy treatments that are taken back because the mean is lower, where 2.5 % are allowed: "
        f"{tails('')}. With `clip`: {tails(', clipped')}. A mean that is worse if higher is on the safe side: the few "
        "values that make a mean high make its variance high too."
    )
    batches = "clusters: batches, {}, every row, 30/min"
    yield (
        "- **Rows of one request** are not independent. With every row counted, healthy treatments would be stopped in "
        f"{rate(batches.format('labels, total variation 0'))} of the rollouts because of predictions, "
        f"{rate(batches.format('mean 0 sd higher'))} because of a mean, {rate(batches.format('inputs alike'))} because "
        "of inputs. The gate takes one row, or the mean, of each request."
    )
    users = "clusters: users, {} alike, split by user, {}, 300/min"
    of_users = "; ".join(
        f"{times}, {rate(users.format('predictions', times))} because of predictions, "
        f"{rate(users.format('means', times))} because of a mean, {rate(users.format('inputs', times))} because of "
        "inputs"
        for times in TIMES
    )
    yield (
        "- **A split by user** needs users as the unit: where an endpoint is sticky these metrics are refused, and "
        "errors and latency are [counted by user](gate-benchmark-users.md). "
        f"Healthy treatments that are stopped, with {USERS_REQUESTS} requests of a user {of_users}. The router splits "
        "by request otherwise, and users who differ do no harm."
    )
    late = rate("late labels: the same, and all requests of the day together")
    yield (
        "- **Labels that come late** are judged by their arrival, apart for times with another split. All requests of "
        f"a day together would stop {late} of healthy treatments, where the rate of wrong answers has changed with the "
        "split."
    )


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


def _drawn(picture: Picture, results: Mapping[str, Results]) -> str:
    """Return a picture of the rates or the median minutes of some cells, as SVG."""
    series: dict[str, list[float]] = {rule: [] for rule in (GATE, *FAMILIES[picture.family].rules)}
    for cell in picture.groups.values():
        for rule, values in series.items():
            minutes = results[cell].minutes[rule] if cell in results else [NEVER]
            values.append(min(statistics.median(minutes), float(LOOKS)) if picture.delays else 100 * _rate(minutes))
    highest, line = (float(LOOKS), None) if picture.delays else (100.0, 100 * ALPHA)
    return bars(picture.title, list(picture.groups), series, highest=highest, line=line)


def _name(cell: Cell) -> str:
    """Return what a cell's results are kept under."""
    return f"{cell.family}: {cell.name}"


def _rate(minutes: Sequence[float]) -> float:
    """Return which part of the rollouts was taken back or held."""
    return sum(minute < NEVER for minute in minutes) / len(minutes)


def _per_cent(minutes: Sequence[float]) -> str:
    """Return which part of the rollouts was taken back or held, as text."""
    return f"{100 * _rate(minutes):.3g} %"


def _most_of(cell: Cell, results: Mapping[str, Results]) -> float:
    """Return how many of a healthy cell's rollouts the gate may stop: its level and three standard errors."""
    return _most(cell.level, len(results[_name(cell)].minutes[GATE]))


def _most(level: float, runs: int) -> float:
    """Return a level and three standard errors."""
    return level + 3 * math.sqrt(level * (1 - level) / runs)


def _minutes(minutes: float) -> str:
    """Return a number of minutes as text."""
    return f"> {LOOKS} min" if minutes == NEVER else f"{minutes:g} min"
