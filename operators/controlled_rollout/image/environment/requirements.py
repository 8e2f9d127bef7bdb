"""Requirement lines, read as pip reads them, in their order."""

import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement

from controlled_rollout.errors import ImageError

__all__ = ["check_requirement", "read_requirement_lines", "read_requirements"]

COMMENT: Final = re.compile(r"(^|\s)#.*$")
INCLUDE: Final = re.compile(r"(?:-r\s*|--requirement(?:\s+|=))(?P<path>\S.*)")
OPTION_NAMES: Final = {"-i": "--index-url", "-f": "--find-links"}
ADDRESSES: Final = ("--index-url", "--extra-index-url", "--find-links")
OPTIONS: Final = (*ADDRESSES, "--no-index", "--no-binary", "--only-binary")
# A user name or password in an address, unless the environment supplies it.
CREDENTIALS: Final = re.compile(r"https?://(?!\$\{\w+\}(?::\$\{\w+\})?@)[^/\s@]+@")


def read_requirements(path: Path) -> tuple[str, ...]:
    """Read a pip requirements file; `-r FILE` lines are replaced by the requirements of that file.

    Raises:
        ImageError: A file cannot be read, includes itself, or has a line that is refused.
    """
    return tuple(_read_file(path, ()))


def read_requirement_lines(lines: Iterable[str], source: Path) -> tuple[str, ...]:
    """Parse requirement lines of the file `source`, such as the `pip:` part of a conda file."""
    return tuple(_check_lines(lines, source, (source,)))


def check_requirement(line: str) -> str:
    """Check one requirement or option and return its canonical form. Equal meaning gives equal text.

    Raises:
        ImageError: It is neither, it holds a password, or it names content that the environment's hash cannot cover.
    """
    text = line.strip()
    if CREDENTIALS.search(text):
        address = CREDENTIALS.sub("https://***@", text)
        raise ImageError(
            f"requirement {address!r} holds a password or token: requirements are stored in the clear. "
            "Write ${A_VARIABLE} in its place, or set UV_INDEX_<NAME>_PASSWORD, or use a .netrc file"
        )
    if text.startswith("-"):
        return _check_option(text)
    specification, *hashes = re.split(r"\s+(?=--hash[=\s])", text)
    try:
        requirement = Requirement(specification)
    except InvalidRequirement as error:
        why = str(error).splitlines()[0]
        raise ImageError(f"requirement {text!r} is not understood: {why}. {_advice_for_invalid(text)}") from None
    if requirement.url and requirement.url.startswith("file:"):
        raise ImageError(f"requirement {text!r} is a local path. {_advice_for_invalid('.')}")
    return " ".join([str(requirement), *(re.sub(r"^--hash[=\s]\s*", "--hash=", item).strip() for item in hashes)])


def _check_option(text: str) -> str:
    """Check one pip option such as `--extra-index-url`; return its canonical form."""
    name, _, value = text.partition("=") if re.match(r"--[a-z-]+=", text) else text.partition(" ")
    name, value = OPTION_NAMES.get(name, name), value.strip()
    if name in ("-e", "--editable"):
        raise ImageError(f"requirement {text!r} is an editable install. {_advice_for_invalid('.')}")
    if name not in OPTIONS:
        known = ", ".join(OPTIONS)
        raise ImageError(
            f"option {text!r} is not taken in an environment's requirements: known are {known}, and -r FILE"
        )
    if value.startswith("file:") or (name in ADDRESSES and "://" not in value):
        raise ImageError(
            f"option {text!r} needs an address, a folder's content is not covered by the environment's hash"
        )
    return f"{name} {value}".strip()


def _advice_for_invalid(text: str) -> str:
    """Return advice for a requirement that is a local path, a bare URL, or not parseable."""
    if "://" not in text and (text.startswith((".", "/", "~")) or text.endswith((".whl", ".tar.gz", ".zip"))):
        return (
            "A local path's content is not covered by the environment's hash: put the code into the source folder, "
            "or publish it to an index"
        )
    if "://" in text:
        return "Write an address as `name @ https://…`"
    return "Write it as `name==1.2.3`"


def _read_file(path: Path, including: tuple[Path, ...]) -> Iterable[str]:
    """Yield the checked requirements of a file; raise `ImageError` if it includes itself."""
    if path.resolve() in including:
        raise ImageError(f"requirements file {path} includes itself")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"requirements file {path} cannot be read: {error}") from error
    continued = re.sub(r"\\\r?\n", " ", text)
    return _check_lines(continued.splitlines(), path, (*including, path.resolve()))


def _check_lines(lines: Iterable[str], source: Path, including: tuple[Path, ...]) -> Iterable[str]:
    """Yield the checked requirements of some lines, with included files in place of `-r FILE`."""
    for line in lines:
        text = COMMENT.sub("", line).strip()
        if not text:
            continue
        if include := INCLUDE.fullmatch(text):
            yield from _read_file(source.parent / _unquoted(include["path"], source), including)
            continue
        yield _check_with_file_name(check_requirement, text, source)


def _unquoted(text: str, source: Path) -> str:
    """Return a file name without shell quotes and backslashes, as pip reads it."""
    try:
        return " ".join(shlex.split(text))
    except ValueError as error:
        raise ImageError(f"{source}: {text!r} cannot be read: {error}") from None


def _check_with_file_name(check: Callable[[str], str], text: str, source: Path) -> str:
    """Call a check; prefix the message of its `ImageError` with the file's name."""
    try:
        return check(text)
    except ImageError as error:
        raise ImageError(f"{source}: {error}") from error
