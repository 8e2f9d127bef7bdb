"""The Dockerfile of an environment image: the scoring runtime's own, with the environment's docker steps in it."""

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.credentials import VARIABLE, find_credential

__all__ = ["docker_instruction", "with_docker_steps"]

MARK: Final = "# docker steps\n"
INSTRUCTIONS: Final = ("RUN", "ENV", "ARG", "USER", "WORKDIR", "LABEL")
OTHER_INSTRUCTIONS: Final = (
    *("ADD", "CMD", "COPY", "ENTRYPOINT", "EXPOSE", "FROM", "HEALTHCHECK", "MAINTAINER", "ONBUILD", "SHELL"),
    *("STOPSIGNAL", "VOLUME"),
)
RUN_FLAG: Final = re.compile(r"--(?:mount|network)=")
MOUNT: Final = re.compile(r"(?<=\s)--mount[=\s]\s*(\S+)")
# Options of a mount whose files no other build sees, without quotes and variables.
OPTION: Final = r"(?!from)[a-z-]+(?:=[^,$'\"]*)?"
PRIVATE_MOUNT: Final = re.compile(rf"(?:{OPTION},)*type=(?:secret|bind|tmpfs)(?:,{OPTION})*")
STORED: Final = ("ENV", "ARG", "LABEL")
"""Instructions whose values everybody can read who can pull the image."""

WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# How the name of a secret ends; `MAX_TOKENS`, `PASSWORD_FILE` and `TOKENIZERS_PARALLELISM` name none.
SECRET_ENDS: Final = (
    *("password", "passwd", "passphrase", "secret", "token", "credential", "credentials"),
    *("apikey", "accesskey", "accountkey", "encryptionkey", "privatekey", "secretkey", "signingkey"),
    "connectionstring",
)
SECRET_LAST_WORDS: Final = ("pass", "pat", "pwd")
# Before `TOKEN`: those of a tokenizer's vocabulary.
VOCABULARY: Final = ("bos", "cls", "eos", "mask", "pad", "sep", "stop", "unk")
# After such a name: `TOKEN_VALUE`, `PASSWORD2`.
SECRET_SUFFIXES: Final = ("value", "base", "b", "64", *map(str, range(10)))
SHELL_ASSIGNMENT: Final = re.compile(
    r"(?:^|[\s;&|(\"'])-{0,2}(?P<name>[A-Za-z_][\w.-]*)=(?P<value>\"[^\"]*\"|'[^']*'|[^\s;&|)\"']*)"
)
# Switches, places where a secret is found, and what a shell puts in.
NO_SECRET_VALUE: Final = re.compile(
    r"|\$\(.*|`.*|[01]|true|false|yes|no|on|off|none|null|/run/secrets/.*", re.IGNORECASE
)
HERE_DOCUMENT: Final = re.compile(r"(?:^|\s)\d*<<(?!<)")


def with_docker_steps(dockerfile: str, steps: Sequence[str]) -> str:
    """Return a Dockerfile with the docker steps inserted. They run on the base image, before any installation.

    Args:
        dockerfile: Text with the line `# docker steps`, which they follow.
        steps: One instruction each; a line without an instruction is a command for `RUN`.

    Raises:
        ImageError: A step is not one whole instruction that is allowed, or has a secret, which the image would keep.
    """
    before, mark, after = dockerfile.partition(MARK)
    return before + mark + "".join(f"{docker_instruction(step)}\n" for step in steps) + after


def docker_instruction(step: str) -> str:
    """Check one docker step; return it as an instruction of a Dockerfile.

    Raises:
        ImageError: It is not one whole instruction that is allowed, or has a secret, which the image would keep.
    """
    text = step.strip()
    logical = _logical_line(text)
    if "\n" in logical or "\r" in logical:
        raise ImageError(f"docker step {step!r} has more than one line: make each a step, or end lines with \\")
    if logical.endswith("\\"):
        raise ImageError(f"docker step {step!r} ends with \\, and the next line would be a part of it: leave it out")
    first, _, rest = re.sub(r"\s+", " ", logical).partition(" ")
    instruction = first if first in INSTRUCTIONS else "RUN"
    _check_instruction(logical, first)
    if not (rest if first in INSTRUCTIONS else first):
        raise ImageError(f"docker step {step!r} is empty: write a command, or leave it out")
    if instruction == "RUN" and HERE_DOCUMENT.search(logical):
        raise ImageError(f"docker step {logical!r} has <<: its text would be the lines after it, use printf and a pipe")
    if instruction == "RUN":
        _check_run_flags(rest if first == "RUN" else logical)
    if secret := _find_secret(instruction, logical[len(first) :] if first in INSTRUCTIONS else logical):
        raise ImageError(
            f"a docker step ({instruction} …) holds {secret}: everybody who can pull the image could read it. Use "
            "`RUN --mount=type=secret,id=settings . /run/secrets/settings && …`, which has this machine's indexes"
        )
    return text if first in INSTRUCTIONS else f"RUN {text}"


