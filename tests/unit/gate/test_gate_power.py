"""The forecast of a step agrees with simulated rollouts."""

import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Gate, power
from tests.benchmarks.gate import vectorised_gate
from tests.benchmarks.gate.traffic import Cell, constant, simulate

HOUR = timedelta(hours=1)
Value = TypeVar("Value")


def not_none(value: Value | None) -> Value:
    assert value is not None
    return value


def median_minutes(cell: Cell, kind: str) -> float:
    traffic = simulate(cell, 150, np.random.default_rng(7))
    minutes = getattr(vectorised_gate.looks(traffic), kind)
    return float(np.median(np.where(minutes < vectorised_gate.NEVER, minutes + 1.0, math.inf)))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_time_to_pass_is_about_the_median_of_simulated_rollouts(share: float) -> None:
    cell = Cell("healthy", 300, True, share=constant(share), latency=constant(0.97), minutes=240)
    forecast = power(Gate(), share=share, requests_per_second=5)

    assert forecast.time_to_pass is not None
    # The simulated treatment is slow a little less often than control: a tolerance of 5 % is in its favour.
    minutes = median_minutes(cell, "passed")
    assert 0.6 * minutes <= forecast.time_to_pass.total_seconds() / 60 <= 1.6 * minutes


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_detectable_error_rate_within_half_an_hour_is_detected_in_about_half_an_hour(share: float) -> None:
    forecast = power(Gate(), share=share, requests_per_second=5, within=timedelta(minutes=30))
    assert forecast.detectable_error_rate is not None
    ratio = forecast.detectable_error_rate / 0.005

    minutes = median_minutes(Cell("worse", 300, False, ratio=ratio, share=constant(share)), "failed")

    assert 18 <= minutes <= 50


def test_more_traffic_detects_smaller_differences_sooner() -> None:
    few, many = (power(Gate(), share=0.1, requests_per_second=rate) for rate in (2, 20))

    assert not_none(few.time_to_pass) > not_none(many.time_to_pass)
    assert not_none(few.detectable_error_rate) > not_none(many.detectable_error_rate)
    assert not_none(few.detectable_slow_share) > not_none(many.detectable_slow_share)


def test_forecast_of_a_step_with_hardly_any_traffic_has_no_figures() -> None:
    forecast = power(Gate(), share=0.01, requests_per_second=0.01, within=timedelta(minutes=1))

    assert (forecast.time_to_pass, forecast.treatment_requests_to_pass) == (None, None)
    assert (forecast.detectable_error_rate, forecast.detectable_slow_share) == (None, None)
    assert "does not pass within 30 days" in str(forecast)
    assert "no higher error rate" in str(forecast)


def test_forecast_without_latency_has_no_latency_figures() -> None:
    forecast = power(Gate(), share=0.1, requests_per_second=5, latency=False)

    assert (forecast.detectable_slow_share, forecast.slow_quantile) == (None, None)
    assert "p95" not in str(forecast)
    # All of alpha is the errors'.
    with_latency = power(Gate(), share=0.1, requests_per_second=5)
    assert not_none(forecast.detectable_error_rate) < not_none(with_latency.detectable_error_rate)


def test_forecast_sentence_contains_the_figures() -> None:
    sentence = str(power(Gate(), share=0.1, requests_per_second=5, within=HOUR))

    assert sentence.startswith("10 % of 5 requests/s: a treatment like control passes after about 1")
    assert "(control 0.5 %)" in sentence
    assert "beyond control's p95 (normally 5 %)" in sentence


def test_control_without_errors_passes_by_the_rate_alone() -> None:
    forecast = power(Gate(), share=0.1, requests_per_second=5, error_rate=0, latency=False)

    assert forecast.treatment_requests_to_pass == 751
    assert not_none(forecast.detectable_error_rate) >= 0.002


def test_figures_of_docs_gate_md_are_those_of_the_forecast() -> None:
    page = (Path(__file__).parents[3] / "docs" / "gate.md").read_text()
    tenth, half = (power(Gate(), share=share, requests_per_second=5) for share in (0.1, 0.5))

    for forecast in (tenth, half):
        minutes = math.ceil(not_none(forecast.time_to_pass).total_seconds() / 60)
        assert f"{minutes} min" in page
        assert f"{forecast.treatment_requests_to_pass:,}" in page
    assert f"errors of {100 * not_none(tenth.detectable_error_rate):.2g} % or more" in page
    assert f"{100 * not_none(tenth.detectable_slow_share):.2g} % or more of its requests beyond control's p95" in page


@pytest.mark.parametrize(
    "values",
    [
        {"share": 0},
        {"share": 1},
        {"share": 10},
        {"share": math.nan},
        {"requests_per_second": 0},
        {"requests_per_second": math.inf},
        {"error_rate": 1},
        {"error_rate": -0.1},
        {"within": timedelta(0)},
    ],
)
def test_values_out_of_range_are_refused_with_what_to_give(values: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match=f"{next(iter(values))} = .* is out of range: give one that is"):
        power(Gate(), **{"share": 0.1, "requests_per_second": 5, **values})


def test_importing_the_gate_does_not_import_numpy() -> None:
    script = "import sys, controlled_rollout.gate; sys.exit('numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
