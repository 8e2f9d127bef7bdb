"""Images with models from remote addresses: the layer holds the fetched files; a failed fetch leaves no tag."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import fsspec
import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image import ImageReference, ModelSource, build_container_image
from tests.registry.conftest import Built
from tests.registry.real_registry import RunningRegistry


async def build(built: Built, registry: RunningRegistry, cache: Path, address: str) -> ImageReference:
    return await build_container_image(
        built.source,
        name="digits",
        registry=f"{registry.address}/m",
        cache=cache,
        base_image=built.base_image,
        shared_registry=built.registry,
        models=[ModelSource("digits", address, version="3")],
    )


async def test_a_model_with_an_address_is_in_the_layer_like_a_local_one(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    fsspec.filesystem("memory").pipe("/trained/model.txt", b"seven")
    (tmp_path / "model.txt").write_bytes(b"seven")

    remote = await build(built, registry, tmp_path / "cache", "memory://trained/model.txt")
    local = await build(built, registry, tmp_path / "cache", str(tmp_path / "model.txt"))

    assert remote == local, "where it came from is not in the image"
    layer = registry.manifest(remote.sha256)["layers"][-1]["digest"]
    with tarfile.open(fileobj=io.BytesIO(registry.blob(layer))) as archive:
        content = archive.extractfile("opt/models/digits/3/model.txt")
        assert content is not None and content.read() == b"seven"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
async def test_a_model_that_does_not_fit_on_the_workers_disk_leaves_no_tag(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    fsspec.filesystem("memory").pipe("/big/model.bin", b"b" * 20_000_000)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", disk], check=True)
    try:
        with pytest.raises(
            ImageError, match=r"model 'digits': memory://big/model\.bin: 20\.0 MB are needed, .*nothing was"
        ):
            await build(built, registry, disk / "cache", "memory://big/model.bin")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

    assert registry.tags("m/digits") == []


@pytest.mark.parametrize("address", ["memory://trained/../model.txt", "out/../model.txt"])
async def test_a_model_path_that_leads_upwards_leaves_no_tag(
    built: Built, registry: RunningRegistry, tmp_path: Path, address: str
) -> None:
    with pytest.raises(ImageError, match=r"has '\.\.' in it"):
        await build(built, registry, tmp_path / "cache", address)

    assert registry.tags("m/digits") == []
