"""Sources of models: addresses, paths, and what is refused before any request."""

import asyncio
import json
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError, ModelStoreUnavailableError
from controlled_rollout.image import ModelSource, build_local_image
from controlled_rollout.image.cache import Cache, check_free_space
from controlled_rollout.image.inputs.remote_models import (
    fetch_remote_models,
    fsspec_url_and_options,
    is_remote,
    resolve_model_path,
)

PARTS = st.lists(st.text("ab.%2eE-_", min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize(
    "address",
    ["az://models/m.bin", "abfs://c/m", "s3://b/m", "https://host.example/m.bin", "models:/digits/7", "memory://m"],
)
def test_an_address_is_left_as_it_is(address: str) -> None:
    assert is_remote(address)
    assert resolve_model_path(address, Path("/dags")) == address


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("m.bin", "/dags/m.bin"),
        ("out/m.bin", "/dags/out/m.bin"),
        ("/models/m.bin", "/models/m.bin"),
        ("file:///models/a%20b.bin", "/models/a b.bin"),
        ("with:colon/m.bin", "/dags/with:colon/m.bin"),
    ],
)
def test_a_path_starts_at_the_folder(path: str, place: str) -> None:
    assert not is_remote(path)
    assert resolve_model_path(path, Path("/dags")) == Path(place)


@pytest.mark.parametrize("where", ["", "/models/", "az://models/", "memory://", "file:///", "models:/digits/"])
@pytest.mark.parametrize("up", ["..", "../m.bin", "a/../m.bin", "a/..", "%2e%2e/m.bin", "a\\..\\m.bin"])
def test_a_path_with_two_dots_is_refused(where: str, up: str) -> None:
    with pytest.raises(ImageError, match=r"has '\.\.' in it"):
        resolve_model_path(where + up, Path("/dags"))


@given(PARTS)
def test_an_accepted_path_stays_in_the_folder(parts: list[str]) -> None:
    path = "/".join(parts)
    try:
        place = resolve_model_path(path, Path("/dags"))
    except ImageError:
        return
    assert isinstance(place, Path)
    assert ".." not in place.parts and place.is_relative_to("/dags")


@given(PARTS, st.booleans())
def test_path_with_two_dots_is_refused_in_any_notation(parts: list[str], encoded: bool) -> None:
    dots = "%2E%2E" if encoded else ".."
    path = "/".join([*map(quote, parts), dots])

    with pytest.raises(ImageError, match=r"has '\.\.' in it"):
        resolve_model_path(f"az://models/{path}", Path())


@pytest.mark.parametrize(
    "address",
    [
        "https://user:hunter2@host.example/m.bin",
        "https://account.blob.core.windows.net/models/m.bin?sv=1&sig=hunter2",
        "https://host.example/m.bin#hunter2",
    ],
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(ImageError, match="has a password or a query") as refused:
        resolve_model_path(address, Path())

    assert "hunter2" not in str(refused.value)


def test_a_chained_address_is_refused() -> None:
    with pytest.raises(ImageError, match="is chained"):
        resolve_model_path("zip://m.bin::s3://bucket/models.zip", Path())


@pytest.mark.parametrize(
    ("address", "account_host"),
    [
        ("https://account.blob.core.windows.net/models/a/m.bin", "account.blob.core.windows.net"),
        ("https://account.dfs.core.chinacloudapi.cn/models/a/m.bin", "account.blob.core.chinacloudapi.cn"),
        ("https://account.z07.blob.storage.azure.net/models/a/m.bin", "account.z07.blob.storage.azure.net"),
    ],
)
def test_a_blob_of_any_cloud_of_azure_is_read_with_the_workers_identity(address: str, account_host: str) -> None:
    url, options = fsspec_url_and_options(address)

    assert url == "abfs://models/a/m.bin"
    assert options == {"account_name": "account", "account_host": account_host, "anon": False}


@pytest.mark.parametrize(
    "address", ["https://account.blob.core.windows.net.example/models/m.bin", "https://edge.example/account/m/m.bin"]
)
def test_no_other_host_is_sent_the_workers_identity(address: str) -> None:
    assert fsspec_url_and_options(address) == (address, {})


def connection_string(account: str) -> str:
    return f"DefaultEndpointsProtocol=https;AccountName={account};AccountKey=a2V5;EndpointSuffix=core.windows.net"


@pytest.mark.parametrize(
    "address",
    [
        "https://account.blob.core.windows.net/models/a/m.bin",
        "https://account.dfs.core.windows.net/models/a/m.bin",
        "abfss://models@account.dfs.core.windows.net/a/m.bin",
        "az://account.blob.core.windows.net/models/a/m.bin",
    ],
)
def test_a_model_is_never_read_from_the_account_of_the_connection_string_when_its_address_names_another(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string("other"))
    with pytest.raises(ImageError, match=r"is in the account 'account', and .* is for 'other'.* set the variable"):
        fsspec_url_and_options(address)

    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string("account"))
    fsspec_url_and_options(address)


