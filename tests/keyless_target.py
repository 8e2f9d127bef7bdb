"""What the targets in memory have in common: no keys and tokens, because nobody calls their endpoints."""

from datetime import timedelta
from typing import Literal

from controlled_rollout.target.protocol import Keys
from controlled_rollout.tokens import DEFAULT_LIFETIME, Token

__all__ = ["KeylessTarget"]


class KeylessTarget:
    """A part of a target that has no keys and no tokens."""

    async def keys(self, name: str) -> Keys:
        raise NotImplementedError

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        raise NotImplementedError

    async def token(self, name: str, *, lifetime: timedelta = DEFAULT_LIFETIME) -> Token:
        raise NotImplementedError

    async def rotate_signing_keys(self, name: str) -> None:
        raise NotImplementedError
