"""Models that are not on this machine, fetched into the workspace's cache: by fsspec, or from MLflow's registry.

A model is fetched once: whole or not at all, only if the disk has room for it, and checked against the digest that its
store keeps. The cache's key contains what the store says of each file's content (a digest, an ETag, a time), so a file
that was overwritten is fetched again.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit

from controlled_rollout.addresses import no_proxy_variables
from controlled_rollout.errors import ImageError, ModelStoreUnavailableError
from controlled_rollout.image.cache import Cache, check_free_space
from controlled_rollout.image.cancellable_thread import CancelCheck, in_thread
from controlled_rollout.image.reference import ModelSource
from controlled_rollout.storage.blob_account import (
    CONNECTION_STRING,
    account_of_connection_string,
    blob_of_connection_string,
)

__all__ = ["fetch_remote_models", "fsspec_url_and_options", "is_remote", "resolve_model_path"]

MODELS: Final = "models"
CHUNK_BYTES: Final = 1 << 20
# Left free on the disk.
RESERVE_BYTES: Final = 64_000_000
ADDRESS: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(//|/)")
LOCAL_SCHEMES: Final = ("file", "local")
MLFLOW_ADDRESS: Final = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[1-9]\d*)|@(?P<alias>[^/@]+))")
# Hosts of Azure's clouds, to which an identity's token may be sent.
BLOB_HOST: Final = re.compile(
    r"(?P<account>[a-z0-9]{3,24})(?P<zone>\.z\d\d)?\.(?:blob|dfs)\."
    r"(?P<cloud>core\.windows\.net|core\.chinacloudapi\.cn|core\.usgovcloudapi\.net|storage\.azure\.net)"
)
# How the clients of stores, which need not be installed, call that there was no answer.
NO_ANSWER: Final = frozenset(
    {
        "ServiceRequestError",
        "ServiceResponseError",
        "ClientConnectionError",
        "EndpointConnectionError",
        "ConnectTimeoutError",
    }
)
TRY_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})
# What stores call the version of a file's content, the most exact first; a size alone says nothing.
CONTENT_VERSIONS: Final = ("md5Hash", "etag", "ETag", "version_id", "generation", "mtime", "last_modified",
                 "LastModified", "modified", "created")  # fmt: skip

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model in its store.

    Attributes:
        path: Where it goes, relative to the model's folder.
        store_path: Its name in the store.
        size: Bytes; None if the store does not say.
        content_version: Changes when the content does, such as an ETag; empty if the store has no such thing.
        md5: Of its content, hexadecimal, if the store keeps it.
    """

    path: str
    store_path: str
    size: int | None
    content_version: str = ""
    md5: str | None = None


class ModelStore(ABC):
    """A model in a store that is not on this machine."""

    name: str
    """Name of the file or folder that the model becomes on this machine."""

    @abstractmethod
    def files(self) -> Sequence[RemoteFile]:
        """List the model's files in the store.

        Raises:
            ImageError: There is no such model, or this identity may not read it.
        """

    @abstractmethod
    def fetch(self, files: Sequence[RemoteFile], target: Path, check_cancelled: CancelCheck) -> None:
        """Download the model's files into the folder `target`, or its only file to the path `target`.

        Args:
            files: What `files` returned.
            target: Does not exist, its folder does.
            check_cancelled: Called between two pieces of a file.

        Raises:
            ImageError: A file differs from what the store says of it, or the store refuses or does not answer.
        """


def is_remote(path: Path | str) -> bool:
    """Whether a model's path is a URL of a remote store, and not a local path or `file:` URL."""
    address = ADDRESS.match(path) if isinstance(path, str) else None
    return address is not None and address["scheme"].lower() not in LOCAL_SCHEMES


def resolve_model_path(path: Path | str, folder: Path) -> Path | str:
    """Return a remote URL unchanged, and a local path relative to `folder`.

    Raises:
        ImageError: It holds `..`, or a password.
    """
    text = str(path)
    _check_model_path(text)
    if is_remote(text):
        return text
    return folder / Path(unquote(urlsplit(text).path) if ADDRESS.match(text) else text).expanduser()


