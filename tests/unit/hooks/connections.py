"""Connections of the type controlled_rollout, for the tests of the hooks."""

from collections.abc import Callable
from typing import Any

from controlled_rollout.hooks.workspace import WorkspaceHook

__all__ = ["Connect", "on_kubernetes"]

# Makes connections, given by id with their type and extras, and returns the hook of the connection `ml`.
Connect = Callable[..., WorkspaceHook]


def on_kubernetes(**more: str) -> tuple[str, dict[str, Any]]:
    return "controlled_rollout", {"target": "kubernetes", "gateway": "infra/shared", **more}
