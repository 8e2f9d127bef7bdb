"""The packages that are installed in an image, of its distribution and of Python, read from its layers.

A layer is read once; its packages are kept in the cache under its digest. Nothing in it is run, and only the few files
that list packages are unpacked.
"""

import contextlib
import importlib.metadata
import json
import posixpath
import shlex
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Set
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import Cache, check_free_space
from controlled_rollout.image.cancellable_thread import CancelCheck, in_thread
from controlled_rollout.image.oci.manifest import Descriptor, Manifest
from controlled_rollout.image.oci.registry_client import RegistryClient, Repository
from controlled_rollout.image.scan.layer_archive import LayerArchive

__all__ = [
    "ENVIRONMENT",
    "InstalledPackage",
    "InstalledPackages",
    "merge_layers",
    "packages_of_environment",
    "packages_of_image",
    "read_layer",
]

ENVIRONMENT: Final = PurePosixPath("/opt/environment")
CACHE_FOLDER: Final = "contents"
# Changed when more, or other things, are read from a layer.
SCHEMA: Final = 1
# The lists of packages of whole distributions are a few megabytes; a Python package's metadata a few kilobytes.
MAX_FILE_BYTES: Final = 64_000_000
MAX_TEXT_BYTES: Final = 256_000_000
MAX_RELEASE_BYTES: Final = 64_000
MAX_NOTED_PATHS: Final = 100_000
# How a layer deletes a file, or the content of a folder, of the layers beneath it.
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
OS_RELEASE: Final = ("etc/os-release", "usr/lib/os-release")
DPKG_STATUS: Final = "var/lib/dpkg/status"
DPKG_STATUS_FOLDER: Final = "var/lib/dpkg/status.d"
APK_INSTALLED: Final = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
RPM_FOLDERS: Final = ("var/lib/rpm", "usr/lib/sysimage/rpm")


@dataclass(frozen=True, order=True)
class InstalledPackage:
    """A package that is installed.

    Attributes:
        kind: `pypi`, `deb` or `apk`: the type in its package URL.
        name: Its name.
        version: Its version.
        architecture: The architecture that it was built for, if the distribution says so.
        source: Name of the source package, if that is another one.
        location: The folder of Python packages that it is in, or the distribution's list.
    """

    kind: str
    name: str
    version: str
    architecture: str = ""
    source: str = ""
    location: str = ""


@dataclass(frozen=True)
class InstalledPackages:
    """The packages of one image or environment.

    Attributes:
        packages: Sorted.
        distribution: Such as `debian`; empty if there is none.
        distribution_version: Such as `12`.
        unread: Lists of packages whose format is not read, such as RPM's.
    """

    packages: tuple[InstalledPackage, ...]
    distribution: str = ""
    distribution_version: str = ""
    unread: tuple[str, ...] = ()

    def requirements(self, root: PurePosixPath = ENVIRONMENT) -> list[str]:
        """Return the Python packages below a folder as `name==version`. Each name appears once."""
        inside = {
            package.name: package.version
            for package in self.packages
            if package.kind == "pypi" and PurePosixPath("/", package.location).is_relative_to(root)
        }
        return [f"{name}=={version}" for name, version in sorted(inside.items())]


@dataclass(frozen=True)
class LayerPackages:
    """What was read from one layer.

    Attributes:
        packages: By the file that lists them.
        release: Name and version of the distribution, by file.
        deleted: Files and folders of lower layers that this layer deletes.
        emptied: Folders whose content in lower layers this layer deletes.
        unread: Lists of packages whose format is not read.
    """

    packages: dict[str, list[InstalledPackage]]
    release: dict[str, tuple[str, str]]
    deleted: list[str]
    emptied: list[str]
    unread: list[str]


