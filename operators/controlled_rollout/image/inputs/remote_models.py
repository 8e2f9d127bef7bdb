"""Where models come from: a path on this machine, any address that fsspec reads, Azure Blob Storage, MLflow's registry.

What is elsewhere is brought into the workspace's cache once: whole or not at all, never more than the disk has room
for, and checked against the digest that its store keeps. It is found again by what its store says of its content, so
that a file that was written anew is fetched anew.
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

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import Cache, check_room
from controlled_rollout.image.cancellable_thread import Stop, in_thread
from controlled_rollout.image.reference import ModelSource

__all__ = ["is_remote", "located", "on_this_machine"]

MODELS: Final = "models"
CHUNK_BYTES: Final = 1 << 20
# What is left for everybody else on the disk.
RESERVE_BYTES: Final = 64_000_000
ADDRESS: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(//|/)")
# Of a scheme with one letter it is a drive; Windows is not supported, but neither is mistaking it.
LOCAL_SCHEMES: Final = ("file", "local")
MLFLOW: Final = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[1-9]\d*)|@(?P<alias>[^/@]+))")
BLOB_HOST: Final = re.compile(r"(?P<account>[a-z0-9]{3,24})\.(?:blob|dfs)\.core\.windows\.net")
# What stores call the state of a file's content, the surest first; a size alone says nothing.
STATES: Final = ("md5Hash", "etag", "ETag", "version_id", "generation", "mtime", "last_modified",
                 "LastModified", "modified", "created")  # fmt: skip

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model in its store.

    Attributes:
        path: Where it goes, relative to the model's folder.
        place: What the store knows it by.
        size: Bytes; None if the store does not say.
        state: What changes when its content does; empty if the store says nothing of that.
        md5: Of its content, hexadecimal, if the store keeps it.
    """

    path: str
    place: str
    size: int | None
    state: str = ""
    md5: str | None = None


class Store(ABC):
    """What keeps a model elsewhere."""

    name: str
    """The file or folder that the model becomes here."""

    @abstractmethod
    def files(self) -> Sequence[RemoteFile]:
        """Return the model's files.

        Raises:
            ImageError: There is no such model, or the store does not let this identity look.
        """

    @abstractmethod
    def fetch(self, files: Sequence[RemoteFile], target: Path, stop: Stop) -> None:
        """Write the model's files beneath `target`, or its only one as `target` itself.

        Args:
            files: What `files` returned.
            target: Does not exist, its folder does.
            stop: Called between two pieces of work.

        Raises:
            ImageError: A file is not what the store says it is, or the store refuses or does not answer.
        """


def is_remote(path: Path | str) -> bool:
    """Whether a model is elsewhere: written as an address, and not as a path of this machine."""
    found = ADDRESS.match(path) if isinstance(path, str) else None
    return found is not None and found["scheme"].lower() not in LOCAL_SCHEMES


def located(path: Path | str, folder: Path) -> Path | str:
    """Return where a model is: an address as it is, a path of this machine relative to a folder.

    Raises:
        ImageError: It holds `..`, or a password.
    """
    text = str(path)
    _check(text)
    if is_remote(text):
        return text
    found = ADDRESS.match(text)
    return folder / Path(unquote(urlsplit(text).path) if found else text).expanduser()


async def on_this_machine(
    models: Sequence[ModelSource], cache: Cache, *, progress: Progress = lambda line: None
) -> list[ModelSource]:
    """Return the models with paths of this machine; those that are elsewhere have been fetched into the cache.

    Args:
        models: Each with a path or an address.
        cache: The workspace's.
        progress: Called with a line for each model that is fetched or found.

    Raises:
        ImageError: There is no such model, its store refuses or does not answer, it is not what its digest says, or it
            does not fit on the disk. Nothing of it is kept.
    """
    return [
        replace(model, path=await _fetched(model, cache, progress))
        if is_remote(model.path)
        else replace(model, path=located(model.path, Path()))
        for model in models
    ]


