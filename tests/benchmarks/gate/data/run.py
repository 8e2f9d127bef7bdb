"""Some rollouts of a cell under the gate and the other rules."""

import math
import time
from dataclasses import dataclass, field

import numpy as np

from controlled_rollout.gate import Bin, Counts, Moments, judge
from controlled_rollout.gate.columns import Columns, Values
from controlled_rollout.gate.expectation_claims import expectation_claims
from controlled_rollout.gate.metric_claims import metric_claims
from controlled_rollout.gate.model import Gate
from tests.benchmarks.gate.data.cells import CELLS, FAMILIES, Cell
from tests.benchmarks.gate.data.rollouts import LOOKS
from tests.benchmarks.gate.data.rules import ENOUGH

__all__ = ["CHECKED", "GATE", "NEVER", "Results", "bins_of", "chunk", "gate_minute"]

GATE = "this gate"
NEVER = math.inf
# So many of a cell's first rollouts are judged by `judge` as well.
CHECKED = 5


@dataclass
class Results:
    """What became of a cell's rollouts.

    Attributes:
        minutes: By rule the look (counted from 1) at which each rollout was taken back or held, `NEVER` if it was not.
        seconds: Processor time.
        checked: How many rollouts `judge` decided too, with the same outcome.
    """

    minutes: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    checked: int = 0

    def add(self, other: "Results") -> None:
        """Add the results of other rollouts of the cell."""
        for rule, minutes in other.minutes.items():
            self.minutes.setdefault(rule, []).extend(minutes)
        self.seconds += other.seconds
        self.checked += other.checked


def chunk(index: int, runs: int, part: int) -> Results:
    """Draw some rollouts of a cell and let every rule decide on them."""
    cell, rng, begin = CELLS[index], np.random.default_rng((index, part)), time.process_time()
    rules = FAMILIES[cell.family].rules
    results = Results({name: [] for name in (GATE, *rules)})
    for run in range(runs):
        rollout = cell.draw(rng)
        minute = gate_minute(rollout.columns, cell.gate)
        if part == 0 and run < CHECKED:
            check(cell, rollout.columns, minute)
            results.checked += 1
        results.minutes[GATE].append(minute)
        seen = rollout.seen
        enough = np.minimum(*(np.cumsum(arm.sum(axis=1)) for arm in (seen.treatment, seen.control))) >= ENOUGH
        for name, rule in rules.items():
            fails = rule.fails(seen) & enough
            results.minutes[name].append(float(fails.argmax()) + 1 if fails.any() else NEVER)
    results.seconds = time.process_time() - begin
    return results


def gate_minute(columns: Columns, gate: Gate) -> float:
    """Return the look at which the claim about the gate's only metric is established."""
    claims = metric_claims(columns, gate)
    (claim,) = (*claims.alarms, *claims.splits, *expectation_claims(columns, gate))
    return NEVER if claim.established_at is None else claim.established_at + 1.0


def check(cell: Cell, columns: Columns, minute: float) -> None:
    """Let `judge` decide at the looks around the one at which the claim was established, and at the last.

    Raises:
        AssertionError: It decides otherwise.
    """
    bins = bins_of(columns)
    for looks in {LOOKS, LOOKS if minute == NEVER else int(minute), LOOKS if minute == NEVER else int(minute) - 1} - {
        0
    }:
        stopped = judge(bins[:looks], cell.gate).outcome in {"fail", "split_is_wrong"}
        assert stopped == (looks >= minute), f"{cell.family}, {cell.name}: look {looks}, established at {minute}"


def bins_of(columns: Columns) -> list[Bin]:
    """Return the bins of which these are the columns."""
    return [Bin(start, *_counts(columns, look)) for look, start in enumerate(columns.starts)]


def _counts(columns: Columns, look: int) -> tuple[Counts, Counts, float | None]:
    """Return control's and the treatment's counts of a bin, and the share that was set."""

    def moments(values: Values) -> Moments:
        return Moments(int(values.count[look]), float(values.mean[look]), float(values.variance[look]))

    def tally(metric: str, arm: str) -> dict[str, int]:
        return {name: int(getattr(one, arm)[look]) for name, one in columns.categories[metric].items()}

    counts = [
        Counts(
            int(getattr(columns, arm)[look]),
            0,
            means={name: moments(values[number]) for name, values in columns.means.items()},
            categories={name: tally(name, arm) for name in columns.categories},
        )
        for number, arm in ((1, "control"), (0, "treatment"))
    ]
    # The split is not checked: a bin in which it changed has no share.
    share = float(columns.shares[look])
    return counts[0], counts[1], None if math.isnan(share) else share
