"""The benchmark's page and pictures, from the results of its cells."""

import math
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.gate.peers import PEERS
from tests.benchmarks.gate.picture import bars
from tests.benchmarks.gate.run import GATE, RULES, Chunk
from tests.benchmarks.gate.traffic import BASELINE_MINUTES, CELLS, HISTORIES, LATER, MINUTES, NO_PASS

ALPHA = BETA = 0.05
HEALTHY = {cell.name for cell in CELLS if cell.healthy}
BAD = {cell.name for cell in CELLS if not cell.healthy}
MOST_LATER = 1.3
# The gate's medians when its alarms had only the process from the start (2026-11-26), and how much later they may be.
FROM_START_ONLY = {
    "errors 1 -> 5 %, 30/min": 47, "errors 0.5 -> 20 %, 30/min": 7, "p95 +20 %, 30/min": 97, "p95 +50 %, 30/min": 13,
    "errors 1 -> 5 %, 300/min": 6, "errors 0.5 -> 20 %, 300/min": 1, "p95 +20 %, 300/min": 11, "p95 +50 %, 300/min": 2,
    "errors 0.5 -> 1 %, 3,000/min": 13, "errors 1 -> 5 %, 3,000/min": 1, "errors 0.5 -> 20 %, 3,000/min": 1,
    "p95 +20 %, 3,000/min": 2, "p95 +50 %, 3,000/min": 1, "errors 2 -> 4 %, 3,000/min": 4,
}  # fmt: skip
MOST_SLOWER = 1.15
INTRODUCTION = f"""\
# The gate against other tools' rules

Written by `make bench-gate`. Every rule judges the same simulated rollouts: {MINUTES} one-minute looks,
{BASELINE_MINUTES} minutes of control before them. Requests arrive at random (Poisson) and go to the treatment with
the set share, 10 % unless the split changes. Durations are log-normal (median 100 ms, p95 268 ms), kept in a histogram
as a metric store keeps them. The gate has its default settings and judges errors and latency; where the start is cold,
it, Argo, Kayenta and AsympCS leave five minutes out. The split is the one that was set, and is not checked.
"""


def text(cells: Sequence[Chunk], took: str, looks: Mapping[str, float]) -> str:
    """Return the page.

    Args:
        cells: The results.
        took: How long they took, in words.
        looks: By kind of rollout the processor seconds of one look at 10,000 bins.
    """
    return (
        "\n".join(
            [
                INTRODUCTION,
                *_rules(),
                *_requirements(cells),
                *_healthy(cells),
                *_later(cells),
                *_no_pass(cells),
                *_bad(cells),
                *_about(cells, took, looks),
            ]
        )
        + "\n"
    )


def write(folder: Path, cells: Sequence[Chunk], page: str) -> None:
    """Write the page and its pictures."""
    (folder / "gate-benchmark.md").write_text(page)
    healthy = [cell for cell in cells if cell.cell in HEALTHY]
    bad = [cell for cell in cells if cell.cell in BAD and cell.cell.endswith(" 300/min")]
    (folder / "gate-benchmark-false-roll-backs.svg").write_text(
        bars(
            "Healthy treatments rolled back (%)",
            [cell.cell for cell in healthy],
            {rule: [100 * _rolled_back(cell, rule) for cell in healthy] for rule in RULES},
            highest=100,
            line=100 * ALPHA,
        )
    )
    (folder / "gate-benchmark-delays.svg").write_text(
        bars(
            f"Median minutes until a bad treatment is rolled back, 300 requests a minute ({MINUTES}: never)",
            [cell.cell for cell in bad],
            {rule: [min(MINUTES, statistics.median(cell.minutes[rule])) for cell in bad] for rule in RULES},
            highest=MINUTES,
        )
    )


def _rules() -> Iterator[str]:
    yield "The other rules, from documentation and source; they promote what they have not rolled back by the end:\n"
    for peer in PEERS:
        yield f"- **{peer.name}**: {peer.what}."
    yield ""


