"""A build's files as an image in the workspace's registry: a builder elsewhere needs no storage besides.

It is named by its digest and has no tag. Its bigger layer is the program that installs, which hardly ever changes.
"""

import tempfile
from pathlib import Path
from typing import Final

from controlled_rollout.image.builders.build_context import UV, write_context
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.cancellable_thread import in_thread
from controlled_rollout.image.inputs.files import package
from controlled_rollout.image.oci.layer import Layer, layer_of_files, streamed
from controlled_rollout.image.oci.manifest import LAYER, Descriptor, of_layers
from controlled_rollout.image.oci.registry_client import Registry

__all__ = ["push_context"]

FOLDER: Final = "context"


async def push_context(order: BuildRequest) -> str:
    """Push the files of a build beside what is to be built of them, and return the reference `name@sha256:…`.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: It refuses.
    """
    with tempfile.TemporaryDirectory(prefix="controlled-rollout-") as temporary:
        folder = Path(temporary) / FOLDER
        layers = await in_thread(lambda stop: _layers(order, folder))
        content, manifest = of_layers([blob for _, blob in layers])
        async with Registry(order.credentials) as client:
            for layer, blob in layers:
                await client.put_blob(order.target, blob, lambda layer=layer: streamed(layer))  # type: ignore[misc]
            await client.put_blob(order.target, manifest.config, content)
            await client.put_manifest(order.target, manifest.digest, manifest)
    return f"{order.target}@{manifest.digest}"


def _layers(order: BuildRequest, folder: Path) -> list[tuple[Layer, Descriptor]]:
    write_context(order, folder)
    files = package(folder).files
    found = []
    for part in ([file for file in files if file.path == UV], [file for file in files if file.path != UV]):
        layer = layer_of_files(part)
        found.append((layer, Descriptor(LAYER, *layer.digest())))
    return found
