"""Translation of conda's dependency specifications to those of the Python package index."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidName, canonicalize_name

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.conda_names import OTHER_NAMES, SAME_NAMES

__all__ = ["python_version_from_conda", "requirement_from_conda", "split_conda_dependency", "translate_conda"]

SPECIFICATION: Final = re.compile(r"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?P<versions>[^\w.-].*)?")
CLAUSE: Final = re.compile(r"(?P<operator>==|!=|<=|>=|~=|<|>|=)?(?P<version>[^=<>!~|\s]+)")
# Public channels, in which a name means what it means on conda-forge, from which the table of names was made.
PUBLIC_CHANNELS: Final = ("anaconda", "conda-forge", "defaults", "main", "pytorch")


def translate_conda(
    dependencies: Iterable[str], index_names: Mapping[str, str] = {}
) -> tuple[str | None, tuple[str, ...]]:
    """Translate conda dependencies; return the version of Python that they ask for, if any, and the pip requirements.

    Args:
        dependencies: As conda writes them, such as `numpy=1.26`. `pip` itself is left out.
        index_names: The author's names on the Python package index, by conda's name. An empty one leaves it out.

    Raises:
        ImageError: One cannot be translated, some are not known to be on the index, or Python is named twice.
    """
    python: list[str] = []
    requirements: list[str] = []
    unknown: list[str] = []
    for dependency in dependencies:
        name, _ = split_conda_dependency(dependency)
        if name == "python":
            python.append(dependency)
        elif name == "pip" and name not in index_names:
            continue
        elif (index_name := _name_on_index(name, index_names)) is None:
            unknown.append(name)
        elif index_name:
            requirements.append(requirement_from_conda(dependency, index_names))
    if unknown:
        raise _unknown_names_error(unknown)
    if len(python) > 1:
        raise ImageError(f"dependencies name Python more than once ({', '.join(python)}): leave one")
    return python_version_from_conda(python[0]) if python else None, tuple(requirements)


def split_conda_dependency(specification: str) -> tuple[str, str]:
    """Split a conda dependency into its lower-case name and its PEP 440 version specifier (empty for any version).

    Conda's `=1.2`, `1.2.*` and `1.2*` mean any 1.2, as PEP 440's `==1.2.*`; its `name 1.2` means exactly 1.2.

    Raises:
        ImageError: The dependency names a channel or a build, or versions that PEP 440 cannot express.
    """
    text = specification.strip()
    if "://" in text:
        raise _untranslatable_error(specification, "it is an address")
    channel, separator, rest = text.partition("::")
    if separator:
        if channel.strip() not in PUBLIC_CHANNELS:
            raise _untranslatable_error(
                specification, f"the channel {channel.strip()!r} may have another package under that name"
            )
        text = rest.strip()
    if "[" in text:
        raise _untranslatable_error(specification, "it names properties that the index does not have")
    parts = SPECIFICATION.fullmatch(text)
    if not parts:
        raise _untranslatable_error(specification, "it does not begin with a package name")
    versions = re.sub(r"\s*([<>=!~,|]+)\s*", r"\1", parts["versions"] or "").strip()
    if "|" in versions:
        raise _untranslatable_error(specification, "alternatives with | have no counterpart")
    # A build that is `*` is any build; that of Python which conda-forge calls `*_cpython` is the only one there is.
    versions = re.sub(r"(?<=[\w*])(?:=|\s+)\*(?:_cpython)?$", "", versions)
    if re.search(r"\s|=[\w.*]+=", versions):
        raise _untranslatable_error(
            specification, "it names a build. `conda env export --from-history` writes a file without builds"
        )
    clauses = [_translate_version_condition(clause, specification) for clause in versions.split(",") if versions]
    return parts["name"].lower(), str(SpecifierSet(",".join(filter(None, clauses))))


def requirement_from_conda(specification: str, index_names: Mapping[str, str] = {}) -> str:
    """Translate a conda dependency to a pip requirement: `numpy=1.26` becomes `numpy==1.26.*`.

    Raises:
        ImageError: It cannot be translated, or its name is not known to be the same package on the index.
    """
    name, versions = split_conda_dependency(specification)
    index_name = _name_on_index(name, index_names)
    if not index_name:
        raise _unknown_names_error([name])
    return index_name + versions


def python_version_from_conda(specification: str) -> str | None:
    """Return the version in a conda dependency on Python, such as `3.11` or `>=3.9,<3.12`; None for any version.

    Raises:
        ImageError: It cannot be translated.
    """
    _, versions = split_conda_dependency(specification)
    exact = re.fullmatch(r"==(\d+(?:\.\d+)*)(?:\.\*)?", versions)
    return exact[1] if exact else versions or None


def _name_on_index(name: str, index_names: Mapping[str, str]) -> str | None:
    """Return the index's name of a conda package: the author's, or a known one. None if it is not known."""
    if name in index_names:
        return index_names[name]
    try:
        canonical = canonicalize_name(name, validate=True)
    except InvalidName:
        return None
    return name if canonical in SAME_NAMES else OTHER_NAMES.get(canonical)


def _translate_version_condition(clause: str, specification: str) -> str:
    """Translate one version condition such as `>=1.2` or conda's `=1.2` to PEP 440; empty for any version."""
    parts = CLAUSE.fullmatch(clause)
    if not parts:
        raise _untranslatable_error(specification, f"{clause!r} is not a version")
    operator, version = parts["operator"] or "==", parts["version"]
    release = re.sub(r"\.?\*$", "", version)
    begins_with = release != version and "*" not in release
    if not release and operator in ("=", "=="):
        return ""
    if operator == "=" or (begins_with and operator in ("==", "!=")):
        equals = "!=" if operator == "!=" else "=="
        candidates = [f"{equals}{release}.*"] + ([] if begins_with else [f"{equals}{release}"])
    else:
        # With an order, conda reads `1.2.*` as `1.2`.
        candidates = [f"{operator}{release if begins_with and operator != '~=' else version}"]
    for candidate in candidates:
        try:
            return str(SpecifierSet(candidate))
        except InvalidSpecifier:
            continue
    raise _untranslatable_error(specification, f"{clause!r} is not a version that the index knows")


def _untranslatable_error(specification: str, why: str) -> ImageError:
    """Return the `ImageError` for a conda dependency that has no equivalent on the Python package index."""
    return ImageError(
        f"conda dependency {specification!r} cannot be translated to the Python package index: {why}. "
        "Write it under `pip:` as the index names it, or leave it out"
    )


def _unknown_names_error(names: Iterable[str]) -> ImageError:
    """Return the `ImageError` for conda packages that are not known to be the same on the Python package index."""
    listed = sorted(set(names))
    return ImageError(
        f"conda packages {', '.join(listed)} are not known to be on the Python package index under the same name, "
        "where anybody can register a free name. Write what is a Python package under `pip:`, as the index names it, "
        f"or map it: `index_names: {{{listed[0]}: name-on-the-index}}`. Leave out what is not: wheels bring their C "
        "libraries along, and programs are installed by docker_steps (`RUN apt-get install …`)"
    )