async def fetch(address: str, cache: Path) -> Path:
    [model] = await fetch_remote_models([ModelSource("digits", address)], Cache(cache))
    return Path(model.path)


async def test_an_unknown_scheme_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere://m\.bin cannot be read: ValueError: Protocol not known: nowhere"):
        await fetch("nowhere://m.bin", tmp_path)


async def test_an_address_of_a_whole_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="names no file and no folder"):
        await fetch("memory://", tmp_path)


async def test_a_store_whose_files_would_lead_out_of_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {"/evil/model/../../passwd": {"name": "/evil/model/../../passwd", "size": 1, "type": "file", "created": 1}}
    files = fsspec.filesystem("memory")
    files.pipe("/evil/model/m.bin", b"1")
    monkeypatch.setattr(type(files), "find", lambda *arguments, **settings: evil)

    with pytest.raises(ImageError, match="would lead out of its folder"):
        await fetch("memory://evil/model", tmp_path)
    assert not (tmp_path / "models").exists()


async def test_cancelled_fetch_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/slow/m.bin", b"1" * 5_000_000)
    reading = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read(stream: object, size: int = -1) -> bytes:
        loop.call_soon_threadsafe(reading.set)
        return b"1"

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", read)
    task = asyncio.create_task(fetch("memory://slow/m.bin", tmp_path))
    await asyncio.wait_for(reading.wait(), 30)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "models").iterdir()) == []


async def test_an_image_is_built_of_a_model_with_an_address(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/trained/model.joblib", b"seven")
    source = tmp_path / "source"
    source.mkdir()
    (source / "score.py").write_text("def init(): ...\ndef run(data): ...\n")
    (source / "requirements.txt").write_text("no-such-package-at-all==1\n")
    progress_lines: list[str] = []

    # The environment is what fails here: by then the model has been read.
    with pytest.raises(ImageError, match="cannot be installed"):
        models = [ModelSource("digits", "memory://trained/model.joblib")]
        await build_local_image(
            source, name="digits", cache=tmp_path / "cache", models=models, progress=progress_lines.append
        )

    assert any("fetching memory://trained/model.joblib (1 files, 0.0 MB)" in line for line in progress_lines)


def test_model_larger_than_the_free_space_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"the model: 1,000,000,000\.0 MB are needed, .* nothing was written"):
        check_free_space(10**15, tmp_path / "absent" / "folder", "the model")
    check_free_space(0, tmp_path, "the model")


def test_the_key_in_the_cache_does_not_depend_on_the_order_of_files() -> None:
    from controlled_rollout.image.inputs.remote_models import RemoteFile, _cache_key

    files = [RemoteFile("a", "x/a", 1, "etag 1"), RemoteFile("b", "x/b", 2, "etag 2")]

    assert _cache_key("az://x", files) == _cache_key("az://x", files[::-1])
    assert _cache_key("az://x", files) != _cache_key("az://x", [files[0], RemoteFile("b", "x/b", 2, "etag 3")])
    assert json.dumps(_cache_key("az://x", files)).strip('"').isalnum()


class ServiceRequestError(Exception):
    """What Azure's client raises without an answer, by its name."""


class Answer(Exception):
    """What clients raise for an answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the store answered {status}")
        self.status_code = status


@pytest.mark.parametrize(
    ("fault", "is_temporary"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (ServiceRequestError(), True),
        (Answer(503), True),
        (Answer(429), True),
        (Answer(403), False),
        (Answer(404), False),
        (PermissionError(), False),
        (ValueError(), False),
    ],
)
async def test_a_store_that_does_not_answer_may_be_asked_again_and_one_that_refuses_not(
    fault: Exception, is_temporary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("cannot read") from fault

    monkeypatch.setattr(MemoryFileSystem, "info", fails)

    with pytest.raises(ImageError, match=r"model 'digits': memory://a/m\.bin cannot be read") as refusal:
        await fetch("memory://a/m.bin", tmp_path)
    assert isinstance(refusal.value, ModelStoreUnavailableError) is is_temporary
