"""Project folder + environment -> image reference with digest."""

from controlled_rollout.image.reference import ImageReference, ModelSource

__all__ = ["ImageReference", "ModelSource"]
