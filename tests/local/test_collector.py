"""The collector as a process of its own, shipping to Azure Blob Storage (Azurite) and to folders that fail."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient, ContainerSasPermissions, generate_container_sas

from controlled_rollout.target.local import supervisor
from controlled_rollout.target.local.supervisor_state import SupervisorState
from controlled_rollout.workspace import Workspace
from controlled_rollout_collector.shipping import SpoolShipper
from controlled_rollout_collector.storage import BlobStorage, FolderStorage, StorageError
from tests.azurite import ACCOUNT, KEY, serving_blobs
from tests.polling import wait_until
from tests.small_disk import fill, small_disk
from tests.unit.collector.spools import SpoolWriter, exchange, make_spool

PACKAGE = Path(__file__).parents[2] / "docker" / "collector"
CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
SAS_FILE = "AZURE_STORAGE_SAS_TOKEN_FILE"
# As a pod's environment describes its spool: no target beside it could write spool.json.
POD = {
    "COLLECTOR_SPOOL": json.dumps({"endpoint": "digits", "version": "v1"}),
    "COLLECTOR_REPLICA": "replica-1",
}


@pytest.fixture(scope="module")
def connection_string(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_blobs(tmp_path_factory.mktemp("blobs")) as connection_string:
        yield connection_string


@pytest.fixture
def container(connection_string: str, tmp_path: Path) -> Iterator[ContainerClient]:
    """A container that does not exist yet."""
    name = tmp_path.name.replace("_", "").lower()[-40:]
    with BlobServiceClient.from_connection_string(connection_string) as service:
        yield service.get_container_client(f"c{name}")


def address(container: ContainerClient) -> str:
    return f"{container.url.partition('?')[0]}/team"


def requests(container: ContainerClient, collection: str) -> Counter[str]:
    """Return how often each request is in a collection in blobs."""
    counts: Counter[str] = Counter()
    for name in container.list_blob_names(name_starts_with=f"team/collected/digits/v1/{collection}/"):
        table = pq.read_table(pa.BufferReader(container.download_blob(name).readall()))
        counts.update(table.column("$request_id").to_pylist())
    return counts


def once(count: int) -> Counter[str]:
    return Counter({f"id-{number}": 1 for number in range(count)})


class CollectorProcess:
    """A collector that was started."""

    def __init__(self, spools: Path, storage: str, log: Path, environment: dict[str, str], *arguments: str) -> None:
        self.spools = spools
        self.log = log
        command = [sys.executable, "-m", "controlled_rollout_collector", "--spools", str(spools), "--storage", storage]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--interval", "0.02", *arguments],
                env=os.environ | {"PYTHONPATH": str(PACKAGE)} | environment,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def status(self) -> dict[str, Any]:
        """What it says of itself; nothing before its first round."""
        try:
            status: dict[str, Any] = json.loads((self.spools / "collector.json").read_text())
        except FileNotFoundError:
            return {}
        return status

    def has_shipped(self, count: int) -> bool:
        """Whether so many records are in the storage and none waits."""
        states = self.status().get("spools", [])
        return sum(state["shipped"] for state in states) == count and not any(s["pending_bytes"] for s in states)


@contextmanager
def collector(
    spools: Path, storage: str, environment: dict[str, str] | None = None, *arguments: str
) -> Iterator[CollectorProcess]:
    """Run a collector in the block."""
    process = CollectorProcess(spools, storage, spools.parent / "log", environment or {}, *arguments)
    try:
        yield process
    finally:
        process.kill()


def test_killed_again_and_again_the_collector_ships_each_request_once(
    tmp_path: Path, connection_string: str, container: ContainerClient
) -> None:
    container.create_container()
    spools = tmp_path / "spools"
    writers = [SpoolWriter(make_spool(spools, replica=f"replica-{number}")) for number in range(2)]
    environment = {CONNECTION_STRING: connection_string}
    written = 0

    def append() -> None:
        """Append a request to each spool, and begin new segments now and then."""
        nonlocal written
        for writer in writers:
            if written % 10 == 0:
                writer.begin_segment()
            writer.append(*exchange(written))
            written += 1

    for kill in range(3):
        progress = writers[kill % 2].spool / "shipped.state"
        before = progress.stat().st_mtime_ns if progress.exists() else 0

        def is_at_work(progress: Path = progress, before: int = before) -> bool:
            """Append, and return whether the collector has shipped something since it was started."""
            append()
            return progress.exists() and progress.stat().st_mtime_ns > before

        with collector(spools, address(container), environment):
            wait_until(is_at_work, "the collector ships")
    for writer in writers:
        writer.end()
        (writer.spool / "ended").touch()
    with collector(spools, address(container), environment) as last:
        wait_until(lambda: not list(spools.glob("*/*/*/spool.json")), "all spools are shipped and deleted")
        assert last.end() == 0

    assert requests(container, "inputs") == requests(container, "predictions") == once(written)
    states = [
        json.loads(container.download_blob(name).readall())
        for name in container.list_blob_names(name_starts_with="team/collected/digits/v1/_state/")
    ]
    assert sorted(state["shipped"] for state in states) == [written // 2] * 2
    assert all(state["final"] for state in states)


def test_a_collector_that_gets_sigterm_ships_what_is_left_and_in_a_pod_that_is_final(
    tmp_path: Path, connection_string: str, container: ContainerClient
) -> None:
    container.create_container()
    writer = SpoolWriter(make_spool(tmp_path / "spools"))
    (writer.spool / "spool.json").unlink()
    environment = {CONNECTION_STRING: connection_string, **POD}
    with collector(writer.spool, address(container), environment, "--interval", "60", "--sidecar") as process:
        wait_until(lambda: process.status(), "the first round")
        writer.append_exchanges(20)
        writer.end()

        assert process.end() == 0

    assert requests(container, "inputs") == once(20)
    name = "team/collected/digits/v1/_state/replica-1.json"
    assert json.loads(container.download_blob(name).readall())["final"]


def test_in_a_pod_a_collector_that_dies_is_started_again_and_its_container_goes_on(
    tmp_path: Path, connection_string: str, container: ContainerClient
) -> None:
    container.create_container()
    writer = SpoolWriter(make_spool(tmp_path / "spools"))
    environment = {CONNECTION_STRING: connection_string, **POD}
    with collector(writer.spool, address(container), environment, "--sidecar") as process:
        for kill in range(2):
            writer.append_exchanges(10, first=10 * kill)
            wait_until(partial(process.has_shipped, 10 * kill + 10), "it ships")
            os.kill(child_of(process.process.pid), signal.SIGKILL)
        wait_until(lambda: "it starts again in 1 s" in process.log.read_text(), "its container has seen it")
        writer.append_exchanges(10, first=20)
        writer.end()

        # While nothing runs but what starts it again.
        assert process.end() == 0

    assert requests(container, "inputs") == once(30)
    assert "the collector has ended (exit code -9): it starts again in 0.5 s" in process.log.read_text()


def test_in_a_pod_settings_that_cannot_be_used_end_the_container(tmp_path: Path) -> None:
    with collector(tmp_path / "spools", str(tmp_path / "storage"), {}, "--sidecar") as process:
        assert process.process.wait(30) == 2

    assert "COLLECTOR_SPOOL and COLLECTOR_REPLICA do not describe the spool" in process.log.read_text()


def child_of(parent: int) -> int:
    """Return the process id of a process's only child."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        return len(found) == 1

    wait_until(is_there, "there is a child")
    return found[0]


