"""The ignore file of a project folder: `.amlignore`, or else `.gitignore`, with git's patterns."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.text_file import read_text_file

if TYPE_CHECKING:
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

__all__ = ["IGNORE_FILES", "IgnoreRules", "read_ignore_rules"]

IGNORE_FILES: Final = (".amlignore", ".gitignore")
# pathspec does not know them; git's are those of ASCII.
CHARACTER_CLASSES: Final = {
    "[:alnum:]": "a-zA-Z0-9",
    "[:alpha:]": "a-zA-Z",
    "[:blank:]": " \t",
    "[:digit:]": "0-9",
    "[:lower:]": "a-z",
    "[:space:]": " \t",
    "[:upper:]": "A-Z",
    "[:xdigit:]": "0-9a-fA-F",
}
CHARACTER_CLASS: Final = re.compile(r"\[:\w*:\]")
# In pathspec's regular expressions: what begins a set of all characters but some, apart from its own `[^/]`.
NEGATED_SET: Final = re.compile(r"(?<!\\)\[\^(?!/\])")


@dataclass(frozen=True)
class IgnoreRules:
    """What a project folder's ignore file excludes.

    Attributes:
        name: The ignore file's name; None if there is none.
        excludes: Whether a path, relative and with forward slashes, is excluded; a folder's ends with a slash.
        skips_folders: Whether an excluded folder can be skipped as a whole: no pattern with an exclamation mark may
            include a file of it again.
        without_effect: Lines that match nothing, because neither git nor this can read them as a pattern.
    """

    name: str | None = None
    excludes: Callable[[str], bool] = lambda path: False
    skips_folders: bool = True
    without_effect: tuple[str, ...] = ()


def read_ignore_rules(root: Path) -> IgnoreRules:
    """Read a project folder's ignore file.

    Raises:
        ImageError: It cannot be read, or has a pattern that git understands and this does not.
    """
    from pathspec import GitIgnoreSpec

    name = next((name for name in IGNORE_FILES if (root / name).is_file()), None)
    if name is None:
        return IgnoreRules()
    # Not `splitlines`, which also splits at characters that names of files may have.
    try:
        text = read_text_file(root / name, keeps_bytes=True)
    except (OSError, ValueError) as error:
        raise ImageError(f"ignore file {root / name} cannot be read: {error}") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    patterns: list[str] = []
    without_effect: list[str] = []
    for line in lines:
        pattern = CHARACTER_CLASS.sub(lambda found: CHARACTER_CLASSES.get(found[0], found[0]), line)
        if unknown := CHARACTER_CLASS.search(pattern):
            raise ImageError(
                f"{root / name}: pattern {line!r} has {unknown[0]}, which is not known: write the characters"
            )
        try:
            GitIgnoreSpec.from_lines([pattern])
        except (ValueError, re.error, FutureWarning):
            without_effect.append(line)
        else:
            patterns.append(pattern)
    spec = GitIgnoreSpec([_without_slash(pattern) for pattern in GitIgnoreSpec.from_lines(patterns).patterns])
    return IgnoreRules(
        name,
        spec.match_file,
        skips_folders=all(pattern.include is not False for pattern in spec.patterns),
        without_effect=tuple(without_effect),
    )


def _without_slash(pattern: "GitIgnoreSpecPattern") -> "GitIgnoreSpecPattern":
    """Return a pattern whose `[!a]` matches no slash, as in git: pathspec's would exclude the folder `x` by `x[!a]`."""
    if pattern.regex is None:
        return pattern
    return type(pattern)(re.compile(NEGATED_SET.sub("(?!/)[^", pattern.regex.pattern)), pattern.include)
