"""The image of the collector, built for real and run as a pod runs it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab.images import base_image
from tests.collector_image import NAME, build_image, call, own_buildah
from tests.registry.real_registry import RunningRegistry
from tests.unit.collector.spools import SpoolWriter, make_spool


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[list[str]]:
    """The command of buildah with images and containers in a folder of its own."""
    with own_buildah(tmp_path) as command:
        yield command


def test_the_collectors_image_ships_a_spool_as_an_unprivileged_user(
    stock: RunningRegistry, buildah: list[str], tmp_path: Path
) -> None:
    described = build_image(buildah, tmp_path, base_image(stock.address))
    container = call(*buildah, "from", "--pull-never", NAME).strip()
    writer = SpoolWriter(make_spool(tmp_path / "shared"))
    writer.append_exchanges(3)
    writer.end()
    (writer.spool / "ended").touch()
    call("chown", "--recursive", "10001:10001", str(tmp_path / "shared"))

    run = (*buildah, "run", "--isolation", "chroot", "--volume", f"{tmp_path / 'shared'}:/shared", container, "--")
    shipping = ("--spools", "/shared/digits/v1/replica-1", "--storage", "/shared/storage", "--interval", "0.1")
    # `timeout` sends SIGTERM, as the end of a pod does.
    call(*run, "timeout", "--preserve-status", "10", *described["Entrypoint"], *shipping)

    assert described["User"] == "10001:10001"
    assert len(list((tmp_path / "shared" / "storage").rglob("*.parquet"))) == 2
    state = tmp_path / "shared" / "storage" / "collected" / "digits" / "v1" / "_state" / "replica-1.json"
    assert json.loads(state.read_text())["shipped"] == 3
    assert state.stat().st_uid == 10001 and os.stat(state).st_mode & 0o077 == 0
