"""`make bench-gate`: a sticky endpoint judged by users and by requests, written to docs/gate-benchmark-users.md.

Users differ: some fail nearly always, whichever version answers, and some send fifty times as many requests.
"""

import argparse
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

# numpy's own threads would only compete with the processes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from controlled_rollout.gate import Gate, Outcome, judge
from tests.sticky_users import STARTED, Steps, bins_of_requests, counted_requests, request_bins, simulated_requests

PAGE = Path(__file__).parents[3] / "docs" / "gate-benchmark-users.md"
MINUTE = timedelta(minutes=1)
MINUTES = 32
GUARD = timedelta(seconds=5)
STEPS: Steps = (
    (STARTED, 0.0),
    (STARTED + 2 * MINUTE, 0.1),
    (STARTED + 12 * MINUTE, 0.3),
    (STARTED + 22 * MINUTE, 0.6),
)
SPLIT_STAYS: Steps = (STEPS[0], STEPS[1], (STEPS[2][0], 0.1), (STEPS[3][0], 0.1))
GATES: Mapping[str, Gate] = {
    "users": Gate(unit="user", latency_quantiles=()),
    "requests": Gate(latency_quantiles=()),
}
Kind = Literal["healthy", "bad", "wrong split"]


HEAD = """# A sticky endpoint judged by users

Written by `make bench-gate`. Rollouts of 32 minutes: 10 % from the second minute on, 30 % from the twelfth, 60 % from
the twenty-second; a user stays with a version as long as the split stays. *Users*: `Gate(unit="user")`; *requests*:
what a gate that counts requests would do, which is refused there. A user who fails does so with nine of ten requests,
of whichever version; others with one of 200.

The table has the per cent of the rollouts that are taken back (5 % are allowed of healthy ones), and that are held
because the split is wrong (0.1 % are allowed). Bold: more than is allowed by more than three standard errors.

| rollouts | taken back: users | requests | split is wrong: users | requests | rollouts judged |
|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Cell:
    """One kind of rollout.

    Attributes:
        name: What the table calls it.
        kind: What is wrong with it.
        users: How many users there are.
        settings: Further arguments of `simulated_requests`.
    """

    name: str
    kind: Kind
    users: int
    settings: Mapping[str, float] = field(default_factory=dict)


CELLS = (
    Cell("2 % of the users send 50 times as much, 5 % fail", "healthy", 500),
    Cell("10 % send 50 times as much, 10 % fail", "healthy", 250, {"heavy": 0.1, "bad": 0.1}),
    Cell(
        "20 % send 50 times as much, 30 % fail, all come again",
        "healthy",
        250,
        {"heavy": 0.2, "bad": 0.3, "returning": 1.0},
    ),
    Cell(
        "10 % send 50 times as much, 10 % fail, nobody comes again",
        "healthy",
        400,
        {"heavy": 0.1, "bad": 0.1, "returning": 0.0},
    ),
    Cell("the treatment fails 10 % more users", "bad", 1_500, {"treatment_bad": 0.1}),
    Cell("the treatment fails 30 % more users", "bad", 1_500, {"treatment_bad": 0.3}),
    Cell("10 % are served where 30 % and 60 % are set", "wrong split", 4_000, {"returning": 0.2}),
)


def outcomes(cell: Cell, seeds: Iterable[int]) -> dict[str, Counter[Outcome]]:
    """Return by unit how often the gate has concluded what on rollouts of a cell."""
    found: dict[str, Counter[Outcome]] = {unit: Counter() for unit in GATES}
    served = SPLIT_STAYS if cell.kind == "wrong split" else STEPS
    for seed in seeds:
        source = random.Random(f"{cell.name} {seed}")
        requests = simulated_requests(source, served, minutes=MINUTES, users=cell.users, **cell.settings)
        by_user = bins_of_requests(counted_requests(requests, STEPS, guard=GUARD), STEPS)
        for unit, bins in (("users", by_user), ("requests", request_bins(requests, STEPS))):
            found[unit][judge(bins, GATES[unit]).outcome] += 1
    return found


def simulate(runs: int, others: int, processes: int) -> list[tuple[Cell, int, dict[str, Counter[Outcome]]]]:
    """Return each cell with its number of rollouts and what the gates have concluded."""
    results: list[tuple[Cell, int, dict[str, Counter[Outcome]]]] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for cell in CELLS:
            number = runs if cell.kind == "healthy" else others
            found: dict[str, Counter[Outcome]] = {unit: Counter() for unit in GATES}
            parts = [range(first, min(first + 25, number)) for first in range(0, number, 25)]
            judged: Callable[[range], dict[str, Counter[Outcome]]] = partial(outcomes, cell)
            for part in pool.map(judged, parts):
                for unit, counted in part.items():
                    found[unit] += counted
            results.append((cell, number, found))
            print(f"{cell.name}: {found}", flush=True)
    return results


def page(results: Iterable[tuple[Cell, int, dict[str, Counter[Outcome]]]], seconds: float) -> str:
    """Return the page."""
    lines = [HEAD]
    for cell, number, found in results:
        cells = [
            _part(found[unit][outcome], number, allowed, is_healthy=cell.kind == "healthy")
            for outcome, allowed in ((Outcome.FAIL, 0.05), (Outcome.SPLIT_IS_WRONG, 0.001))
            for unit in GATES
        ]
        kind = "" if cell.kind == "healthy" else f", **{cell.kind}**"
        lines.append(f"| {cell.name}{kind} | {' | '.join(cells)} | {number:,} |")
    lines += ["", f"{seconds / 60:.0f} min."]
    return "\n".join(lines) + "\n"


def _part(count: int, number: int, allowed: float, *, is_healthy: bool) -> str:
    """Return a count in per cent; bold if it is more than is allowed of healthy rollouts."""
    part = count / number
    most = allowed + 3 * math.sqrt(allowed * (1 - allowed) / number)
    words = f"{100 * part:.3g}"
    return f"**{words}**" if is_healthy and part > most else words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000, help="rollouts of every healthy cell")
    parser.add_argument("--others", type=int, default=100, help="rollouts of every other cell")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    begin = time.monotonic()
    results = simulate(given.runs, given.others, given.processes)
    PAGE.write_text(page(results, time.monotonic() - begin), encoding="utf-8")


if __name__ == "__main__":
    main()
