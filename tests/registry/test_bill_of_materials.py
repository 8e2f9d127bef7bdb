"""Bills of materials of real images: read from the layers, attached in the registry."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image import ImageReference
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.oci.manifest import Manifest
from controlled_rollout.image.oci.referrers import attach_document, referrers_tag
from controlled_rollout.image.oci.registry_client import RegistryClient, Repository
from controlled_rollout.image.scan.bill_of_materials import CYCLONEDX, attach_bill_of_materials
from controlled_rollout.image.scan.installed_packages import InstalledPackages, packages_of_image
from tests.cluster.lab.programs import program
from tests.ports import free_port
from tests.registry.attachments import attached
from tests.registry.conftest import Built
from tests.registry.real_registry import RunningRegistry


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


async def image_of(client: RegistryClient, reference: ImageReference) -> tuple[Repository, Manifest]:
    repository = Repository.parse(reference.name)
    manifest = await client.manifest(repository, f"sha256:{reference.sha256}")
    assert manifest is not None
    return repository, manifest


async def test_packages_read_from_layers_equal_those_of_dpkg_and_pip(built: Built, cache: Cache) -> None:
    async with RegistryClient() as client:
        installed = await packages_of_image(client, *await image_of(client, built.reference), cache)

    kinds = [package.kind for package in installed.packages]
    assert (installed.distribution, installed.unread) == ("debian", ())
    assert kinds.count("deb") > 50
    assert {"bash", "libc6", "python3.11"} <= {package.name for package in installed.packages if package.kind == "deb"}
    assert any(line.startswith("azureml-inference-server-http==1.5") for line in installed.requirements())
    assert len(installed.requirements()) == kinds.count("pypi")


async def test_a_layer_is_read_once(built: Built, cache: Cache) -> None:
    progress_lines: list[str] = []
    async with RegistryClient() as client:
        image = await image_of(client, built.reference)
        first = await packages_of_image(client, *image, cache)
        second = await packages_of_image(client, *image, cache, progress=progress_lines.append)

    assert second == first
    assert progress_lines == []


async def test_layer_with_a_wrong_digest_is_refused(
    built: Built, stock: RunningRegistry, registry: RunningRegistry, tmp_path: Path
) -> None:
    """A registry that serves something else, as a broken disk or a thief would."""
    async with RegistryClient() as client:
        repository, manifest = await image_of(client, built.reference)
        copied = Repository(registry.address, repository.path)
        for blob in (*manifest.layers, manifest.config):
            await client.copy_blob(repository, copied, blob)
        smallest = min(manifest.layers, key=lambda layer: layer.size)
        registry.blob_file(smallest.digest).write_bytes(b"0" * smallest.size)

        with pytest.raises(ImageError, match=f"layer {smallest.digest} of .* was asked for, .* came"):
            await packages_of_image(client, copied, manifest, Cache(tmp_path / "cache"))
    assert not list((tmp_path / "cache" / "contents").glob(".*.layer")), "nothing of a layer stays on the disk"


async def test_a_bill_is_attached_once_under_the_tag_of_the_specification(
    built: Built, stock: RunningRegistry, cache: Cache
) -> None:
    async with RegistryClient() as client:
        repository, manifest = await image_of(client, built.reference)
        contents = await packages_of_image(client, repository, manifest, cache)
        first = await attach_bill_of_materials(client, repository, manifest, contents)
        before = stock.files()
        second = await attach_bill_of_materials(client, repository, manifest, contents)
        [bill] = await attached(client, repository, manifest.digest, CYCLONEDX)

    assert second == first
    assert set(stock.files()) == set(before), "the same bytes again are nothing new to the registry"
    assert referrers_tag(manifest.digest) in stock.tags(repository.path)
    assert json.loads(bill)["metadata"]["component"]["version"] == manifest.digest
    assert stock.manifest(first)["subject"]["digest"] == manifest.digest


async def test_documents_that_are_attached_one_after_the_other_are_all_listed(
    built: Built, registry: RunningRegistry
) -> None:
    repository = Repository(registry.address, "models/digits")
    async with RegistryClient() as client:
        source, manifest = await image_of(client, built.reference)
        for blob in (*manifest.layers, manifest.config):
            await client.copy_blob(source, repository, blob)
        await client.put_manifest(repository, "1", manifest)
        kinds = [f"application/vnd.example.{number}" for number in range(4)]
        for kind in kinds:
            await attach_document(client, repository, manifest, kind, kind.encode(), "a")

        for kind in kinds:
            assert await attached(client, repository, manifest.digest, kind) == [kind.encode()]


@pytest.fixture
def listing(tmp_path: Path) -> Iterator[str]:
    """The address of an empty registry with the referrers API."""
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen([program("referrers-registry", of="referrers-registry"), address])
    try:
        end = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(address.partition(":")[2]))) == 0:
                    break
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        yield address
    finally:
        process.kill()
        process.wait()


async def test_no_referrers_tag_on_a_registry_with_the_referrers_api(built: Built, listing: str) -> None:
    repository = Repository(listing, "models/digits")
    async with RegistryClient() as client:
        source, manifest = await image_of(client, built.reference)
        smallest = min(manifest.layers, key=lambda layer: layer.size)
        # The least of an image that the registry accepts.
        for blob in (smallest, manifest.config):
            await client.copy_blob(source, repository, blob)
        await client.put_manifest(repository, "1", manifest)
        await attach_document(client, repository, manifest, CYCLONEDX, b"{}", "bom.cdx.json")

        assert await client.manifest(repository, referrers_tag(manifest.digest)) is None
        assert await attached(client, repository, manifest.digest, CYCLONEDX) == [b"{}"]


async def test_an_image_without_attachments_has_none(built: Built, registry: RunningRegistry) -> None:
    async with RegistryClient() as client:
        assert await attached(client, Repository(registry.address, "models/digits"), "sha256:" + "0" * 64, "x") == []


def test_contents_without_python_have_no_environment() -> None:
    assert InstalledPackages(()).requirements() == []
