"""The environment of a version: what is installed for it."""

import sys
from typing import Annotated, Any, Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.requirements import check_requirement

__all__ = ["Environment", "running_python"]


def _check_python_version(text: str) -> str:
    """Check a Python version such as `3.11`, or a range such as `>=3.9,<3.12`; return its canonical form."""
    try:
        return str(Version(text))
    except InvalidVersion:
        pass
    try:
        return str(SpecifierSet(text))
    except InvalidSpecifier:
        raise ImageError(f"Python version {text!r} is not understood: write 3.11, 3.11.4 or >=3.9,<3.12") from None


class Environment(BaseModel):
    """What is installed for a version.

    Attributes:
        name, version: For people. They do not count in the hash.
        python: A version or a range; None for the minor version of the interpreter that builds.
        base_image: The image that a container build begins with; None for the workspace's.
        docker_steps: Lines of a Dockerfile, run on the base image before anything is installed.
        requirements: What pip would install, in order, with options such as `--extra-index-url`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    version: str | None = None
    python: Annotated[str, AfterValidator(_check_python_version)] | None = None
    base_image: str | None = None
    docker_steps: tuple[str, ...] = ()
    requirements: tuple[Annotated[str, AfterValidator(check_requirement)], ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _raise_image_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Convert pydantic's `ValidationError` to an `ImageError` that lists the invalid fields."""
        try:
            return handler(data)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
                for fault in error.errors(include_url=False, include_context=False)
            )
            raise ImageError(
                f"the environment is not valid ({faults}): known are {', '.join(cls.model_fields)}"
            ) from None

    @property
    def python_version(self) -> str:
        """The Python version to install: the running interpreter's, if `python` allows it."""
        running = running_python()
        minor = f"{running.major}.{running.minor}"
        if self.python is None:
            return minor
        if self.python[0].isdigit():
            return self.python
        return minor if running in SpecifierSet(self.python) else self.python


def running_python() -> Version:
    """Return the version of the running interpreter as `major.minor.patch`."""
    return Version(".".join(map(str, sys.version_info[:3])))