def _healthy(cells: Sequence[Chunk]) -> Iterator[str]:
    yield "## Healthy treatments rolled back\n"
    yield (
        "Per cent of the runs in which any look rolled back; bold where that is above "
        f"{100 * ALPHA:g} % by more than three standard errors. A pass counts what came at the present share; a step "
        "does not go on at looks at which an alarm is near (a tenth of its threshold). Users of 20 requests: 2 % of "
        "them have all of the errors and 10 % take twice as long, all 20 requests of a user in one minute.\n"
    )
    yield "![Healthy treatments rolled back](gate-benchmark-false-roll-backs.svg)\n"
    yield from _header(
        "", *RULES, "the gate: passed %", "minutes until the pass", "not enough evidence %", "an alarm near %"
    )
    for cell in cells:
        if cell.cell in HEALTHY:
            rates = [_rolled_back(cell, rule) for rule in RULES]
            shown = [f"**{100 * rate:.1f}**" if rate > _most(cell) else f"{100 * rate:.1f}" for rate in rates]
            yield _row(
                cell.cell,
                *shown,
                f"{100 * _passed(cell):.1f}",
                _minutes(statistics.median(cell.passed)),
                f"{100 * _undecided(cell):.1f}",
                f"{100 * statistics.mean(cell.near):.1f}",
            )
    yield ""


def _later(cells: Sequence[Chunk]) -> Iterator[str]:
    """Yield how soon the gate finds what begins only when the split changes, by how long both were alike before."""
    named = {cell.cell: cell for cell in cells}
    yield "## Regressions that begin at a shift\n"
    yield (
        "300 requests a minute. Both versions are alike while the treatment has 10 % for so long; what is bad begins "
        "with the shift to 50 %. Minutes from the shift, in bins of 5 to 20 seconds so that they are not rounded "
        "to minutes; 5 to 30 minutes of them, the fewer the clearer the case is.\n"
    )
    yield from _header(
        "",
        "history",
        "rolled back %",
        "minutes (90 %)",
        "times as long",
        "rolled back before the shift %",
        "promoted %",
    )
    for cell in LATER:
        if (chunk := named.get(cell.name)) is None:
            continue
        minutes = _after_shift(chunk)
        yield _row(
            cell.name.rpartition(",")[0],
            f"{cell.history // 60} h",
            f"{100 * sum(minute < math.inf for minute in minutes) / len(minutes):.1f}",
            f"{statistics.median(minutes):.2g} ({_tenth(minutes):.2g})",
            f"{_times_as_long(chunk, named):.2f}",
            f"{100 * (1 - len(minutes) / len(chunk.passed)):.1f}",
            f"{100 * _passed(chunk):.1f}",
        )
    yield ""


def _no_pass(cells: Sequence[Chunk]) -> Iterator[str]:
    """Yield what the gate does where nothing may pass."""
    names = {cell.name for cell in NO_PASS}
    yield "## What must not pass\n"
    yield "One hour of 300 requests a minute in which the versions are alike, or nothing tells whether they are.\n"
    yield from _header("", "promoted %", "rolled back %", "not enough evidence %")
    for cell in cells:
        if cell.cell in names:
            values = (_passed(cell), _rolled_back(cell, GATE), _undecided(cell))
            yield _row(cell.cell, *(f"{100 * value:.1f}" for value in values))
    yield ""


def _after_shift(cell: Chunk) -> list[float]:
    """Return the minutes until the roll-back of the runs that were not rolled back before the shift."""
    return [minute for minute in cell.minutes[GATE] if minute > 0]


def _times_as_long(cell: Chunk, named: Mapping[str, Chunk]) -> float:
    """Return the median delay as a multiple of that without a history."""
    without = named.get(f"{cell.cell.rpartition(',')[0]}, after {HISTORIES[0]} h", cell)
    return statistics.median(_after_shift(cell)) / statistics.median(_after_shift(without))


