"""When the certificate ends that callers of the endpoints see, and a warning before it does."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from controlled_rollout.checks.reachability import certificate_end
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.target.protocol import EndpointStatus

__all__ = ["ending_soon", "with_certificate", "with_certificate_end"]

WARN_BEFORE: Final = timedelta(days=30)
# Together with the parts of a check that fails.
TIMEOUT_S: Final = 10.0


def ending_soon(ends: datetime, now: datetime) -> str | None:
    """Return a sentence if a certificate has ended or ends within 30 days; None if it does not."""
    left = ends - now
    if left >= WARN_BEFORE:
        return None
    if left <= timedelta(0):
        return f"the endpoints' certificate ended on {ends:%Y-%m-%d %H:%M} UTC: callers refuse it, renew it"
    return (
        f"the endpoints' certificate ends on {ends:%Y-%m-%d %H:%M} UTC, in {left.days} days: renew its Secret, and "
        "look at what should have done so"
    )


async def with_certificate(workspace: Workspace, status: "EndpointStatus") -> "EndpointStatus":
    """Return a status with when the endpoint's certificate ends, from the server itself if the target does not know."""
    if status.certificate_ends or workspace.target == "local" or not status.url.startswith("https:"):
        return status
    from controlled_rollout.target.authority import endpoint_authority

    try:
        ends = await asyncio.wait_for(certificate_end(status.url, endpoint_authority(workspace)), TIMEOUT_S)
    except (TargetUnavailableError, WorkspaceError, TimeoutError) as error:
        reason = str(error) or f"no answer within {TIMEOUT_S:g} s"
        unseen = f"the endpoints' certificate cannot be looked at from here: {reason}"
        return status.model_copy(update={"warnings": (*status.warnings, unseen)})
    soon = ending_soon(ends, datetime.now(UTC))
    warnings = (*status.warnings, *([soon] if soon else []))
    return status.model_copy(update={"certificate_ends": ends, "warnings": warnings})


async def with_certificate_end(message: str, url: str, workspace: Workspace) -> str:
    """Return what a check has found, with when the certificate of an https server ends.

    Args:
        message: What was found.
        url: Where the server is.
        workspace: Names the authority that the certificate is checked against.

    Raises:
        TargetUnavailableError: The certificate is not trusted.
    """
    if not url.startswith("https:"):
        return message
    from controlled_rollout.target.authority import endpoint_authority

    ends = await certificate_end(url, endpoint_authority(workspace))
    soon = ending_soon(ends, datetime.now(UTC))
    return f"{message}; {soon or f'its certificate ends on {ends:%Y-%m-%d}'}"
