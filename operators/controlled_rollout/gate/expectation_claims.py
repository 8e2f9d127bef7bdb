"""The claims about expectations: unexpected rows are events, like errors."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.expectations import Expectation
from controlled_rollout.gate.claims import ClaimResult, alarm_from, alarm_threshold
from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.event_test import format_difference, format_rate
from controlled_rollout.gate.mixture import mixture_path
from controlled_rollout.gate.model import EXPECTED, UNEXPECTED, Gate
from controlled_rollout.gate.rate import evidence_path
from controlled_rollout.gate.ratio import ABOVE, ABOVE_WEIGHTS, OddsRatio, rate_differs
from controlled_rollout.gate.restarts import Process, alarm_evidence, process_starts

__all__ = ["expectation_claims"]

Floats = NDArray[np.float64]

# Evidence beyond any threshold, as a log that can still be added and averaged.
CERTAIN: Final = 300.0
# Evidence of nothing, of which there is still a log.
LEAST: Final = 1e-300


def expectation_claims(judged: Columns, gate: Gate) -> list[ClaimResult]:
    """Test for each expectation the alarm that the treatment violates it more than it may.

    One row of each request is judged, so that requests are the observations, as everywhere.

    Args:
        judged: The rollout's bins, warm-up left out.
        gate: Which expectations, and what is tolerated.
    """
    if gate.expectations is None:
        return []
    spans = {first: judged.since(first) for first in process_starts(judged)}
    claims = []
    for expectation in gate.expectations.row_wise:
        counts = {first: span.categories.get(expectation.name) for first, span in spans.items()}
        if counts[0] is not None:
            rows = {first: span.judged_by(counts[first] or {}, UNEXPECTED, EXPECTED) for first, span in spans.items()}
            claims.append(_violated_more(expectation, rows, gate))
    return claims


def _violated_more(expectation: Expectation, rows: Mapping[int, tuple[Columns, Metric]], gate: Gate) -> ClaimResult:
    """Test the alarm claim of one expectation, against control or against what is allowed."""
    assert gate.expectations is not None  # noqa: S101 - the caller has looked
    threshold = alarm_threshold(gate, "expectations", latency=bool(rows[0][0].slow))
    threshold *= len(gate.expectation_names)
    absolute = gate.expectations_against == "allowed"
    of_process = _against_allowed if absolute else _against_control
    processes = [of_process(first, *both, expectation, gate) for first, both in rows.items()]
    evidence = alarm_evidence(processes, len(rows[0][0].starts), math.log(threshold))
    columns, unexpected = rows[evidence.since]
    detail = (
        f"{format_rate(unexpected.treatment, columns.treatment)} of the treatment's rows are unexpected, "
        f"{format_rate(unexpected.control, columns.control)} of control's, {100 * expectation.allowed:.3g} % allowed"
    )
    if not absolute:
        detail += format_difference(columns, unexpected, gate.error_difference)
    return alarm_from(f"{expectation.name} is violated more", "alarm", evidence, threshold, detail)


def _against_control(first: int, columns: Columns, unexpected: Metric, expectation: Expectation, gate: Gate) -> Process:
    """Return the evidence, from one bin on, that the treatment violates more than control does and than is allowed.

    It is the smaller of the two: whichever of the two statements is false, that one's evidence is a fair game or less.
    """
    odds = OddsRatio(columns.treatment, columns.control, unexpected, burst=1.0, cap=gate.burst_cap)
    allowed = _above_allowed(columns, unexpected, expectation)

    def components(bins: int) -> tuple[Sequence[Floats], Sequence[float]]:
        """Return the evidence over `bins` bins, which has all the weight."""
        paths = odds.paths(gate.error_ratio, ABOVE, bins)
        total, _ = mixture_path(paths, ABOVE_WEIGHTS, bins)
        return [np.minimum(np.log(np.maximum(total, LEAST)), allowed[:bins])], [1.0]

    return Process(first, components, rate_differs(columns, unexpected, gate.error_difference))


def _against_allowed(first: int, columns: Columns, unexpected: Metric, expectation: Expectation, gate: Gate) -> Process:
    """Return the evidence that the treatment's rate of unexpected rows is above what is allowed, from one bin on."""
    return Process(first, partial(_first_bins, _above_allowed(columns, unexpected, expectation)))


def _above_allowed(columns: Columns, unexpected: Metric, expectation: Expectation) -> Floats:
    """Return after each bin the log of the evidence that the treatment's rate is above what `mostly` allows."""
    good = columns.treatment - unexpected.treatment
    result: Floats = np.minimum(evidence_path(1 - expectation.allowed, good, columns.treatment, 1.0), CERTAIN)
    return result


def _first_bins(path: Floats, bins: int) -> tuple[Sequence[Floats], Sequence[float]]:
    """Return the first `bins` bins of a path of evidence, which has all the weight."""
    return [path[:bins]], [1.0]