async def _fetched(model: ModelSource, cache: Cache, progress: Progress) -> Path:
    address = str(model.path)
    _check(address)
    short = f"model {model.name!r}"
    try:
        store = await in_thread(lambda stop: _store(address))
        files = await in_thread(lambda stop: list(store.files()))
        if not files:
            raise ImageError(f"{address} has no file")
        _check_names(files)
        size = sum(file.size or 0 for file in files)
        folder = cache.root / MODELS / _key(address, files)
        if folder.is_dir():
            progress(f"{short}: {address} found in the cache")
            return folder / store.name

        async def make(unfinished: Path, lock: int) -> None:
            check_room(size, unfinished, address, reserve=RESERVE_BYTES)
            progress(f"{short}: fetching {address} ({len(files):,} files, {size / 1e6:,.1f} MB)")
            await in_thread(lambda stop: store.fetch(files, unfinished / store.name, stop))

        is_known = all(file.state for file in files)
        waiting = f"{short}: somebody else is fetching it, waiting"
        await cache.build(folder, lambda place: is_known and place.is_dir(), make, waiting=lambda: progress(waiting))
    except ImageError as error:
        raise ImageError(f"{short}: {error}") from None
    return folder / store.name


def _store(address: str) -> Store:
    return MlflowStore(address) if address.startswith("models:/") else FileSystemStore(address)


def _key(address: str, files: Sequence[RemoteFile]) -> str:
    """Return the name under which a model is kept: another one when its address or its content is another."""
    facts = [address, *sorted((file.path, file.size, file.state) for file in files)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _check(text: str) -> None:
    """Refuse an address or a path that leads out of where it starts, or that holds a secret."""
    if ".." in re.split(r"[/\\]", unquote(text)):
        raise ImageError(f"model path {text!r} has '..' in it: write where the model is, not how to get there")
    if not is_remote(text):
        return
    if "::" in text:
        raise ImageError(f"model address {text!r} is chained ('::'): give the address of the files themselves")
    parts = urlsplit(text)
    if parts.password is not None or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        raise ImageError(
            f"model address {shown} has a password or a query, such as a signature: addresses are stored in the clear. "
            "Give who may read it by the store's own settings (see docs/image.md)"
        )


def _check_names(files: Sequence[RemoteFile]) -> None:
    """Refuse names that would lead out of the model's folder."""
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or "\\" in file.path or "\0" in file.path:
            raise ImageError(f"its store has a file of the name {file.path!r}, which would lead out of its folder")


class FileSystemStore(Store):
    """A file or a folder that fsspec reads."""

    def __init__(self, address: str) -> None:
        import fsspec

        url, options = _for_fsspec(address)
        with store_errors(address):
            self._files, self._root = fsspec.core.url_to_fs(url, **options)
        self._address = address
        self.name = PurePosixPath(unquote(urlsplit(address).path)).name
        if not self.name:
            raise ImageError(f"model address {address!r} names no file and no folder in {urlsplit(address).netloc!r}")

    def files(self) -> list[RemoteFile]:
        """See `Store`."""
        with store_errors(self._address):
            self._files.invalidate_cache()
            whole: dict[str, Any] = self._files.info(self._root)
            # Not every file system lists a file as what is beneath it.
            found: dict[str, dict[str, Any]] = (
                {self._root: whole} if whole["type"] == "file" else self._files.find(self._root, detail=True)
            )
        root = self._root.rstrip("/")
        return [
            _described(place, place.removeprefix(root).lstrip("/"), facts)
            for place, facts in sorted(found.items())
            # Stores of flat names keep empty blobs that stand for folders.
            if facts.get("type") == "file" and not (place.endswith("/") and not facts.get("size"))
        ]

    def fetch(self, files: Sequence[RemoteFile], target: Path, stop: Stop) -> None:
        """See `Store`."""
        for file in files:
            place = target / file.path if file.path else target
            place.parent.mkdir(parents=True, exist_ok=True)
            limit = file.size if file.size is not None else shutil.disk_usage(place.parent).free - RESERVE_BYTES
            digest, size = hashlib.md5(usedforsecurity=False), 0
            with place.open("wb") as content:
                for chunk in self._chunks(file):
                    stop()
                    size += len(chunk)
                    if size > limit:
                        raise ImageError(
                            f"{file.place} has more than {limit:,} bytes: it grew, or there is no room for it"
                        )
                    digest.update(chunk)
                    content.write(chunk)
            if file.size is not None and size != file.size:
                raise ImageError(f"{file.place} ended after {size:,} of {file.size:,} bytes: try again")
            if file.md5 is not None and digest.hexdigest() != file.md5:
                raise ImageError(
                    f"{file.place} is not what its store says it is (MD5 {file.md5}): it was changed on the way, "
                    "or its store holds something else"
                )

    def _chunks(self, file: RemoteFile) -> Iterator[bytes]:
        with store_errors(self._address):
            source: IO[bytes] = self._files.open(file.place, "rb")
        with contextlib.closing(source):
            while True:
                with store_errors(self._address):
                    chunk = source.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk


class MlflowStore(Store):
    """A version of a model that is registered with MLflow, such as `models:/digits/7` or `models:/digits@champion`."""

    def __init__(self, address: str) -> None:
        found = MLFLOW.fullmatch(address)
        if found is None:
            raise ImageError(f"model address {address!r} is not models:/<name>/<version> nor models:/<name>@<alias>")
        # What is learnt of a user's models is nobody else's affair unless the user says so; and bars are no log lines.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise ImageError(
                f"MLflow is needed for {address} and is not installed: pip install "
                "'airflow-provider-controlled-rollout[mlflow]'"
            ) from None
        self.name = found["name"]
        with store_errors(address):
            client = MlflowClient()
            version = (
                client.get_model_version(found["name"], found["version"])
                if found["version"]
                else client.get_model_version_by_alias(found["name"], found["alias"])
            )
        # An alias may be moved meanwhile: from here on it is this version.
        self._address = f"models:/{version.name}/{version.version}"
        self._state = f"{version.version} {version.creation_timestamp} {version.source}"

    def files(self) -> list[RemoteFile]:
        """See `Store`."""
        from mlflow.artifacts import list_artifacts

        files, folders = [], [""]
        while folders:
            folder = folders.pop()
            with store_errors(self._address):
                entries = list_artifacts(artifact_uri=f"{self._address}/{folder}".rstrip("/"))
            for entry in entries:
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    files.append(RemoteFile(entry.path, entry.path, entry.file_size, self._state))
        return sorted(files, key=lambda file: file.path)

    def fetch(self, files: Sequence[RemoteFile], target: Path, stop: Stop) -> None:
        """See `Store`. MLflow fetches all at once: it cannot be stopped half-way."""
        from mlflow.artifacts import download_artifacts

        stop()
        target.mkdir()
        with store_errors(self._address):
            download_artifacts(artifact_uri=self._address, dst_path=str(target))
        for file in files:
            place = target / file.path
            size = place.stat().st_size if place.is_file() else 0
            if file.size is not None and size != file.size:
                raise ImageError(f"{file.path} of {self._address} has {size:,} of {file.size:,} bytes: try again")


