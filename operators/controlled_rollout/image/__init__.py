"""Project folder + environment -> image reference with digest."""

from controlled_rollout.image.builder import Builder, Order
from controlled_rollout.image.container import build_container
from controlled_rollout.image.environment import Environment, environment_hash
from controlled_rollout.image.local import LocalImage, build, load
from controlled_rollout.image.reference import ImageReference, ModelSource
from controlled_rollout.image.registry import Credentials, RegistryUnavailableError

__all__ = [
    "Builder",
    "Credentials",
    "Environment",
    "ImageReference",
    "LocalImage",
    "ModelSource",
    "Order",
    "RegistryUnavailableError",
    "build",
    "build_container",
    "environment_hash",
    "load",
]
