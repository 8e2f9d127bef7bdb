"""The environment of a version: what is installed for it."""

import functools
import re
import sys
from typing import Annotated, Any, Final, Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.docker_steps import docker_instruction
from controlled_rollout.image.environment.requirements import check_constraint, check_requirement
from controlled_rollout.image.scoring_runtime import PYTHON_VERSIONS

__all__ = ["ANY_PYTHON", "Environment", "running_python"]

OLDEST_PYTHON, NEWEST_PYTHON = PYTHON_VERSIONS[0], PYTHON_VERSIONS[-1]
ANY_PYTHON: Final = str(SpecifierSet(f">={OLDEST_PYTHON},<3.{int(NEWEST_PYTHON.partition('.')[2]) + 1}"))
"""The range of all versions of Python that the scoring runtime runs on."""

EXACT_PYTHON: Final = re.compile(r"(?P<version>\d+\.\d+(?:\.\d+)?(?:(?:a|b|rc)\d+)?)(?:\.\*)?", re.ASCII)
ANY_MINOR: Final = re.compile(r"(\d+)(?:\.\*)?", re.ASCII)
PATCHES: Final = range(30)


@functools.lru_cache
def _check_python_version(text: str) -> str:
    """Check a Python version such as `3.11`, or a range such as `>=3.9,<3.12`; return its canonical form.

    A range is narrowed to the versions that the scoring runtime runs on.
    """
    text = text.strip()
    if exact := EXACT_PYTHON.fullmatch(text):
        version = Version(exact["version"])
        if f"{version.major}.{version.minor}" not in PYTHON_VERSIONS:
            raise _unusable_python_error(text)
        return str(version)
    any_minor = ANY_MINOR.fullmatch(text)
    try:
        versions = SpecifierSet(f"=={any_minor[1]}.*" if any_minor else text)
    except InvalidSpecifier:
        versions = SpecifierSet()
    if not str(versions) or "===" in text:
        raise ImageError(f"Python version {text!r} is not understood: write 3.11, 3.11.4 or >={OLDEST_PYTHON},<3.13")
    if not any(f"{minor}.{patch}" in versions for minor in PYTHON_VERSIONS for patch in PATCHES):
        raise _unusable_python_error(text)
    return str(versions & SpecifierSet(ANY_PYTHON))


def _unusable_python_error(text: str) -> ImageError:
    """Return the `ImageError` for a Python version on which the scoring runtime does not run."""
    running = running_python()
    return ImageError(
        f"Python {text} cannot be used: the scoring runtime runs on Python {OLDEST_PYTHON} to {NEWEST_PYTHON}. Write "
        f"{running.major}.{running.minor}, which this process runs, or another one of them, and versions of the "
        "packages that support it"
    )


def _check_docker_step(step: str) -> str:
    """Check a docker step and return it as it was written."""
    docker_instruction(step)
    return step


def _check_requirements(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Check requirement lines; each option becomes a line of its own."""
    return tuple(text for line in lines for text in check_requirement(line))


class Environment(BaseModel):
    """What is installed for a version.

    Attributes:
        name, version: For people. They do not count in the hash.
        python: A version or a range; None for the minor version of the interpreter that builds.
        base_image: The image that a container build begins with; None for the workspace's.
        docker_steps: Lines of a Dockerfile, run on the base image before anything is installed.
        requirements: What pip would install, in order, with options such as `--extra-index-url`.
        constraints: Versions that packages must have if they are installed, as in pip's constraints files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    version: str | None = None
    python: Annotated[str, AfterValidator(_check_python_version)] | None = None
    base_image: str | None = None
    docker_steps: tuple[Annotated[str, AfterValidator(_check_docker_step)], ...] = ()
    requirements: Annotated[tuple[str, ...], AfterValidator(_check_requirements)] = ()
    constraints: tuple[Annotated[str, AfterValidator(check_constraint)], ...] = ()

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
