"""Rolls out machine-learning models from Apache Airflow: canary traffic, a statistical gate, promotion or roll-back.

A public name is imported when it is first used, because DAG files are parsed all day.
"""

from importlib import import_module  # noqa: TID251 - makes the public names known without loading their modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlled_rollout.errors import (
        AccessError,
        ArgumentError,
        ConflictError,
        ControlledRolloutError,
        DamagedFileError,
        DeploymentError,
        EndpointError,
        EndpointNotFoundError,
        EvidenceError,
        EvidenceUnavailableError,
        ImageError,
        ModelStoreUnavailableError,
        NameTakenError,
        NothingToDoError,
        NotJudgedError,
        RecordUnavailableError,
        RegistryUnavailableError,
        RouterTimeoutError,
        ScanError,
        ScanUnavailableError,
        StorageError,
        StoredFileNotFoundError,
        TargetUnavailableError,
        WorkspaceError,
    )
    from controlled_rollout.evidence.collected.joined_rows import read_collected
    from controlled_rollout.gate import Category, Gate, MaxLatency, Mean
    from controlled_rollout.hooks.sql_labels import SqlLabels
    from controlled_rollout.labels.settings import LabelMetric, Labels
    from controlled_rollout.labels.stored import StoredLabels
    from controlled_rollout.notifications.notifier import RolloutNotifier
    from controlled_rollout.operators.approval import ApproveRolloutOperator
    from controlled_rollout.operators.collected_data import CollectedDataGateOperator
    from controlled_rollout.operators.connectivity import CheckConnectivityOperator
    from controlled_rollout.operators.hold import HoldRolloutOperator
    from controlled_rollout.operators.image_build import BuildImageOperator
    from controlled_rollout.operators.image_scan import ScanImageOperator
    from controlled_rollout.operators.labels import JudgeByLabelsOperator
    from controlled_rollout.operators.new_control import control_asset
    from controlled_rollout.operators.promotion import PromoteToControlOperator, RollBackOperator
    from controlled_rollout.operators.rollout import DeleteVersionOperator, RolloutVersionOperator
    from controlled_rollout.operators.traffic_shift import ShiftTrafficOperator
    from controlled_rollout.sensors.collected_data import CollectedDataSensor
    from controlled_rollout.sensors.treatment_gate import TreatmentGateSensor
    from controlled_rollout.task_group import ControlledRollout
    from controlled_rollout.version_name import version_of_run

__all__ = [
    "AccessError",
    "ApproveRolloutOperator",
    "ArgumentError",
    "BuildImageOperator",
    "Category",
    "CheckConnectivityOperator",
    "CollectedDataGateOperator",
    "CollectedDataSensor",
    "ConflictError",
    "ControlledRollout",
    "ControlledRolloutError",
    "DamagedFileError",
    "DeleteVersionOperator",
    "DeploymentError",
    "EndpointError",
    "EndpointNotFoundError",
    "EvidenceError",
    "EvidenceUnavailableError",
    "Gate",
    "HoldRolloutOperator",
    "ImageError",
    "JudgeByLabelsOperator",
    "LabelMetric",
    "Labels",
    "MaxLatency",
    "Mean",
    "ModelStoreUnavailableError",
    "NameTakenError",
    "NotJudgedError",
    "NothingToDoError",
    "PromoteToControlOperator",
    "RecordUnavailableError",
    "RegistryUnavailableError",
    "RollBackOperator",
    "RolloutNotifier",
    "RolloutVersionOperator",
    "RouterTimeoutError",
    "ScanError",
    "ScanImageOperator",
    "ScanUnavailableError",
    "ShiftTrafficOperator",
    "SqlLabels",
    "StorageError",
    "StoredFileNotFoundError",
    "StoredLabels",
    "TargetUnavailableError",
    "TreatmentGateSensor",
    "WorkspaceError",
    "control_asset",
    "read_collected",
    "version_of_run",
]

__version__ = "0.1.0"

_MODULES = {
    "AccessError": "controlled_rollout.errors",
    "ApproveRolloutOperator": "controlled_rollout.operators.approval",
    "ArgumentError": "controlled_rollout.errors",
    "BuildImageOperator": "controlled_rollout.operators.image_build",
    "Category": "controlled_rollout.gate",
    "CheckConnectivityOperator": "controlled_rollout.operators.connectivity",
    "CollectedDataGateOperator": "controlled_rollout.operators.collected_data",
    "CollectedDataSensor": "controlled_rollout.sensors.collected_data",
    "ConflictError": "controlled_rollout.errors",
    "ControlledRollout": "controlled_rollout.task_group",
    "ControlledRolloutError": "controlled_rollout.errors",
    "DeleteVersionOperator": "controlled_rollout.operators.rollout",
    "DamagedFileError": "controlled_rollout.errors",
    "DeploymentError": "controlled_rollout.errors",
    "EndpointError": "controlled_rollout.errors",
    "EndpointNotFoundError": "controlled_rollout.errors",
    "EvidenceError": "controlled_rollout.errors",
    "EvidenceUnavailableError": "controlled_rollout.errors",
    "Gate": "controlled_rollout.gate",
    "HoldRolloutOperator": "controlled_rollout.operators.hold",
    "ImageError": "controlled_rollout.errors",
    "JudgeByLabelsOperator": "controlled_rollout.operators.labels",
    "LabelMetric": "controlled_rollout.labels.settings",
    "Labels": "controlled_rollout.labels.settings",
    "MaxLatency": "controlled_rollout.gate",
    "Mean": "controlled_rollout.gate",
    "ModelStoreUnavailableError": "controlled_rollout.errors",
    "NameTakenError": "controlled_rollout.errors",
    "NotJudgedError": "controlled_rollout.errors",
    "NothingToDoError": "controlled_rollout.errors",
    "PromoteToControlOperator": "controlled_rollout.operators.promotion",
    "RecordUnavailableError": "controlled_rollout.errors",
    "RegistryUnavailableError": "controlled_rollout.errors",
    "RollBackOperator": "controlled_rollout.operators.promotion",
    "RolloutVersionOperator": "controlled_rollout.operators.rollout",
    "RolloutNotifier": "controlled_rollout.notifications.notifier",
    "RouterTimeoutError": "controlled_rollout.errors",
    "ScanError": "controlled_rollout.errors",
    "ScanImageOperator": "controlled_rollout.operators.image_scan",
    "ScanUnavailableError": "controlled_rollout.errors",
    "ShiftTrafficOperator": "controlled_rollout.operators.traffic_shift",
    "SqlLabels": "controlled_rollout.hooks.sql_labels",
    "StorageError": "controlled_rollout.errors",
    "StoredFileNotFoundError": "controlled_rollout.errors",
    "StoredLabels": "controlled_rollout.labels.stored",
    "TargetUnavailableError": "controlled_rollout.errors",
    "TreatmentGateSensor": "controlled_rollout.sensors.treatment_gate",
    "WorkspaceError": "controlled_rollout.errors",
    "control_asset": "controlled_rollout.operators.new_control",
    "read_collected": "controlled_rollout.evidence.collected.joined_rows",
    "version_of_run": "controlled_rollout.version_name",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module at first use, so that `import controlled_rollout` stays fast."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it has {', '.join(__all__)}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the module's names with the public ones that have not been imported yet."""
    return sorted({*globals(), *__all__})
