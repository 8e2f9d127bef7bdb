"""Models from remote addresses: blobs in Azurite, an MLflow registry, a file server, a small disk."""

import asyncio
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout import PromoteToControlOperator, RollBackOperator, steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ImageError, ModelStoreUnavailableError
from controlled_rollout.image import ModelSource
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.inputs.remote_models import fetch_remote_models
from controlled_rollout.model_registry import resolve_model
from controlled_rollout.operators.new_control import NEW_CONTROL
from controlled_rollout.steps import Change, new_control
from tests.azurite import signed_in_to_blobs
from tests.local.task_lab import TaskInstance, context
from tests.unit.steps.memory_target import MemoryTarget


async def fetch(address: str | Path, cache: Path, progress_lines: list[str] | None = None) -> Path:
    progress = progress_lines.append if progress_lines is not None else lambda line: None
    [model] = await fetch_remote_models([ModelSource("digits", address)], Cache(cache), progress=progress)
    return Path(model.path)


def kept_files(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").glob("*")) if cache.exists() else []


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A container of blobs, with its credentials in the environment, where adlfs reads them."""
    with signed_in_to_blobs(tmp_path_factory.mktemp("azurite"), "models") as service:
        yield service.get_container_client("models")


async def test_a_blob_is_fetched_once_and_again_when_it_is_written_anew(blobs: Any, tmp_path: Path) -> None:
    progress_lines: list[str] = []
    blobs.upload_blob("trained/7/model.joblib", b"seven", overwrite=True)

    first = await fetch("az://models/trained/7/model.joblib", tmp_path, progress_lines)
    second = await fetch("az://models/trained/7/model.joblib", tmp_path, progress_lines)
    blobs.upload_blob("trained/7/model.joblib", b"eight", overwrite=True)
    third = await fetch("abfs://models/trained/7/model.joblib", tmp_path, progress_lines)

    assert (first.name, first.read_bytes()) == ("model.joblib", b"seven")
    assert second == first and "found in the cache" in progress_lines[1]
    assert third != first and third.read_bytes() == b"eight"


async def test_a_folder_of_blobs_keeps_its_name_and_its_folders(blobs: Any, tmp_path: Path) -> None:
    blobs.upload_blob("folder/weights/a.bin", b"a" * 3_000_000, overwrite=True)
    blobs.upload_blob("folder/config.json", b"{}", overwrite=True)

    folder = await fetch("az://models/folder", tmp_path)

    assert folder.name == "folder"
    assert (folder / "weights" / "a.bin").read_bytes() == b"a" * 3_000_000
    assert (folder / "config.json").read_bytes() == b"{}"


async def test_a_blob_with_another_md5_than_its_store_keeps_is_refused_and_not_kept(blobs: Any, tmp_path: Path) -> None:
    from azure.storage.blob import ContentSettings

    wrong = ContentSettings(content_md5=bytearray(16))
    blobs.upload_blob("wrong/model.bin", b"other", overwrite=True)
    blobs.get_blob_client("wrong/model.bin").set_http_headers(content_settings=wrong)

    with pytest.raises(ImageError, match=r"model 'digits': .*does not have the MD5 that its store keeps \(0{32}\)"):
        await fetch("az://models/wrong/model.bin", tmp_path)
    assert kept_files(tmp_path) == []


async def test_a_missing_blob_is_an_error(blobs: Any, tmp_path: Path) -> None:
    for address in ("az://models/absent.bin", "az://absent/model.bin"):
        with pytest.raises(ImageError, match=f"model 'digits': (there is no file or folder )?{address}"):
            await fetch(address, tmp_path)
    assert kept_files(tmp_path) == []


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small disk and yield its folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
async def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(blobs: Any, tmp_path: Path) -> None:
    blobs.upload_blob("big/model.bin", b"b" * 20_000_000, overwrite=True)
    with small_disk(tmp_path / "disk", 80) as disk:
        with pytest.raises(
            ImageError, match=r"20\.0 MB are needed, and there is room for 19\.9 MB in .*: nothing was written"
        ):
            await fetch("az://models/big/model.bin", disk)

        assert kept_files(disk) == []
        assert os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize > 83_000_000


async def test_two_builds_at_once_fetch_a_model_once(blobs: Any, tmp_path: Path) -> None:
    progress_lines: list[str] = []
    blobs.upload_blob("both/model.bin", b"b" * 1_000_000, overwrite=True)

    first, second = await asyncio.gather(
        *(fetch("az://models/both/model.bin", tmp_path, progress_lines) for _ in range(2))
    )

    assert first == second
    assert sum(": fetching az" in line for line in progress_lines) == 1


@contextmanager
def serving_files(folder: Path, *, promised: int | None = None) -> Iterator[str]:
    """Serve a folder over HTTP; with `promised`, every file ends before its Content-Length."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            self.send_header("Connection", "close")
            super().end_headers()

        def send_header(self, name: str, value: str) -> None:
            super().send_header(name, str(promised) if promised and name == "Content-Length" else value)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def test_any_address_that_fsspec_reads_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "model.bin").write_bytes(b"seven")

    with serving_files(tmp_path / "served") as address:
        assert (await fetch(f"{address}/model.bin", tmp_path / "cache")).read_bytes() == b"seven"


