"""The credentials of the command line for registries."""

import base64
import json
from pathlib import Path

import pytest

from controlled_rollout.cli.registry_users import registry_users
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.image import Credentials


def write(file: Path, **users: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    auths = {host: {"auth": base64.b64encode(user.encode()).decode()} for host, user in users.items()}
    file.write_text(json.dumps({"auths": {**auths, "helped.example": {}}, "credsStore": "desktop"}))
    return file


def test_credentials_come_from_the_first_auth_file_that_exists(tmp_path: Path) -> None:
    write(tmp_path / ".docker" / "config.json", **{"https://index.docker.io/v1/": "me:a:b"})
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}

    assert registry_users(environment) == {"docker.io": Credentials("me", "a:b")}

    write(tmp_path / "run" / "containers" / "auth.json", **{"registry.example:5000/models": "robot:hunter2"})
    assert registry_users(environment) == {"registry.example:5000": Credentials("robot", "hunter2")}

    write(tmp_path / "docker" / "config.json")
    assert registry_users({**environment, "DOCKER_CONFIG": str(tmp_path / "docker")}) == {}


def test_no_credentials_without_any_auth_file(tmp_path: Path) -> None:
    assert registry_users({"HOME": str(tmp_path)}) == {}


@pytest.mark.parametrize(
    "content", ["hunter2", "[]", '{"auths": {"a": "hunter2"}}', '{"auths": {"a": {"auth": "hunter2"}}}']
)
def test_a_file_of_another_kind_is_refused_without_repeating_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "auth.json").write_text(content)

    with pytest.raises(WorkspaceError, match=r"auth\.json cannot be read") as refused:
        registry_users({"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})
    assert "hunter2" not in str(refused.value)
