"""Requirement lines, read as pip reads them, in their order."""

import argparse
import functools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement

from controlled_rollout.errors import ImageError
from controlled_rollout.image.credentials import find_credential, hide_credentials
from controlled_rollout.text_file import read_text_file

__all__ = ["VARIABLE", "RequirementLines", "check_constraint", "check_requirement", "check_variables_are_set"]

COMMENT: Final = re.compile(r"(^|\s)#.*$")
OPTION_START: Final = re.compile(r"\s+(?=--?[A-Za-z])")
VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
HASH: Final = re.compile(r"[a-z0-9]+:[0-9A-Fa-f]+")
ADDRESSES: Final = ("--index-url", "--extra-index-url", "--find-links")
FLAGS: Final = ("--no-index",)
INCLUDES: Final = ("--requirement", "--constraint")
OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "--index-url": ("-i", "--pypi-url"),
    "--extra-index-url": (),
    "--find-links": ("-f",),
    "--no-index": (),
    "--no-binary": (),
    "--only-binary": (),
    "--requirement": ("-r",),
    "--constraint": ("-c",),
}
HASH_OPTION: Final[dict[str, tuple[str, ...]]] = {"--hash": ()}
LOCAL_PATH: Final = (
    "A local path's content is not covered by the environment's hash: put the code into the source folder, or publish "
    "it to an index"
)
# The ends of archives' names, as pip has them.
ARCHIVES: Final = (
    ".whl",
    ".zip",
    ".tar",
    ".tgz",
    ".tbz",
    ".txz",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.lz",
    ".tar.lzma",
)
# What pip takes and an environment does not: why, and what to do.
REFUSED_OPTIONS: Final = {
    "-e": LOCAL_PATH,
    "--editable": LOCAL_PATH,
    "--pre": (
        "It would take pre-releases of everything. Name the one that is meant, such as `name==2.0rc1` or "
        "`name>=2.0rc1`: a requirement that names a pre-release gets it"
    ),
    "--trusted-host": (
        "An index without a valid certificate could be anybody's. Leave it out; if the index has a certificate of "
        "your own authority, set SSL_CERT_FILE where the environment is built"
    ),
    "--require-hashes": "Leave it out: a hash that is written beside a requirement is always checked",
    "--prefer-binary": "Leave it out, or write `--only-binary name`",
    "--use-feature": "Leave it out: it is about pip's own ways, and pip is not used",
}
MAX_LINES: Final = 10_000
MAX_INCLUDED: Final = 50


@dataclass
class RequirementLines:
    """What requirement lines ask for, collected in their order.

    Attributes:
        requirements: Requirements and options, each in canonical form.
        constraints: The lines of files that are named by `-c`.
        included: The files that were read by `-r` and `-c`.
    """

    requirements: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    included: list[Path] = field(default_factory=list)

    def read_file(self, path: Path) -> None:
        """Add the lines of a requirements file; in place of `-r FILE` those of that file.

        Raises:
            ImageError: A file cannot be read, includes itself, or has a line that is refused.
        """
        self._read_file(path, (), self.requirements)

    def read_lines(self, lines: Iterable[str], source: Path) -> None:
        """Add requirement lines of the file `source`, such as the `pip:` part of a conda file."""
        self._read_lines(lines, source, (source,), self.requirements)

    def _read_file(self, path: Path, including: tuple[Path, ...], sink: list[str]) -> None:
        """Add the lines of a file to the requirements or to the constraints."""
        try:
            resolved = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise ImageError(f"requirements file {path} cannot be read: {error}") from error
        if resolved in including:
            raise ImageError(f"requirements file {path} includes itself")
        if including:
            self.included.append(resolved)
        if len(self.included) > MAX_INCLUDED:
            raise ImageError(f"requirements file {path}: more than {MAX_INCLUDED} files include others: write fewer")
        try:
            text = read_text_file(path)
        except (OSError, ValueError) as error:
            raise ImageError(f"requirements file {path} cannot be read: {error}") from error
        continued = re.sub(r"\\\r?\n", " ", text)
        self._read_lines(continued.splitlines(), path, (*including, resolved), sink)

    def _read_lines(self, lines: Iterable[str], source: Path, including: tuple[Path, ...], sink: list[str]) -> None:
        """Check lines and add them; requirements go to `sink`, options to the requirements."""
        for line in lines:
            text = COMMENT.sub("", line).strip()
            if not text:
                continue
            try:
                if text.startswith("-"):
                    self._read_options(text, source, including, sink)
                elif sink is self.constraints:
                    sink.append(check_constraint(text))
                else:
                    sink += check_requirement(text)
            except ImageError as error:
                if str(source) in str(error):
                    raise
                raise ImageError(f"{source}: {error}") from error
            if len(self.requirements) + len(self.constraints) > MAX_LINES:
                raise ImageError(f"{source}: there are more than {MAX_LINES:,} requirements: leave some out")

    def _read_options(self, text: str, source: Path, including: tuple[Path, ...], sink: list[str]) -> None:
        """Add the options of a line; read the files that it includes."""
        for name, value in _parse_options(text):
            if name not in INCLUDES:
                self.requirements.append(_check_option(name, value))
                continue
            path = source.parent / _included_file(name, value)
            self._read_file(path, including, sink if name == "--requirement" else self.constraints)


