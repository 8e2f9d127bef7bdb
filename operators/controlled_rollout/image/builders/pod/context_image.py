"""The build context as an image in the workspace's registry: so a pod gets the files without a volume.

The image is named by its digest and has no tag. Its bigger layer is uv, which hardly ever changes.
"""

import tempfile
from pathlib import Path
from typing import Final

from controlled_rollout.image.builders.build_context import UV, write_build_context
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.cancellable_thread import in_thread
from controlled_rollout.image.inputs.files import read_source_folder
from controlled_rollout.image.oci.layer import Layer, layer_chunks_in_thread, layer_of_files
from controlled_rollout.image.oci.manifest import LAYER, Descriptor, image_of_layers
from controlled_rollout.image.oci.registry_client import RegistryClient

__all__ = ["push_build_context"]

FOLDER: Final = "context"


async def push_build_context(request: BuildRequest) -> str:
    """Push the files of a build as an image to the environment repository; return its reference `name@sha256:…`.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: It refuses.
    """
    repository = request.repository
    with tempfile.TemporaryDirectory(prefix="controlled-rollout-") as temporary:
        folder = Path(temporary) / FOLDER
        layers = await in_thread(lambda _: _context_layers(request, folder))
        config, manifest = image_of_layers([blob for _, blob in layers])
        async with RegistryClient(request.credentials) as client:
            for layer, blob in layers:
                await client.put_blob(repository, blob, lambda layer=layer: layer_chunks_in_thread(layer))  # type: ignore[misc]
            await client.put_blob(repository, manifest.config, config)
            await client.put_manifest(repository, manifest.digest, manifest)
    return f"{repository}@{manifest.digest}"


def _context_layers(request: BuildRequest, folder: Path) -> list[tuple[Layer, Descriptor]]:
    """Return two layers with their descriptors: one with uv, and one with all other files of the build."""
    write_build_context(request, folder)
    files = read_source_folder(folder).files
    uv, others = [file for file in files if file.path == UV], [file for file in files if file.path != UV]
    layers = [layer_of_files(uv), layer_of_files(others)]
    return [(layer, Descriptor(LAYER, *layer.digest())) for layer in layers]
