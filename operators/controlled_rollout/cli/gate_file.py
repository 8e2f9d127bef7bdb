"""The file of a gate: the fields of `Gate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlled_rollout.arguments import gate_of
from controlled_rollout.cli.checked_file import read_checked
from controlled_rollout.gate import Gate

__all__ = ["gate_from", "read_gate"]


def read_gate(path: Path) -> Gate:
    """Return the gate of a file.

    Raises:
        ArgumentError: It cannot be read, or a field is unknown or not valid.
    """
    file = read_checked(path, "gate")
    gate = file.read((), lambda: gate_from(file.settings, path.parent))
    file.refuse_faults()
    assert gate is not None  # noqa: S101 - it has no fault
    return gate


def gate_from(fields: Mapping[str, Any], folder: Path) -> Gate:
    """Return the gate of fields in a file; a suite's path in them starts at the file's folder.

    Raises:
        ArgumentError: A field is unknown or not valid.
    """
    suite = fields.get("expectations")
    return gate_of({**fields, "expectations": str(folder / suite)} if isinstance(suite, str) else fields)
