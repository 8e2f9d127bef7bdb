"""The image of the collector, built for real and run as a pod runs it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlled_rollout.image.builders.build_secrets import build_secrets
from tests.cluster.lab.images import base_image
from tests.registry.real_registry import RunningRegistry
from tests.unit.collector.spools import SpoolWriter, make_spool

FOLDER = Path(__file__).parents[2] / "docker" / "collector"
NAME = "localhost/collector"


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[list[str]]:
    """The command of buildah with images and containers in a folder of its own."""
    command = ["buildah", "--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run")]
    yield command
    subprocess.run([*command, "rm", "--all"], capture_output=True)
    subprocess.run([*command, "rmi", "--all", "--force"], capture_output=True)


def call(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_collectors_image_ships_a_spool_as_an_unprivileged_user(
    stock: RunningRegistry, buildah: list[str], tmp_path: Path
) -> None:
    given = build_secrets([], (FOLDER / "Dockerfile").read_text())
    for name in ("settings", "certificates"):
        (tmp_path / name).write_bytes(given.get(name, b""))
    call(
        *(*buildah, "build", "--isolation", "chroot", "--network", "host", "--tls-verify=false", "--format", "oci"),
        *(f"--secret=id={name},src={tmp_path / name}" for name in ("settings", "certificates")),
        *(f"--build-arg=BASE_IMAGE={base_image(stock.address)}", "--tag", NAME),
        *("--file", str(FOLDER / "Dockerfile"), str(FOLDER)),
    )
    container = call(*buildah, "from", "--pull-never", NAME).strip()
    writer = SpoolWriter(make_spool(tmp_path / "shared"))
    writer.append_exchanges(3)
    writer.end()
    (writer.spool / "ended").touch()
    call("chown", "--recursive", "10001:10001", str(tmp_path / "shared"))
    described = json.loads(call(*buildah, "inspect", "--type", "image", NAME))["OCIv1"]["config"]

    run = (*buildah, "run", "--isolation", "chroot", "--volume", f"{tmp_path / 'shared'}:/shared", container, "--")
    shipping = ("--spools", "/shared/digits/v1/replica-1", "--storage", "/shared/storage", "--interval", "0.1")
    # `timeout` sends SIGTERM, as the end of a pod does.
    call(*run, "timeout", "--preserve-status", "10", *described["Entrypoint"], *shipping)

    assert described["User"] == "10001:10001"
    assert len(list((tmp_path / "shared" / "storage").rglob("*.parquet"))) == 2
    state = tmp_path / "shared" / "storage" / "collected" / "digits" / "v1" / "_state" / "replica-1.json"
    assert json.loads(state.read_text())["shipped"] == 3
    assert state.stat().st_uid == 10001 and os.stat(state).st_mode & 0o077 == 0
