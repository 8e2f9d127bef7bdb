"""Where the scoring runtime is: the code that runs inside every version, and what it needs installed there."""

from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError

__all__ = ["DOCKERFILE", "INSTALL_SCRIPT", "PACKAGE", "recipe_files", "runtime_folder", "runtime_requirements"]

PACKAGE: Final = "controlled_rollout_scoring"
DOCKERFILE: Final = "Dockerfile"
INSTALL_SCRIPT: Final = "install-environment"


def runtime_folder() -> Path:
    """Return the folder to put on PYTHONPATH when a replica starts: the one that holds the runtime's package.

    Raises:
        ImageError: The installation lacks it.
    """
    here = Path(__file__).resolve()
    # An installed wheel carries the runtime beside this module; a checkout has it where it is written.
    candidates = [here.parent / "runtime", here.parents[3] / "docker" / "scoring"]
    for folder in candidates:
        if (folder / PACKAGE / "__init__.py").is_file():
            return folder
    raise ImageError(
        f"the scoring runtime ({PACKAGE}) is in neither of {', '.join(map(str, candidates))}: "
        "this installation is not complete, install the package again"
    )


def runtime_requirements() -> Path:
    """Return the requirements file of the scoring runtime.

    Raises:
        ImageError: The installation lacks it.
    """
    path = runtime_folder() / PACKAGE / "requirements.txt"
    if not path.is_file():
        raise ImageError(f"{path} is missing: this installation is not complete, install the package again")
    return path


def recipe_files() -> dict[str, Path]:
    """Return the files that an environment image is built by: its Dockerfile, and the script that installs.

    Raises:
        ImageError: The installation lacks one.
    """
    paths = {name: runtime_folder() / name for name in (DOCKERFILE, INSTALL_SCRIPT)}
    for path in paths.values():
        if not path.is_file():
            raise ImageError(f"{path} is missing: this installation is not complete, install the package again")
    return paths
