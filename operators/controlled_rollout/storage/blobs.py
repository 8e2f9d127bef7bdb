"""A storage in Azure Blob Storage, for workers that share no disk."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from controlled_rollout.errors import StorageError, StoredFileNotFoundError
from controlled_rollout.storage.blob_account import azure_errors, container_client
from controlled_rollout.storage.file_writing import written_whole
from controlled_rollout.storage.protocol import MAX_GET_BYTES, StoredFile, check_file_name, check_prefix

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

__all__ = ["BlobFiles"]

PIECE_BYTES: Final = 1 << 20
# What a browser shows instead of saving it.
CONTENT_TYPES: Final = {"html": "text/html; charset=utf-8", "md": "text/markdown; charset=utf-8"}


@dataclass(frozen=True)
class BlobFiles:
    """A storage whose files are block blobs below an address.

    Attributes:
        address: `https://<account>.blob.core.windows.net/<container>/<prefix>`.
    """

    address: str

    def address_of(self, name: str) -> str:
        """Return the URL of a blob."""
        return f"{self.address.rstrip('/')}/{check_file_name(name)}"

    def put(self, name: str, content: bytes | Path) -> StoredFile:
        """Upload a blob, in pieces if it is large; its MD5 is stored with it, as whoever downloads it checks."""
        from azure.storage.blob import ContentSettings

        kind = CONTENT_TYPES.get(name.rpartition(".")[2])
        with _as_storage_errors(self.address_of(name)):
            container, prefix = self._container()
            if isinstance(content, bytes):
                settings = ContentSettings(content_type=kind, content_md5=bytearray(_md5(content)))
                container.upload_blob(f"{prefix}{name}", content, overwrite=True, content_settings=settings)
            else:
                with content.open("rb") as file:
                    settings = ContentSettings(content_type=kind, content_md5=bytearray(_md5(file)))
                    file.seek(0)
                    container.upload_blob(f"{prefix}{name}", file, overwrite=True, content_settings=settings)
            return _stored_file(container.get_blob_client(f"{prefix}{name}").get_blob_properties(), prefix)

    def get(self, name: str, *, limit: int = MAX_GET_BYTES) -> bytes:
        """Download a blob into memory."""
        with _as_storage_errors(self.address_of(name)):
            container, prefix = self._container()
            # The first request brings the size with it.
            content = container.download_blob(f"{prefix}{name}")
            if content.size > limit:
                raise StorageError(f"{self.address_of(name)} has {content.size:,} bytes, {limit:,} are allowed")
            return bytes(content.readall())

    def get_end(self, name: str, length: int) -> bytes:
        """Download the end of a blob."""
        with _as_storage_errors(self.address_of(name)):
            container, prefix = self._container()
            blob = container.get_blob_client(f"{prefix}{name}")
            size = int(blob.get_blob_properties().size)
            offset = max(0, size - length)
            return bytes(blob.download_blob(offset, size - offset).readall()) if size else b""

    def download(self, name: str, path: Path) -> None:
        """Download a blob into a file, and check its length and its MD5, if the blob has one."""
        with _as_storage_errors(self.address_of(name)):
            container, prefix = self._container()
            content = container.download_blob(f"{prefix}{name}")
            digest, size = hashlib.md5(usedforsecurity=False), 0
            with written_whole(path) as file:
                for chunk in content.chunks():
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                expected = content.properties.content_settings.content_md5
                if size != content.size or (expected and bytes(expected) != digest.digest()):
                    raise OSError("what arrived has another length or MD5 than the blob: try again")

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """List blobs by name, which is how the service answers."""
        check_prefix(prefix)
        with _as_storage_errors(self.address):
            container, above = self._container()
            for blob in container.list_blobs(name_starts_with=f"{above}{prefix}"):
                yield _stored_file(blob, above)

    def delete(self, name: str) -> None:
        """Delete a blob."""
        try:
            with _as_storage_errors(self.address_of(name)):
                container, prefix = self._container()
                container.delete_blob(f"{prefix}{name}")
        except StoredFileNotFoundError:
            return

    def _container(self) -> "tuple[ContainerClient, str]":
        """Return the client of the container, and the prefix of all names."""
        return container_client(self.address, os.getpid())


def _stored_file(blob: Any, prefix: str) -> StoredFile:
    """Return what Azure's client says of a blob as a `StoredFile`."""
    return StoredFile(
        name=str(blob.name).removeprefix(prefix),
        size=int(blob.size),
        etag=str(blob.etag).strip('"'),
        modified=blob.last_modified,
    )


def _md5(content: "bytes | IO[bytes]") -> bytes:
    """Return the MD5 of bytes or of a file, which is read in pieces."""
    digest = hashlib.md5(usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        while piece := content.read(PIECE_BYTES):
            digest.update(piece)
    return digest.digest()


@contextmanager
def _as_storage_errors(address: str) -> Iterator[None]:
    """Context manager: turn errors of Azure's client and of this machine's files into `StorageError`."""
    try:
        with azure_errors(address):
            yield
    except FileNotFoundError as error:
        if error.filename is not None:
            raise StorageError(f"{error.filename} cannot be read or written: {error.strerror}") from error
        raise StoredFileNotFoundError(f"there is no {address}") from error
    except OSError as error:
        raise StorageError(f"{address} cannot be read or written: {error}") from error
