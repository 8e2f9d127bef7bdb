"""The environment of a version: what is installed for it, and the hash under which that is found again."""

import hashlib
import json
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

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
from controlled_rollout.image.environment.conda import from_conda, python_from_conda, split_conda
from controlled_rollout.image.environment.requirements import (
    check_requirement,
    read_requirement_lines,
    read_requirements,
)
from controlled_rollout.image.scoring_runtime import runtime_requirements

__all__ = ["DEFAULT_FILES", "Environment", "environment_hash", "find_environment_file", "read_environment"]

DEFAULT_FILES: Final = ("environment.yml", "environment.yaml", "conda.yml", "requirements.txt")
# Changed when what is built from the same description changes.
HASH_SCHEMA: Final = 1

CONDA_KEYS: Final = ("name", "channels", "dependencies", "prefix")
OWN_KEYS: Final = ("version", "python", "base_image", "docker_steps", "requirements")


def _python(text: str) -> str:
    """Return a version such as `3.11` or a range such as `>=3.9,<3.12` in canonical form."""
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
        name, version: What people call it. They do not count in the hash.
        python: A version or a range; None for the minor version of the interpreter that builds.
        base_image: The image that a container build begins with; None for our own.
        docker_steps: Lines of a Dockerfile, run on the base image before anything is installed.
        requirements: What pip would install, in order, with options such as `--extra-index-url`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    version: str | None = None
    python: Annotated[str, AfterValidator(_python)] | None = None
    base_image: str | None = None
    docker_steps: tuple[str, ...] = ()
    requirements: tuple[Annotated[str, AfterValidator(check_requirement)], ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _faults_as_image_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
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
        """The version to build with: the running interpreter's where the environment allows it."""
        running = Version(".".join(map(str, sys.version_info[:3])))
        minor = f"{running.major}.{running.minor}"
        if self.python is None:
            return minor
        if self.python[0].isdigit():
            return self.python
        return minor if running in SpecifierSet(self.python) else self.python


def environment_hash(
    environment: Environment, *, platform: str | None = None, python: str | None = None, recipe: str | None = None
) -> str:
    """Return the hash under which a built environment is kept: 64 hexadecimal digits.

    It covers the base image, the extra docker steps, the Python version, the requirements in their order, the scoring
    runtime's own requirements and the platform; not the environment's name and version.

    Args:
        environment: What is asked for.
        platform: What it is built for; None for this machine.
        python: The Python version that it is built with; None for the one that is chosen on this machine.
        recipe: A digest over what else it is built from; None for a virtual environment, which has only the rest.

    Raises:
        ImageError: The installation lacks the runtime's requirements.
    """
    facts = {
        "schema": HASH_SCHEMA,
        "platform": platform or sysconfig.get_config_var("MULTIARCH") or sysconfig.get_platform(),
        "python": python or environment.python_version,
        "base_image": environment.base_image,
        "docker_steps": environment.docker_steps,
        "requirements": environment.requirements,
        "runtime": hashlib.sha256(runtime_requirements().read_bytes()).hexdigest(),
    }
    if recipe is not None:
        facts["recipe"] = recipe
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def find_environment_file(source_dir: Path) -> Path:
    """Return the environment file of a source folder.

    Raises:
        ImageError: It has none.
    """
    for name in DEFAULT_FILES:
        if (source_dir / name).is_file():
            return source_dir / name
    raise ImageError(
        f"source folder {source_dir} has no {', '.join(DEFAULT_FILES[:-1])} or {DEFAULT_FILES[-1]}: "
        "add one, or say which environment to use"
    )


def read_environment(path: Path, *, progress: Callable[[str], None] = lambda line: None) -> Environment:
    """Return the environment that a file describes: conda's environment.yml, our own keys, or pip's requirements.txt.

    Args:
        path: `*.yml` or `*.yaml`, else `*.txt` or `*.in`.
        progress: Called with a line for each conda dependency that the Python package index provides instead.

    Raises:
        ImageError: The file cannot be read, has unknown keys, or asks for what cannot be provided.
    """
    if not path.is_file():
        raise ImageError(f"environment file {path} does not exist")
    if path.suffix in (".txt", ".in"):
        return Environment(requirements=read_requirements(path))
    if path.suffix in (".yml", ".yaml"):
        try:
            return _from_mapping(_mapping(path), path, progress)
        except ImageError as error:
            raise error if str(path) in str(error) else ImageError(f"environment file {path}: {error}") from None
    raise ImageError(f"environment file {path} has suffix {path.suffix!r}: .yml, .yaml, .txt and .in are known")


def _mapping(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        # Every scalar stays the text that was written: the version 3.10 must not become the number 3.1.
        found = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)  # noqa: S506 - makes only text
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"environment file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ImageError(f"environment file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ImageError(f"environment file {path} does not hold keys with values")
    return found


def _from_mapping(data: Mapping[str, Any], path: Path, progress: Callable[[str], None]) -> Environment:
    if unknown := sorted(set(data) - {*CONDA_KEYS, *OWN_KEYS}):
        known = ", ".join((*CONDA_KEYS, *OWN_KEYS))
        raise ImageError(f"keys {', '.join(map(repr, unknown))} are not known: known are {known}")
    if "dependencies" in data and "requirements" in data:
        raise ImageError("it has both dependencies and requirements: the order would not be clear, use one of them")
    python, requirements = _from_dependencies(_list(data, "dependencies"), path, progress)
    if python and data.get("python"):
        raise ImageError(f"it asks for Python both under python ({data['python']}) and under dependencies ({python})")
    return Environment(
        name=_text(data, "name"),
        version=_text(data, "version"),
        python=_text(data, "python") or python,
        base_image=_text(data, "base_image"),
        docker_steps=tuple(_texts(data, "docker_steps")),
        requirements=requirements + read_requirement_lines(_texts(data, "requirements"), path),
    )


def _from_dependencies(
    dependencies: list[Any], path: Path, progress: Callable[[str], None]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the Python version and the requirements: conda's first, as conda installs them, then pip's."""
    python: str | None = None
    from_index: list[str] = []
    from_pip: list[str] = []
    for dependency in dependencies:
        if isinstance(dependency, dict):
            if list(dependency) != ["pip"]:
                raise ImageError(f"dependencies hold {dependency!r}: only text and one list under `pip:` are known")
            from_pip += read_requirement_lines(_texts(dependency, "pip"), path)
            continue
        if not isinstance(dependency, str):
            raise ImageError(f"dependencies hold {dependency!r}: only text and one list under `pip:` are known")
        name, _ = split_conda(dependency)
        if name == "python":
            python = python_from_conda(dependency)
        elif name != "pip":
            requirement = from_conda(dependency)
            progress(f"environment: conda dependency {dependency!r} is installed from the index as {requirement!r}")
            from_index.append(requirement)
    return python, (*from_index, *from_pip)


def _text(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key, "")
    if not isinstance(value, str):
        raise ImageError(f"{key} must be text, found {value!r}")
    return value or None


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key) or []
    if not isinstance(value, list):
        raise ImageError(f"{key} must be a list, found {value!r}")
    return value


def _texts(data: Mapping[str, Any], key: str) -> list[str]:
    values = _list(data, key)
    for value in values:
        if not isinstance(value, str):
            raise ImageError(f"{key} must hold text only, found {value!r}")
    return values
