"""What the demo asks for: how much load, and the run's parameters, short enough to be watched."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Final

__all__ = ["DAG_ID", "ENDPOINT", "OUTAGE_S", "RATE", "RUN_ID", "SETTINGS", "Fault", "run_parameters"]

DAG_ID: Final = "retrain_and_deploy"
RUN_ID: Final = "demo"
ENDPOINT: Final = "digits"
# Requests per second.
RATE: Final = 100.0
# How long METRICS=down takes the telemetry store away, in seconds.
OUTAGE_S: Final = 60.0
# The box is shared by Airflow, the router, the replicas and the load: a request may wait a little longer for its turn.
SETTINGS: Final[dict[str, Any]] = {"num_replicas": 1, "max_request_wait_time": 5_000}
# A good model is taken back in one of a thousand demos at most. Quantiles are left out that take minutes to be sure of
# (p95, p99: few requests exceed them), and a quarter more time is tolerated: two cores serve all of this, and what
# starts and ends beside the versions makes their latency vary: a cap on every bin bears that better than a discount.
GATE: Final[dict[str, Any]] = {
    "alpha": 0.001,
    "burst_cap": 10.0,
    "latency_quantiles": [0.5, 0.9],
    "latency_tolerance": 0.25,
    "warm_up": "3 s",
}


class Fault(StrEnum):
    """What is wrong with the treatment."""

    FAILING = "failing"
    SLOW = "slow"
    CRASH = "crash"
    FLAKY = "flaky"


def run_parameters(fault: Fault | None, *, project: Path | None = None) -> dict[str, Any]:
    """Return the parameters of the run.

    Args:
        fault: What is wrong with the treatment; None for nothing.
        project: The folder of the faulty treatment, with the fault's own entry script.
    """
    parameters: dict[str, Any] = {
        "endpoint": ENDPOINT,
        "settings": SETTINGS,
        # A treatment that dies after 30 s of traffic has to be watched for longer than that.
        "bake": "25 s" if fault is Fault.FLAKY else "8 s",
        "min_requests": 30,
        "decision_timeout": "10 min",
        "keep_warm": "1 s",
        "gate": GATE,
        "interval": "2 s",
        "bin_width": "2 s",
        "allowed_lag": "3 s",
        "baseline_length": "10 s",
    }
    if fault:
        parameters |= {"source": str(project), "entry_script": f"{fault}.py"}
    return parameters
