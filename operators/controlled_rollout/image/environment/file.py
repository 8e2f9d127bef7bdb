"""Environment files, read: conda's environment.yml, our own keys, or pip's requirements.txt."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.conda import (
    python_version_from_conda,
    requirement_from_conda,
    split_conda_dependency,
)
from controlled_rollout.image.environment.environment import Environment
from controlled_rollout.image.environment.requirements import read_requirement_lines, read_requirements

__all__ = ["DEFAULT_FILES", "find_environment_file", "read_environment"]

DEFAULT_FILES: Final = ("environment.yml", "environment.yaml", "conda.yml", "requirements.txt")

CONDA_KEYS: Final = ("name", "channels", "dependencies", "prefix")
OWN_KEYS: Final = ("version", "python", "base_image", "docker_steps", "requirements")


def find_environment_file(source_dir: Path) -> Path:
    """Return the project folder's environment file: the first of `DEFAULT_FILES` that exists.

    Raises:
        ImageError: It has none.
    """
    for name in DEFAULT_FILES:
        if (source_dir / name).is_file():
            return source_dir / name
    raise ImageError(
        f"source folder {source_dir} has no {', '.join(DEFAULT_FILES[:-1])} or {DEFAULT_FILES[-1]}: "
        "add one, or name the environment's file"
    )


def read_environment(path: Path, *, progress: Callable[[str], None] = lambda line: None) -> Environment:
    """Read an `Environment` from a conda YAML file, a YAML file with our keys, or a pip requirements file.

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
            return _environment_from_mapping(_read_yaml_mapping(path), path, progress)
        except ImageError as error:
            if str(path) in str(error):
                raise
            raise ImageError(f"environment file {path}: {error}") from error
    raise ImageError(f"environment file {path} has suffix {path.suffix!r}: .yml, .yaml, .txt and .in are known")


def _read_yaml_mapping(path: Path) -> Mapping[str, Any]:
    """Read a YAML file whose document is a mapping. All scalars stay text."""
    import yaml

    try:
        # Every scalar stays the text that was written: the version 3.10 must not become the number 3.1.
        document = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)  # noqa: S506 - makes only text
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"environment file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ImageError(f"environment file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ImageError(f"environment file {path} does not hold keys with values")
    return document


def _environment_from_mapping(data: Mapping[str, Any], path: Path, progress: Callable[[str], None]) -> Environment:
    """Check the keys of an environment file and build the `Environment` from them."""
    if unknown := sorted(set(data) - {*CONDA_KEYS, *OWN_KEYS}):
        known = ", ".join((*CONDA_KEYS, *OWN_KEYS))
        raise ImageError(f"keys {', '.join(map(repr, unknown))} are not known: known are {known}")
    if "dependencies" in data and "requirements" in data:
        raise ImageError("it has both dependencies and requirements: the order would not be clear, use one of them")
    python, requirements = _requirements_from_conda(_list_value(data, "dependencies"), path, progress)
    if python and data.get("python"):
        raise ImageError(f"it asks for Python both under python ({data['python']}) and under dependencies ({python})")
    return Environment(
        name=_text_value(data, "name"),
        version=_text_value(data, "version"),
        python=_text_value(data, "python") or python,
        base_image=_text_value(data, "base_image"),
        docker_steps=tuple(_text_list_value(data, "docker_steps")),
        requirements=requirements + read_requirement_lines(_text_list_value(data, "requirements"), path),
    )


def _requirements_from_conda(
    dependencies: list[Any], path: Path, progress: Callable[[str], None]
) -> tuple[str | None, tuple[str, ...]]:
    """Return the Python version and the requirements of `dependencies`: conda's first, then pip's."""
    python: str | None = None
    conda_requirements: list[str] = []
    pip_requirements: list[str] = []
    for dependency in dependencies:
        if isinstance(dependency, dict):
            if list(dependency) != ["pip"]:
                raise ImageError(f"dependencies hold {dependency!r}: only text and one list under `pip:` are known")
            pip_requirements += read_requirement_lines(_text_list_value(dependency, "pip"), path)
            continue
        if not isinstance(dependency, str):
            raise ImageError(f"dependencies hold {dependency!r}: only text and one list under `pip:` are known")
        name, _ = split_conda_dependency(dependency)
        if name == "python":
            python = python_version_from_conda(dependency)
        elif name != "pip":
            requirement = requirement_from_conda(dependency)
            progress(f"environment: conda dependency {dependency!r} is installed from the index as {requirement!r}")
            conda_requirements.append(requirement)
    return python, (*conda_requirements, *pip_requirements)


def _text_value(data: Mapping[str, Any], key: str) -> str | None:
    """Return the text value of a key, None if missing or empty; raise `ImageError` if it is not text."""
    value = data.get(key, "")
    if not isinstance(value, str):
        raise ImageError(f"{key} must be text, found {value!r}")
    return value or None


def _list_value(data: Mapping[str, Any], key: str) -> list[Any]:
    """Return the list value of a key, empty if missing; raise `ImageError` if it is not a list."""
    value = data.get(key) or []
    if not isinstance(value, list):
        raise ImageError(f"{key} must be a list, found {value!r}")
    return value


def _text_list_value(data: Mapping[str, Any], key: str) -> list[str]:
    """Return the list value of a key; raise `ImageError` if an item is not text."""
    values = _list_value(data, key)
    for value in values:
        if not isinstance(value, str):
            raise ImageError(f"{key} must hold text only, found {value!r}")
    return values
