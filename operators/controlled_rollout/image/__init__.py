"""Project folder + environment -> image reference with digest."""

from controlled_rollout.image.environment import Environment, environment_hash
from controlled_rollout.image.local import LocalImage, build, load
from controlled_rollout.image.reference import ImageReference, ModelSource

__all__ = ["Environment", "ImageReference", "LocalImage", "ModelSource", "build", "environment_hash", "load"]
