"""Hatch's build hook: the page of Airflow's plugin is bundled before a wheel is made."""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["PageBuildHook"]


class PageBuildHook(BuildHookInterface[Any]):
    """Runs `scripts/page build`; a machine without Node.js gets a wheel whose page says that it was not built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Bundle the page, except for an editable install, whose caller does it."""
        if version == "editable":
            return
        try:
            built = subprocess.run([Path(self.root) / "scripts" / "page", "build"], capture_output=True, text=True)
        except OSError as error:  # no bash, or a folder whose programs may not be run
            problem = str(error)
        else:
            problem = (built.stderr.strip() or f"exit code {built.returncode}") if built.returncode else ""
        if problem:
            self.app.display_warning(f"the page of Airflow's plugin was not built for this wheel: {problem}")
