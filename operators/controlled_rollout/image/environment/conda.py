"""Translation of conda's dependency specifications to those of the Python package index."""

import re
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from controlled_rollout.errors import ImageError

__all__ = ["python_version_from_conda", "requirement_from_conda", "split_conda_dependency"]

SPECIFICATION: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?P<versions>[^A-Za-z0-9._-].*)?"
)
CLAUSE: Final = re.compile(r"(?P<operator>==|!=|<=|>=|~=|<|>|=)?(?P<version>[^=<>!~|\s]+)")

# Packages with another name on the index. All others are assumed to have the same name there.
OTHER_NAMES: Final = {
    "pytorch": "torch",
    "py-xgboost": "xgboost",
    "pytables": "tables",
    "opencv": "opencv-python-headless",
    "py-opencv": "opencv-python-headless",
    "msgpack-python": "msgpack",
    "matplotlib-base": "matplotlib",
}


def split_conda_dependency(specification: str) -> tuple[str, str]:
    """Split a conda dependency into its lower-case name and its PEP 440 version specifier (empty for any version).

    Conda's `=1.2` means any 1.2, as PEP 440's `==1.2.*`; its `name 1.2` means exactly 1.2.

    Raises:
        ImageError: The dependency names a channel or a build, or versions that PEP 440 cannot express.
    """
    text = specification.strip()
    if "::" in text or "[" in text:
        raise _untranslatable_error(
            specification, "it names a channel or other properties that the index does not have"
        )
    parts = SPECIFICATION.fullmatch(text)
    if not parts:
        raise _untranslatable_error(specification, "it does not begin with a package name")
    versions = re.sub(r"\s*([<>=!~,|]+)\s*", r"\1", parts["versions"] or "").strip()
    if "|" in versions:
        raise _untranslatable_error(specification, "alternatives with | have no counterpart")
    if re.search(r"\s|=[\w.*]+=", versions):
        raise _untranslatable_error(specification, "it names a build")
    clauses = (
        [_translate_version_condition(clause, specification) for clause in versions.split(",")] if versions else []
    )
    return parts["name"].lower(), str(SpecifierSet(",".join(clauses)))


def requirement_from_conda(specification: str) -> str:
    """Translate a conda dependency to a pip requirement: `numpy=1.26` becomes `numpy==1.26.*`.

    Raises:
        ImageError: It cannot be translated.
    """
    name, versions = split_conda_dependency(specification)
    return OTHER_NAMES.get(name, name) + versions


def python_version_from_conda(specification: str) -> str | None:
    """Return the version in a conda dependency on Python, such as `3.11` or `>=3.9,<3.12`; None for any version.

    Raises:
        ImageError: It cannot be translated.
    """
    _, versions = split_conda_dependency(specification)
    exact = re.fullmatch(r"==(\d+(?:\.\d+)*)(?:\.\*)?", versions)
    return exact[1] if exact else versions or None


def _translate_version_condition(clause: str, specification: str) -> str:
    """Translate one version condition such as `>=1.2` or conda's `=1.2` to PEP 440."""
    parts = CLAUSE.fullmatch(clause)
    if not parts:
        raise _untranslatable_error(specification, f"{clause!r} is not a version")
    operator, version = parts["operator"], parts["version"]
    if operator in (None, "="):
        fuzzy = operator == "=" and not version.endswith("*")
        candidates = [f"=={version}.*", f"=={version}"] if fuzzy else [f"=={version}"]
    else:
        candidates = [f"{operator}{version}"]
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
