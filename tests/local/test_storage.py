"""The workspace's storage: the same promises for a folder and for Azure Blob Storage (Azurite)."""

import json
import os
import runpy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.storage.blob import BlobServiceClient, ContentSettings

from controlled_rollout import record, version_of_run
from controlled_rollout.checks.connectivity import _check_storage
from controlled_rollout.cli import main
from controlled_rollout.errors import StorageError, StoredFileNotFoundError, WorkspaceError
from controlled_rollout.record import Decision
from controlled_rollout.storage import Storage, hand_over_model, open_storage, storage_at
from controlled_rollout.workspace import Workspace, user_cache
from tests.airflow_home import DAGS
from tests.azurite import ACCOUNT, CONTAINER
from tests.local.local_target_lab import ENVIRONMENT
from tests.local.task_lab import CONNECTION, TaskInstance, context


@pytest.fixture(params=["folder", "blobs"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    """A workspace whose storage is empty."""
    place = str(tmp_path / "data")
    if request.param == "blobs":
        place = f"{request.getfixturevalue('blobs').url.rstrip('/')}/{CONTAINER}/{tmp_path.name}/team"
    return Workspace.from_settings({"root": str(tmp_path / "root"), "storage": place})


@pytest.fixture
def storage(workspace: Workspace) -> Storage:
    return open_storage(workspace)


def names(storage: Storage, prefix: str = "") -> list[str]:
    return [file.name for file in storage.list(prefix)]


def test_what_is_written_is_read_listed_and_deleted(storage: Storage, tmp_path: Path) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    assert names(storage) == []

    stored = storage.put("models/digits/v1/model.joblib", b"one")
    again = storage.put("models/digits/v1/model.joblib", b"three")

    assert (stored.size, again.size) == (3, 5)
    assert stored.etag != again.etag
    assert list(storage.list()) == [again]
    assert before <= again.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert storage.get("models/digits/v1/model.joblib") == b"three"
    storage.download("models/digits/v1/model.joblib", tmp_path / "new" / "model")
    assert (tmp_path / "new" / "model").read_bytes() == b"three"

    storage.delete("models/digits/v1/model.joblib")
    storage.delete("models/digits/v1/model.joblib")
    assert names(storage) == []
    assert not (tmp_path / "data" / "models").exists()


@pytest.mark.parametrize(("content", "length"), [(b"0123456789", 4), (b"0123456789", 10), (b"01", 4), (b"", 4)])
def test_the_end_of_a_file_is_read(storage: Storage, content: bytes, length: int) -> None:
    storage.put("collected/part.parquet", content)
    assert storage.get_end("collected/part.parquet", length) == content[-length:]
    with pytest.raises(StoredFileNotFoundError):
        storage.get_end("collected/other.parquet", length)


def test_names_are_listed_in_order_by_the_beginning_of_their_text(storage: Storage) -> None:
    for name in ("b", "a/2", "a/10", "a-1", "aa/1", "a/b/c"):
        storage.put(name, b"")

    assert names(storage) == ["a-1", "a/10", "a/2", "a/b/c", "aa/1", "b"]
    assert names(storage, "a/") == ["a/10", "a/2", "a/b/c"]
    assert names(storage, "a/b") == ["a/b/c"]
    assert names(storage, "a") == ["a-1", "a/10", "a/2", "a/b/c", "aa/1"]
    assert names(storage, "c/") == names(storage, "b/") == []


def test_a_large_file_is_sent_in_pieces_and_arrives_unchanged(storage: Storage, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(os.urandom(20 * 2**20 + 1))

    assert storage.put("models/model.bin", file).size == file.stat().st_size
    storage.download("models/model.bin", tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    with pytest.raises(StorageError, match="1,000 are allowed"):
        storage.get("models/model.bin", limit=1_000)


def test_a_file_that_is_not_there_is_an_error_of_its_own_that_names_it(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("old")

    with pytest.raises(StoredFileNotFoundError, match=r"there is no .*/absent/model\.bin"):
        storage.get("absent/model.bin")
    with pytest.raises(StoredFileNotFoundError, match=r"there is no .*/absent/model\.bin"):
        storage.download("absent/model.bin", tmp_path / "kept")
    with pytest.raises(StorageError, match=r"nothing\.bin"):
        storage.put("models/nothing.bin", tmp_path / "nothing.bin")

    assert (tmp_path / "kept").read_text() == "old"
    assert names(storage) == []


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/.", "a.unfinished", "a.", "a\\b", "a\nb", "a" * 801],
)
def test_a_name_that_could_lead_elsewhere_is_refused(storage: Storage, name: str, tmp_path: Path) -> None:
    uses: list[Callable[[str], object]] = [
        storage.get,
        storage.delete,
        storage.address_of,
        lambda name: storage.put(name, b""),
        lambda name: storage.download(name, tmp_path / "a"),
    ]
    if name not in ("", "a/", "a."):  # names may begin so
        uses.append(lambda name: list(storage.list(name)))
    for use in uses:
        with pytest.raises(StorageError, match="not the name of a file in the storage"):
            use(name)


def test_an_upload_that_fails_leaves_the_former_file(storage: Storage, tmp_path: Path) -> None:
    storage.put("models/model.bin", b"old")
    (tmp_path / "folder").mkdir()

    with pytest.raises(StorageError):
        storage.put("models/model.bin", tmp_path / "folder")

    assert storage.get("models/model.bin") == b"old"
    assert names(storage) == ["models/model.bin"]


async def test_the_check_of_a_workspace_writes_reads_and_deletes(workspace: Workspace, storage: Storage) -> None:
    assert (await _check_storage(workspace)) == f"{storage.address}: can be written"
    assert names(storage) == []


def test_records_are_in_the_storage_that_is_set(workspace: Workspace, storage: Storage) -> None:
    decision = Decision(
        time=datetime(2026, 1, 5, tzinfo=UTC),
        endpoint="digits",
        version="v2a",
        step="shift",
        who="somebody",
        reason="1",
    )
    record.append(workspace, decision)

    assert list(record.read(workspace, "digits")) == [decision]
    assert all(name.startswith("records/digits") for name in names(storage)) and names(storage)
    assert not (workspace.root / "records").exists()


def test_storage_that_is_away_is_an_error_that_names_it_and_what_to_do(
    blobs: BlobServiceClient, tmp_path: Path
) -> None:
    address = blobs.url.rstrip("/")
    (tmp_path / "data").write_text("not a folder")

    with pytest.raises(StorageError, match=r"/nothing/a cannot be .*create the container first"):
        storage_at(f"{address}/nothing").put("a", b"")
    with pytest.raises(StorageError, match=r"/nothing cannot be .*create the container first"):
        list(storage_at(f"{address}/nothing").list())
    with pytest.raises(StorageError, match=r"/data.* cannot be read or written"):
        storage_at(str(tmp_path / "data")).put("a", b"")
    with pytest.raises(WorkspaceError, match="an identity's token is sent to https"):
        storage_at(f"{address.replace(ACCOUNT, 'another')}/{CONTAINER}").get("a")


def test_a_blob_with_another_md5_than_its_content_is_not_kept(blobs: BlobServiceClient, tmp_path: Path) -> None:
    storage = storage_at(f"{blobs.url.rstrip('/')}/{CONTAINER}/{tmp_path.name}")
    storage.put("model.bin", b"content")
    wrong = ContentSettings(content_md5=bytearray(16))
    blobs.get_blob_client(CONTAINER, f"{tmp_path.name}/model.bin").set_http_headers(content_settings=wrong)

    with pytest.raises(StorageError, match="another length or MD5"):
        storage.download("model.bin", tmp_path / "model.bin")

    assert list(tmp_path.iterdir()) == []


def test_a_report_in_a_container_is_shown_by_a_browser(blobs: BlobServiceClient, tmp_path: Path) -> None:
    storage_at(f"{blobs.url.rstrip('/')}/{CONTAINER}/{tmp_path.name}").put("report.html", b"<h1>report</h1>")

    kept = blobs.get_blob_client(CONTAINER, f"{tmp_path.name}/report.html").get_blob_properties()
    assert kept.content_settings.content_type == "text/html; charset=utf-8"


def test_unfinished_files_are_not_listed_and_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    storage = storage_at(str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".1.unfinished").write_text("")
    (tmp_path / "a" / "link").symlink_to("/etc")
    os.mkfifo(tmp_path / "a" / "pipe")

    assert names(storage) == []
    with pytest.raises(StorageError, match="not a regular file"):
        storage.get("a/pipe")


def test_a_model_is_handed_over_again_by_a_retry_without_what_the_first_try_left(
    storage: Storage, tmp_path: Path
) -> None:
    model = tmp_path / "trained"
    (model / "weights").mkdir(parents=True)
    (model / "weights" / "a.bin").write_bytes(b"a" * 1_000)
    (model / ".gitattributes").write_text("")
    (model / "left").write_text("of the first try")
    storage.put("models/digits/v1/trained-before", b"another model of this version")
    hand_over_model(storage, model, endpoint="digits", version="v1")
    (model / "left").unlink()

    address = hand_over_model(storage, model, endpoint="digits", version="v1")

    assert address == storage.address_of("models/digits/v1/trained")
    assert names(storage) == [
        "models/digits/v1/trained-before",
        "models/digits/v1/trained/.gitattributes",
        "models/digits/v1/trained/weights/a.bin",
    ]


def test_what_is_no_model_is_not_handed_over(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd" / "pipe")

    for path in (tmp_path / "empty", tmp_path / "absent", tmp_path / "odd"):
        with pytest.raises(StorageError, match=r"is no model|is neither a file nor a folder"):
            hand_over_model(storage, path, endpoint="digits", version="v1")
    assert names(storage) == []


def test_clean_shows_and_then_deletes_old_models_that_were_handed_over_and_old_reports(
    workspace: Workspace, storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").write_bytes(b"0" * 2_000_000)
    address = hand_over_model(storage, tmp_path / "model", endpoint="digits", version="v1")
    storage.put("collected/digits/v1/part", b"is not clean's")
    storage.put("reports/digits/v1/monday.html", b"0" * 1_000_000)
    file = tmp_path / "workspace.yaml"
    file.write_text(f"root: {workspace.root}\ncache_folder: {tmp_path}/cache\nstorage: {workspace.storage}\n")
    options = ["--workspace", str(file)]

    assert main(["clean", *options]) == 0
    assert "model" not in capsys.readouterr().out
    assert main(["clean", *options, "--older-than", "0 s"]) == 0
    shown = capsys.readouterr().out
    assert address.removesuffix("/model") in shown and "3.0 MB can be freed" in shown and "monday.html" in shown
    assert names(storage, "models/") == ["models/digits/v1/model"]

    assert main(["clean", *options, "--older-than", "0 s", "--yes"]) == 0
    assert "3.0 MB freed" in capsys.readouterr().out
    assert names(storage) == ["collected/digits/v1/part"]


@pytest.mark.timeout(600)
def test_retrain_and_deploy_hands_its_model_over_to_a_worker_that_shares_no_disk(
    blobs: BlobServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, each with a root of its own. What one has trained, the other builds into the image."""
    place = f"{blobs.url.rstrip('/')}/{CONTAINER}/{tmp_path.name}"

    def on_worker(name: str) -> Path:
        """Let the tasks' connection be that of one worker; return its folder."""
        settings = {"root": str(tmp_path / name), "storage": place}
        monkeypatch.setenv(CONNECTION, json.dumps({"conn_type": "controlled_rollout", "extra": settings}))
        return tmp_path / name

    project = tmp_path / "project"
    project.mkdir()
    (project / "score.py").write_text("def init(): ...\ndef run(data): return data\n")
    (project / "environment.yml").write_text(ENVIRONMENT)
    dag = runpy.run_path(str(DAGS / "retrain_and_deploy.py"))["dag"]
    run = SimpleNamespace(dag_id="retrain_and_deploy", run_id="manual", run_after=datetime(2026, 1, 5, tzinfo=UTC))
    train = dag.get_task("train").python_callable

    trainer = on_worker("trainer")
    address = train(endpoint="digits", part="first", dag_run=run)
    first = storage_at(place).get(address.removeprefix(f"{place}/"))
    assert train(endpoint="digits", part="first", dag_run=run) == address  # as a retry does
    assert names(storage_at(place)) == [f"models/digits/{version_of_run(run)}/model.joblib"]
    assert storage_at(place).get(address.removeprefix(f"{place}/")) == first
    assert not trainer.exists()

    on_worker("builder")
    task = dag.get_task("build_image")
    task.source_dir, task.entry_script, task.name, task.models = str(project), "score.py", "digits", {"digits": address}
    image = task.execute(context(TaskInstance("manual", "build_image", "retrain_and_deploy")))

    [model] = user_cache().glob(f"images/{image.partition('@sha256:')[2]}/**/model.joblib")
    assert model.read_bytes() == first