def check_requirement(line: str) -> tuple[str, ...]:
    """Check a requirement, or a line of options; return it, or each option, in canonical form.

    Equal meaning gives equal text.

    Raises:
        ImageError: It is neither, it holds a password, or it names content that the environment's hash cannot cover.
    """
    text = line.strip()
    if not text.startswith("-"):
        return (_check_requirement(text),)
    options = _parse_options(text)
    if include := next((name for name, _ in options if name in INCLUDES), None):
        raise ImageError(f"option {text!r}: {include} is read in files only: name that file as the environment")
    return tuple(_check_option(name, value) for name, value in options)


def check_constraint(line: str) -> str:
    """Check a line of a constraints file, such as `numpy<2`; return its canonical form.

    Raises:
        ImageError: It is not a requirement, or it has extras, a hash or an address, which a constraint cannot have.
    """
    text = _check_requirement(line.strip())
    if re.search(r"\[| @ | --hash=", text.partition(";")[0]) or " --hash=" in text:
        raise ImageError(f"constraint {text!r} has more than versions: write the rest where the package is required")
    return text


def check_variables_are_set(requirements: Iterable[str], environment: Mapping[str, str]) -> None:
    """Raise if a variable that requirements name, as `${NAME}`, is not set where the environment is built."""
    named = {name for line in requirements for name in VARIABLE.findall(line)}
    if missing := sorted(name for name in named if not environment.get(name)):
        raise ImageError(
            f"the requirements name {', '.join(missing)}, and this process has no such variables: set them where the "
            "environment is built"
        )


def _check_requirement(text: str) -> str:
    """Check a requirement such as `name==1.2 --hash=sha256:…`; return its canonical form."""
    _check_credentials(text, "requirement")
    specification, *options = OPTION_START.split(text, maxsplit=1)
    hashes = [value for _, value in _parse_options(options[0], hashes=True)] if options else []
    try:
        requirement = Requirement(specification)
    except (InvalidRequirement, RecursionError) as error:
        why = (str(error).splitlines() or ["it is nested too deep"])[0]
        raise ImageError(f"requirement {text!r} is not understood: {why}. {_advice_for_invalid(text)}") from None
    if requirement.url and requirement.url.startswith("file:"):
        raise ImageError(f"requirement {text!r} is a local path. {LOCAL_PATH}")
    # It could be the name of a package, too, which anybody can register.
    if requirement.name.lower().endswith(ARCHIVES):
        raise ImageError(f"requirement {text!r} is the name of an archive. {LOCAL_PATH}")
    return " ".join([str(requirement), *(f"--hash={value}" for value in hashes)])


