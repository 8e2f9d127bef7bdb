"""What a step of a rollout can show, before it begins: how long until a pass, and which regressions it finds."""

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate.model import Gate

__all__ = ["Power", "power"]

LONGEST: Final = timedelta(days=30)
SHOWN_QUANTILE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Power:
    """What a step of a rollout can show, typically; as text (`str`) a sentence for a log.

    Attributes:
        share: The treatment's part of the two versions' traffic.
        requests_per_second: Requests to both versions together.
        error_rate: The share of control's requests that are errors.
        within: How long the step looks.
        time_to_pass: Until a treatment that is like control passes; None: not within 30 days.
        treatment_requests_to_pass: The same in requests of the treatment.
        detectable_error_rate: The smallest error rate of the treatment that is found within `within`; None: none is.
        detectable_slow_share: The smallest part of the treatment's requests beyond control's `slow_quantile` that is
            found within `within`; None: none is, or latency is not judged.
        slow_quantile: p95, or the quantile of the gate that is nearest to it; None: latency is not judged.
    """

    share: float
    requests_per_second: float
    error_rate: float
    within: timedelta
    time_to_pass: timedelta | None
    treatment_requests_to_pass: int | None
    detectable_error_rate: float | None
    detectable_slow_share: float | None
    slow_quantile: float | None

    def __str__(self) -> str:
        """Return a sentence for a log: how long a pass takes, and which regressions are found."""
        passes = "does not pass within 30 days"
        if self.time_to_pass is not None:
            needed = f"{self.treatment_requests_to_pass:,} of its requests"
            passes = f"passes after about {_duration(self.time_to_pass)} ({needed})"
        control_rate = _percent(self.error_rate)
        if self.detectable_error_rate is None:
            detected = [f"no higher error rate than control's {control_rate}"]
        else:
            detected = [f"errors of {_percent(self.detectable_error_rate)} or more (control {control_rate})"]
        if self.slow_quantile is not None:
            beyond = f"of its requests beyond control's p{100 * self.slow_quantile:g}"
            normally = f"(normally {_percent(1 - self.slow_quantile)})"
            least = self.detectable_slow_share
            detected.append(f"no share {beyond}" if least is None else f"{_percent(least)} or more {beyond} {normally}")
        traffic = f"{100 * self.share:.3g} % of {self.requests_per_second:,.3g} requests/s"
        found = f"found within {_duration(self.within)}: {', '.join(detected)}"
        return f"{traffic}: a treatment like control {passes}; {found}"


def power(
    gate: Gate,
    *,
    share: float,
    requests_per_second: float,
    error_rate: float = 0.005,
    within: timedelta = timedelta(hours=1),
    latency: bool = True,
) -> Power:
    """Return how long a rollout step has to last for a pass, and which regressions it detects, before it begins. Pure.

    Args:
        gate: What the treatment has to show.
        share: The treatment's part of the two versions' traffic, above 0 and below 1.
        requests_per_second: Requests to both versions together.
        error_rate: The share of control's requests that are errors, 0 or more and below 1.
        within: How long the step looks.
        latency: Whether latency is judged too.

    Returns:
        What is typical: times and sizes that about half of the rollouts need or find (docs/gate.md).

    Raises:
        EvidenceError: A value is out of its range.
    """
    from controlled_rollout.gate.expected_evidence import (  # imports numpy
        detectable_error_rate,
        detectable_slow_share,
        requests_to_pass,
    )

    _check_arguments(share, requests_per_second, error_rate, within)
    quantiles = gate.latency_quantiles if latency else ()
    per_second = share * requests_per_second
    requests = requests_to_pass(gate, share, error_rate, quantiles)
    time = None if requests is None else requests / per_second
    if time is not None and time > LONGEST.total_seconds():
        requests = time = None
    served = per_second * within.total_seconds()
    slow_quantile = min(quantiles, key=lambda quantile: abs(quantile - SHOWN_QUANTILE), default=None)
    return Power(
        share=share,
        requests_per_second=requests_per_second,
        error_rate=error_rate,
        within=within,
        time_to_pass=None if time is None else timedelta(seconds=math.ceil(time)),
        treatment_requests_to_pass=requests,
        detectable_error_rate=detectable_error_rate(gate, share, error_rate, served, latency=bool(quantiles)),
        detectable_slow_share=None
        if slow_quantile is None
        else detectable_slow_share(gate, share, slow_quantile, served, len(quantiles)),
        slow_quantile=slow_quantile,
    )


def _check_arguments(share: float, requests_per_second: float, error_rate: float, within: timedelta) -> None:
    """Raise EvidenceError for an argument of `power` that is out of range."""
    for name, value, in_range, wanted in (
        ("share", share, 0 < share < 1, "above 0 and below 1 (it is a fraction, not per cent)"),
        ("requests_per_second", requests_per_second, 0 < requests_per_second < math.inf, "above 0 and finite"),
        ("error_rate", error_rate, 0 <= error_rate < 1, "0 or more and below 1 (it is a fraction, not per cent)"),
        ("within", within, within > timedelta(0), "above 0"),
    ):
        if not in_range:
            raise EvidenceError(f"{name} = {value} is out of range: give one that is {wanted}")


def _percent(rate: float) -> str:
    """Return a rate as per cent with two digits, as text."""
    return f"{100 * rate:.2g} %"


def _duration(length: timedelta) -> str:
    """Return a duration as text in a fitting unit: seconds, minutes, hours or days."""
    minutes = length.total_seconds() / 60
    if minutes < 1:
        return f"{length.total_seconds():.0f} s"
    if minutes < 120:
        return f"{math.ceil(minutes)} min"
    return f"{minutes / 60:.2g} h" if minutes < 48 * 60 else f"{minutes / 1440:.2g} d"
