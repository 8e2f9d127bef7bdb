"""What a builder is given: the files of the build, the users of the registries, and what a failure's lines mean."""

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.worker.virtual_environment import find_uv, runtime_pins
from controlled_rollout.image.inputs.files import copy_package, package
from controlled_rollout.image.oci.registry_client import Credentials
from controlled_rollout.image.run_command import essence
from controlled_rollout.image.scoring_runtime import PACKAGE, runtime_folder

__all__ = ["ERROR_LINE", "UV", "failure", "users_file", "write_context"]

UV: Final = "uv"
ERROR_LINE: Final = r"\s*(?:error:|×|Error:|.*FATA)"
# What buildah says after a command that it ran has failed: the command has said more.
EPILOGUE: Final = ("subprocess exited with status", "Error: building at STEP")
# The exit codes of the Dockerfile's own checks.
UV_DOES_NOT_RUN, NO_SUCH_PYTHON, NOT_INSTALLED = 81, 82, 83


def write_context(order: BuildRequest, folder: Path) -> None:
    """Write all files of a build into a folder that is made; none of them is secret."""
    folder.mkdir()
    for name, text in order.recipe.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "environment.txt").write_text("".join(f"{line}\n" for line in order.requirements), encoding="utf-8")
    shutil.copy(find_uv(), folder / UV)
    copy_package(package(runtime_folder() / PACKAGE), folder / "runtime" / PACKAGE)


def users_file(credentials: Mapping[str, Credentials]) -> bytes:
    """Return the users of registries as buildah, skopeo and docker read them: containers-auth.json(5)."""
    users = {
        host: {"auth": base64.b64encode(f"{user.username}:{user.password}".encode()).decode()}
        for host, user in credentials.items()
    }
    return json.dumps({"auths": users}).encode()


def failure(order: BuildRequest, lines: Sequence[str]) -> ImageError:
    """Return the error that a failed build's last lines amount to."""
    base_image = order.base_image
    last = next((line for line in reversed(lines) if "exit status" in line), "")
    code = last.rpartition("exit status ")[2].strip()
    said = essence([line for line in lines if not line.startswith(EPILOGUE)], ERROR_LINE)
    if code == str(UV_DOES_NOT_RUN):
        return ImageError(f"uv does not run on the base image {base_image}: it needs a Linux with glibc: {said}")
    if code == str(NO_SUCH_PYTHON):
        return ImageError(
            f"the base image {base_image} has no Python {order.python}, which the environment asks for: {said}\n"
            "Choose a base image that has it, or ask for the Python that is there"
        )
    if code == str(NOT_INSTALLED):
        what = ", ".join(order.requirements[:5]) or "the scoring runtime alone"
        return ImageError(
            f"the environment ({what}) cannot be installed on {base_image}:\n{said}\n"
            f"Installed with it is the scoring runtime, which needs {', '.join(runtime_pins())}"
        )
    if not any(line.startswith("STEP 2/") for line in lines):
        return ImageError(f"the base image {base_image} cannot be had: {said}")
    return ImageError(f"the environment image cannot be built on {base_image}:\n{said}")
