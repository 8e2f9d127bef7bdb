"""Layers made of files: tar archives that are the same, byte for byte, wherever they are made.

They are not compressed: compressors differ between versions, and a model's weights hardly shrink. A layer is never on
the disk as a whole: its files are read once for its digest, and once more when it is sent.
"""

import hashlib
import tarfile
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cancellable_thread import CancelCheck, in_thread, never_cancelled
from controlled_rollout.image.inputs.files import CHUNK_BYTES, FileSet, SourceFile
from controlled_rollout.image.reference import ModelSource

__all__ = ["APP_ROOT", "MODELS_FOLDER", "Layer", "layer_of_files", "model_layer", "read_in_thread"]

APP_ROOT: Final = PurePosixPath("/opt/app")
MODELS_FOLDER: Final = PurePosixPath("/opt/models")


@dataclass(frozen=True)
class Layer:
    """The content of a layer.

    Attributes:
        entries: Path, without a leading slash, and file; None for a folder. A folder comes before what is in it.
    """

    entries: tuple[tuple[str, SourceFile | None], ...]

    def digest(self, *, check_cancelled: CancelCheck = never_cancelled) -> tuple[str, int]:
        """Return the archive's digest `sha256:…` and its size in bytes.

        Raises:
            ImageError: A file changed since its digest was taken, or cannot be read.
        """
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks(check_cancelled=check_cancelled):
            digest.update(chunk)
            size += len(chunk)
        return f"sha256:{digest.hexdigest()}", size

    def chunks(self, *, check_cancelled: CancelCheck = never_cancelled) -> Generator[bytes]:
        """Yield the archive, piece by piece.

        Raises:
            ImageError: A file changed since its digest was taken, or cannot be read.
        """
        for path, file in self.entries:
            yield _header(path, file)
            if file is not None:
                yield from _content(file, check_cancelled)
                yield bytes(-file.size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)


def model_layer(source: FileSet, models: Sequence[tuple[ModelSource, FileSet]]) -> Layer:
    """Return the layer with the project folder in `/opt/app` and each model in `/opt/models/<name>/<version>`."""
    files = {str(APP_ROOT / file.path): file for file in source.files}
    for model, model_files in models:
        files |= {str(MODELS_FOLDER / model.name / model.version / file.path): file for file in model_files.files}
    return _layer(files, {str(APP_ROOT), str(MODELS_FOLDER)}, depth=len(APP_ROOT.parts))


def layer_of_files(files: Sequence[SourceFile]) -> Layer:
    """Return the layer with some files at their own paths, and with the folders that they are in."""
    return _layer({f"/{file.path}": file for file in files}, set(), depth=1)


def _layer(files: dict[str, SourceFile], folders: set[str], *, depth: int) -> Layer:
    """Return the layer with files, some folders, and those folders of the files that have more than `depth` parts."""
    for path in files:
        folders |= {str(folder) for folder in PurePosixPath(path).parents if len(folder.parts) > depth}
    entries: dict[str, SourceFile | None] = {**dict.fromkeys(folders), **files}
    return Layer(tuple((path.lstrip("/"), entries[path]) for path in sorted(entries, key=_parts_of)))


async def read_in_thread(layer: Layer) -> AsyncIterator[bytes]:
    """Yield a layer piece by piece, without blocking the event loop."""
    chunks = layer.chunks()
    try:
        while (chunk := await in_thread(lambda _: next(chunks, None))) is not None:
            yield chunk
    finally:
        chunks.close()


def _parts_of(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts


def _header(path: str, file: SourceFile | None) -> bytes:
    """Return an entry's header: owner root, no time, read-only, and executable as the file is."""
    info = tarfile.TarInfo(path)
    if file is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = file.size, 0o555 if file.executable else 0o444
    return info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")


def _content(file: SourceFile, check_cancelled: CancelCheck) -> Iterator[bytes]:
    digest, remaining = hashlib.sha256(), file.size
    try:
        with file.source.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                check_cancelled()
                digest.update(chunk)
                remaining -= len(chunk)
                if remaining < 0:
                    break
                yield chunk
    except OSError as error:
        raise ImageError(f"{file.source} cannot be read: {error.strerror or error}") from error
    if remaining or digest.hexdigest() != file.sha256:
        raise ImageError(f"{file.source} changed during the build: build again when it is no longer written to")
