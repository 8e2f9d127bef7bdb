"""The names of images, and of the models that go into one."""

import re
from dataclasses import dataclass
from pathlib import Path

from controlled_rollout.errors import ImageError

__all__ = ["ImageReference", "ModelSource", "host_of_registry_url", "name_with_registry", "registry_host"]

# Other names of Docker Hub, as `docker login` and connections of the type docker write them.
DOCKER_HUB = ("index.docker.io", "registry-1.docker.io", "hub.docker.com")
REFERENCE = re.compile(r"(?P<name>[^@\s]+)@sha256:(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True)
class ImageReference:
    """An image by name and digest: a tag that moves does not change what is deployed.

    Attributes:
        name: Repository, such as `local/digits` or `registry.example/models/digits`.
        sha256: The digest's 64 hexadecimal digits.
    """

    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}@sha256:{self.sha256}"

    @classmethod
    def parse(cls, text: str) -> "ImageReference":
        """Parse an image reference written as `name@sha256:…`.

        Raises:
            ImageError: The text has no digest, or a malformed one.
        """
        parts = REFERENCE.fullmatch(text)
        if not parts:
            raise ImageError(
                f"image {text!r} is not of the form name@sha256:<64 hexadecimal digits>: deploy by digest, as `build` "
                "prints it"
            )
        return cls(parts["name"], parts["sha256"])


@dataclass(frozen=True)
class ModelSource:
    """A model: its name and version, and where its files are.

    Attributes:
        name: The model's name: the folder under AZUREML_MODEL_DIR when there are several.
        path: A file or a folder of this machine; or an address: any that fsspec reads, Azure Blob Storage, or
            `models:/<name>/<version>` for MLflow's registry.
        version: The model's version.
    """

    name: str
    path: Path | str
    version: str = "1"


def name_with_registry(image: str) -> str:
    """Return an image's name with its registry host. As in docker, a name without a host is on Docker Hub."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


def registry_host(name: str) -> str:
    """Return the registry host in an image name such as `host/name:tag`, or in a registry's `host/prefix`."""
    return name_with_registry(name).partition("/")[0]


def host_of_registry_url(address: str) -> str:
    """Return the host of a registry URL such as `https://index.docker.io/v1/`; Docker Hub is `docker.io`."""
    host = (address.partition("://")[2] or address).partition("/")[0]
    return "docker.io" if host in DOCKER_HUB else host
