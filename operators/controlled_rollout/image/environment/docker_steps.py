"""The Dockerfile of an environment image: the scoring runtime's own, with the environment's docker steps in it."""

import re
from collections.abc import Sequence
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.run_command import has_credentials

__all__ = ["with_docker_steps"]

MARK: Final = "# docker steps\n"
INSTRUCTIONS: Final = ("RUN", "ENV", "ARG", "USER", "WORKDIR", "LABEL")
MOUNT: Final = re.compile(r"(?<=\s)--mount[=\s]\s*(\S+)")
# Options of a mount whose files no other build sees, without quotes and variables.
OPTION: Final = r"(?!from)[a-z-]+(?:=[^,$'\"]*)?"
PRIVATE_MOUNT: Final = re.compile(rf"(?:{OPTION},)*type=(?:secret|bind|tmpfs)(?:,{OPTION})*")
SECRET: Final = re.compile(
    r"\b(?P<name>\w*(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_?KEY)\w*)[= ]\s*[^\s$]", re.I
)


def with_docker_steps(dockerfile: str, steps: Sequence[str]) -> str:
    """Return a Dockerfile with the docker steps inserted. They run on the base image, before any installation.

    Args:
        dockerfile: Text with the line `# docker steps`, which they follow.
        steps: One instruction each; a line without an instruction is a command for `RUN`.

    Raises:
        ImageError: A step has an instruction that is not allowed, or a secret, which the image would keep.
    """
    before, mark, after = dockerfile.partition(MARK)
    return before + mark + "".join(f"{_checked_step(step)}\n" for step in steps) + after


def _checked_step(step: str) -> str:
    """Check one docker step (allowed instruction, no secret); return it as a Dockerfile instruction."""
    logical = re.sub(r"\\[ \t]*\r?\n", " ", step).strip()
    if "\n" in logical or "\r" in logical:
        raise ImageError(f"docker step {step!r} has more than one line: make each a step, or end lines with \\")
    instruction = logical.partition(" ")[0]
    if instruction.isupper() and instruction.isalpha() and instruction not in INSTRUCTIONS:
        raise ImageError(
            f"docker step {logical!r}: {instruction} is not allowed, only {', '.join(INSTRUCTIONS)}: the base image "
            "is set by base_image, and files belong into the source folder"
        )
    for mount in MOUNT.findall(logical):
        if not PRIVATE_MOUNT.fullmatch(mount):
            raise ImageError(
                f"docker step {logical!r} has the mount {mount!r}: allowed are type=secret, bind and "
                "tmpfs, without variables. A cache, or another image's files, would be shared with other builds"
            )
    secret = SECRET.search(logical) if instruction in ("ENV", "ARG") else None
    if secret or has_credentials(logical):
        what = secret["name"] if secret else "an address with a user and a password"
        raise ImageError(
            f"a docker step ({instruction} …) holds {what}: everybody who can pull the image could read it. Use "
            "`RUN --mount=type=secret,id=settings . /run/secrets/settings && …`, which has this machine's indexes"
        )
    return step.strip() if instruction in INSTRUCTIONS else f"RUN {step.strip()}"
