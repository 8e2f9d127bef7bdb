"""What the certificate of a workspace's endpoints is checked against by whoever of ours sends them requests."""

import ssl
from pathlib import Path

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

__all__ = ["endpoint_authority", "tls_context"]


def endpoint_authority(workspace: Workspace) -> Path | None:
    """Return the file with the authority of the endpoints' certificate; None for this machine's authorities.

    It is the workspace's `endpoint_ca`; else, while a local workspace runs, what its supervisor says.
    """
    if workspace.endpoint_ca or workspace.target != "local":
        return workspace.endpoint_ca
    from controlled_rollout.target.local.supervisor_state import SupervisorState

    state = SupervisorState.read(workspace)
    return state.router_ca if state else None


def tls_context(authority: Path | None) -> ssl.SSLContext:
    """Return the settings of TLS with which a client checks a server's certificate and its name.

    Args:
        authority: The file with the authority; None for this machine's authorities.

    Raises:
        WorkspaceError: The file cannot be read, or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "it has no certificate in PEM form"
        raise WorkspaceError(
            f"the authority of the endpoints' certificate cannot be read from {authority} ({reason}): correct the "
            "setting endpoint_ca"
        ) from error
