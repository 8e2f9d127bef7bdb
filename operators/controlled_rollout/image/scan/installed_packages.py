"""What is installed in an image: the packages of its distribution and of Python, read from the layers themselves.

Each layer is read once and what it says is kept under its digest. Nothing in it is run, and nothing is unpacked but the
few files that name packages.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import shlex
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import Cache, check_room
from controlled_rollout.image.cancellable_thread import Stop, in_thread
from controlled_rollout.image.oci.manifest import Descriptor, Manifest
from controlled_rollout.image.oci.registry_client import Registry, Repository

__all__ = ["ENVIRONMENT", "Contents", "Installed", "contents_of", "contents_of_folder", "overlaid", "read_layer"]

ENVIRONMENT: Final = PurePosixPath("/opt/environment")
KEPT: Final = "contents"
SCHEMA: Final = 1
# The lists of packages of whole distributions are a few megabytes; a Python package's metadata a few kilobytes.
MAX_FILE_BYTES: Final = 64_000_000
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
RELEASES: Final = ("etc/os-release", "usr/lib/os-release")
DEBIAN: Final = "var/lib/dpkg/status"
DEBIAN_SPLIT: Final = "var/lib/dpkg/status.d"
ALPINE: Final = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
RPM: Final = ("var/lib/rpm", "usr/lib/sysimage/rpm")


@dataclass(frozen=True, order=True)
class Installed:
    """A package that is installed.

    Attributes:
        kind: `pypi`, `deb` or `apk`, as package URLs call them.
        name: The package.
        version: Which version of it.
        architecture: What it was built for, where the distribution says so.
        source: The source package, where it has another name.
        place: Where it is: the folder with Python packages, or the distribution's list.
    """

    kind: str
    name: str
    version: str
    architecture: str = ""
    source: str = ""
    place: str = ""


@dataclass(frozen=True)
class Contents:
    """What is installed.

    Attributes:
        packages: Sorted.
        distribution: Such as `debian`; empty if there is none.
        distribution_version: Such as `12`.
        unread: Lists of packages that are there and are not understood, such as RPM's.
    """

    packages: tuple[Installed, ...]
    distribution: str = ""
    distribution_version: str = ""
    unread: tuple[str, ...] = ()

    def environment(self, root: PurePosixPath = ENVIRONMENT) -> list[str]:
        """Return the Python packages beneath a folder as `name==version`, each name once."""
        inside = {
            package.name: package.version
            for package in self.packages
            if package.kind == "pypi" and PurePosixPath("/", package.place).is_relative_to(root)
        }
        return [f"{name}=={version}" for name, version in sorted(inside.items())]


@dataclass(frozen=True)
class LayerFacts:
    """What one layer says.

    Attributes:
        packages: By the file that names them.
        release: What the distribution calls itself, by file.
        gone: Files and folders of the layers beneath that are deleted.
        emptied: Folders whose content in the layers beneath is deleted.
        unread: Lists of packages that are not understood.
    """

    packages: dict[str, list[Installed]]
    release: dict[str, tuple[str, str]]
    gone: list[str]
    emptied: list[str]
    unread: list[str]


async def contents_of(
    client: Registry,
    repository: Repository,
    manifest: Manifest,
    cache: Cache,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> Contents:
    """Return what is installed in an image of a registry.

    Args:
        client: Asks the registry.
        repository: Where the image is.
        manifest: The image's.
        cache: Keeps what was read of each layer.
        progress: Called with a line for each layer that is read.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: A layer cannot be read, is not what its digest says, or does not fit on the disk.
    """
    facts = []
    for layer in manifest.layers:
        kept = cache.root / KEPT / f"{layer.digest.removeprefix('sha256:')}-{SCHEMA}.json"
        found = await in_thread(lambda stop, kept=kept: _recall(kept))  # type: ignore[misc]
        if found is None:
            progress(f"contents: reading layer {layer.digest[:19]} ({layer.size / 1e6:,.1f} MB)")
            try:
                found = await _fetched(client, repository, layer, cache)
                _remember(kept, found)
            except OSError as error:
                raise ImageError(f"what a layer says cannot be kept in {kept.parent}: {error}") from None
        facts.append(found)
    return overlaid(facts)


def contents_of_folder(environment: Path) -> Contents:
    """Return the Python packages of a virtual environment on this machine."""
    folders = sorted(environment.glob("lib/python3*/site-packages"))
    packages = {
        Installed("pypi", canonical(name), found.version, place=str(folder))
        for folder in folders
        for found in importlib.metadata.distributions(path=[str(folder)])
        if (name := found.metadata["Name"])
    }
    return Contents(tuple(sorted(packages)))


def read_layer(stream: IO[bytes], *, stop: Stop) -> LayerFacts:
    """Return what a layer says of packages.

    Args:
        stream: The layer: a tar archive, as it is or compressed.
        stop: Called between two of its files.

    Raises:
        ImageError: It is no such archive.
    """
    facts = LayerFacts({}, {}, [], [], [])
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for entry in archive:
                stop()
                _note(facts, archive, entry)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ImageError(f"it is no archive that can be read: {error}") from None
    return facts


def overlaid(layers: Iterable[LayerFacts]) -> Contents:
    """Return what is installed when layers lie upon each other, the lowest first."""
    packages: dict[str, list[Installed]] = {}
    release: dict[str, tuple[str, str]] = {}
    unread: dict[str, None] = {}
    for layer in layers:
        for known in (packages, release, unread):
            for path in [path for path in known if _is_hidden(path, layer)]:
                known.pop(path)
        packages |= layer.packages
        release |= layer.release
        unread |= dict.fromkeys(layer.unread)
    name, version = next((release[path] for path in RELEASES if path in release), ("", ""))
    found = sorted({package for file in packages.values() for package in file})
    return Contents(tuple(found), name, version, tuple(sorted(unread)))


def canonical(name: str) -> str:
    """Return a Python package's name in the form in which names are compared."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def _is_hidden(path: str, layer: LayerFacts) -> bool:
    if any(path == gone or path.startswith(f"{gone}/") for gone in layer.gone):
        return True
    return any(path.startswith(f"{folder}/") for folder in layer.emptied)


