"""Environment files, read: conda's environment.yml, MLflow's, our own keys, or pip's requirements.txt."""

import re
import reprlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.utils import InvalidName, canonicalize_name

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.conda import translate_conda
from controlled_rollout.image.environment.environment import Environment
from controlled_rollout.image.environment.file_keys import MLFLOW_KEYS, USUAL_KEYS
from controlled_rollout.image.environment.requirements import RequirementLines
from controlled_rollout.text_file import read_text_file
from controlled_rollout.yaml_fault import yaml_fault

if TYPE_CHECKING:
    from yaml.nodes import MappingNode

__all__ = ["DEFAULT_FILES", "find_environment_file", "read_environment"]

DEFAULT_FILES: Final = (
    "environment.yml",
    "environment.yaml",
    "conda.yml",
    "conda.yaml",
    "conda_dependencies.yml",
    "python_env.yaml",
    "requirements.txt",
)

# A requirement of pip itself, which no environment needs.
PIP_ITSELF: Final = re.compile(r"\s*pip\s*([=<>!~;].*)?$")
KEY_ADVICE: Final = {
    "variables": "variables are the version's: give them as its environment_variables",
    "environment_variables": "variables are the version's: give them there",
    "image": "a base image is written as `base_image`",
    "conda_file": "name the conda file itself as the environment",
}


def find_environment_file(source_dir: Path) -> Path:
    """Return the project folder's environment file: the first of `DEFAULT_FILES` that exists.

    Raises:
        ImageError: It has none.
    """
    for name in DEFAULT_FILES:
        if (source_dir / name).is_file():
            return source_dir / name
    similar = sorted(
        path.name for pattern in ("*.y*ml", "*.txt", "*.toml", "Pipfile") for path in source_dir.glob(pattern)
    )
    found = f" (there are {', '.join(similar[:10])})" if similar else ""
    raise ImageError(
        f"source folder {source_dir} has no {', '.join(DEFAULT_FILES[:-1])} or {DEFAULT_FILES[-1]}{found}: "
        "add one, or name the environment's file"
    )


def read_environment(path: Path, *, progress: Callable[[str], None] = lambda line: None) -> Environment:
    """Read an `Environment` from a conda YAML file, a YAML file with our keys, or a pip requirements file.

    Args:
        path: `*.yml` or `*.yaml`, else `*.txt` or `*.in`.
        progress: Called with one line: which file was read, what was taken from it, and which was not read.

    Raises:
        ImageError: The file cannot be read, has unknown keys, or asks for what cannot be provided.
    """
    if not path.is_file():
        raise ImageError(f"environment file {path} does not exist")
    lines = RequirementLines()
    suffix = path.suffix.lower()
    if suffix in (".txt", ".in"):
        lines.read_file(path)
        environment, n_conda = _environment(lines), 0
    elif suffix in (".yml", ".yaml"):
        try:
            environment, n_conda = _environment_from_mapping(_read_yaml_mapping(path), path, lines)
        except ImageError as error:
            if str(path) in str(error):
                raise
            raise ImageError(f"environment file {path}: {error}") from error
    else:
        raise ImageError(
            f"environment file {path} has suffix {path.suffix!r}: .yml, .yaml, .txt and .in are known. From a "
            "project's lock, `uv export --no-emit-project -o requirements.txt` writes one"
        )
    progress(_summary(environment, n_conda, path, lines.included))
    return environment


def _environment(lines: RequirementLines, conda: tuple[str, ...] = (), **values: Any) -> Environment:
    """Return an environment with conda's requirements first, then those of the lines."""
    return Environment(requirements=(*conda, *lines.requirements), constraints=tuple(lines.constraints), **values)


def _summary(environment: Environment, n_conda: int, path: Path, included: Sequence[Path]) -> str:
    """Return the line of the log that says what was taken from an environment file."""
    folder = path.resolve().parent
    files = [path.name, *(str(file.relative_to(folder)) if folder in file.parents else str(file) for file in included)]
    facts = [
        f"Python {environment.python}" if environment.python else "no Python named",
        _count_text(len(environment.requirements), "requirement"),
    ]
    if environment.constraints:
        facts.append(_count_text(len(environment.constraints), "constraint"))
    if n_conda:
        translated = ", ".join(environment.requirements[:n_conda])
        facts.append(f"from the Python package index in place of conda's channels: {translated}")
    if others := [name for name in DEFAULT_FILES if name not in files and (path.parent / name).is_file()]:
        facts.append(f"not the environment: {', '.join(others)}")
    return f"environment: read from {' and '.join(files)}: {'; '.join(facts)}"


