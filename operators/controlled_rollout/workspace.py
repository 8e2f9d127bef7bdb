"""Where things are: the target, the metric store and the caches of one workspace, as one value.

No workspace configured means the local one, so that a first run needs no configuration.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlled_rollout.errors import WorkspaceError

__all__ = ["Workspace"]

HOME_VARIABLE = "CONTROLLED_ROLLOUT_HOME"
DEFAULT_HOME = "~/.controlled-rollout"


class Workspace(BaseModel):
    """A workspace: where endpoints live, where their telemetry is read, where builds are kept.

    Attributes:
        name: What people call it.
        target: Where versions run. `local` is one laptop with nothing installed.
        root: The local workspace's folder: revisions, keys, logs, records, caches, telemetry.
        telemetry_endpoint: Base URL of the Log Analytics query API; None asks the local supervisor.
        telemetry_workspace_id: The Log Analytics workspace that the queries go to; None asks the local supervisor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "local"
    target: Literal["local"] = "local"
    root: Annotated[Path, Field(validate_default=True)] = Path(DEFAULT_HOME)
    telemetry_endpoint: str | None = None
    telemetry_workspace_id: str | None = None

    @classmethod
    def local(cls, root: str | os.PathLike[str] | None = None) -> Self:
        """Return the local workspace in `root`, else in `$CONTROLLED_ROLLOUT_HOME`, else in `~/.controlled-rollout`."""
        return cls.from_settings({} if root is None else {"root": os.fspath(root)})

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Return the workspace that a configuration (such as a connection's extras) describes.

        Raises:
            WorkspaceError: A setting is unknown or not valid.
        """
        folder = settings.get("root") or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME
        try:
            return cls.model_validate({**settings, "root": Path(folder).expanduser().absolute()})
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_url=False)
            )
            raise WorkspaceError(
                f"the workspace's settings are not valid ({faults}): known are {', '.join(cls.model_fields)}"
            ) from None

    # The local workspace's layout: one place that knows it.

    @property
    def endpoints_folder(self) -> Path:
        """One folder per endpoint: revisions/, keys.json."""
        return self.root / "endpoints"

    @property
    def records_folder(self) -> Path:
        """One file of decisions per endpoint."""
        return self.root / "records"

    @property
    def cache_folder(self) -> Path:
        """Environments and images, addressed by their content."""
        return self.root / "cache"

    @property
    def logs_folder(self) -> Path:
        """One file per process of the local workspace."""
        return self.root / "logs"

    @property
    def telemetry_folder(self) -> Path:
        """The local telemetry store's data."""
        return self.root / "telemetry"

    @property
    def state_file(self) -> Path:
        """What the running supervisor tells its clients: process id, socket, addresses. Absent when it is down."""
        return self.root / "supervisor.json"