async def fetch_remote_models(
    models: Sequence[ModelSource], cache: Cache, *, progress: Progress = lambda line: None
) -> list[ModelSource]:
    """Download models with a remote URL into the cache; return all models with local paths.

    Args:
        models: Each with a path or an address.
        cache: The workspace's.
        progress: Called with a line for each model that is fetched or found in the cache.

    Raises:
        ImageError: There is no such model, its store refuses or does not answer, its content differs from its digest,
            or it does not fit on the disk. Nothing of it is kept.
    """
    return [
        replace(model, path=await _fetch_into_cache(model, cache, progress))
        if is_remote(model.path)
        else replace(model, path=resolve_model_path(model.path, Path()))
        for model in models
    ]


async def _fetch_into_cache(model: ModelSource, cache: Cache, progress: Progress) -> Path:
    """Return the local path of a model; download it into the cache unless it is there."""
    address = str(model.path)
    _check_model_path(address)
    label = f"model {model.name!r}"
    try:
        store = await in_thread(lambda _: _open_store(address))
        files = await in_thread(lambda _: list(store.files()))
        if not files:
            raise ImageError(f"{address} has no file")
        _check_remote_paths(files)
        size = sum(file.size or 0 for file in files)
        folder = cache.root / MODELS / _cache_key(address, files)
        if folder.is_dir():
            progress(f"{label}: {address} found in the cache")
            return folder / store.name

        async def fill(unfinished: Path, lock: int) -> None:
            """Download the model's files into the cache entry's empty folder."""
            check_free_space(size, unfinished, address, reserve=RESERVE_BYTES)
            progress(f"{label}: fetching {address} ({len(files):,} files, {size / 1e6:,.1f} MB)")
            await in_thread(lambda check_cancelled: store.fetch(files, unfinished / store.name, check_cancelled))

        # Without a version of the content, nothing says whether a cached copy is still the same.
        has_versions = all(file.content_version for file in files)
        await cache.build(
            folder,
            lambda entry: has_versions and entry.is_dir(),
            fill,
            on_wait=lambda: progress(f"{label}: another process is fetching it, waiting"),
        )
    except ImageError as error:
        raise type(error)(f"{label}: {error}") from error
    return folder / store.name


def _open_store(address: str) -> ModelStore:
    """Return the MLflow client for `models:/` addresses, and the fsspec client for all others."""
    # The stores' clients are other people's: they take the proxies from the environment.
    os.environ.update(no_proxy_variables(os.environ))
    return MlflowStore(address) if address.startswith("models:/") else FsspecStore(address)