def _count_text(count: int, noun: str) -> str:
    """Return a number with its noun, such as `2 requirements`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _read_yaml_mapping(path: Path) -> Mapping[str, Any]:
    """Read a YAML file whose document is a mapping. All scalars stay text; a key that is there twice is an error."""
    import yaml

    class TextLoader(yaml.BaseLoader):
        """Every scalar stays the text that was written: the version 3.10 must not become the number 3.1."""

        def construct_mapping(self, node: "MappingNode", deep: bool = False) -> dict[Hashable, Any]:
            """Return a mapping's keys and values; raise if a key is there twice."""
            mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
            if len(mapping) < len(node.value):
                keys = [key.value for key, _ in node.value]
                twice = next(key for key in keys if keys.count(key) > 1)
                raise ImageError(f"key {twice!r} is there twice: put both parts under one")
            return mapping

    try:
        text = read_text_file(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"environment file {path} cannot be read: {error}") from error
    try:
        document = yaml.load(text, Loader=TextLoader)  # noqa: S506 - makes only text
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = yaml_fault(error) if isinstance(error, yaml.YAMLError) else str(error)
        raise ImageError(f"environment file {path} is not YAML: {problem}") from None
    if not isinstance(document, dict):
        raise ImageError(f"environment file {path} does not hold keys with values")
    return document


def _environment_from_mapping(data: Mapping[str, Any], path: Path, lines: RequirementLines) -> tuple[Environment, int]:
    """Check the keys of an environment file; return its `Environment` and how many requirements are conda's."""
    is_mlflow = "build_dependencies" in data or path.stem == "python_env"
    known = MLFLOW_KEYS if is_mlflow else USUAL_KEYS
    if unknown := sorted(set(data) - {*known}, key=str):
        advice = [f"; {KEY_ADVICE[key]}" for key in unknown if key in KEY_ADVICE]
        raise ImageError(
            f"keys {', '.join(map(reprlib.repr, unknown))} are not known: known are {', '.join(known)}{''.join(advice)}"
        )
    if is_mlflow:
        build = [line for line in _text_list_value(data, "build_dependencies") if not PIP_ITSELF.match(line)]
        lines.read_lines([*build, *_text_list_value(data, "dependencies")], path)
        return _environment(lines, python=_text_value(data, "python")), 0
    if "dependencies" in data and "requirements" in data:
        raise ImageError("it has both dependencies and requirements: the order would not be clear, use one of them")
    conda, pip = _split_dependencies(_list_value(data, "dependencies"))
    python, requirements = translate_conda(conda, _index_names(data))
    if python and data.get("python"):
        raise ImageError(f"it asks for Python both under python ({data['python']}) and under dependencies ({python})")
    lines.read_lines([*pip, *_text_list_value(data, "requirements")], path)
    environment = _environment(
        lines,
        requirements,
        name=_text_value(data, "name"),
        version=_text_value(data, "version"),
        python=_text_value(data, "python") or python,
        base_image=_text_value(data, "base_image"),
        docker_steps=tuple(_text_list_value(data, "docker_steps")),
    )
    return environment, len(requirements)


def _split_dependencies(dependencies: list[Any]) -> tuple[list[str], list[str]]:
    """Return the conda packages and the pip lines of a conda file's `dependencies`."""
    conda: list[str] = []
    pip: list[str] = []
    for dependency in dependencies:
        if isinstance(dependency, dict) and list(dependency) == ["pip"]:
            pip += _text_list_value(dependency, "pip")
        elif isinstance(dependency, str):
            conda.append(dependency)
        else:
            raise ImageError(
                f"dependencies hold {reprlib.repr(dependency)}: only text and one list under `pip:` are known"
            )
    return conda, pip


def _index_names(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the author's names on the Python package index by conda name; empty for a package that is left out."""
    names = data.get("index_names", "")
    if names == "":
        return {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for pair in names.items() for name in pair):
        raise ImageError(
            f"index_names must map conda's names to names on the Python package index, found {reprlib.repr(names)}"
        )
    for conda, name in names.items():
        try:
            if name:
                canonicalize_name(name, validate=True)
        except InvalidName:
            raise ImageError(f"index_names maps {conda!r} to {name!r}, which is not the name of a package") from None
    return {conda.lower(): name for conda, name in names.items()}


def _text_value(data: Mapping[str, Any], key: str) -> str | None:
    """Return the text value of a key, None if missing or empty; raise `ImageError` if it is not text."""
    value = data.get(key, "")
    if not isinstance(value, str):
        raise ImageError(f"{key} must be text, found {reprlib.repr(value)}")
    return value or None


def _list_value(data: Mapping[str, Any], key: str) -> list[Any]:
    """Return the list value of a key, empty if missing; raise `ImageError` if it is not a list."""
    value = data.get(key, "")
    if value == "":
        return []
    if not isinstance(value, list):
        raise ImageError(f"{key} must be a list, found {reprlib.repr(value)}")
    return value


def _text_list_value(data: Mapping[str, Any], key: str) -> list[str]:
    """Return the list value of a key; raise `ImageError` if an item is not text."""
    values = _list_value(data, key)
    for value in values:
        if not isinstance(value, str):
            raise ImageError(f"{key} must hold text only, found {reprlib.repr(value)}")
    return values