def _advice_for_invalid(text: str) -> str:
    """Return advice for a requirement that is a local path, a bare URL, or not parseable."""
    if "://" not in text and (text.startswith((".", "/", "~")) or text.lower().endswith(ARCHIVES)):
        return LOCAL_PATH
    if "://" in text:
        return "Write an address as `name @ https://…`"
    return "Write it as `name==1.2.3`"


class _OptionParser(argparse.ArgumentParser):
    """Parses options as pip does; what it cannot parse is an `ImageError`."""

    def error(self, message: str) -> NoReturn:
        """Raise an `ImageError` in place of ending the program."""
        raise ImageError(message)


class _Keep(argparse.Action):
    """Appends an option's long name and value, so that the order of all options is kept."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Append one option."""
        namespace.found.append((self.option_strings[0], values if isinstance(values, str) else ""))


@functools.cache
def _option_parser(*, hashes: bool) -> _OptionParser:
    """Return the parser of option lines, or of the options beside a requirement."""
    parser = _OptionParser(prog="", add_help=False)
    for name, others in (HASH_OPTION if hashes else OPTIONS).items():
        parser.add_argument(name, *others, action=_Keep, dest="found", nargs=0 if name in FLAGS else None)
    return parser


def _parse_options(text: str, *, hashes: bool = False) -> list[tuple[str, str]]:
    """Return the options of a line by their long names, with their values."""
    _check_credentials(text, "option")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ImageError(f"option {text!r} cannot be read: {error}") from None
    for word in words:
        name = word.partition("=")[0]
        if name in REFUSED_OPTIONS:
            raise ImageError(f"option {text!r}: {name} is not taken. {REFUSED_OPTIONS[name]}")
    found: list[tuple[str, str]] = []
    try:
        _option_parser(hashes=hashes).parse_args(words, argparse.Namespace(found=found))
    except (ImageError, argparse.ArgumentError) as error:
        known = ", ".join(HASH_OPTION if hashes else OPTIONS)
        raise ImageError(
            f"option {text!r} is not taken in an environment's requirements ({error}): known are {known}"
        ) from None
    if not found or not all(value or name in FLAGS for name, value in found):
        raise ImageError(f"option {text!r} has no value")
    if hashes and not all(HASH.fullmatch(value) for _, value in found):
        raise ImageError(f"option {text!r} has a hash that is not understood: write --hash=sha256:0123…")
    return found


def _check_option(name: str, value: str) -> str:
    """Check one option; return its canonical form."""
    is_address = value.startswith(("https://", "http://")) or VARIABLE.match(value)
    if name in ADDRESSES and not is_address:
        raise ImageError(
            f"option {name} {value!r} needs an address that begins with https://: a folder's content is not covered by "
            "the environment's hash"
        )
    if re.search(r"\s", value):
        raise ImageError(f"option {name} {value!r} has a space in its value: write %20 in an address")
    return f"{name} {value}".strip()


def _included_file(name: str, value: str) -> str:
    """Return the path that `-r` or `-c` names, also as `file:`; raise if it is an address."""
    short = OPTIONS[name][0]
    if value.startswith("file:"):
        try:
            parts = urlsplit(value)
        except ValueError as error:
            raise ImageError(f"option {short} {value!r} cannot be read: {error}") from None
        if parts.netloc not in ("", "localhost"):
            raise ImageError(f"option {short} {value!r} names another machine, {parts.netloc}: write {short} file.txt")
        return unquote(parts.path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", value):
        raise ImageError(
            f"option {short} {value!r} is an address, whose content the environment's hash could not cover: store the "
            f"file in the source folder and write {short} {value.rstrip('/').rpartition('/')[2] or 'file.txt'}"
        )
    return value


def _check_credentials(text: str, what: str) -> None:
    """Raise if a line holds a password in the clear; the message does not repeat it."""
    if credential := find_credential(text):
        raise ImageError(
            f"{what} {hide_credentials(text)!r} holds {credential}: requirements are stored in the clear. Write a "
            "variable in its place, as in https://user:${TOKEN}@index.example, or set UV_INDEX_<NAME>_PASSWORD, or use "
            "a .netrc file; a user alone can be left out"
        )
