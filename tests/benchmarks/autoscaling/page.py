"""The table and the picture of docs/autoscaling.md, from a simulation of every curve under every rule."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean

from tests.benchmarks.autoscaling.rules import RULES
from tests.benchmarks.autoscaling.simulation import CURVES, Curve, Outcome, simulate
from tests.benchmarks.gate.picture import COLOURS

SEEDS = range(20)
BEGIN, END = "<!-- simulated: begin -->", "<!-- simulated: end -->"
PICTURE = "autoscaling-simulated.svg"
WIDTH, HEIGHT, LEFT, GAP = 560, 90, 60, 46

Outcomes = Mapping[str, Mapping[str, Sequence[Outcome]]]


def simulate_all(seeds: Sequence[int] = SEEDS) -> Outcomes:
    """Return the outcomes of each curve by rule, one for each seed; a seed's arrivals are the same for every rule."""
    return {
        name: {rule: [simulate(make(), curve, seed) for seed in seeds] for rule, make in RULES.items()}
        for name, curve in CURVES.items()
    }


def complaints(outcomes: Outcomes) -> Iterator[str]:
    """Yield a sentence for each curve whose bar is missed."""
    for name, by_rule in outcomes.items():
        refused = {rule: fmean(outcome.refused for outcome in of) for rule, of in by_rule.items()}
        seconds = {rule: fmean(outcome.replica_seconds for outcome in of) for rule, of in by_rule.items()}
        if refused["ours"] > refused["KPA"] and seconds["ours"] > seconds["KPA"]:
            yield f"{name}: worse than KPA in refused requests and in replica-seconds"
        if name.startswith(("step, 1", "spike")) and refused["ours"] >= refused["HPA"] / 2:
            yield f"{name}: not less than half of the requests refused under HPA's rule"


def rows(outcomes: Outcomes) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows: one of each curve and rule."""
    for name, by_rule in outcomes.items():
        is_step = CURVES[name].changes_at > 0 and CURVES[name].sized is None
        for rule, of in by_rule.items():
            requests, refused = sum(one.requests for one in of), fmean(one.refused for one in of)
            yield (
                name if rule == "ours" else "",
                rule,
                _seconds([one.decided_s for one in of]) if is_step else "",
                _seconds([one.enough_s for one in of]) if is_step else "",
                f"{refused:,.0f}",
                f"{100 * sum(one.refused for one in of) / requests:.2f} %",
                f"{fmean(one.replica_seconds for one in of):,.0f}",
                f"{fmean(one.changes for one in of):.0f}",
            )


def _seconds(values: Sequence[float | None]) -> str:
    """Return the mean of the times that there are, in words."""
    known = [value for value in values if value is not None]
    return f"{fmean(known):.1f}" if known else "never"


def picture(outcomes: Outcomes) -> str:
    """Return as SVG, for each curve, the demand and how many replicas each rule wanted, with the first seed."""
    highest = max(max(of[0].wanted) for by_rule in outcomes.values() for of in by_rule.values())
    parts = [
        f'<text x="{LEFT + 110 * index}" y="18" font-size="12" fill="{colour}">■ {escape(name)}</text>'
        for index, (name, colour) in enumerate(zip([*RULES, "busy replicas"], [*COLOURS[:3], "#555"], strict=True))
    ]
    for position, (name, by_rule) in enumerate(outcomes.items()):
        curve, top = CURVES[name], 44 + position * (HEIGHT + GAP)
        parts.append(f'<text x="{LEFT}" y="{top - 6}" font-size="12">{escape(name)} ({curve.seconds} s)</text>')
        for tick in (0, highest // 2, highest):
            y = top + HEIGHT * (1 - tick / highest)
            parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" font-size="11" text-anchor="end">{tick}</text>')
        parts.append(_line(_demand(curve), top, highest, "#555"))
        for index, rule in enumerate(RULES):
            parts.append(_line(by_rule[rule][0].wanted, top, highest, COLOURS[index]))
    height = 44 + len(outcomes) * (HEIGHT + GAP)
    body = "\n".join(parts)
    size = f"0 0 {LEFT + WIDTH + 20} {height}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _demand(curve: Curve) -> list[float]:
    return [curve.demand(second + 0.5) for second in range(curve.seconds)]


def _line(values: Sequence[float], top: float, highest: float, colour: str) -> str:
    """Return a line through at most 400 of the values."""
    step = max(1, len(values) // 400)
    points = " ".join(
        f"{LEFT + WIDTH * index / len(values):.1f},{top + HEIGHT * (1 - values[index] / highest):.1f}"
        for index in range(0, len(values), step)
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>'


def write(folder: Path, table: Sequence[str], outcomes: Outcomes) -> None:
    """Replace the table in docs/autoscaling.md, and draw the picture beside it."""
    page = folder / "autoscaling.md"
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + "\n".join([BEGIN, *table, "", END]) + after)
    (folder / PICTURE).write_text(picture(outcomes))
