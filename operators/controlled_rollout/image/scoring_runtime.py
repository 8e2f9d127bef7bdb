"""Where the scoring runtime's files are: the code that runs inside every version, and what it needs installed there."""

from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError

__all__ = ["DOCKERFILE", "PACKAGE", "build_files", "runtime_folder", "runtime_pins", "runtime_requirements"]

PACKAGE: Final = "controlled_rollout_scoring"
DOCKERFILE: Final = "Dockerfile"
INSTALL_SCRIPT: Final = "install-environment"


def runtime_folder() -> Path:
    """Return the folder that contains the scoring runtime's package, for the PYTHONPATH of a replica.

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
    """Return the path of the scoring runtime's requirements file.

    Raises:
        ImageError: The installation lacks it.
    """
    return _existing_file(runtime_folder() / PACKAGE / "requirements.txt")


def runtime_pins() -> list[str]:
    """Return the pinned requirements of the scoring runtime, such as `httptools==0.9.0`."""
    lines = runtime_requirements().read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def build_files() -> dict[str, Path]:
    """Return the paths of the Dockerfile and installation script of environment images, by file name.

    Raises:
        ImageError: The installation lacks one.
    """
    return {name: _existing_file(runtime_folder() / name) for name in (DOCKERFILE, INSTALL_SCRIPT)}


def _existing_file(path: Path) -> Path:
    """Return the path of an installed file; raise `ImageError` if it is missing."""
    if not path.is_file():
        raise ImageError(f"{path} is missing: this installation is not complete, install the package again")
    return path
