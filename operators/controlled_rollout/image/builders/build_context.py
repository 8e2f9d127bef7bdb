"""What every builder needs: a build's files, the registries' credentials as a file, and the error of a failed build."""

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.uv import find_uv
from controlled_rollout.image.inputs.files import copy_files, read_source_folder
from controlled_rollout.image.oci.registry_client import Credentials
from controlled_rollout.image.run_command import error_excerpt
from controlled_rollout.image.scoring_runtime import NOT_INSTALLED, NOT_LOCKED, PACKAGE, install_error, runtime_folder

__all__ = [
    "BUILDAH_OPTIONS",
    "ERROR_LINE",
    "UV",
    "build_error",
    "registry_auth_file",
    "write_build_context",
    "write_requirements",
]

# No daemon and no privileges are needed, and no time of the build gets into the image.
BUILDAH_OPTIONS: Final = (
    *("--isolation", "chroot", "--network", "host", "--format", "oci"),
    *("--timestamp", "0", "--no-cache"),
)
UV: Final = "uv"
ERROR_LINE: Final = r"\s*(?:error:|×|Error:|.*FATA)"
# buildah's own lines after a failed command; the command's own output, before them, says more.
BUILDAH_EPILOGUE: Final = ("subprocess exited with status", "Error: building at STEP")
# Exit codes of docker/scoring/install-environment.
UV_DOES_NOT_RUN, NO_SUCH_PYTHON = 81, 82


def write_build_context(request: BuildRequest, folder: Path) -> None:
    """Write all build files (Dockerfile, requirements, uv, scoring runtime) into a new folder. None is secret."""
    folder.mkdir()
    for name, text in request.build_files.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    write_requirements(folder / "environment.txt", request.requirements, request.constraints)
    shutil.copy(find_uv(), folder / UV)
    copy_files(read_source_folder(runtime_folder() / PACKAGE), folder / "runtime" / PACKAGE)


def write_requirements(file: Path, requirements: Sequence[str], constraints: Sequence[str]) -> None:
    """Write requirements into a file that pip and uv read, and constraints into one beside it, which it names."""
    if constraints:
        beside = file.with_name("constraints.txt")
        beside.write_text("".join(f"{line}\n" for line in constraints), encoding="utf-8")
        requirements = (f"--constraint {beside.name}", *requirements)
    file.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")


def registry_auth_file(credentials: Mapping[str, Credentials]) -> bytes:
    """Return registry credentials as JSON in the format containers-auth.json(5) of buildah, skopeo and docker."""
    auths = {
        host: {"auth": base64.b64encode(f"{user.username}:{user.password}".encode()).decode()}
        for host, user in credentials.items()
    }
    return json.dumps({"auths": auths}).encode()


def build_error(request: BuildRequest, lines: Sequence[str]) -> ImageError:
    """Return the `ImageError` for a failed build, with the error lines of its log.

    Args:
        request: What was to be built.
        lines: The last lines of the build's output.
    """
    base_image = request.base_image
    status_line = next((line for line in reversed(lines) if "exit status" in line), "")
    exit_code = status_line.rpartition("exit status ")[2].strip()
    excerpt = error_excerpt([line for line in lines if not line.startswith(BUILDAH_EPILOGUE)], ERROR_LINE)
    if exit_code == str(UV_DOES_NOT_RUN):
        return ImageError(f"uv does not run on the base image {base_image}: it needs a Linux with glibc: {excerpt}")
    if exit_code == str(NO_SUCH_PYTHON):
        return ImageError(
            f"the base image {base_image} has no Python {request.python}, which the environment asks for: {excerpt}\n"
            "Choose a base image that has it, or ask for the Python that is there"
        )
    if exit_code in (str(NOT_INSTALLED), str(NOT_LOCKED)):
        what = ", ".join(request.requirements[:5]) or "the scoring runtime alone"
        return install_error(int(exit_code), f"the environment ({what})", excerpt, where=f" on {base_image}")
    if not any(line.startswith("STEP 2/") for line in lines):
        return ImageError(f"the base image {base_image} cannot be pulled: {excerpt}")
    return ImageError(f"the environment image cannot be built on {base_image}:\n{excerpt}")