async def test_a_file_that_ends_early_is_refused_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "model.bin").write_bytes(b"seven")

    with serving_files(tmp_path / "served", promised=50) as address:
        with pytest.raises(ImageError, match="model 'digits': http://127"):
            await fetch(f"{address}/model.bin", tmp_path / "cache")
    assert kept_files(tmp_path / "cache") == []


async def test_a_server_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ModelStoreUnavailableError, match=r"model 'digits': .*http://127\.0\.0\.1:9/model\.bin.*Cannot connect"
    ):
        await fetch("http://127.0.0.1:9/model.bin", tmp_path)


# The registry's own tables are not written for the newest SQLAlchemy; that is its server's affair.
without_its_warnings = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def mlflow_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An MLflow registry with one version of a model, which has the alias `champion`."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        client = MlflowClient()
        run = client.create_run(client.create_experiment("training", artifact_location=f"file://{folder}/artifacts"))
        (folder / "model" / "data").mkdir(parents=True)
        (folder / "model" / "MLmodel").write_text("flavors: {}")
        (folder / "model" / "data" / "weights").write_bytes(b"seven")
        client.log_artifacts(run.info.run_id, str(folder / "model"), "model")
        client.create_registered_model("digits")
        version = client.create_model_version("digits", f"{run.info.artifact_uri}/model", run.info.run_id)
        client.set_registered_model_alias("digits", "champion", version.version)
        yield client


@without_its_warnings
@pytest.mark.parametrize("address", ["models:/digits/1", "models:/digits@champion"])
async def test_a_model_that_is_registered_with_mlflow_is_fetched(
    mlflow_registry: Any, tmp_path: Path, address: str
) -> None:
    progress_lines: list[str] = []
    folder = await fetch(address, tmp_path, progress_lines)

    assert folder.name == "digits"
    assert (folder / "MLmodel").read_text() == "flavors: {}"
    assert (folder / "data" / "weights").read_bytes() == b"seven"
    assert await fetch(address, tmp_path, progress_lines) == folder
    assert "found in the cache" in progress_lines[-1]


def endpoint_of_registered_models(model: str) -> Endpoint:
    """Return an endpoint with two versions of a registered model, of which the first is control."""
    endpoint = Endpoint(name="fraud")
    for number, name in ((1, "old"), (2, "new")):
        properties = {"mlflow_alias": "champion", "mlflow_model": f"models:/{model}/{number}"}
        endpoint = endpoint.create_version(
            name, is_control=number == 1, image=f"ml/fraud@sha256:{number}", properties=properties
        )
    return endpoint


@without_its_warnings
def test_the_alias_of_a_model_follows_the_control_and_goes_back_with_it(
    mlflow_registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def champion() -> str:
        return str(mlflow_registry.get_model_version_by_alias("fraud", "champion").version)

    mlflow_registry.create_registered_model("fraud")
    for _ in range(2):
        mlflow_registry.create_model_version("fraud", f"file://{tmp_path}")
    mlflow_registry.set_registered_model_alias("fraud", "champion", "1")
    mlflow_registry.set_registered_model_alias("fraud", "new", "2")
    assert resolve_model("models:/fraud@new") == "models:/fraud/2"
    target = MemoryTarget()
    for module in (steps, new_control):
        monkeypatch.setattr(module, "connect", target.open)
    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))
    target.store(endpoint_of_registered_models("fraud"), Change(who="setup"))
    by_hand: dict[str, Any] = {"endpoint": "fraud", "version": "new", "own_rollout": False}

    promote = PromoteToControlOperator(task_id="promote", **by_hand)
    promote.execute(context(TaskInstance("run-1", "promote")))
    assert champion() == "2"
    RollBackOperator(task_id="back", to_former_control=True, **by_hand).execute(context(TaskInstance("run-1", "back")))
    assert champion() == "1"

    # A registry that is away: the promotion stays, and event, log and message say what was not done.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    given = context(TaskInstance("run-2", "promote"))
    promote.execute(given)
    assert target.newest("fraud").effective_traffic() == {"old": 0, "new": 100}
    assert "the alias 'champion' in MLflow's registry was NOT moved to models:/fraud/2" in promote.trouble
    [event] = given["outlet_events"][NEW_CONTROL].asset_alias_events
    assert event.extra["trouble"] == promote.trouble
    assert champion() == "1"


@without_its_warnings
async def test_a_model_that_is_not_registered_is_an_error(mlflow_registry: Any, tmp_path: Path) -> None:
    for address in ("models:/digits/2", "models:/digits@nobody", "models:/absent/1"):
        with pytest.raises(ImageError, match=f"model 'digits': {address} cannot be read"):
            await fetch(address, tmp_path)
    with pytest.raises(ImageError, match="is not models:/<name>/<version>"):
        await fetch("models:/digits/Production", tmp_path)