async def packages_of_image(
    client: RegistryClient,
    repository: Repository,
    manifest: Manifest,
    cache: Cache,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> InstalledPackages:
    """Read the installed packages of an image in a registry, from its layers or from the cache.

    Args:
        client: The registry's client.
        repository: Where the image is.
        manifest: The image's.
        cache: Keeps the packages of each layer.
        progress: Called with a line for each layer that is read.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: A layer cannot be read, does not fit its digest, or does not fit on the disk.
    """
    blobs = manifest.layers
    folder = cache.folder(CACHE_FOLDER)
    layers = []
    for blob in blobs:
        file = folder / f"{blob.digest.removeprefix('sha256:')}-{SCHEMA}.json"
        layer = await in_thread(lambda _, file=file: _load_cached_layer(file))  # type: ignore[misc]
        if layer is None:
            progress(f"contents: reading layer {blob.digest[:19]} ({blob.size / 1e6:,.1f} MB)")
            try:
                layer = await _read_remote_layer(client, repository, blob, folder)
                _save_cached_layer(file, layer)
            except OSError as error:
                raise ImageError(f"the packages of a layer cannot be kept in {folder}: {error}") from error
        layers.append(layer)
    return merge_layers(layers)


def packages_of_environment(environment: Path) -> InstalledPackages:
    """Read the installed Python packages of a virtual environment on this machine."""
    folders = sorted(environment.glob("lib/python3*/site-packages"))
    packages = {
        InstalledPackage("pypi", _normalized_name(name), distribution.version, location=str(folder))
        for folder in folders
        for distribution in importlib.metadata.distributions(path=[str(folder)])
        if (name := distribution.metadata["Name"])
    }
    return InstalledPackages(tuple(sorted(packages)))


def read_layer(stream: IO[bytes], size: int, *, check_cancelled: CancelCheck) -> LayerPackages:
    """Read the installed packages, and the deleted paths, from a layer's tar archive.

    Args:
        stream: The layer: a tar archive, as it is or compressed with gzip.
        size: Its size in bytes.
        check_cancelled: Called between two files.

    Raises:
        ImageError: It is not a tar archive, it unpacks to too much, or it lists too many packages.
    """
    layer = LayerPackages({}, {}, [], [], [])
    archive = LayerArchive(stream, size, check_cancelled=check_cancelled)
    text_size = 0
    for entry in archive.entries():
        text_size += _read_entry(layer, archive, entry)
        if text_size > MAX_TEXT_BYTES:
            raise ImageError(f"its lists of packages have more than {MAX_TEXT_BYTES / 1e6:,.0f} MB")
        if len(layer.deleted) + len(layer.emptied) + len(layer.unread) > MAX_NOTED_PATHS:
            raise ImageError(f"it deletes more than {MAX_NOTED_PATHS:,} files of the layers beneath it")
    return layer


def merge_layers(layers: Iterable[LayerPackages]) -> InstalledPackages:
    """Merge the packages of an image's layers into those of the image. The lowest layer must be the first."""
    packages: dict[str, list[InstalledPackage]] = {}
    release: dict[str, tuple[str, str]] = {}
    unread: dict[str, None] = {}
    for layer in layers:
        deleted, emptied = set(layer.deleted), set(layer.emptied)
        for lower in (packages, release, unread):
            for path in [path for path in lower if _is_deleted(path, deleted, emptied)]:
                lower.pop(path)
        packages |= layer.packages
        release |= layer.release
        unread |= dict.fromkeys(layer.unread)
    name, version = next((release[path] for path in OS_RELEASE if path in release), ("", ""))
    installed = sorted({package for file in packages.values() for package in file})
    return InstalledPackages(tuple(installed), name, version, tuple(sorted(unread)))


def _normalized_name(name: str) -> str:
    """Return a Python package's name in normalized form: lower case, with `-` as the only separator."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def _is_deleted(path: str, deleted: Set[str], emptied: Set[str]) -> bool:
    """Whether a layer deletes a path of the layers below it (whiteout): it, or a folder that it is in."""
    folders = {str(folder) for folder in PurePosixPath(path).parents if folder.parts}
    return path in deleted or not folders.isdisjoint(deleted) or not (folders | {""}).isdisjoint(emptied)


def _read_entry(layer: LayerPackages, archive: LayerArchive, entry: tarfile.TarInfo) -> int:
    """Parse one entry of a layer's archive if it lists packages, add them to `layer`; return the bytes parsed."""
    path = posixpath.normpath(f"/{entry.name}").lstrip("/")
    folder, _, name = path.rpartition("/")
    if name == OPAQUE:
        layer.emptied.append(folder)
    elif name.startswith(WHITEOUT) and name != WHITEOUT:
        layer.deleted.append(f"{folder}/{name.removeprefix(WHITEOUT)}".lstrip("/"))
    elif entry.isfile() and path.startswith(RPM_FOLDERS) and name.startswith(("rpmdb", "Packages")):
        layer.unread.append(path)
    elif entry.isfile() and (parse := _parser_for_path(path)) is not None:
        limit = MAX_RELEASE_BYTES if path in OS_RELEASE else MAX_FILE_BYTES
        if entry.size > limit:
            raise ImageError(f"{path} has {entry.size / 1e6:,.1f} MB: too much for what it is")
        text = archive.read(entry).decode("utf-8", "replace")
        if path in OS_RELEASE:
            layer.release[path] = distribution_of(text)
        else:
            layer.packages[path] = [package for package in parse(text, path) if package.name and package.version]
        return entry.size
    return 0


def _parser_for_path(path: str) -> Callable[[str, str], Iterator[InstalledPackage]] | None:
    """Return the parser for the file at a path in an image; None if the file lists no packages."""
    parts = PurePosixPath(path).parts
    if path in OS_RELEASE:
        return lambda text, path: iter(())
    if path == DPKG_STATUS or (path.startswith(f"{DPKG_STATUS_FOLDER}/") and not path.endswith(".md5sums")):
        return debian_packages
    if path in APK_INSTALLED:
        return alpine_packages
    if len(parts) >= 2 and parts[-1] in ("METADATA", "PKG-INFO") and parts[-2].endswith((".dist-info", ".egg-info")):
        return python_package
    return None


def python_package(text: str, path: str) -> Iterator[InstalledPackage]:
    """Parse a METADATA or PKG-INFO file; yield its package."""
    headers = HeaderParser().parsestr(text, headersonly=True)
    location = str(PurePosixPath("/", path).parent.parent)
    yield InstalledPackage(
        "pypi",
        _normalized_name(str(headers.get("Name", ""))),
        str(headers.get("Version", "")).strip(),
        location=location,
    )


def debian_packages(text: str, path: str) -> Iterator[InstalledPackage]:
    """Parse dpkg's status file; yield the installed packages. Removed packages with kept configuration are skipped."""
    for paragraph in text.split("\n\n"):
        fields = HeaderParser().parsestr(paragraph.strip("\n"))
        if fields.get("Status", "install ok installed").endswith(" installed"):
            source = str(fields.get("Source", "")).partition(" ")[0]
            architecture = str(fields.get("Architecture", ""))
            version, name = str(fields.get("Version", "")), str(fields.get("Package", ""))
            yield InstalledPackage("deb", name, version, architecture, source, "/" + path)


def alpine_packages(text: str, path: str) -> Iterator[InstalledPackage]:
    """Parse apk's database, which has lines such as `P:name`; yield the installed packages."""
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(":", 1) for line in paragraph.splitlines() if line[1:2] == ":")
        yield InstalledPackage(
            "apk", fields.get("P", ""), fields.get("V", ""), fields.get("A", ""), fields.get("o", ""), "/" + path
        )