def _logical_line(text: str) -> str:
    """Return continued lines as one, joined as in a Dockerfile: without a space, and without comments between them."""
    first, *others = re.split(r"\\[ \t]*\r?\n", text)
    return first + "".join(part for part in others if not part.lstrip().startswith("#"))


def _check_instruction(logical: str, first: str) -> None:
    """Raise if the first word of a step is an instruction that is not allowed, or is not in capitals."""
    allowed = ", ".join(INSTRUCTIONS)
    if first.upper() in OTHER_INSTRUCTIONS:
        raise ImageError(
            f"docker step {logical!r}: {first} is not allowed, only {allowed}: the base image is set by base_image, "
            "and files belong into the source folder"
        )
    if first.isalpha() and first.isupper() and first not in INSTRUCTIONS:
        raise ImageError(
            f"docker step {logical!r}: {first} is not an instruction, allowed are {allowed}. If it is a command, write "
            f"`RUN {first} …`"
        )
    if first.upper() in INSTRUCTIONS and first not in INSTRUCTIONS:
        raise ImageError(
            f"docker step {logical!r}: write {first.upper()} in capitals for the instruction, or `RUN {first} …` for "
            "the command"
        )


def _check_run_flags(command: str) -> None:
    """Raise if the options of `RUN` before a command share files with other builds, or do so in disguise."""
    for mount in MOUNT.findall(f" {command}"):
        if not PRIVATE_MOUNT.fullmatch(mount):
            raise ImageError(
                f"docker step RUN … has the mount {mount!r}: allowed are type=secret, bind and "
                "tmpfs, without variables. A cache, or another image's files, would be shared with other builds"
            )
    for flag in itertools.takewhile(lambda word: word.startswith("--"), command.split()):
        if not RUN_FLAG.match(flag) or re.search(r"[\\'\"]", flag):
            raise ImageError(f"docker step RUN {flag} …: known are --mount=… and --network=…, without quotes")


def _find_secret(instruction: str, rest: str) -> str | None:
    """Return what a docker step holds that must not be in an image; None if nothing."""
    if credential := find_credential(rest):
        return f"an address with {credential}"
    assignments: Iterable[tuple[str, str]] = ()
    if instruction in STORED:
        assignments = _assignments(rest)
    elif instruction == "RUN":
        assignments = ((found["name"], found["value"].strip("'\"")) for found in SHELL_ASSIGNMENT.finditer(rest))
    return next((name for name, value in assignments if _is_secret(name, value)), None)


def _assignments(rest: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of `ENV`, `ARG` or `LABEL`: `A=b C="d e"`, or `A b` in the old form."""
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ImageError(f"docker step with {rest.strip()[:20]!r}… cannot be read: {error}") from None
    if words and "=" not in words[0]:
        yield words[0], " ".join(words[1:])
        return
    for word in words:
        name, _, value = word.partition("=")
        yield name, value


def _is_secret(name: str, value: str) -> bool:
    """Whether a value is a secret, by its name; a variable in its place is none."""
    words = [word.lower() for word in WORD.findall(name)]
    while words and words[-1] in SECRET_SUFFIXES:
        words.pop()
    if len(words) > 1 and words[-1] == "token" and words[-2] in VOCABULARY:
        return False
    if not ("".join(words[-2:]).endswith(SECRET_ENDS) or (len(words) > 1 and words[-1] in SECRET_LAST_WORDS)):
        return False
    return not (NO_SECRET_VALUE.fullmatch(value) or VARIABLE.fullmatch(value))