def _bad(cells: Sequence[Chunk]) -> Iterator[str]:
    valid = _valid(cells)
    yield "## Bad treatments\n"
    yield f"Rules that keep {100 * ALPHA:g} % in every healthy cell: {', '.join(valid) or 'none'}.\n"
    yield (
        "Delay, requests and bad answers of the treatment until the roll-back are medians over all runs (a run without "
        f"one lasts {MINUTES} minutes). A bad answer is an error, in the latency cells one later than control's p95. "
        "*Slower than*: rules that are faster and keep their level in the healthy cell of the same traffic (A/A); in "
        "bold those that keep it in every healthy cell. A fixed threshold is fast where it happens to lie "
        "between the two rates; at another base rate it rolls back everything, or nothing.\n"
    )
    yield "![Delays](gate-benchmark-delays.svg)\n"
    yield from _header(
        "", "rule", "rolled back %", "minutes (90 %)", "requests", "bad answers", "undecided %", "promoted %", ""
    )
    for cell in cells:
        if cell.cell not in BAD:
            continue
        for rule in RULES:
            yield _row(
                cell.cell if rule == GATE else "",
                rule,
                *_columns(cell, rule),
                _slower_than(cell, cells, valid) if rule == GATE else "",
            )
    yield ""


def _columns(cell: Chunk, rule: str) -> Iterator[str]:
    minutes = cell.minutes[rule]
    yield f"{100 * _rolled_back(cell, rule):.1f}"
    yield f"{_minutes(statistics.median(minutes))} ({_minutes(_tenth(minutes))})"
    yield f"{statistics.median(cell.requests[rule]):,.0f}"
    yield f"{statistics.median(cell.bad[rule]):,.0f}"
    if rule == GATE:
        yield f"{100 * _undecided(cell):.1f}"
        yield f"{100 * _passed(cell):.1f}"
    else:
        yield "0.0"
        yield f"{100 * (1 - _rolled_back(cell, rule)):.1f}"


def _requirements(cells: Sequence[Chunk]) -> Iterator[str]:
    """Yield each requirement of the gate, and whether it is met."""
    named = {cell.cell: cell for cell in cells}
    yield "## Requirements\n"
    yield from _header("", "required", "measured", "")
    healthy = [cell for cell in cells if cell.cell in HEALTHY]
    if healthy:
        worst = max(healthy, key=lambda cell: _rolled_back(cell, GATE) - _most(cell))
        yield _requirement(
            f"every healthy cell (worst: {worst.cell})",
            f"<= {100 * _most(worst):.1f} %",
            100 * _rolled_back(worst, GATE),
            100 * _most(worst),
            " %",
        )
    for name, most in (("errors 1 -> 5 %, 300/min", 10), ("p95 +50 %, 300/min", 8)):
        if name in named:
            yield _requirement(
                f"{name}: median", f"<= {most} min", statistics.median(named[name].minutes[GATE]), most, " min"
            )
    if (cell := named.get("errors 1 -> 5 %, 300/min")) is not None:
        yield _requirement(f"{cell.cell}: bad answers, median", "<= 9", statistics.median(cell.bad[GATE]), 9, "")
    if (cell := named.get("p95 +20 %, 300/min")) is not None and healthy:
        rivals = [rule for rule in RULES[1:] if rule in _valid_beside(cell, cells)]
        best = min((statistics.median(cell.minutes[rule]) for rule in rivals), default=math.inf)
        yield _requirement(
            f"{cell.cell}: median",
            f"<= {_minutes(best)} min, the best rule that is valid in A/A",
            statistics.median(cell.minutes[GATE]),
            best,
            " min",
        )
    for name in (
        "errors 0.5 -> 1 %, 30/min",
        "errors 0.5 -> 1 %, 300/min",
        "errors 0.5 -> 1 %, 3,000/min",
        "errors 2 -> 4 %, 3,000/min",
    ):
        if (cell := named.get(name)) is not None:
            yield _requirement(f"{name}: wrongly passed", f"<= {100 * BETA:g} %", 100 * _passed(cell), 100 * BETA, " %")
    yield from _later_requirements(named)
    yield ""