def test_the_supervisor_hands_the_credential_of_its_shell_to_the_collector_alone(
    tmp_path: Path, connection_string: str, container: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.create_container()
    monkeypatch.setenv(CONNECTION_STRING, connection_string)
    workspace = Workspace.from_settings({"root": str(tmp_path / "root"), "storage": address(container)})
    assert supervisor.start_workspace(workspace, port=0, detach=True) == 0
    try:
        state = SupervisorState.read(workspace)
        assert state is not None
        writer = SpoolWriter(make_spool(workspace.spools_folder))
        writer.append_exchanges(5)
        writer.end()
        (writer.spool / "ended").touch()

        wait_until(lambda: not writer.spool.exists(), "the spool is shipped and deleted")

        assert requests(container, "inputs") == once(5)
        for what in ("environ", "cmdline"):
            assert KEY.encode() not in Path(f"/proc/{state.pid}/{what}").read_bytes()
    finally:
        assert supervisor.stop_workspace(workspace) == 0
    files = [path for path in workspace.root.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]


def sas(container: ContainerClient, *, expires: datetime) -> str:
    return generate_container_sas(
        ACCOUNT,
        str(container.container_name),
        account_key=KEY,
        permission=ContainerSasPermissions(create=True, write=True),
        start=expires - timedelta(hours=2),
        expiry=expires,
    )


def test_a_signature_that_is_over_and_a_container_that_is_missing_are_named_and_lose_nothing(
    tmp_path: Path, container: ContainerClient
) -> None:
    spools = tmp_path / "spools"
    writer = SpoolWriter(make_spool(spools))
    writer.append_exchanges(5)
    token = tmp_path / "sas"
    token.write_text(sas(container, expires=datetime.now(UTC) - timedelta(hours=1)))

    with collector(spools, address(container), {SAS_FILE: str(token)}) as process:

        def problem(text: str) -> bool:
            """Whether the collector says so."""
            return text in (process.status().get("problem") or "")

        wait_until(lambda: problem("refuses the credential"), "the signature is over")
        assert process.status()["spools"][0]["pending_bytes"] > 0
        # The process reads the file again.
        token.write_text(sas(container, expires=datetime.now(UTC) + timedelta(hours=1)))
        wait_until(lambda: problem("does not exist: create the container"), "the container is missing")
        writer.append_exchanges(5, first=5)
        container.create_container()
        wait_until(lambda: process.has_shipped(10), "all is shipped")
    writer.end()

    assert requests(container, "inputs") == once(10)
    log = (tmp_path / "log").read_text()
    assert log.count("refuses the credential") == 1
    assert "sig=" not in log


@contextmanager
def silent_server() -> Iterator[str]:
    """Listen on a port and never answer; give the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/{ACCOUNT}/container"


def test_a_storage_that_does_not_answer_loses_nothing(
    tmp_path: Path, connection_string: str, container: ContainerClient
) -> None:
    container.create_container()
    writer = SpoolWriter(make_spool(tmp_path / "spools"))
    writer.append_exchanges(5)
    with silent_server() as silent:
        # The connection string is for another account, so it is not tried, and the message says so.
        signed = {"AZURE_STORAGE_SAS_TOKEN": "sv=2021-08-06&sig=abc", CONNECTION_STRING: connection_string}
        down = BlobStorage(silent, signed, connect_timeout_s=0.1, read_timeout_s=0.1)
        with pytest.raises(StorageError, match=r"cannot be reached: .*is for another account, http://127") as error:
            SpoolShipper(writer.spool, down).ship()
        assert not any(secret in str(error.value) for secret in ("sig=", KEY))
        writer.append_exchanges(5, first=5)

    SpoolShipper(writer.spool, BlobStorage(address(container), {CONNECTION_STRING: connection_string})).ship()
    writer.end()

    assert requests(container, "inputs") == once(10)


def test_a_collector_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "controlled_rollout_collector", "--exit-with-parent", "--interval", "0.1"]
    command += ["--spools", str(tmp_path / "spools"), "--storage", str(tmp_path / "storage")]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    with subprocess.Popen(
        ["sh", "-c", '"$@" & echo $!; wait', "sh", *command], stdout=subprocess.PIPE, env=environment
    ) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        wait_until((tmp_path / "spools" / "collector.json").exists, "the first round")
        shell.kill()
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the collector has ended")


def test_only_one_collector_ships_a_folder(tmp_path: Path) -> None:
    with collector(tmp_path / "spools", str(tmp_path / "storage")) as first:
        wait_until(lambda: first.status(), "the first round")
        with collector(tmp_path / "spools", str(tmp_path / "storage")) as second:
            assert second.process.wait(30) == 2

    assert "another collector ships the spools" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "storage",
    [
        "data",
        "s3://bucket/x",
        "https://account.blob.core.windows.net",
        "https://a.blob.core.windows.net/c?sig=x",
        "http://10.0.0.7:10000/account/container",
    ],
)
def test_a_storage_that_is_none_is_refused_and_no_signature_is_shown(tmp_path: Path, storage: str) -> None:
    with collector(tmp_path / "spools", storage) as process:
        assert process.process.wait(30) == 2

    log = (tmp_path / "log").read_text()
    assert "the storage" in log and "sig=" not in log


def test_the_environment_of_the_collector_cannot_be_read_by_other_processes_of_its_user(tmp_path: Path) -> None:
    with collector(tmp_path / "spools", str(tmp_path / "storage"), {CONNECTION_STRING: "secret"}) as process:
        wait_until(lambda: process.status(), "the first round")

        # Root may read it all the same.
        assert Path(f"/proc/{process.process.pid}/environ").stat().st_uid == 0


def test_a_spool_on_a_full_disk_is_shipped(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        writer = SpoolWriter(make_spool(disk / "spools"))
        writer.append_exchanges(10)
        storage = FolderStorage(tmp_path / "storage")
        shipper = SpoolShipper(writer.spool, storage)
        fill(disk)

        shipper.ship()
        writer.end()
        (writer.spool / "ended").touch()
        state = SpoolShipper(writer.spool, storage).ship()

    assert (state.shipped, state.final) == (10, True)


def test_a_storage_on_a_full_disk_gets_all_once_there_is_space_again(tmp_path: Path) -> None:
    writer = SpoolWriter(make_spool(tmp_path / "spools"))
    writer.append_exchanges(10)
    with small_disk(tmp_path / "disk", "1m") as disk:
        ballast = fill(disk)
        storage = FolderStorage(disk / "storage")
        with pytest.raises(StorageError, match="free space on its disk"):
            SpoolShipper(writer.spool, storage).ship()
        assert not [path for path in disk.rglob("*") if path.is_file() and path != ballast]
        ballast.unlink()

        SpoolShipper(writer.spool, storage).ship()
        writer.end()

        parts = sorted((disk / "storage").rglob("inputs/**/*.parquet"))
        assert Counter(_ids(parts)) == once(10)


def test_a_clock_that_is_wrong_or_steps_back_loses_and_doubles_nothing(tmp_path: Path) -> None:
    writer = SpoolWriter(make_spool(tmp_path / "spools"))
    times = [0.0, -5.0, float("nan"), 4e12, 1_795_867_200.0, 1_795_780_800.0]
    storage = FolderStorage(tmp_path / "storage")
    for number, time in enumerate(times):
        head, asked, answered = exchange(number)
        writer.append({**head, "time": time}, asked, answered)
        SpoolShipper(writer.spool, storage, clock=lambda time=time: time).ship()  # type: ignore[misc]
    writer.end()

    parts = sorted((tmp_path / "storage").rglob("inputs/**/*.parquet"))
    assert Counter(_ids(parts)) == once(len(times))
    assert {"/".join(part.parts[-4:-1]) for part in parts} == {"1970/01/01", "2026/11/28", "2026/11/27"}


def _ids(parts: Sequence[Path]) -> list[str]:
    """Return the request ids in parts."""
    return [name for part in parts for name in pq.ParquetFile(part).read().column("$request_id").to_pylist()]