def _cache_key(address: str, files: Sequence[RemoteFile]) -> str:
    """Return the model's cache key: a hash of its address and of its files' paths, sizes and content versions."""
    facts = [address, *sorted((file.path, file.size, file.content_version) for file in files)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _check_model_path(text: str) -> None:
    """Raise `ImageError` for a path that contains `..`, or a URL that contains a secret."""
    if ".." in re.split(r"[/\\]", unquote(text)):
        raise ImageError(f"model path {text!r} has '..' in it: write the whole path")
    if not is_remote(text):
        return
    if "::" in text:
        raise ImageError(f"model address {text!r} is chained ('::'): give the address of the files themselves")
    parts = urlsplit(text)
    if parts.password is not None or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        raise ImageError(
            f"model address {shown} has a password or a query, such as a signature: addresses are stored in the clear. "
            "Set the credentials by the store's own settings (see docs/image.md)"
        )


def _check_remote_paths(files: Sequence[RemoteFile]) -> None:
    """Raise `ImageError` for a file name that would be written outside the model's folder."""
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or "\\" in file.path or "\0" in file.path:
            raise ImageError(f"its store has a file of the name {file.path!r}, which would lead out of its folder")


class FsspecStore(ModelStore):
    """A file or a folder that fsspec reads, such as a blob."""

    def __init__(self, address: str) -> None:
        import fsspec

        url, options = fsspec_url_and_options(address)
        with _store_errors(address):
            self._file_system, self._root = fsspec.core.url_to_fs(url, **options)
        self._address = address
        self.name = PurePosixPath(unquote(urlsplit(address).path)).name
        if not self.name:
            raise ImageError(f"model address {address!r} names no file and no folder in {urlsplit(address).netloc!r}")

    def files(self) -> list[RemoteFile]:
        """List the file, or the files below the folder, with fsspec."""
        with _store_errors(self._address):
            self._file_system.invalidate_cache()
            root_info: dict[str, Any] = self._file_system.info(self._root)
            # Not every file system finds a file below its own path.
            infos: dict[str, dict[str, Any]] = (
                {self._root: root_info}
                if root_info["type"] == "file"
                else self._file_system.find(self._root, detail=True)
            )
        root = self._root.rstrip("/")
        return [
            _remote_file(path, path.removeprefix(root).lstrip("/"), info)
            for path, info in sorted(infos.items())
            # Object stores keep empty blobs that stand for folders.
            if info.get("type") == "file" and not (path.endswith("/") and not info.get("size"))
        ]

    def fetch(self, files: Sequence[RemoteFile], target: Path, check_cancelled: CancelCheck) -> None:
        """Download the files with fsspec, and check their sizes and MD5 sums."""
        for file in files:
            path = target / file.path if file.path else target
            path.parent.mkdir(parents=True, exist_ok=True)
            limit = file.size if file.size is not None else shutil.disk_usage(path.parent).free - RESERVE_BYTES
            digest, size = hashlib.md5(usedforsecurity=False), 0
            with path.open("wb") as content:
                for chunk in self._read_chunks(file):
                    check_cancelled()
                    size += len(chunk)
                    if size > limit:
                        raise ImageError(
                            f"{file.store_path} has more than {limit:,} bytes: it grew during the download, or "
                            "there is no room for it"
                        )
                    digest.update(chunk)
                    content.write(chunk)
            if file.size is not None and size != file.size:
                raise ModelStoreUnavailableError(
                    f"{file.store_path} ended after {size:,} of {file.size:,} bytes: try again"
                )
            if file.md5 is not None and digest.hexdigest() != file.md5:
                raise ImageError(
                    f"{file.store_path} does not have the MD5 that its store keeps ({file.md5}): it was changed on the "
                    "way, or in the store: try again"
                )

    def _read_chunks(self, file: RemoteFile) -> Iterator[bytes]:
        """Yield the content of a remote file in chunks of `CHUNK_BYTES`."""
        with _store_errors(self._address):
            source: IO[bytes] = self._file_system.open(file.store_path, "rb")
        with contextlib.closing(source):
            while True:
                with _store_errors(self._address):
                    chunk = source.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk


class MlflowStore(ModelStore):
    """A version of a model that is registered with MLflow, such as `models:/digits/7` or `models:/digits@champion`."""

    def __init__(self, address: str) -> None:
        parts = MLFLOW_ADDRESS.fullmatch(address)
        if parts is None:
            raise ImageError(f"model address {address!r} is not models:/<name>/<version> nor models:/<name>@<alias>")
        # No telemetry about a user's models unless the user turns it on; and no progress bars in log files.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ImageError(
                f"MLflow is needed for {address} and is not installed: pip install "
                "'airflow-provider-controlled-rollout[mlflow]'"
            ) from error
        self.name = parts["name"]
        with _store_errors(address):
            client = MlflowClient()
            version = (
                client.get_model_version(parts["name"], parts["version"])
                if parts["version"]
                else client.get_model_version_by_alias(parts["name"], parts["alias"])
            )
        # An alias may be moved while the model is fetched: use the version that it means now.
        self.address = f"models:/{version.name}/{version.version}"
        self._content_version = f"{version.version} {version.creation_timestamp} {version.source}"

    def files(self) -> list[RemoteFile]:
        """List the artifacts of the registered model version."""
        from mlflow.artifacts import list_artifacts

        files, folders = [], [""]
        while folders:
            folder = folders.pop()
            with _store_errors(self.address):
                entries = list_artifacts(artifact_uri=f"{self.address}/{folder}".rstrip("/"))
            for entry in entries:
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    files.append(RemoteFile(entry.path, entry.path, entry.file_size, self._content_version))
        return sorted(files, key=lambda file: file.path)

    def fetch(self, files: Sequence[RemoteFile], target: Path, check_cancelled: CancelCheck) -> None:
        """Download all artifacts with MLflow and check their sizes. One MLflow call, which cannot be cancelled."""
        from mlflow.artifacts import download_artifacts

        check_cancelled()
        target.mkdir()
        with _store_errors(self.address):
            download_artifacts(artifact_uri=self.address, dst_path=str(target))
        for file in files:
            path = target / file.path
            size = path.stat().st_size if path.is_file() else 0
            if file.size is not None and size != file.size:
                raise ImageError(f"{file.path} of {self.address} has {size:,} of {file.size:,} bytes: try again")


