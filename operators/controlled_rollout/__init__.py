"""Rolls out machine-learning models from Apache Airflow: canary traffic, a statistical gate, promotion or roll-back.

The public names are imported when they are first used: DAG files are parsed all day.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlled_rollout.gate import Gate
    from controlled_rollout.operators.approval import ApproveRolloutOperator
    from controlled_rollout.operators.connectivity import CheckConnectivityOperator
    from controlled_rollout.operators.image_build import BuildImageOperator
    from controlled_rollout.operators.image_scan import ScanImageOperator
    from controlled_rollout.operators.promotion import PromoteToControlOperator, RollBackOperator
    from controlled_rollout.operators.rollout import DeleteVersionOperator, RolloutVersionOperator
    from controlled_rollout.operators.traffic_shift import ShiftTrafficOperator
    from controlled_rollout.sensors.treatment_gate import TreatmentGateSensor
    from controlled_rollout.task_group import ControlledRollout

__all__ = [
    "ApproveRolloutOperator",
    "BuildImageOperator",
    "CheckConnectivityOperator",
    "ControlledRollout",
    "DeleteVersionOperator",
    "Gate",
    "PromoteToControlOperator",
    "RollBackOperator",
    "RolloutVersionOperator",
    "ScanImageOperator",
    "ShiftTrafficOperator",
    "TreatmentGateSensor",
]

__version__ = "0.1.0"

_HOMES = {
    "ApproveRolloutOperator": "controlled_rollout.operators.approval",
    "BuildImageOperator": "controlled_rollout.operators.image_build",
    "CheckConnectivityOperator": "controlled_rollout.operators.connectivity",
    "ControlledRollout": "controlled_rollout.task_group",
    "DeleteVersionOperator": "controlled_rollout.operators.rollout",
    "Gate": "controlled_rollout.gate",
    "PromoteToControlOperator": "controlled_rollout.operators.promotion",
    "RollBackOperator": "controlled_rollout.operators.promotion",
    "RolloutVersionOperator": "controlled_rollout.operators.rollout",
    "ScanImageOperator": "controlled_rollout.operators.image_scan",
    "ShiftTrafficOperator": "controlled_rollout.operators.traffic_shift",
    "TreatmentGateSensor": "controlled_rollout.sensors.treatment_gate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
