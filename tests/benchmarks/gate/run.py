"""One chunk of a cell under every rule, in a process of its own, and the sum of all chunks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate import judge
from tests.benchmarks.gate import vectorised_gate
from tests.benchmarks.gate.peers import PEERS
from tests.benchmarks.gate.traffic import ALL, CELLS, Cell, Traffic, simulate, thresholds_ms

GATE = "this gate"
RULES = (GATE, *(peer.name for peer in PEERS))
CHECKED_RUNS = 10


@dataclass(frozen=True)
class Chunk:
    """The results of some runs of a cell.

    Attributes:
        cell: The cell's name.
        minutes: By rule the minute of each run's roll-back, counted from 1 after the history; infinite where there was
            none, 0 or less in the history.
        passed: The minute of each run's pass by the gate.
        near: The part of all looks at which an alarm of the gate is near, and a step waits for it.
        requests, bad: By rule the treatment's requests and bad answers until then, or until the end.
        checked: How many runs were judged one by one by `judge` as well, with the same outcome.
        seconds: Processor time.
    """

    cell: str
    minutes: dict[str, list[float]]
    passed: list[float]
    near: list[float]
    requests: dict[str, list[float]]
    bad: dict[str, list[float]]
    checked: int
    seconds: float


def chunk(cell_index: int, runs: int, seed: Sequence[int]) -> Chunk:
    """Simulate some runs of a cell and let every rule decide on them.

    Raises:
        AssertionError: `judge` decides otherwise than the vectorised gate.
    """
    begin = time.process_time()
    cell = ALL[cell_index]
    traffic = simulate(cell, runs, np.random.default_rng(seed))
    gate = vectorised_gate.looks(traffic)
    failed = {GATE: gate.failed}
    if cell in CELLS:
        failed |= {peer.name: peer.failed(traffic) for peer in PEERS}
    if "p95" in cell.name:  # an answer is bad when it comes later than control's p95
        bad = traffic.treatment.slow(thresholds_ms((0.95,)))[..., 0]
    else:
        bad = traffic.treatment.errors
    totals = np.cumsum(traffic.treatment.requests, axis=1), np.cumsum(bad, axis=1)
    row = np.arange(runs)
    until = {name: np.minimum(first, cell.bins - 1) for name, first in failed.items()}
    return Chunk(
        cell.name,
        {name: _minutes(first, cell) for name, first in failed.items()},
        _minutes(gate.passed, cell),
        gate.leans.mean(axis=1).tolist(),
        {name: totals[0][row, last].tolist() for name, last in until.items()},
        {name: totals[1][row, last].tolist() for name, last in until.items()},
        check(traffic, gate, range(CHECKED_RUNS if seed[1] == 0 else 0)),
        time.process_time() - begin,
    )


def check(traffic: Traffic, looks: vectorised_gate.Looks, runs: Sequence[int]) -> int:
    """Judge runs one by one, at the looks where the vectorised gate changes its mind and at the end.

    Raises:
        AssertionError: The two disagree.
    """
    gate = vectorised_gate.gate_of(traffic)
    for run in runs:
        bins, baseline = vectorised_gate.bins_of(traffic, run)
        failed, passed = int(looks.failed[run]), int(looks.passed[run])
        last = len(bins) - 1
        judged = {look for first in (failed, passed) for look in (first - 1, first, last) if 0 <= look <= last}
        for look in sorted(judged):
            expected = "fail" if failed <= look else "pass" if passed == look else "not_enough_evidence"
            if passed < look < failed or look < traffic.cell.history_bins:
                continue  # a pass may end where the newest requests fail; before the shift another share is judged
            outcome = judge(bins[: look + 1], gate, baseline=baseline).outcome
            assert outcome == expected, f"{traffic.cell.name}, run {run}, look {look}: {outcome}, not {expected}"
    return len(runs)


def merged(chunks: Sequence[Chunk]) -> Chunk:
    """Put the chunks of one cell together."""

    def by_rule(parts: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
        return {name: [value for part in parts for value in part[name]] for name in parts[0]}

    return Chunk(
        chunks[0].cell,
        by_rule([part.minutes for part in chunks]),
        [minute for part in chunks for minute in part.passed],
        [part_near for part in chunks for part_near in part.near],
        by_rule([part.requests for part in chunks]),
        by_rule([part.bad for part in chunks]),
        sum(part.checked for part in chunks),
        sum(part.seconds for part in chunks),
    )


def _minutes(first: NDArray[np.int64], cell: Cell) -> list[float]:
    """Return after how many minutes of the present share a rule decided, from the bin after which it did."""
    minutes = (first + 1.0 - cell.history_bins) / cell.bins_per_minute
    return [float(minute) for minute in np.where(first < vectorised_gate.NEVER, minutes, np.inf)]
