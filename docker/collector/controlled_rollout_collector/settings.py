"""What the collector has to know of a spool: whose it is, and how the version's author wants its data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from controlled_rollout_collector.layouts import LAYOUTS
from controlled_rollout_collector.parts import Layout, Replica
from controlled_rollout_collector.selection import Selection

__all__ = ["SETTINGS_FILE", "SpoolSettingError", "SpoolSettings"]

SETTINGS_FILE: Final = "spool.json"
# What reading settings that are missing or wrong raises.
UNUSABLE: Final = (OSError, ValueError, TypeError, KeyError, AttributeError)


class SpoolSettingError(Exception):
    """The settings of a spool cannot be used: nothing of it is shipped, and nothing of it is lost."""


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
            return cls._from_mapping(json.loads(path.read_bytes()))
        except UNUSABLE as error:
            raise SpoolSettingError(f"{path} cannot be used ({type(error).__name__}: {error})") from error

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Return the settings that a pod's description gives its collector.

        A file in the spool would be the model's to write, too: it could choose what is kept, and whose data it seems.

        Raises:
            SpoolSettingError: They are missing or wrong, or the salt of columns to hash cannot be read.
        """
        try:
            return cls._from_mapping(
                json.loads(environment["COLLECTOR_SPOOL"]) | {"replica": environment["COLLECTOR_REPLICA"]}
            )
        except UNUSABLE as error:
            raise SpoolSettingError(
                f"COLLECTOR_SPOOL and COLLECTOR_REPLICA do not describe the spool ({error!r}): the pod sets them"
            ) from error

    @classmethod
    def _from_mapping(cls, settings: Mapping[str, Any]) -> Self:
        """Return the settings by name; raise an error of `UNUSABLE` if one is missing or wrong."""
        names = ("subscription", "resource_group", "workspace")
        replica = Replica(
            *(_required_text(settings, name) for name in ("endpoint", "version", "replica")),
            **{name: _required_text(settings, name) for name in names if settings.get(name)},
        )
        layout = LAYOUTS[settings.get("layout") or "parquet"]
        return cls(replica, layout, Selection.from_settings(settings, _read_salt(settings)))


def _required_text(settings: Mapping[str, Any], name: str) -> str:
    """Return a setting that has to be a text; raise ValueError if it is none."""
    value = settings.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {value!r}")
    return value


def _read_salt(settings: Mapping[str, Any]) -> bytes:
    """Return the salt in the file that the settings name, without the line's end; nothing if they name none."""
    file = settings.get("salt_file")
    return Path(file).read_bytes().rstrip(b"\r\n") if file else b""
