"""The layer with source and models: a tar archive that is the same, byte for byte, wherever it is made.

It is not compressed: compressors differ between versions, and a model's weights hardly shrink. It is never on disk as a
whole: it is read from the files once for its digest, and once more when it is sent.
"""

import hashlib
import tarfile
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cancellable_thread import Stop, in_thread, never
from controlled_rollout.image.inputs.files import CHUNK_BYTES, Package, SourceFile
from controlled_rollout.image.reference import ModelSource

__all__ = ["APP_ROOT", "MODELS_FOLDER", "Layer", "layer_of", "layer_of_files", "streamed"]

APP_ROOT: Final = PurePosixPath("/opt/app")
MODELS_FOLDER: Final = PurePosixPath("/opt/models")


@dataclass(frozen=True)
class Layer:
    """What a layer holds.

    Attributes:
        entries: Paths without a leading slash, each folder before what is in it; None stands for a folder.
    """

    entries: tuple[tuple[str, SourceFile | None], ...]

    def digest(self, *, stop: Stop = never) -> tuple[str, int]:
        """Return `sha256:…` of the archive, and its size in bytes.

        Raises:
            ImageError: A file changed since it was packaged, or cannot be read.
        """
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks(stop=stop):
            digest.update(chunk)
            size += len(chunk)
        return f"sha256:{digest.hexdigest()}", size

    def chunks(self, *, stop: Stop = never) -> Generator[bytes]:
        """Yield the archive.

        Raises:
            ImageError: A file changed since it was packaged, or cannot be read.
        """
        for path, file in self.entries:
            yield _header(path, file)
            if file is not None:
                yield from _content(file, stop)
                yield bytes(-file.size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)


def layer_of(source: Package, models: Sequence[tuple[ModelSource, Package]]) -> Layer:
    """Return the layer with the project folder in `/opt/app` and each model in `/opt/models/<name>/<version>`."""
    files = {str(APP_ROOT / file.path): file for file in source.files}
    for model, packaged in models:
        files |= {str(MODELS_FOLDER / model.name / model.version / file.path): file for file in packaged.files}
    return _layer(files, {str(APP_ROOT), str(MODELS_FOLDER)}, depth=len(APP_ROOT.parts))


def layer_of_files(files: Sequence[SourceFile]) -> Layer:
    """Return the layer with files where their paths say, and the folders that they are in."""
    return _layer({f"/{file.path}": file for file in files}, set(), depth=1)


def _layer(files: dict[str, SourceFile], folders: set[str], *, depth: int) -> Layer:
    """Return the layer with files, some folders, and all folders of the files that lie deeper than `depth`."""
    for path in files:
        folders |= {str(folder) for folder in PurePosixPath(path).parents if len(folder.parts) > depth}
    entries: dict[str, SourceFile | None] = {**dict.fromkeys(folders), **files}
    return Layer(tuple((path.lstrip("/"), entries[path]) for path in sorted(entries, key=_parts_of)))


async def streamed(layer: Layer) -> AsyncIterator[bytes]:
    """Read a layer beside the event loop."""
    chunks = layer.chunks()
    try:
        while (chunk := await in_thread(lambda stop: next(chunks, None))) is not None:
            yield chunk
    finally:
        chunks.close()


def _parts_of(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts


def _header(path: str, file: SourceFile | None) -> bytes:
    """Return an entry's header: no owner but root, no time, no permission but to read and, as packaged, to execute."""
    info = tarfile.TarInfo(path)
    if file is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = file.size, 0o555 if file.executable else 0o444
    return info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")


def _content(file: SourceFile, stop: Stop) -> Iterator[bytes]:
    digest, left = hashlib.sha256(), file.size
    try:
        with file.source.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                stop()
                digest.update(chunk)
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
    except OSError as error:
        raise ImageError(f"{file.source} cannot be read: {error.strerror or error}") from None
    if left or digest.hexdigest() != file.sha256:
        raise ImageError(f"{file.source} changed while it was being packaged: build again when it is written")