def distribution_of(text: str) -> tuple[str, str]:
    """Parse an os-release file; return the distribution's name and version."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not name.startswith("#"):
            with contextlib.suppress(ValueError):
                fields[name.strip()] = " ".join(shlex.split(value))
    return fields.get("ID", ""), fields.get("VERSION_ID", "")


async def _read_remote_layer(
    client: RegistryClient, repository: Repository, blob: Descriptor, folder: Path
) -> LayerPackages:
    """Download a layer to a temporary file, return its packages and delete the file."""
    file = folder / f".{blob.digest.removeprefix('sha256:')}.layer"
    check_free_space(blob.size, folder, f"layer {blob.digest[:19]}")
    try:
        await _write_chunks(client.chunks(repository, blob), file)

        def read(check_cancelled: CancelCheck) -> LayerPackages:
            """Read the packages from the downloaded file. Blocks, so it runs in a thread."""
            with file.open("rb") as stream:
                return read_layer(stream, blob.size, check_cancelled=check_cancelled)

        return await in_thread(read)
    except ImageError as error:
        raise type(error)(f"layer {blob.digest} of {repository}: {error}") from error
    finally:
        file.unlink(missing_ok=True)


async def _write_chunks(chunks: AsyncIterator[bytes], file: Path) -> None:
    """Write downloaded chunks, which the registry's client checks, to a file."""
    with file.open("wb") as stream:
        async for chunk in chunks:
            stream.write(chunk)


def _load_cached_layer(file: Path) -> LayerPackages | None:
    """Return a layer's packages from the cache; None if they are not there or not readable."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        packages = {
            path: [InstalledPackage(**package) for package in packages]
            for path, packages in document["packages"].items()
        }
        release = {path: (name, version) for path, (name, version) in document["release"].items()}
        return LayerPackages(packages, release, document["deleted"], document["emptied"], document["unread"])
    return None


def _save_cached_layer(file: Path, layer: LayerPackages) -> None:
    """Write a layer's packages to the cache as JSON. The file is replaced atomically."""
    draft = file.with_name(f".{file.name}")
    draft.write_text(json.dumps(asdict(layer)), encoding="utf-8")
    draft.replace(file)
