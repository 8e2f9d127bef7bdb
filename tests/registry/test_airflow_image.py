"""The image of Airflow with this provider, built for real, which takes a minute."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from controlled_rollout.image.builders.build_secrets import build_secrets
from tests.cluster.lab.images import base_image
from tests.registry.real_registry import RunningRegistry

# Beside the other tests of images: it shares nothing with them but a base image.
pytestmark = pytest.mark.xdist_group("airflow_image")

REPOSITORY = Path(__file__).parents[2]
NAME = "localhost/airflow-controlled-rollout"
SECRET = "secret-of-the-index"


class Storage:
    """buildah's images and containers, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._buildah = ["buildah", "--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def call(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run([*self._buildah, *arguments], capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def build(self, base: str, *arguments: str, context: Path = REPOSITORY) -> "subprocess.CompletedProcess[str]":
        secrets = self.folder / "secrets"
        secrets.mkdir(exist_ok=True)
        given = build_secrets([], (context / "docker/airflow/Dockerfile").read_text())
        secrets_of_build = {**given, "certificates": given.get("certificates", b"")}
        secrets_of_build["settings"] += f"export UV_INDEX_PRIVATE_PASSWORD={SECRET}\n".encode()
        for name in ("settings", "certificates"):
            (secrets / name).write_bytes(secrets_of_build[name])
        wheels = self.folder / "wheels"
        wheels.mkdir(exist_ok=True)
        return self.call(
            "build",
            *("--isolation", "chroot", "--network", "host", "--tls-verify=false", "--format", "oci"),
            *(f"--secret=id={name},src={secrets / name}" for name in ("settings", "certificates")),
            *("--volume", f"{wheels}:/run/wheels", f"--build-arg=BASE_IMAGE={base}", *arguments),
            *("--file", str(context / "docker/airflow/Dockerfile"), str(context)),
            check=False,
        )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    storage = Storage(tmp_path_factory.mktemp("airflow-image"))
    yield storage
    storage.call("rm", "--all", check=False)
    storage.call("rmi", "--all", "--force", check=False)


@pytest.fixture(scope="module")
def image(programs: None, stock: RunningRegistry, storage: Storage) -> str:
    built = storage.build(base_image(stock.address), "--tag", NAME)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return NAME


@pytest.fixture(scope="module")
def container(image: str, storage: Storage) -> str:
    return storage.call("from", "--pull-never", image).stdout.strip()


def run(storage: Storage, container: str, *command: str) -> str:
    return storage.call("run", "--isolation", "chroot", container, "--", *command).stdout


def test_airflow_image_contains_airflow_and_this_provider(storage: Storage, container: str) -> None:
    listed = json.loads(run(storage, container, "airflow", "providers", "list", "--output", "json"))

    assert "airflow-provider-controlled-rollout" in {provider["package_name"] for provider in listed}
    assert run(storage, container, "airflow", "version").strip().startswith("3.3")
    operators = run(storage, container, "python", "-c", "from controlled_rollout import *; print(BuildImageOperator)")
    assert "controlled_rollout.operators.image_build" in operators
    assert "controlled_rollout" in run(storage, container, "airflow", "plugins", "--output", "json")


def test_airflow_image_runs_as_an_unprivileged_user(storage: Storage, container: str) -> None:
    assert run(storage, container, "id", "-u").strip() == "50000"
    run(storage, container, "touch", "/opt/airflow/written")
    refused = storage.call(
        "run", "--isolation", "chroot", container, "--", "touch", "/opt/environment/written", check=False
    )
    assert refused.returncode != 0


def test_packages_of_the_airflow_image_are_those_of_the_constraints(storage: Storage, container: str) -> None:
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
    installed = {pin(line) for line in run(storage, container, "python", "-c", code).split()}
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {pin(line.split(" ")[0]) for line in lines if line[:1].isalnum()}

    assert len(installed) > 100
    assert {name for name, _ in installed - pinned} == {"airflow-provider-controlled-rollout"}


def pin(line: str) -> tuple[str, str]:
    name, _, version = line.partition("==")
    return canonicalize_name(name), version


def test_build_secrets_are_not_in_the_airflow_image(storage: Storage, image: str, container: str) -> None:
    described = storage.call("inspect", "--type", "image", image).stdout
    root = Path(storage.call("mount", container).stdout.strip())

    assert SECRET not in described
    assert not (root / "build").exists() and not (root / "opt" / "uv").exists()
    assert not any((root / "run" / "secrets").glob("*")) if (root / "run" / "secrets").exists() else True
    held = subprocess.run(["grep", "--recursive", "--files-with-matches", SECRET, root], capture_output=True, text=True)
    assert held.stdout == ""


def test_package_with_another_hash_is_not_installed(
    stock: RunningRegistry, storage: Storage, image: str, tmp_path: Path
) -> None:
    """The hashes are checked: another file for httpx on the index is refused."""
    import re
    import shutil

    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in ("operators", "docker", "plugins", "scripts"):
        shutil.copytree(
            REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules")
        )
    constraints = (REPOSITORY / "constraints.txt").read_text()
    block = re.search(r"^httpx==.*?(?<=[^\\])$", constraints, re.M | re.S)
    assert block is not None
    other = re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, block[0])
    (tmp_path / "constraints.txt").write_text(constraints.replace(block[0], other))

    built = storage.build(base_image(stock.address), "--tag", f"{NAME}-other", context=tmp_path)

    assert built.returncode != 0
    assert "ash mismatch" in built.stdout + built.stderr
