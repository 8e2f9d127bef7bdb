"""The build task on a real Airflow, with registries whose password comes from a connection and stays secret."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.airflow_home import HOME
from tests.local.test_dags import Dags, dag_runner
from tests.registry.conftest import Built, Start
from tests.registry.real_registry import RunningRegistry

DAG = """
from airflow.sdk import DAG
from controlled_rollout import BuildImageOperator

with DAG("build"):
    BuildImageOperator(task_id="build", source_dir={source!r}, name="digits")
"""
PASSWORD = "hunter2"

Run = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def runner(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dags, Path]]:
    """A process that runs the DAG, and its log."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "dags").mkdir()
    (folder / "dags" / "build.py").write_text(DAG.format(source=str(built.source)))
    with dag_runner(folder / "workspace", folder / "log", folder / "dags") as dags:
        assert dags.loaded["import_errors"] == {}
        yield dags, folder / "log"


@pytest.fixture
def run(runner: tuple[Dags, Path], built: Built, tmp_path: Path) -> Run:
    """Run a DAG that builds an image, with the given settings and connections; return its state and its log."""
    dags, log = runner

    def run(settings: dict[str, str], **connections: dict[str, str]) -> tuple[dict[str, Any], str]:
        workspace = {"root": str(tmp_path / "workspace"), "base_image": built.base_image, **settings}
        described = {"controlled_rollout_default": {"conn_type": "controlled_rollout", "extra": workspace}}
        environment = {
            f"AIRFLOW_CONN_{conn_id.upper()}": json.dumps(connection)
            for conn_id, connection in {**described, **connections}.items()
        }
        before = log.stat().st_size
        ended = dags.run("build", environment=environment)
        return ended, log.read_bytes()[before:].decode()

    return run


def kept() -> bytes:
    """Return the content of Airflow's database and logs."""
    return b"".join(path.read_bytes() for path in HOME.rglob("*") if path.is_file())


def test_task_pushes_with_the_password_of_the_connection_and_hides_it(
    run: Run, built: Built, with_password: RunningRegistry
) -> None:
    registry = with_password.address
    robot = {"conn_type": "docker", "host": registry, "login": "robot", "password": PASSWORD}

    ended, log = run(
        {"registry": f"{registry}/models", "registry_conn_id": "models_registry", "shared_registry": built.registry},
        models_registry=robot,
    )

    assert ended["state"] == "success", log
    assert f"{registry}/models/digits@sha256:{built.reference.sha256}" in log
    for secret in (PASSWORD, b64encode(b"robot:hunter2").decode()):
        assert secret not in log
        assert secret.encode() not in kept()


def test_the_shared_registry_has_a_user_of_its_own(
    run: Run, built: Built, with_password: RunningRegistry, registry: RunningRegistry
) -> None:
    shared = with_password.address

    _, log = run(
        {
            "registry": f"{registry.address}/models",
            "shared_registry": f"{shared}/models",
            "shared_registry_conn_id": "shared",
            "base_image": f"{built.base_image.partition('@')[0]}@sha256:{'0' * 64}",
        },
        shared={"conn_type": "generic", "login": "robot", "password": "wrong-password"},
    )

    assert f"registry {shared} does not read {shared}/models/environments" in log
    assert "wrong-password" not in log
    assert "AirflowFailException" in log, "a wrong password is not tried again"


def test_connection_for_another_registry_is_refused_before_any_request(run: Run, start_registry: Start) -> None:
    registry = start_registry()

    ended, log = run(
        {"registry": f"{registry.address}/models", "registry_conn_id": "models_registry"},
        models_registry={
            "conn_type": "docker",
            "host": "https://other.example",
            "login": "robot",
            "password": PASSWORD,
        },
    )

    assert ended["state"] == "failed"
    assert "is for the registry other.example" in log
    assert PASSWORD not in log
    assert registry.tags("models/digits") == []