def fsspec_url_and_options(address: str) -> tuple[str, dict[str, Any]]:
    """Return a URL in fsspec's spelling, and its options. Credentials come from the store's own settings.

    Raises:
        ImageError: They are those of another account of Azure Storage.
    """
    parts = urlsplit(address)
    if (blob := blob_of_connection_string(address, os.environ)) is not None:
        return f"abfs://{blob}", {"connection_string": os.environ[CONNECTION_STRING]}
    host = BLOB_HOST.fullmatch(parts.netloc.rpartition("@")[2])
    if host and (account := account_of_connection_string(os.environ)[1]) not in ("", host["account"]):
        raise ImageError(
            f"{address} is in the account {host['account']!r}, and {CONNECTION_STRING} is for {account!r}, where adlfs "
            "would read it: set the variable for that account, or leave it out and let the worker's identity sign in"
        )
    if parts.scheme == "https" and host and "@" not in parts.netloc:
        blob_host = f"{host['account']}{host['zone'] or ''}.blob.{host['cloud']}"
        return f"abfs:/{parts.path}", {"account_name": host["account"], "account_host": blob_host, "anon": False}
    if parts.scheme in ("az", "abfs", "abfss", "adl"):
        return address, {"anon": False}
    return address, {}


def _remote_file(store_path: str, path: str, info: Mapping[str, Any]) -> RemoteFile:
    """Convert fsspec's `info` of a file to a `RemoteFile`. Each kind of store has its own keys."""
    md5 = info.get("md5Hash") or (info.get("content_settings") or {}).get("content_md5")
    if isinstance(md5, str):
        md5 = base64.b64decode(md5)
    size = info.get("size")
    return RemoteFile(
        path,
        store_path,
        size=int(size) if size is not None else None,
        content_version=next((f"{key} {info[key]}" for key in CONTENT_VERSIONS if info.get(key)), ""),
        md5=bytes(md5).hex() if md5 else None,
    )


@contextlib.contextmanager
def _store_errors(address: str) -> Iterator[None]:
    """Context manager: convert any exception of a store's client to an `ImageError` that names the address."""
    try:
        yield
    except ImageError:
        raise
    except ImportError as error:
        raise ImageError(f"{address} needs a package that is not installed: {error}") from error
    except FileNotFoundError as error:
        # Some clients raise this for every failure, such as a server that does not answer; the cause says which.
        why = f" ({_first_line(error.__cause__)})" if error.__cause__ else ""
        kind = ModelStoreUnavailableError if _may_be_gone_later(error) else ImageError
        raise kind(f"there is no file or folder {address}{why}") from error
    except Exception as error:
        kind = ModelStoreUnavailableError if _may_be_gone_later(error) else ImageError
        raise kind(f"{address} cannot be read: {_first_line(error)}") from error


def _may_be_gone_later(error: BaseException) -> bool:
    """Return whether an exception of a store's client says that there was no answer, or that it cannot serve now."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return any(
        isinstance(cause, TimeoutError | ConnectionError)
        or not NO_ANSWER.isdisjoint(kind.__name__ for kind in type(cause).__mro__)
        or _status_of(cause) in TRY_AGAIN
        for cause in causes
    )


def _status_of(error: BaseException) -> int:
    """Return the HTTP status that an exception of a store's client carries; 0 if it has none."""
    status = getattr(error, "status_code", getattr(error, "status", 0))
    return status if isinstance(status, int) else 0


def _first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}".rstrip(": ")
