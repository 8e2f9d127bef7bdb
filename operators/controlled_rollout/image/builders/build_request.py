"""What a builder of environment images gets, and what it promises."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from controlled_rollout.image.oci.registry_client import Credentials, Repository

__all__ = ["BuildRequest", "Builder"]


@dataclass(frozen=True)
class BuildRequest:
    """An environment image that is to be built.

    Attributes:
        repository: Where it is to be pushed.
        tag: Under which tag: the hash over everything below.
        base_image: What it is built on, `name@sha256:…`.
        python: The Python version or range that the base image must have.
        requirements: What is installed, besides what the scoring runtime needs.
        build_files: The Dockerfile and the scripts that it runs: text by file name.
        credentials: A user for each registry that needs one, by host.
        constraints: Versions that packages must have if they are installed.
    """

    repository: Repository
    tag: str
    base_image: str
    python: str
    requirements: tuple[str, ...]
    build_files: Mapping[str, str]
    credentials: Mapping[str, Credentials] = field(repr=False)
    constraints: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The environment's name for log lines."""
        return f"environment {self.tag[:12]}"


class Builder(Protocol):
    """Builds environment images."""

    async def build(
        self, request: BuildRequest, *, is_pushed: Callable[[], Awaitable[bool]], progress: Callable[[str], None]
    ) -> None:
        """Build an environment image and push it. Of several tasks with the same tag, one builds and the others wait.

        When this returns, the registry has the tag. The tag is pushed last, so it never names half an image. If this is
        cancelled, it ends the build, and there is no tag.

        Args:
            request: What is to be built.
            is_pushed: Whether the registry has the tag by now; called again before a build is begun.
            progress: Called with each line of the build's output.

        Raises:
            ImageError: The base image is missing or does not fit, the requirements cannot be installed, or the builder
                cannot be used here.
        """
        ...
