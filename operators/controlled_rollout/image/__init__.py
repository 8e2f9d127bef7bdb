"""A project folder and its environment become an image, which is deployed by its digest.

`build.py` is the entry point. It reads the `inputs/` and the `environment/`, has one of the `builders/` build the
environment, and stores the image in the workspace's cache (`local_image.py`) or pushes it to a registry
(`container_image.py`, with the client in `oci/`). `scan/` checks an image before it is rolled out.
"""

from controlled_rollout.image.build import build_image
from controlled_rollout.image.container_image import build_container_image
from controlled_rollout.image.environment.environment import Environment
from controlled_rollout.image.local_image import LocalImage, build_local_image, load_local_image
from controlled_rollout.image.oci.registry_client import Credentials
from controlled_rollout.image.reference import ImageReference, ModelSource

__all__ = [
    "Credentials",
    "Environment",
    "ImageReference",
    "LocalImage",
    "ModelSource",
    "build_container_image",
    "build_image",
    "build_local_image",
    "load_local_image",
]
