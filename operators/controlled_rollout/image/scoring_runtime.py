"""Where the scoring runtime's files are: the code that runs inside every version, and what it needs installed there."""

import hashlib
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError

__all__ = [
    "DOCKERFILE",
    "LOCKS",
    "NOT_INSTALLED",
    "NOT_LOCKED",
    "PACKAGE",
    "PYTHON_VERSIONS",
    "build_files",
    "install_command",
    "install_error",
    "runtime_digest",
    "runtime_folder",
    "runtime_pins",
    "runtime_requirements",
]

PACKAGE: Final = "controlled_rollout_scoring"
DOCKERFILE: Final = "Dockerfile"
# Exit codes of docker/scoring/install-environment; the second is of install-packages too.
NOT_INSTALLED, NOT_LOCKED = 83, 84
# What installs a version's packages, on this machine and in a container: a script, and locks for each Python.
PACKAGES_SCRIPT: Final = "install-packages"
PYTHON_VERSIONS: Final = ("3.10", "3.11", "3.12", "3.13", "3.14")
LOCKS: Final = tuple(f"lock-{version}.txt" for version in PYTHON_VERSIONS)
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
    """Return the paths of all files that build an environment image, but uv and the runtime, by file name.

    Raises:
        ImageError: The installation lacks one.
    """
    names = (DOCKERFILE, INSTALL_SCRIPT, PACKAGES_SCRIPT, *LOCKS)
    return {name: _existing_file(runtime_folder() / name) for name in names}


def install_command(uv: str, environment: Path, requirements: Path) -> list[str]:
    """Return the command that installs requirements, and what the scoring runtime needs, into a virtual environment.

    Args:
        uv: The program.
        environment: The folder of the virtual environment.
        requirements: The file with the requirements.

    Raises:
        ImageError: The installation lacks a file.
    """
    script = _existing_file(runtime_folder() / PACKAGES_SCRIPT)
    return ["/bin/sh", *map(str, (script, uv, environment, requirements, runtime_requirements(), runtime_folder()))]


def runtime_digest() -> str:
    """Return the SHA-256 (hexadecimal) of what decides which packages the scoring runtime brings.

    Raises:
        ImageError: The installation lacks a file.
    """
    digest = hashlib.sha256(runtime_requirements().read_bytes())
    for name in (PACKAGES_SCRIPT, *LOCKS):
        digest.update(_existing_file(runtime_folder() / name).read_bytes())
    return digest.hexdigest()


def _existing_file(path: Path) -> Path:
    """Return the path of an installed file; raise `ImageError` if it is missing."""
    if not path.is_file():
        raise ImageError(f"{path} is missing: this installation is not complete, install the package again")
    return path


def install_error(exit_code: int, what: str, excerpt: str, *, where: str = "") -> ImageError:
    """Return the `ImageError` for packages that were not installed.

    Args:
        exit_code: The exit code of `install_command`.
        what: What was to be installed.
        excerpt: The lines of its output that describe the error.
        where: On what, such as ` on <base image>`.
    """
    if exit_code == NOT_LOCKED:
        versions = ", ".join(name.removeprefix("lock-").removesuffix(".txt") for name in LOCKS)
        return ImageError(f"{what} cannot be installed{where}: {excerpt}\nAsk for one of the Pythons {versions}")
    return ImageError(
        f"{what} cannot be installed{where}:\n{excerpt}\n"
        f"Installed with it is the scoring runtime, which needs {', '.join(runtime_pins())}, and what these need in "
        "the versions and with the hashes of its lock: the index has to have them"
    )
