"""Rolls out machine-learning models from Apache Airflow: canary traffic, a statistical gate, promotion or roll-back.

The public names are imported when they are first used: DAG files are parsed all day.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlled_rollout.gate import Gate
    from controlled_rollout.tasks.approval import ApproveRolloutOperator
    from controlled_rollout.tasks.connectivity import CheckConnectivityOperator
    from controlled_rollout.tasks.gate import TreatmentGateSensor
    from controlled_rollout.tasks.image_build import BuildImageOperator
    from controlled_rollout.tasks.image_scan import ScanImageOperator
    from controlled_rollout.tasks.promotion import PromoteToControlOperator, RollBackOperator
    from controlled_rollout.tasks.rollout import DeleteVersionOperator, RolloutVersionOperator
    from controlled_rollout.tasks.task_group import ControlledRollout
    from controlled_rollout.tasks.traffic_shift import ShiftTrafficOperator

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
    "ApproveRolloutOperator": "controlled_rollout.tasks.approval",
    "BuildImageOperator": "controlled_rollout.tasks.image_build",
    "CheckConnectivityOperator": "controlled_rollout.tasks.connectivity",
    "ControlledRollout": "controlled_rollout.tasks.task_group",
    "DeleteVersionOperator": "controlled_rollout.tasks.rollout",
    "Gate": "controlled_rollout.gate",
    "PromoteToControlOperator": "controlled_rollout.tasks.promotion",
    "RollBackOperator": "controlled_rollout.tasks.promotion",
    "RolloutVersionOperator": "controlled_rollout.tasks.rollout",
    "ScanImageOperator": "controlled_rollout.tasks.image_scan",
    "ShiftTrafficOperator": "controlled_rollout.tasks.traffic_shift",
    "TreatmentGateSensor": "controlled_rollout.tasks.gate",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
