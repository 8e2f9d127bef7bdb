"""Image manifests and configurations of the Open Container Initiative, as values.

Source: OCI image specification 1.1, manifest.md and config.md.
"""

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from controlled_rollout.errors import ImageError
from controlled_rollout.image.oci.responses import parse_json

__all__ = [
    "ACCEPTED",
    "CONFIG",
    "INDEX",
    "LAYER",
    "MANIFEST",
    "MEDIA_TYPE",
    "Descriptor",
    "Manifest",
    "canonical_json",
    "check_digest",
    "image_of_layers",
    "image_with_layer",
    "oci_architecture",
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
# A digest becomes part of URLs and of file names, so nothing else may be in it.
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
MEDIA_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
MAX_LAYERS: Final = 1000
CREATED: Final = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Descriptor:
    """A blob: its media type, its digest `sha256:…` and its size in bytes.

    Raises:
        ImageError: One of the three is not what it has to be.
    """

    media_type: str
    digest: str
    size: int

    def __post_init__(self) -> None:
        """Check what may have come from a registry."""
        check_digest(self.digest, "a descriptor")
        if type(self.size) is not int or self.size < 0:
            raise ImageError(
                f"blob {self.digest} has the size {_shortened_repr(self.size)}: a size is a whole number from 0 on"
            )
        if not isinstance(self.media_type, str) or not MEDIA_TYPE.fullmatch(self.media_type):
            raise ImageError(f"blob {self.digest} has the media type {_shortened_repr(self.media_type)}, which is none")

    @classmethod
    def of(cls, media_type: str, content: bytes) -> Self:
        """Return the descriptor of `content`: its SHA-256 digest and its size."""
        return cls(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Read a descriptor from its JSON object in a manifest.

        Raises:
            ImageError: A value is not valid.
            KeyError, TypeError: The object lacks one.
        """
        return cls(document["mediaType"], document["digest"], document["size"])

    def document(self) -> dict[str, Any]:
        """Return the descriptor as a JSON object for a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Manifest:
    """An image's manifest, as a registry keeps it."""

    content: bytes
    media_type: str

    @property
    def digest(self) -> str:
        """The image's digest `sha256:…`. Images are deployed by it."""
        return Descriptor.of(self.media_type, self.content).digest

    @property
    def config(self) -> Descriptor:
        """The descriptor of the image's configuration."""
        return self._parts()[0]

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """The descriptors of the image's layers. The lowest layer is the first."""
        return self._parts()[1]

    def _parts(self) -> tuple[Descriptor, tuple[Descriptor, ...]]:
        """Parse the manifest; return the descriptors of the configuration and of the layers.

        Raises:
            ImageError: It is not the manifest of one image, but a list of images, say, or a value in it is not valid.
        """
        try:
            document = parse_json(self.content)
            # Both in one document would be two images with one digest: which one is meant, each reader decides.
            if "manifests" in document or document.get("mediaType", self.media_type) != self.media_type:
                raise ValueError("it is not what its media type says")
            config, layers = Descriptor.parse(document["config"]), tuple(map(Descriptor.parse, document["layers"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(f"image {self.digest} is a {self.media_type}, not one image: build it again") from error
        except ImageError as error:
            raise ImageError(f"image {self.digest} has a manifest that is not valid: {error}") from error
        if len(layers) > MAX_LAYERS:
            raise ImageError(f"image {self.digest} has {len(layers):,} layers: up to {MAX_LAYERS:,} can be used")
        return config, layers


def check_digest(digest: object, whose: str) -> str:
    """Return a digest from outside if it is `sha256:` and 64 hexadecimal digits.

    Args:
        digest: What came.
        whose: What names the digest, for the message.

    Raises:
        ImageError: It is anything else.
    """
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ImageError(
            f"{whose} has the digest {_shortened_repr(digest)}: a digest is sha256: and 64 hexadecimal digits. "
            "The registry is broken, or its answer was forged"
        )
    return digest


def _shortened_repr(value: object) -> str:
    """Return a value from outside for a message: its representation, shortened."""
    return f"{value!r:.100}"


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Serialize a JSON object deterministically: equal content gives equal bytes and an equal digest."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def oci_architecture() -> str:
    """Return this machine's processor architecture in OCI spelling, such as `amd64`."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def image_of_layers(layers: Sequence[Descriptor]) -> tuple[bytes, Manifest]:
    """Return the configuration (bytes) and the manifest of an image that has only uncompressed layers."""
    content = canonical_json(
        {
            "architecture": oci_architecture(),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    return content, _image_manifest(Descriptor.of(CONFIG, content), layers, {})


def image_with_layer(
    base: Manifest, config: bytes, layer: Descriptor, *, variables: Mapping[str, str], created_by: str
) -> tuple[bytes, Manifest]:
    """Return the configuration (bytes) and the manifest of `base` with one more layer and environment variables.

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
        document: dict[str, Any] = parse_json(config)
        settings: dict[str, Any] = document.setdefault("config", {})
        kept = [line for line in settings.get("Env") or [] if line.partition("=")[0] not in variables]
        settings["Env"] = [*kept, *(f"{name}={value}" for name, value in sorted(variables.items()))]
        document["rootfs"]["diff_ids"].append(layer.digest)
        document.setdefault("history", []).append({"created": CREATED, "created_by": created_by})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"image {base.digest} has no configuration that can be read ({error}): build again") from error
    content = canonical_json(document)
    annotations = {"org.opencontainers.image.base.digest": base.digest}
    return content, _image_manifest(Descriptor.of(CONFIG, content), [*base.layers, layer], annotations)


def _image_manifest(config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> Manifest:
    """Return the image manifest with this configuration, these layers and annotations."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.document(),
        "layers": [layer.document() for layer in layers],
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    return Manifest(canonical_json(document), MANIFEST)