def _note(facts: LayerFacts, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    path = str(PurePosixPath("/", entry.name)).lstrip("/")
    folder, _, name = path.rpartition("/")
    if name == OPAQUE:
        facts.emptied.append(folder)
    elif name.startswith(WHITEOUT):
        facts.gone.append(f"{folder}/{name.removeprefix(WHITEOUT)}".lstrip("/"))
    elif entry.isfile() and path.startswith(RPM) and name.startswith(("rpmdb", "Packages")):
        facts.unread.append(path)
    elif entry.isfile() and (read := _reader(path)) is not None:
        if entry.size > MAX_FILE_BYTES:
            raise ImageError(f"{path} has {entry.size / 1e6:,.1f} MB: that is no list of packages")
        content = archive.extractfile(entry)
        text = content.read().decode("utf-8", "replace") if content else ""
        if path in RELEASES:
            facts.release[path] = release_of(text)
        else:
            facts.packages[path] = [package for package in read(text, path) if package.name and package.version]


def _reader(path: str) -> Callable[[str, str], Iterator[Installed]] | None:
    """Return what reads a file's packages, if it is one that names any."""
    parts = PurePosixPath(path).parts
    if path in RELEASES:
        return lambda text, place: iter(())
    if path == DEBIAN or (path.startswith(f"{DEBIAN_SPLIT}/") and not path.endswith(".md5sums")):
        return debian_packages
    if path in ALPINE:
        return alpine_packages
    if len(parts) >= 2 and parts[-1] in ("METADATA", "PKG-INFO") and parts[-2].endswith((".dist-info", ".egg-info")):
        return python_package
    return None


def python_package(text: str, path: str) -> Iterator[Installed]:
    """Return the package that a METADATA or PKG-INFO file describes."""
    headers = HeaderParser().parsestr(text, headersonly=True)
    place = str(PurePosixPath("/", path).parent.parent)
    yield Installed(
        "pypi", canonical(str(headers.get("Name", ""))), str(headers.get("Version", "")).strip(), place=place
    )


def debian_packages(text: str, path: str) -> Iterator[Installed]:
    """Return the packages of dpkg's list; those whose removal left only their settings are not installed."""
    for paragraph in text.split("\n\n"):
        fields = HeaderParser().parsestr(paragraph.strip("\n"))
        if fields.get("Status", "install ok installed").endswith(" installed"):
            source = str(fields.get("Source", "")).partition(" ")[0]
            architecture = str(fields.get("Architecture", ""))
            version, name = str(fields.get("Version", "")), str(fields.get("Package", ""))
            yield Installed("deb", name, version, architecture, source, "/" + path)


def alpine_packages(text: str, path: str) -> Iterator[Installed]:
    """Return the packages of apk's list: one letter, a colon and a value a line."""
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(":", 1) for line in paragraph.splitlines() if line[1:2] == ":")
        yield Installed(
            "apk", fields.get("P", ""), fields.get("V", ""), fields.get("A", ""), fields.get("o", ""), "/" + path
        )


def release_of(text: str) -> tuple[str, str]:
    """Return name and version of a distribution as os-release gives them."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not name.startswith("#"):
            with contextlib.suppress(ValueError):
                fields[name.strip()] = " ".join(shlex.split(value))
    return fields.get("ID", ""), fields.get("VERSION_ID", "")


async def _fetched(client: Registry, repository: Repository, layer: Descriptor, cache: Cache) -> LayerFacts:
    """Return what a layer says; it is on the disk only meanwhile."""
    file = cache.root / KEPT / f".{layer.digest.removeprefix('sha256:')}.layer"
    file.parent.mkdir(parents=True, exist_ok=True)
    check_room(layer.size, file.parent, f"layer {layer.digest[:19]}")
    try:
        await _download(client.chunks(repository, layer), layer, file)

        def read(stop: Stop) -> LayerFacts:
            with file.open("rb") as stream:
                return read_layer(stream, stop=stop)

        return await in_thread(read)
    except ImageError as error:
        raise type(error)(f"layer {layer.digest} of {repository}: {error}") from None
    finally:
        file.unlink(missing_ok=True)


async def _download(chunks: AsyncIterator[bytes], layer: Descriptor, file: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with file.open("wb") as stream:
        async for chunk in chunks:
            size += len(chunk)
            if size > layer.size:
                break
            digest.update(chunk)
            stream.write(chunk)
    if size != layer.size or f"sha256:{digest.hexdigest()}" != layer.digest:
        raise ImageError(f"what came of it ({size:,} bytes) is not what its digest says ({layer.size:,} bytes)")


def _recall(file: Path) -> LayerFacts | None:
    """Return what was kept of a layer; whatever is wrong with that, the layer is read again."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        packages = {
            path: [Installed(**package) for package in packages] for path, packages in document["packages"].items()
        }
        release = {path: (name, version) for path, (name, version) in document["release"].items()}
        return LayerFacts(packages, release, document["gone"], document["emptied"], document["unread"])
    return None


def _remember(file: Path, facts: LayerFacts) -> None:
    draft = file.with_name(f".{file.name}")
    draft.write_text(json.dumps(asdict(facts)), encoding="utf-8")
    draft.replace(file)
