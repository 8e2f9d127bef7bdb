"""The demo's settings: its load, and parameters of the run that make it short enough to be watched."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Final

__all__ = ["DAG_ID", "DEADLINE_S", "ENDPOINT", "OUTAGE_S", "RATE", "RUN_IDS", "SETTINGS", "Fault", "run_parameters"]

DAG_ID: Final = "retrain_and_deploy"
# The run, and the one that rolls out anew where the first one's baseline says nothing any more.
RUN_IDS: Final = ("demo", "demo-anew")
ENDPOINT: Final = "digits"
# Requests per second.
RATE: Final = 100.0
# How long the whole demo may take, the first build of the model's environment included.
DEADLINE_S: Final = 900.0
# How long METRICS=down stops the telemetry store, in seconds.
OUTAGE_S: Final = 60.0
# Airflow, the router, the replicas and the load share two cores, so a request may wait longer for its turn.
SETTINGS: Final[dict[str, Any]] = {"num_replicas": 1, "max_request_wait_time": 5_000, "collect_model_data": True}
# A good model is rolled back in at most one of a thousand demos. Only the median of control's latency is judged: few
# requests exceed a higher quantile, and whatever else a small machine does in the ten seconds before the rollout may
# make it ten times what it is later, when it would say nothing. Half as much latency again is tolerated, because two
# cores serve everything and every process that starts makes the latency vary for seconds; a low cap on what one bin
# contributes bears that better than the discount for bursts: no alarm comes from fewer than seven bins. What versions
# predict is judged from collected data.
GATE: Final[dict[str, Any]] = {
    "alpha": 0.001,
    "burst_cap": 3.0,
    "latency_quantiles": [0.5],
    "latency_tolerance": 0.5,
    "warm_up": "3 s",
    "categories": {"digit": {"column": "predictions.predictions", "tolerance": 0.1, "on_difference": "fail"}},
}


class Fault(StrEnum):
    """A fault of the treatment."""

    FAILING = "failing"
    SLOW = "slow"
    CRASH = "crash"
    FLAKY = "flaky"
    SKEWED = "skewed"


def run_parameters(fault: Fault | None, *, project: Path | None = None) -> dict[str, Any]:
    """Return the parameters of the DAG run.

    Args:
        fault: What is wrong with the treatment; None for nothing.
        project: The folder of the faulty treatment, which holds the fault's entry script.
    """
    parameters: dict[str, Any] = {
        "endpoint": ENDPOINT,
        "settings": SETTINGS,
        # The flaky treatment ends after 30 s of traffic, so the gates have to look for longer.
        "bake": "25 s" if fault is Fault.FLAKY else "8 s",
        "min_requests": 30,
        # Nobody is there who would decide.
        "decision_timeout": "6 min",
        "on_deadline": "roll_back",
        "keep_warm": "1 s",
        "gate": GATE,
        "interval": "2 s",
        "bin_width": "2 s",
        # The collector ships every 5 s.
        "allowed_lag": "6 s",
        "baseline_length": "10 s",
    }
    if fault:
        parameters |= {"source": str(project), "entry_script": f"{fault}.py"}
    return parameters
