"""What a task has read and made, as plain values named as OpenLineage names datasets. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.image.inputs.read import ImageInputs
    from controlled_rollout.image.reference import ModelSource

__all__ = [
    "Dataset",
    "Lineage",
    "build_lineage",
    "control_dataset",
    "image_dataset",
    "model_dataset",
    "version_dataset",
]

SCHEME: Final = "controlled-rollout"
# Images that are not in a registry, but in the cache of a machine.
LOCAL_IMAGES: Final = "local/"
MODELS: Final = "models:/"
# Of Azure, whose addresses have a container before the `@`, as `abfss://container@account…`.
WITH_CONTAINER: Final = frozenset({"abfs", "abfss", "az", "wasb", "wasbs"})


@dataclass(frozen=True)
class Dataset:
    """What a task has read or made, named as OpenLineage names datasets.

    Attributes:
        namespace: Where it is, such as `oci://registry.example`.
        name: What it is called there.
        version: Which one of that name, such as a digest; empty if it is not known.
    """

    namespace: str
    name: str
    version: str = ""


@dataclass(frozen=True)
class Lineage:
    """What a task has read and made.

    Attributes:
        inputs: What it has read.
        outputs: What it has made or changed.
        facts: About the rollout, by the names of `RolloutRunFacet`.
    """

    inputs: tuple[Dataset, ...] = ()
    outputs: tuple[Dataset, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def build_lineage(folder: str, models: "Sequence[ModelSource]", inputs: "ImageInputs | None", image: str) -> Lineage:
    """Return of what an image was built. Pure.

    Args:
        folder: The project folder.
        models: The models as the task was given them.
        inputs: What was read of both; None if that is not known, as before the build.
        image: The image's reference; empty before it is built.
    """
    digests = {(model.name, model.version): files.digest for model, files in inputs.models} if inputs else {}
    project = Dataset("file", folder, f"sha256:{inputs.source.digest}" if inputs else "")
    read = [model_dataset(model, digests.get((model.name, model.version), "")) for model in models]
    return Lineage((project, *read), (image_dataset(image),) if image else (), {"step": "build"})


def image_dataset(image: str) -> Dataset:
    """Return an image `name@sha256:…` as a dataset, whose version is the digest. Pure."""
    from controlled_rollout.image.reference import name_with_registry

    name, _, digest = image.partition("@")
    if name.startswith(LOCAL_IMAGES):
        return Dataset("oci://local", name.removeprefix(LOCAL_IMAGES), digest)
    host, _, repository = name_with_registry(name).partition("/")
    return Dataset(f"oci://{host}", repository, digest)


def model_dataset(model: "ModelSource", digest: str = "") -> Dataset:
    """Return a model as a dataset, without what could be a secret in its address. Pure.

    Args:
        model: The model.
        digest: The digest over its files, 64 hexadecimal digits; empty if it is not known.
    """
    version, path = f"sha256:{digest}" if digest else "", str(model.path)
    if path.startswith(MODELS):
        name, _, number = path.removeprefix(MODELS).partition("/")
        return Dataset("mlflow", name.partition("@")[0], number or version)
    if "://" not in path or path.startswith(("file:", "local:")):
        return Dataset("file", path.partition("://")[2] or path, version)
    address = urlsplit(path)
    # Elsewhere it is a user, a password or a token.
    user, _, host = address.netloc.rpartition("@")
    place = address.netloc if address.scheme in WITH_CONTAINER and ":" not in user else host
    return Dataset(f"{address.scheme}://{place}", address.path.strip("/") or "/", version)


def version_dataset(endpoint: str, version: str, image: str) -> Dataset:
    """Return a version of an endpoint as a dataset, whose version is the digest of its image. Pure."""
    return Dataset(f"{SCHEME}://{endpoint}", version, image.rpartition("@")[2])


def control_dataset(stored: "Endpoint") -> Dataset:
    """Return the dataset of an endpoint's control, as its asset is called; its version is the version's name. Pure."""
    return Dataset(f"{SCHEME}://{stored.name}", "control", stored.control.name if stored.control else "")
