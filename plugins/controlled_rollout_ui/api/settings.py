"""The plugin's settings: the section `[controlled_rollout]` of Airflow's configuration."""

from typing import Final

from airflow.configuration import conf

from controlled_rollout.defaults import DEFAULT_CONNECTION
from controlled_rollout.view.models import ActionName

__all__ = ["dag_ids", "workspace_names"]

SECTION: Final = "controlled_rollout"
# More would be read at once every few seconds.
MAX_WORKSPACES: Final = 20
ACTIONS: Final[tuple[ActionName, ...]] = ("promote", "roll_back", "hold", "shift")


def workspace_names() -> tuple[str, ...]:
    """Return the connection ids of the workspaces that the page shows, in the order of the setting, 20 at most."""
    listed = conf.get(SECTION, "ui_workspaces", fallback="") or DEFAULT_CONNECTION
    names = dict.fromkeys(name for name in map(str.strip, listed.split(",")) if name)
    return tuple(names)[:MAX_WORKSPACES]


def dag_ids() -> dict[ActionName, str]:
    """Return the ids of the DAGs that the page triggers, by action."""
    return {action: conf.get(SECTION, f"{action}_dag_id", fallback="") or action for action in ACTIONS}
