"""Image manifests and configurations of the Open Container Initiative, as values.

Source: OCI image specification 1.1, manifest.md and config.md.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from controlled_rollout.errors import ImageError

__all__ = [
    "ACCEPTED",
    "CONFIG",
    "INDEX",
    "LAYER",
    "MANIFEST",
    "Descriptor",
    "Manifest",
    "architecture",
    "encoded",
    "of_layers",
    "with_layer",
]

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
ACCEPTED: Final = (
    MANIFEST,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
CREATED: Final = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Descriptor:
    """A blob: its media type, its digest `sha256:…` and its size in bytes."""

    media_type: str
    digest: str
    size: int

    @classmethod
    def of(cls, media_type: str, content: bytes) -> Self:
        """Return the descriptor of some content."""
        return cls(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Return a descriptor from its JSON in a manifest."""
        return cls(document["mediaType"], document["digest"], int(document["size"]))

    def document(self) -> dict[str, Any]:
        """Return its JSON for a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Manifest:
    """An image's manifest, as a registry keeps it."""

    content: bytes
    media_type: str

    @property
    def digest(self) -> str:
        """The image's digest `sha256:…`, by which it is deployed."""
        return Descriptor.of(self.media_type, self.content).digest

    @property
    def config(self) -> Descriptor:
        """The configuration's descriptor."""
        return self._parts()[0]

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The layers' descriptors, the lowest first."""
        return self._parts()[1]

    def _parts(self) -> tuple[Descriptor, tuple[Descriptor, ...]]:
        """Return configuration and layers.

        Raises:
            ImageError: It is not the manifest of one image, but a list of images, say.
        """
        try:
            document = json.loads(self.content)
            config, layers = Descriptor.parse(document["config"]), tuple(map(Descriptor.parse, document["layers"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ImageError(f"image {self.digest} is a {self.media_type}, not one image: build it again") from error
        return config, layers


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON, the same bytes for the same content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def architecture() -> str:
    """Return this machine's processor architecture as images name it, such as `amd64`."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def of_layers(layers: Sequence[Descriptor]) -> tuple[bytes, Manifest]:
    """Return configuration and manifest of an image that has only layers, none of them compressed."""
    content = encoded(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    return content, _manifest(Descriptor.of(CONFIG, content), layers, {})


def with_layer(
    base: Manifest, config: bytes, layer: Descriptor, *, variables: Mapping[str, str], created_by: str
) -> tuple[bytes, Manifest]:
    """Return configuration and manifest of an image with one more layer.

    Args:
        base: The image to extend.
        config: Its configuration.
        layer: The new layer. It is not compressed: its digest has to be that of its content too.
        variables: Environment variables to set.
        created_by: The layer's entry in the image's history.

    Raises:
        ImageError: The configuration cannot be read.
    """
    try:
        document: dict[str, Any] = json.loads(config)
        settings: dict[str, Any] = document.setdefault("config", {})
        kept = [line for line in settings.get("Env") or [] if line.partition("=")[0] not in variables]
        settings["Env"] = [*kept, *(f"{name}={value}" for name, value in sorted(variables.items()))]
        document["rootfs"]["diff_ids"].append(layer.digest)
        document.setdefault("history", []).append({"created": CREATED, "created_by": created_by})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"image {base.digest} has no configuration that can be read ({error}): build again") from error
    content = encoded(document)
    annotations = {"org.opencontainers.image.base.digest": base.digest}
    return content, _manifest(Descriptor.of(CONFIG, content), [*base.layers, layer], annotations)


def _manifest(config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> Manifest:
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.document(),
        "layers": [layer.document() for layer in layers],
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    return Manifest(encoded(document), MANIFEST)