def _later_requirements(named: Mapping[str, Chunk]) -> Iterator[str]:
    """Yield the requirements about shifts, about what must not pass, and about the price of both."""
    later = [named[cell.name] for cell in LATER if cell.name in named]
    if later:
        worst = max(later, key=lambda cell: _times_as_long(cell, named))
        times = _times_as_long(worst, named)
        what = f"begins at a shift: times as late as without history (worst: {worst.cell})"
        yield _requirement(what, f"<= {MOST_LATER}", times, MOST_LATER, "")
        worst = max(later, key=_passed)
        what = f"begins at a shift: wrongly passed (worst: {worst.cell})"
        yield _requirement(what, f"<= {100 * BETA:g} %", 100 * _passed(worst), 100 * BETA, " %")
    slower = {
        name: statistics.median(named[name].minutes[GATE]) / before
        for name, before in FROM_START_ONLY.items()
        if name in named
    }
    if slower:
        name = max(slower, key=slower.__getitem__)
        what = f"from the start: times as late as when alarms did not begin anew (worst: {name})"
        yield _requirement(what, f"<= {MOST_SLOWER}", slower[name], MOST_SLOWER, "")
    never = [named[cell.name] for cell in NO_PASS if cell.name in named]
    if never:
        worst = max(never, key=_passed)
        yield _requirement(f"must not pass (worst: {worst.cell})", "0 %", 100 * _passed(worst), 0, " %")


def _requirement(what: str, required: str, measured: float, most: float, unit: str) -> str:
    return _row(what, required, f"{measured:.3g}{unit}", "met" if measured <= most else "**not met**")


def _about(cells: Sequence[Chunk], took: str, looks: Mapping[str, float]) -> Iterator[str]:
    runs = {len(cell.passed) for cell in cells}
    yield "## How it was measured\n"
    yield (
        f"{max(runs):,} runs of each of {len(cells)} cells; {sum(cell.checked for cell in cells)} of them were also "
        "judged one by one with `judge`, with the same outcome at every look at which it changes. "
        f"{sum(cell.seconds for cell in cells) / 60:.0f} min of processor time, {took}, on a machine that was busy "
        "with other work "
        f"({os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"{datetime.now(UTC):%Y-%m-%d})."
    )
    yield "\n## One look\n"
    yield (
        "Processor time of `judge` on a week of minutes, the least of several calls: 10,000 bins, errors, latency at "
        "four quantiles and as a whole, the split, and both pass claims.\n"
    )
    yield from _header("rollout", "ms")
    for name, seconds in looks.items():
        yield _row(name, f"{1000 * seconds:.0f}")


def _slower_than(cell: Chunk, cells: Sequence[Chunk], valid: Sequence[str]) -> str:
    median = statistics.median(cell.minutes[GATE])
    faster = [rule for rule in _valid_beside(cell, cells) if statistics.median(cell.minutes[rule]) < median]
    return ("slower than " + ", ".join(f"**{rule}**" if rule in valid else rule for rule in faster)) if faster else ""


def _valid_beside(cell: Chunk, cells: Sequence[Chunk]) -> list[str]:
    """Return the other rules that keep their level in the A/A cell of the same traffic."""
    traffic = cell.cell.rpartition(", ")[2]
    beside = next((other for other in cells if other.cell == f"A/A, {traffic}"), None)
    return [rule for rule in RULES[1:] if beside is not None and _rolled_back(beside, rule) <= _most(beside)]


def _valid(cells: Sequence[Chunk]) -> list[str]:
    healthy = [cell for cell in cells if cell.cell in HEALTHY]
    return [rule for rule in RULES if all(_rolled_back(cell, rule) <= _most(cell) for cell in healthy)]


def _rolled_back(cell: Chunk, rule: str) -> float:
    return sum(minute < math.inf for minute in cell.minutes[rule]) / len(cell.minutes[rule])


def _passed(cell: Chunk) -> float:
    return sum(minute < math.inf for minute in cell.passed) / len(cell.passed)


def _undecided(cell: Chunk) -> float:
    pairs = zip(cell.minutes[GATE], cell.passed, strict=True)
    return sum(failed == passed == math.inf for failed, passed in pairs) / len(cell.passed)


def _most(cell: Chunk) -> float:
    return ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / len(cell.passed))


def _tenth(minutes: Sequence[float]) -> float:
    return sorted(minutes)[math.ceil(0.9 * len(minutes)) - 1]


def _minutes(value: float) -> str:
    return f"> {MINUTES}" if value == math.inf else f"{value:g}"


def _header(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield "|" + "---|" * len(names)


def _row(*values: str) -> str:
    return "| " + " | ".join(values) + " |"
