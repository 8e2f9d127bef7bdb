"""What Airflow shows of this provider: its operators, sensors, triggers, hook and connection form."""

from typing import Any

INTEGRATION = "Controlled Rollout"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description in Airflow's provider-info schema."""
    return {
        "package-name": "airflow-provider-controlled-rollout",
        "name": INTEGRATION,
        "description": "Rolls out machine-learning models safely: canary traffic, a statistical gate, "
        "promotion or roll-back.",
        "operators": [
            {
                "integration-name": INTEGRATION,
                "python-modules": [
                    "controlled_rollout.tasks.connectivity",
                    "controlled_rollout.tasks.image_build",
                    "controlled_rollout.tasks.promotion",
                    "controlled_rollout.tasks.rollout",
                    "controlled_rollout.tasks.traffic_shift",
                ],
            }
        ],
        "sensors": [{"integration-name": INTEGRATION, "python-modules": ["controlled_rollout.tasks.gate"]}],
        "triggers": [{"integration-name": INTEGRATION, "python-modules": ["controlled_rollout.tasks.gate"]}],
        "hooks": [{"integration-name": INTEGRATION, "python-modules": ["controlled_rollout.tasks.workspace"]}],
        "connection-types": [_connection_type()],
    }


def _connection_type() -> dict[str, Any]:
    return {
        "connection-type": "controlled_rollout",
        "hook-class-name": "controlled_rollout.tasks.workspace.WorkspaceHook",
        "hook-name": "Controlled Rollout workspace",
        "conn-fields": {
            "target": {
                "label": "Target",
                "schema": {"type": ["string", "null"], "enum": ["local"], "default": "local"},
                "description": "Where versions run. local: this machine, with nothing installed.",
            },
            "root": {
                "label": "Folder",
                "schema": {"type": ["string", "null"]},
                "description": "The local workspace's folder; empty for $CONTROLLED_ROLLOUT_HOME or "
                "~/.controlled-rollout.",
            },
            "telemetry_endpoint": {
                "label": "Telemetry endpoint",
                "schema": {"type": ["string", "null"], "format": "url"},
                "description": "Base address of the Log Analytics query API; empty for the local telemetry store.",
            },
            "telemetry_workspace_id": {
                "label": "Log Analytics workspace",
                "schema": {"type": ["string", "null"]},
                "description": "The workspace that is queried; empty for the local telemetry store's.",
            },
        },
        "ui-field-behaviour": {
            "hidden-fields": ["host", "port", "login", "password", "schema", "extra"],
            "relabeling": {},
            "placeholders": {"root": "~/.controlled-rollout"},
        },
    }
