"""Layers made of files: tar archives that are the same, byte for byte, wherever they are made.

They are not compressed: compressors differ between versions, and a model's weights hardly shrink. A layer is never on
the disk as a whole: its files are read once for its digest, and once more when it is sent.
"""

import hashlib
import tarfile
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cancellable_thread import CancelCheck, in_thread, never_cancelled
from controlled_rollout.image.inputs.files import CHUNK_BYTES, FileSet, SourceFile
from controlled_rollout.image.inputs.models import LINK, LINK_TARGET, has_link
from controlled_rollout.image.reference import ModelSource

__all__ = ["APP_ROOT", "MODELS_FOLDER", "Layer", "layer_chunks_in_thread", "layer_of_files", "model_layer"]

APP_ROOT: Final = PurePosixPath("/opt/app")
MODELS_FOLDER: Final = PurePosixPath("/opt/models")


@dataclass(frozen=True)
class Layer:
    """The content of a layer.

    Attributes:
        entries: Path, without a leading slash, and file; None for a folder, a text for a symbolic link to that path. A
            folder comes before what is in it.
    """

    entries: tuple[tuple[str, SourceFile | str | None], ...]

    def digest(self, *, check_cancelled: CancelCheck = never_cancelled) -> tuple[str, int]:
        """Read the whole archive; return its digest `sha256:…` and its size in bytes.

        Raises:
            ImageError: A file changed since its digest was taken, or cannot be read.
        """
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks(check_cancelled=check_cancelled):
            digest.update(chunk)
            size += len(chunk)
        return f"sha256:{digest.hexdigest()}", size

    def chunks(self, *, check_cancelled: CancelCheck = never_cancelled) -> Generator[bytes]:
        """Yield the bytes of the tar archive in chunks. Reads the files while it yields.

        Raises:
            ImageError: A file changed since its digest was taken, or cannot be read.
        """
        for path, file in self.entries:
            yield _tar_header(path, file)
            if isinstance(file, SourceFile):
                yield from _read_unchanged(file, check_cancelled)
                yield bytes(-file.size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)


def model_layer(source: FileSet, models: Sequence[tuple[ModelSource, FileSet]]) -> Layer:
    """Return the layer with the project folder in `/opt/app` and each model in `/opt/models/<name>/<version>`."""
    files: dict[str, SourceFile | str] = {str(APP_ROOT / file.path): file for file in source.files}
    for model, model_files in models:
        files |= {str(MODELS_FOLDER / model.name / model.version / file.path): file for file in model_files.files}
    if has_link(source, models):
        files[str(APP_ROOT / LINK)] = LINK_TARGET
    return _layer_with_folders(files, {str(APP_ROOT), str(MODELS_FOLDER)}, depth=len(APP_ROOT.parts))


def layer_of_files(files: Sequence[SourceFile]) -> Layer:
    """Return a layer that has files at their own paths, and the folders that contain them."""
    return _layer_with_folders({f"/{file.path}": file for file in files}, set(), depth=1)


def _layer_with_folders(files: Mapping[str, SourceFile | str], folders: set[str], *, depth: int) -> Layer:
    """Return a layer of files and folders, plus the files' parent folders that have more than `depth` path parts."""
    for path in files:
        folders |= {str(folder) for folder in PurePosixPath(path).parents if len(folder.parts) > depth}
    entries: dict[str, SourceFile | str | None] = {**dict.fromkeys(folders), **files}
    return Layer(tuple((path.lstrip("/"), entries[path]) for path in sorted(entries, key=_path_parts)))


async def layer_chunks_in_thread(layer: Layer) -> AsyncIterator[bytes]:
    """Yield the bytes of a layer's archive in chunks. The files are read in a thread."""
    chunks = layer.chunks()
    try:
        while (chunk := await in_thread(lambda _: next(chunks, None))) is not None:
            yield chunk
    finally:
        chunks.close()


def _path_parts(path: str) -> tuple[str, ...]:
    """Return the parts of a path, as the sort key of a layer's entries."""
    return PurePosixPath(path).parts


def _tar_header(path: str, file: SourceFile | str | None) -> bytes:
    """Return an entry's tar header: owner root, time zero, read-only; a file stays executable if it was."""
    info = tarfile.TarInfo(path)
    if file is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    elif isinstance(file, str):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, file, 0o777
    else:
        info.size, info.mode = file.size, 0o555 if file.executable else 0o444
    return info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")


def _read_unchanged(file: SourceFile, check_cancelled: CancelCheck) -> Iterator[bytes]:
    """Yield a file's content in chunks; raise `ImageError` if it no longer has its size and SHA-256."""
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
