"""The hash under which a built environment is found again."""

import hashlib
import json
import sysconfig
from typing import Final

from controlled_rollout.image.environment.environment import Environment
from controlled_rollout.image.scoring_runtime import runtime_digest

__all__ = ["environment_hash"]

# Changed when what is built from the same description changes.
HASH_SCHEMA: Final = 1


def environment_hash(
    environment: Environment, *, platform: str | None = None, python: str | None = None, build_files: str | None = None
) -> str:
    """Return the SHA-256 (hexadecimal) of everything an environment is built from. It is the cache key.

    It covers the base image, the docker steps, the Python version, the requirements in their order, the scoring
    runtime's own requirements and the platform; not the environment's name and version.

    Args:
        environment: The environment's description.
        platform: What it is built for; None for this machine.
        python: The Python version that it is built with; None for `environment.python_version`.
        build_files: A digest over the other files that a container build uses; None for a virtual environment.

    Raises:
        ImageError: The installation lacks the runtime's requirements.
    """
    facts = {
        "schema": HASH_SCHEMA,
        "platform": platform or sysconfig.get_config_var("MULTIARCH") or sysconfig.get_platform(),
        "python": python or environment.python_version,
        "base_image": environment.base_image,
        "docker_steps": environment.docker_steps,
        "requirements": [*environment.requirements, *(f"-c {line}" for line in environment.constraints)],
        "runtime": runtime_digest(),
    }
    if build_files is not None:
        facts["recipe"] = build_files
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
