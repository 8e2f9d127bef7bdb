"""The Dockerfile of an environment image: the scoring runtime's own, with the environment's docker steps in it."""

import re
from collections.abc import Sequence
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.run_command import CREDENTIALS

__all__ = ["with_docker_steps"]

MARK: Final = "# docker steps\n"
INSTRUCTIONS: Final = ("RUN", "ENV", "ARG", "USER", "WORKDIR", "LABEL")
SECRET: Final = re.compile(
    r"\b(?P<name>\w*(?:PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_?KEY)\w*)[= ]\s*[^\s$]", re.I
)


def with_docker_steps(dockerfile: str, steps: Sequence[str]) -> str:
    """Return the Dockerfile with the steps in their place: run on the base image, before anything is installed.

    Args:
        dockerfile: The runtime's own, with the line `# docker steps`.
        steps: One instruction each; a line that begins with none is a command to run.

    Raises:
        ImageError: A step is an instruction that is not taken here, or holds a secret, which the image would keep.
    """
    before, mark, after = dockerfile.partition(MARK)
    return before + mark + "".join(f"{_checked(step)}\n" for step in steps) + after


def _checked(step: str) -> str:
    logical = re.sub(r"\\[ \t]*\r?\n", " ", step).strip()
    if "\n" in logical or "\r" in logical:
        raise ImageError(f"docker step {step!r} has more than one line: give one step for each, or end lines with \\")
    instruction = logical.partition(" ")[0]
    if instruction.isupper() and instruction.isalpha() and instruction not in INSTRUCTIONS:
        raise ImageError(
            f"docker step {logical!r}: {instruction} is not taken here, only {', '.join(INSTRUCTIONS)}: the base image "
            "is the environment's base_image, and files belong into the source folder"
        )
    found = SECRET.search(logical) if instruction in ("ENV", "ARG") else None
    if found or CREDENTIALS.search(logical):
        what = found["name"] if found else "an address with a user and a password"
        raise ImageError(
            f"a docker step ({instruction} …) holds {what}: whoever can pull the image could read it. Use "
            "`RUN --mount=type=secret,id=settings . /run/secrets/settings && …`, which has the indexes of the builder"
        )
    return step.strip() if instruction in INSTRUCTIONS else f"RUN {step.strip()}"
