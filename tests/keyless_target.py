"""What the targets in memory have in common: no keys, because nobody calls their endpoints."""

from typing import Literal

from controlled_rollout.target.protocol import Keys

__all__ = ["KeylessTarget"]


class KeylessTarget:
    """A part of a target that has no keys."""

    async def keys(self, name: str) -> Keys:
        raise NotImplementedError

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        raise NotImplementedError
