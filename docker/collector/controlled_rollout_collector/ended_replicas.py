"""What replicas that have ended have captured: a file for each of the last ones, and the sum of all before them.

A version's folder of spools keeps these numbers after the spools are gone, because `status` shows them. It has a
bounded number of files, however often replicas start and end.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from controlled_rollout_collector.atomic_files import write_json
from controlled_rollout_collector.shipping import SpoolState

__all__ = ["SUM_FILE", "keep_state"]

# Beside the files of the replicas, whose names have two hyphens.
SUM_FILE: Final = "ended.json"
COUNTED: Final = ("captured", "dropped", "unreadable", "pending_bytes")
# So many replicas of a version have files of their own, before they are added to the sum.
MOST_FILES: Final = 50


def keep_state(spool: Path, state: SpoolState) -> None:
    """Keep the last state of a replica whose spool is about to be deleted, beside the spool.

    Raises:
        OSError: It cannot be written.
    """
    write_json(spool.with_name(f"{spool.name}.json"), dataclasses.asdict(state))
    files = [path for path in spool.parent.glob("*.json") if path.name != SUM_FILE and not path.name.startswith(".")]
    if len(files) > MOST_FILES:
        _add_to_sum(spool.parent, files)


def _add_to_sum(folder: Path, files: list[Path]) -> None:
    """Add the numbers of replicas to the sum of their version, and delete their files.

    The sum names those that it has got last: a process that is killed meanwhile leaves their files, and who reads
    them, or adds them again, leaves these out.
    """
    total = _read_json(folder / SUM_FILE)
    # Without its spool a replica gets no other file; one that has it still is written again.
    ended = [path for path in files if not (folder / path.stem).exists()]
    added = set(total.get("replicas", ()))
    for path in ended:
        state = _read_json(path) if path.stem not in added else {}
        for name in COUNTED:
            total[name] = _number(total.get(name)) + _number(state.get(name))
    write_json(folder / SUM_FILE, {**total, "replicas": [path.stem for path in ended]})
    for path in ended:
        path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file; nothing if there is none, or if it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
    return {}


def _number(value: Any) -> int:
    """Return a number of a file; 0 for anything else."""
    return value if isinstance(value, int) else 0
