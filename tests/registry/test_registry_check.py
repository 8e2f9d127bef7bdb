"""The registry check before a rollout, at a real registry that needs a user."""

from pathlib import Path

import pytest

from controlled_rollout.checks.connectivity import check_registry, run_check
from controlled_rollout.image import Credentials
from controlled_rollout.workspace import Workspace
from tests.registry.real_registry import RunningRegistry


@pytest.mark.parametrize(
    ("password", "works", "ending"),
    [
        ("hunter2", True, "lets robot in"),
        ("hunter3", False, "check the user, the password and its permissions"),
    ],
)
async def test_a_password_is_tried_before_anything_is_built(
    password: str, works: bool, ending: str, with_password: RunningRegistry, tmp_path: Path
) -> None:
    workspace = Workspace(root=tmp_path, registry=f"{with_password.address}/models")
    users = {with_password.address: Credentials("robot", password)}

    result = await run_check("registry", check_registry(workspace, users))

    assert result.works is works
    assert result.message.endswith(ending)
    assert password not in result.message


async def test_without_a_user_the_registry_only_has_to_answer(with_password: RunningRegistry, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, registry=f"{with_password.address}/models")

    result = await run_check("registry", check_registry(workspace, {}))

    assert result.works, "who only deploys needs no user here"
    assert result.message.endswith("/v2/ answers, and asks for a user")
