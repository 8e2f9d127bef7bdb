"""The entries of a layer's tar archive, read within bounds: whoever made the image may mean harm.

A few kilobytes can unpack to any number of bytes, and tarfile reads the headers of an entry into memory whatever their
size is.
"""

import gzip
import tarfile
from collections.abc import Iterator
from typing import IO, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cancellable_thread import CancelCheck

__all__ = ["LayerArchive"]

# gzip makes at most a thousandth of zeros, and about a third of what is usually in an image.
MAX_RATIO: Final = 100
ALWAYS_ALLOWED_BYTES: Final = 1 << 30
# All headers of an entry: long names and extended attributes.
MAX_HEADER_BYTES: Final = 4 << 20
MAX_PATH_LENGTH: Final = 4096
GZIP: Final = b"\x1f\x8b"


class LayerArchive:
    """A layer's tar archive, as it is or compressed with gzip.

    Args:
        stream: The layer. Read once, from its beginning.
        size: Its size in bytes: bounds what it may unpack to.
        check_cancelled: Called between two entries.
    """

    def __init__(self, stream: IO[bytes], size: int, *, check_cancelled: CancelCheck) -> None:
        self._unpacked = _BoundedReader(stream, ALWAYS_ALLOWED_BYTES + MAX_RATIO * size)
        self._check_cancelled = check_cancelled
        self._archive: tarfile.TarFile | None = None

    def entries(self) -> Iterator[tarfile.TarInfo]:
        """Yield the entries. The content of one can be read until the next is asked for.

        Raises:
            ImageError: It is not a tar archive, or it unpacks to more than its size allows.
        """
        try:
            # The reader is not a whole file object, but tarfile needs only `read` of one that it reads as a stream.
            with tarfile.open(fileobj=self._unpacked, mode="r|") as archive:  # type: ignore[call-overload]
                self._archive = archive
                while (entry := archive.next()) is not None:
                    self._check_cancelled()
                    # It would keep every entry, of which there may be millions.
                    archive.members.clear()
                    _check_entry(entry)
                    self._unpacked.allow(entry.size + MAX_HEADER_BYTES)
                    yield entry
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            raise ImageError(f"it is not a tar archive that can be read: {error}") from error

    def read(self, entry: tarfile.TarInfo) -> bytes:
        """Return the content of an entry that is a file."""
        content = self._archive.extractfile(entry) if self._archive else None
        return content.read() if content else b""


class _BoundedReader:
    """Unpacks a layer, and refuses to unpack more than is allowed: in all, and before the next entry."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        beginning = stream.read(len(GZIP))
        stream.seek(0)
        self._source: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=stream) if beginning == GZIP else stream
        self._limit = limit
        self._count = 0
        self._allowed = MAX_HEADER_BYTES

    def allow(self, size: int) -> None:
        """Allow so many more bytes to be read, instead of what was allowed before.

        Raises:
            ImageError: That is more than the whole layer may unpack to.
        """
        self._allowed = self._count + size
        if self._allowed > self._limit + MAX_HEADER_BYTES:
            raise self._too_much()

    def read(self, size: int) -> bytes:
        """Read unpacked bytes.

        Raises:
            ImageError: More would be read than is allowed.
        """
        content = self._source.read(size)
        self._count += len(content)
        if self._count > self._limit:
            raise self._too_much()
        if self._count > self._allowed:
            raise ImageError(f"the headers of an entry have more than {MAX_HEADER_BYTES:,} bytes")
        return content

    def _too_much(self) -> ImageError:
        """Return the error of a layer that unpacks to more than its size allows."""
        return ImageError(f"it unpacks to more than {self._limit:,} bytes, which is too much for its size")


def _check_entry(entry: tarfile.TarInfo) -> None:
    """Raise `ImageError` for an entry that no program which makes images writes."""
    if entry.size < 0 or len(entry.name) > MAX_PATH_LENGTH:
        raise ImageError(f"it has an entry with the size {entry.size:,} and a name of {len(entry.name):,} characters")
    if entry.issparse():
        raise ImageError(f"{entry.name} is a sparse file, whose size does not bound what has to be read")
