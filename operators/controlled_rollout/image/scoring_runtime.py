"""Where the scoring runtime's files are: the code that runs inside every version, and what it needs installed there."""

from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError

__all__ = ["DOCKERFILE", "PACKAGE", "build_files", "runtime_folder", "runtime_pins", "runtime_requirements"]

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
    return _existing(runtime_folder() / PACKAGE / "requirements.txt")


def runtime_pins() -> list[str]:
    """Return the requirements of the scoring runtime, such as `granian==2.5.0`."""
    lines = runtime_requirements().read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def build_files() -> dict[str, Path]:
    """Return the files that build an environment image, by name: the Dockerfile and its installation script.

    Raises:
        ImageError: The installation lacks one.
    """
    return {name: _existing(runtime_folder() / name) for name in (DOCKERFILE, INSTALL_SCRIPT)}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ImageError(f"{path} is missing: this installation is not complete, install the package again")
    return path
