"""What a task has read and made, as plain values named as OpenLineage names datasets. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

from controlled_rollout.defaults import DEFAULT_CONNECTION

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.image.inputs.read import ImageInputs
    from controlled_rollout.image.reference import ModelSource

__all__ = [
    "Dataset",
    "Lineage",
    "asset_dataset",
    "build_lineage",
    "control_dataset",
    "control_uri",
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


def version_dataset(workspace: str, endpoint: str, version: str, image: str) -> Dataset:
    """Return a version of an endpoint as a dataset, whose version is the digest of its image. Pure.

    Args:
        workspace: The id of the workspace's connection.
        endpoint: The endpoint's name.
        version: The version's name; one that is called `control` is not the control.
        image: Its image, `name@sha256:…`.
    """
    return Dataset(workspace_namespace(workspace), f"{endpoint}/versions/{version}", image.rpartition("@")[2])


def control_dataset(workspace: str, stored: "Endpoint") -> Dataset:
    """Return an endpoint's control as a dataset, whose version is the version's name. Pure.

    Args:
        workspace: The id of the workspace's connection.
        stored: The endpoint as stored.
    """
    version = stored.control.name if stored.control else ""
    return Dataset(workspace_namespace(workspace), f"{stored.name}/control", version)


def workspace_namespace(workspace: str) -> str:
    """Return the namespace of a workspace's datasets: endpoints of one name in two workspaces are two. Pure."""
    return f"{SCHEME}://{quote(workspace, safe='')}"


def control_uri(endpoint: str, workspace: str | None) -> str:
    """Return the URI of the asset of an endpoint's control. Pure.

    Args:
        endpoint: The endpoint's name.
        workspace: The id of the workspace's connection; None, or the default one, for the asset that is updated
            whichever workspace the endpoint is in.
    """
    own = "" if workspace is None or workspace == DEFAULT_CONNECTION else f"/{quote(workspace, safe='')}"
    return f"{SCHEME}://{endpoint}/control{own}"


def asset_dataset(uri: str) -> Dataset:
    """Return the control that an asset stands for as a dataset; without a workspace that of the default one. Pure."""
    address = urlsplit(uri)
    _, _, workspace = address.path.strip("/").partition("/")
    return Dataset(workspace_namespace(unquote(workspace) or DEFAULT_CONNECTION), f"{address.netloc}/control")
