"""Some rollouts of a cell under the gate and the other rules."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from controlled_rollout.gate import Bin, Counts, Moments, judge
from controlled_rollout.gate.columns import Columns, Values
from controlled_rollout.gate.event_claims import event_claims
from controlled_rollout.gate.expectation_claims import expectation_claims
from controlled_rollout.gate.metric_claims import metric_claims
from controlled_rollout.gate.model import Gate
from tests.benchmarks.gate.data.cells import CELLS, FAMILIES, Cell
from tests.benchmarks.gate.data.many_inputs import deciding_bins_of_inputs
from tests.benchmarks.gate.data.rollouts import Rollout
from tests.benchmarks.gate.data.rules import ENOUGH

__all__ = ["CHECKED", "GATE", "NEVER", "Results", "bins_of", "chunk", "deciding_bin", "deciding_bins"]

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
    rollouts = [cell.draw(rng) for _ in range(runs)]
    for run, (rollout, bin_) in enumerate(zip(rollouts, deciding_bins(rollouts, cell.gate), strict=True)):
        if part == 0 and run < CHECKED:
            check(cell, rollout.columns, bin_)
            results.checked += 1
        minute = NEVER if bin_ is None else 1.0 + (bin_ if rollout.looks is None else int(rollout.looks[bin_]))
        results.minutes[GATE].append(minute)
        seen = rollout.seen
        enough = np.minimum(*(np.cumsum(arm.sum(axis=1)) for arm in (seen.treatment, seen.control))) >= ENOUGH
        for name, rule in rules.items():
            fails = rule.fails(seen) & enough
            results.minutes[name].append(float(fails.argmax()) + 1 if fails.any() else NEVER)
    results.seconds = time.process_time() - begin
    return results


def deciding_bins(rollouts: Sequence[Rollout], gate: Gate) -> list[int | None]:
    """Return for each rollout the index of the bin after which a claim is established; None if none is."""
    if any(not category.tolerance for category in gate.categories.values()) and not gate.events:
        return deciding_bins_of_inputs(rollouts, gate)
    return [deciding_bin(rollout.columns, gate) for rollout in rollouts]


def deciding_bin(columns: Columns, gate: Gate) -> int | None:
    """Return the index of the bin after which the first claim about the gate's metrics is established; None if none."""
    claims = metric_claims(columns, gate)
    alarms, _ = event_claims(columns, gate)
    results = (*claims.alarms, *claims.splits, *alarms, *expectation_claims(columns, gate))
    return min((one.established_at for one in results if one.established_at is not None), default=None)


def check(cell: Cell, columns: Columns, decided: int | None) -> None:
    """Let `judge` decide with the bins up to the one after which a claim was established, without it, and with all.

    Raises:
        AssertionError: It decides otherwise.
    """
    bins = bins_of(columns)
    for number in {len(bins), *(() if decided is None else (decided, decided + 1))} - {0}:
        stopped = judge(bins[:number], cell.gate).outcome in {"fail", "split_is_wrong"}
        expected = decided is not None and number > decided
        assert stopped == expected, f"{cell.family}, {cell.name}: {number} bins, established after {decided}"


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
    # The split is not what is judged here: only where it changes do the bins say what was set.
    changes = len(np.unique(columns.shares)) > 1
    return counts[0], counts[1], float(columns.shares[look]) if changes else None