def _for_fsspec(address: str) -> tuple[str, dict[str, Any]]:
    """Return an address as fsspec takes it, and what it has to be told besides: who signs in is the store's affair."""
    parts = urlsplit(address)
    if parts.scheme == "https" and (found := BLOB_HOST.fullmatch(parts.netloc)):
        return f"abfs:/{parts.path}", {"account_name": found["account"], "anon": False}
    if parts.scheme in ("az", "abfs", "abfss", "adl"):
        return address, {"anon": False}
    return address, {}


def _described(place: str, path: str, facts: Mapping[str, Any]) -> RemoteFile:
    md5 = facts.get("md5Hash") or (facts.get("content_settings") or {}).get("content_md5")
    if isinstance(md5, str):
        md5 = base64.b64decode(md5)
    size = facts.get("size")
    state = next((f"{name} {facts[name]}" for name in STATES if facts.get(name)), "")
    return RemoteFile(path, place, int(size) if size is not None else None, state, bytes(md5).hex() if md5 else None)


@contextlib.contextmanager
def store_errors(address: str) -> Iterator[None]:
    """Turn what a store's client raises, which is anything, into an error that says what was asked."""
    try:
        yield
    except ImageError:
        raise
    except ImportError as error:
        raise ImageError(f"{address} needs a package that is not installed: {error}") from None
    except FileNotFoundError as error:
        # Some clients call every failure so, and say only in its cause that nobody answered.
        why = f" ({_in_words(error.__cause__)})" if error.__cause__ else ""
        raise ImageError(f"there is no file or folder {address}{why}") from None
    except Exception as error:
        raise ImageError(f"{address} cannot be read: {_in_words(error)}") from None


def _in_words(error: BaseException) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}".rstrip(": ")
