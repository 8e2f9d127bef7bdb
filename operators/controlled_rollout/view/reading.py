"""Reads what people see of an endpoint from the target and the record."""

import asyncio
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.record.in_time import within_time
from controlled_rollout.target.protocol import EndpointStatus, Revision, Target
from controlled_rollout.view.followed_record import FollowedRecord
from controlled_rollout.view.models import EndpointOverview, LogTail
from controlled_rollout.view.overview import Creation, creations, endpoint_overview, hold_reason
from controlled_rollout.view.recent_looks import RecentLooks
from controlled_rollout.visible_text import visible_text
from controlled_rollout.workspace import Workspace

__all__ = ["KnownEndpoint", "LogNotFoundError", "curl_command", "overview_of", "read_log_tail", "read_overview"]

# The newest lines that say how a rollout is going: a day of looks, or the looks of a few minutes of a large gate.
NEWEST_BYTES: Final = 1024 * 1024
LOG_BYTES: Final = 64 * 1024
# How long an endpoint's state waits for its record, which may be in a folder or an account that does not answer.
RECORD_S: Final = 1.0


class LogNotFoundError(ControlledRolloutError):
    """The endpoint has no version of that name, and no log of one is kept."""


@dataclass
class KnownEndpoint:
    """What has been read of an endpoint, so that the next reading costs little. It is small: there may be hundreds.

    Attributes:
        endpoint: Its newest revision; None before it was read.
        created: When and by whom its versions were created.
        reason_of_hold: Why its rollout was put on hold; empty if it is not.
        looks: How its rollout is going.
        followed: How far the record was read for that.
        record_problem: Why the record could not be read the last time; empty if it was, or was not needed.
    """

    endpoint: Endpoint | None = None
    created: Mapping[str, Creation] = field(default_factory=dict)
    reason_of_hold: str = ""
    looks: RecentLooks = field(default_factory=RecentLooks)
    followed: FollowedRecord | None = None
    record_problem: str = ""
    _following: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def keep(self, history: Sequence[Revision]) -> None:
        """Take note of an endpoint's revisions.

        Args:
            history: The revisions, oldest first.
        """
        self.endpoint, self.created = history[-1].endpoint, creations(history)
        self.reason_of_hold = hold_reason(history)
        rollout = self.endpoint.rollout
        if self.looks.rollout is None or not self.looks.rollout.is_same(rollout):
            self.looks, self.followed = RecentLooks(rollout), None

    def follow(self, workspace: Workspace, endpoint: str) -> None:
        """Read what was appended to the record since the last call; nothing while an earlier call is still at it.

        A caller that has given up leaves the call behind in its thread: the next one would hang there as well.

        Raises:
            RecordUnavailableError: It cannot be read.
        """
        if not self._following.acquire(blocking=False):
            return
        try:
            if self.followed is None:
                self.followed = FollowedRecord(record.storage_of(workspace, endpoint), NEWEST_BYTES)
            for line in self.followed.new_lines():
                # A long one has the bins of a whole rollout; the looks after it say as much.
                if not line.rest:
                    self.looks.add(line.content)
        finally:
            self._following.release()


async def read_overview(
    workspace: Workspace, target: Target, name: str, known: KnownEndpoint | None = None, *, inspect: bool = False
) -> EndpointOverview:
    """Return what people see of an endpoint now.

    Args:
        workspace: Where it is; its name is shown.
        target: The workspace's target, open.
        name: The endpoint's name.
        known: What was read of it before, and is completed; None for nothing.
        inspect: Whether to look for what somebody has edited by hand; see `Target.status`.

    Raises:
        EndpointNotFoundError: There is none of that name.
        TargetUnavailableError: The target does not answer.
    """
    known = known or KnownEndpoint()
    status = await target.status(name, inspect=inspect)
    # Reading all revisions takes longer than all else; an endpoint may be deleted and created again.
    if known.endpoint is None or known.endpoint.revision != status.revision or status.revision == 1:
        known.keep(await target.history(name))
    return await overview_of(workspace, status, known, record_s=RECORD_S)


async def overview_of(
    workspace: Workspace, status: EndpointStatus, known: KnownEndpoint, *, record_s: float | None = None
) -> EndpointOverview:
    """Return what people see of an endpoint whose revisions and status were read; its record is followed for it.

    Args:
        workspace: Where it is; its name is shown.
        status: The endpoint's status.
        known: What was read of the endpoint, its revisions at least.
        record_s: How long to wait for the record; None for as long as a record may take anywhere.
    """
    endpoint = known.endpoint
    assert endpoint is not None  # noqa: S101 - it has been kept
    known.record_problem = ""
    if endpoint.rollout is not None:
        # Without its record an endpoint is shown as well; its own page says why the record cannot be read.
        try:
            async with asyncio.timeout(record_s):
                storage = record.storage_of(workspace, endpoint.name)
                await within_time(storage.name, lambda: known.follow(workspace, endpoint.name))
        except (ControlledRolloutError, TimeoutError) as error:
            known.record_problem = str(error) or f"the record does not answer within {record_s} s"
    return endpoint_overview(
        workspace.name, status, endpoint, known.created, known.looks, reason_of_hold=known.reason_of_hold
    )


async def read_log_tail(workspace: Workspace, target: Target, name: str, version: str, *, tail: int) -> LogTail:
    """Return the last lines of a version's log, at most 64 KiB.

    Args:
        workspace: Where the endpoint is.
        target: The workspace's target, open.
        name: The endpoint's name.
        version: The version's name.
        tail: How many lines.

    Raises:
        EndpointNotFoundError: There is no such endpoint.
        LogNotFoundError: It has no such version, and no log of one is kept.
        TargetUnavailableError: The target does not answer.
    """
    logged = await target.logs(name, version, tail=tail)
    # The log of a version that was deleted may be kept: only one without a log is looked up.
    if not logged and version not in (await target.endpoint(name)).versions:
        raise LogNotFoundError(
            f"endpoint {name!r} has no version {version!r}, and no log of one is kept: the endpoint's page lists its "
            "versions"
        )
    # A line may be as long as a model likes; made visible it is no shorter.
    text = visible_text(logged[-LOG_BYTES:])
    # A character may be several bytes.
    shown = text[-LOG_BYTES:].encode()[-LOG_BYTES:].decode(errors="ignore")
    return LogTail(
        workspace=workspace.name,
        endpoint=name,
        version=version,
        text=shown,
        cut=len(logged) > LOG_BYTES or len(shown) < len(text) or text.count("\n") >= tail - 1,
    )


def curl_command(endpoint: EndpointOverview, ca_file: str | None = None) -> str:
    """Return a command that sends a request to an endpoint; the key or token has to be set in a variable.

    Args:
        endpoint: The endpoint.
        ca_file: The file with the authority of its certificate; None for the machine's.
    """
    parts = ["curl", "--fail-with-body", *(["--cacert", shlex.quote(ca_file)] if ca_file else [])]
    if endpoint.auth != "none":
        parts += ["--header", f'"Authorization: Bearer ${"KEY" if endpoint.auth == "key" else "TOKEN"}"']
    parts += ["--header", "'Content-Type: application/json'", "--data", "'{\"data\": []}'"]
    return " ".join([*parts, shlex.quote(endpoint.url)])
