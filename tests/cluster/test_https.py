"""A workspace that asks for TLS does not go forward behind a Gateway without an https listener."""

from dataclasses import replace

import pytest

from controlled_rollout.checks.connectivity import check_connectivity
from controlled_rollout.errors import WorkspaceError
from tests.cluster.sandbox import Sandbox


async def test_a_gateway_without_https_is_refused_with_what_to_do_and_nothing_is_made(sandbox: Sandbox) -> None:
    if not sandbox.lab.is_ours:
        pytest.skip("the Gateway of another cluster may have https")
    # Not the lab's own address, which is plain http.
    workspace = sandbox.workspace.model_copy(update={"tls": True, "endpoint_url": None})

    with pytest.raises(
        WorkspaceError, match=r"has no https \(protocols: HTTP\): ask who runs the Gateway for a listener"
    ):
        await replace(sandbox, workspace=workspace).deploy("one")

    assert await sandbox.target.endpoints() == []
    results = {result.name: result for result in await check_connectivity(workspace, {})}
    assert not results["gateway"].works
    assert "has no https" in results["gateway"].message
