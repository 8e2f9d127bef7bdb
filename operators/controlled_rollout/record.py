"""The record: every step and every look at the evidence, appended to one file per endpoint, oldest first."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from controlled_rollout.endpoint import check_name
from controlled_rollout.workspace import Workspace

__all__ = ["Decision", "append", "last", "read"]

Step = Literal["roll_out", "shift", "look", "hold", "promote", "roll_back", "retire"]


class Decision(BaseModel):
    """One line of the record.

    Attributes:
        time: When it was decided.
        endpoint, version: What it is about.
        step: Which step decided.
        who: The person, or the task as `dag/run/task`.
        why: The reason in a sentence.
        outcome: Of a look: pass, fail, not_enough_evidence, cannot_see or split_is_wrong.
        verdict: Of a look: the claims with their numbers.
        evidence: Of a look: the queries, control's frozen quantiles in milliseconds, and how far the evidence reaches.
        revision: The endpoint's revision that the step led to, or looked at.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: AwareDatetime
    endpoint: str
    version: str
    step: Step
    who: str
    why: str = ""
    outcome: str | None = None
    verdict: dict[str, Any] | None = None
    evidence: dict[str, Any] | None = None
    revision: int | None = None


def _file(workspace: Workspace, endpoint: str) -> Path:
    return workspace.records_folder / f"{check_name(endpoint)}.jsonl"


def append(workspace: Workspace, decision: Decision) -> None:
    """Append one decision; it is on disk when this returns.

    One write to a file opened for appending: lines of several writers do not mix.
    """
    file = _file(workspace, decision.endpoint)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = decision.model_dump_json(exclude_none=True).encode() + b"\n"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        # A crash may have cut the line before: it must not take this one with it.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + line if torn else line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(workspace: Workspace, endpoint: str, *, version: str | None = None) -> Iterator[Decision]:
    """Yield the decisions about an endpoint (or about one version of it), oldest first.

    A line that a crash cut short is passed over.
    """
    try:
        lines = _file(workspace, endpoint).open(encoding="utf-8")
    except FileNotFoundError:
        return
    with lines:
        for line in lines:
            try:
                decision = Decision.model_validate(json.loads(line))
            except (json.JSONDecodeError, ValidationError):
                continue
            if version is None or decision.version == version:
                yield decision


def last(workspace: Workspace, endpoint: str, version: str) -> Decision | None:
    """Return the newest decision about a version, or None."""
    newest = None
    for newest in read(workspace, endpoint, version=version):  # noqa: B007 - the loop is for its last value
        pass
    return newest
