"""How much processor time one look takes: `judge` on a week of one-minute bins."""

import time

import numpy as np

from controlled_rollout.gate import Gate, judge
from tests.benchmarks.gate import vectorised_gate
from tests.benchmarks.gate.traffic import Cell, constant, simulate

BINS = 10_000
CALLS = 7
KINDS = {
    "healthy": Cell("healthy", 300, True, minutes=BINS),
    "a little worse, never enough to tell": Cell("worse", 300, False, ratio=1.2, latency=constant(1.0), minutes=BINS),
    "a little slower": Cell("slower", 300, False, slower=1.06, minutes=BINS),
    "bad": Cell("bad", 300, False, ratio=5, slower=1.2, minutes=BINS),
    "healthy, 3,000 a minute, half and half": Cell("busy", 3_000, True, share=constant(0.5), minutes=BINS),
}


def seconds() -> dict[str, float]:
    """Return by kind of rollout the least processor time of several looks."""
    seconds = {}
    for name, cell in KINDS.items():
        bins, baseline = vectorised_gate.bins_of(simulate(cell, 1, np.random.default_rng(1)), 0)
        times = []
        for _ in range(CALLS):
            begin = time.process_time()
            judge(bins, Gate(), baseline=baseline)
            times.append(time.process_time() - begin)
        seconds[name] = min(times)
    return seconds
