"""What every builder of environment images is: asked to put one image under one tag, whole or not at all."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from controlled_rollout.image.oci.registry_client import Credentials, Repository

__all__ = ["BuildRequest", "Builder"]


@dataclass(frozen=True)
class BuildRequest:
    """An environment image that nobody has built yet.

    Attributes:
        target: Where it is to be pushed.
        tag: Under which tag: the hash over everything below.
        base_image: What it is built on, `name@sha256:…`.
        python: The Python version or range that the base image must have.
        requirements: What is installed, besides what the scoring runtime needs.
        recipe: The Dockerfile and the files that it runs, by name.
        credentials: A user for each registry that asks for one, by host.
    """

    target: Repository
    tag: str
    base_image: str
    python: str
    requirements: tuple[str, ...]
    recipe: Mapping[str, str]
    credentials: Mapping[str, Credentials] = field(repr=False)

    @property
    def short(self) -> str:
        """What people read of it."""
        return f"environment {self.tag[:12]}"


class Builder(Protocol):
    """Builds environment images."""

    async def build(
        self, order: BuildRequest, *, is_there: Callable[[], Awaitable[bool]], progress: Callable[[str], None]
    ) -> None:
        """Build an image and push it. Of several builds of one tag at once, one builds and the others wait for it.

        The tag is there when this returns, and never before the image is whole. Cancelled, it ends what it began, and
        no tag is left.

        Args:
            order: What is to be built.
            is_there: Whether the registry has the tag by now; asked again before anything is begun.
            progress: Called with each line that the build says.

        Raises:
            ImageError: The base image is missing or does not fit, the requirements cannot be installed, or what
                builds cannot be used here.
        """
        ...
