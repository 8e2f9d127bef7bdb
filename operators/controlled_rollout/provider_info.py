"""What Airflow shows of this provider: its operators, hook, connection type and links."""

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description in Airflow's provider-info schema."""
    return {
        "package-name": "airflow-provider-controlled-rollout",
        "name": "Controlled Rollout",
        "description": "Rolls out machine-learning models safely: canary traffic, a statistical gate, promotion or roll-back.",
        "integrations": [
            {
                "integration-name": "Controlled Rollout",
                "external-doc-url": "https://pypi.org/project/airflow-provider-controlled-rollout/",
                "tags": ["software"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "controlled_rollout",
                "hook-class-name": "controlled_rollout.tasks.workspace.WorkspaceHook",
                "hook-name": "Controlled Rollout workspace",
            }
        ],
    }
