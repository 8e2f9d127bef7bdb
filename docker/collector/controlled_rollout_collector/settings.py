"""What the collector has to know of a spool: whose it is, and how the version's author wants its data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from controlled_rollout_collector.atomic_files import write_atomically
from controlled_rollout_collector.layouts import LAYOUTS
from controlled_rollout_collector.parts import Layout, Replica
from controlled_rollout_collector.selection import Selection

__all__ = ["SETTINGS_FILE", "SpoolSettingError", "SpoolSettings", "write_settings"]

SETTINGS_FILE: Final = "spool.json"


class SpoolSettingError(Exception):
    """The settings of a spool cannot be used: nothing of it is shipped, and nothing of it is lost."""


def write_settings(spool: Path, environment: Mapping[str, str]) -> None:
    """Write the settings that a pod's environment has into the spool: beside a sidecar there is no target that could.

    They stay the same for as long as the spool is there: a later start needs no room on its disk.

    Raises:
        SpoolSettingError: They are missing or wrong.
        OSError: The spool cannot be written.
    """
    try:
        settings = json.loads(environment["COLLECTOR_SPOOL"]) | {"replica": environment["COLLECTOR_REPLICA"]}
    except (KeyError, ValueError, TypeError) as error:
        raise SpoolSettingError(
            f"COLLECTOR_SPOOL and COLLECTOR_REPLICA do not describe the spool ({error!r}): a version's pod sets them"
        ) from error
    path, content = spool / SETTINGS_FILE, json.dumps(settings).encode()
    if not (path.exists() and path.read_bytes() == content):
        write_atomically(path, content)


@dataclass(frozen=True)
class SpoolSettings:
    """The settings of a spool.

    Attributes:
        replica: Whose spool it is.
        layout: How its parts are written.
        selection: What of its rows is kept.
    """

    replica: Replica
    layout: Layout
    selection: Selection

    @classmethod
    def read(cls, spool: Path) -> Self:
        """Return the settings in a spool's `spool.json`, which its target has written.

        Raises:
            SpoolSettingError: They are missing or wrong, or the salt of columns to hash cannot be read.
        """
        path = spool / SETTINGS_FILE
        try:
            settings = json.loads(path.read_bytes())
            names = ("subscription", "resource_group", "workspace")
            replica = Replica(
                *(_required(settings, name) for name in ("endpoint", "version", "replica")),
                **{name: _required(settings, name) for name in names if settings.get(name)},
            )
            layout = LAYOUTS[settings.get("layout") or "parquet"]
            return cls(replica, layout, Selection.from_settings(settings, _salt(settings)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpoolSettingError(f"{path} cannot be used ({type(error).__name__}: {error})") from error


def _required(settings: Mapping[str, Any], name: str) -> str:
    """Return a setting that has to be a text; raise ValueError if it is none."""
    value = settings.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {value!r}")
    return value


def _salt(settings: Mapping[str, Any]) -> bytes:
    """Return the salt in the file that the settings name, without the line's end; nothing if they name none."""
    file = settings.get("salt_file")
    return Path(file).read_bytes().rstrip(b"\r\n") if file else b""
