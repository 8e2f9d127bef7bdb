"""The addresses of this machine."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from azure.core.exceptions import AzureError

from controlled_rollout.addresses import azure_settings_for, is_loopback, is_this_machine, no_proxy_variables
from controlled_rollout.errors import ImageError
from controlled_rollout.image import ModelSource
from controlled_rollout.image.builders.build_secrets import build_variables
from controlled_rollout.image.builders.uv import find_uv
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.inputs.remote_models import fetch_remote_models
from controlled_rollout.storage.blob_account import container_client


def interface_address() -> str:
    """Return an address of this machine that other machines can reach; without a network the loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        try:
            unsent.connect(("203.0.113.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(unsent.getsockname()[0])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST", "localhost.", "127.1", "[::1]", "::1", "[::ffff:127.0.0.1]"],
)
def test_loopback_is_known_with_and_without_a_port(host: str) -> None:
    assert is_loopback(host)
    assert (":" in host.strip("[]") and not host.startswith("[")) or is_loopback(f"{host}:5000")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1.example", "localhost.example:5000", "10.0.0.1", "128.0.0.1:5000", "", "[::1", "::2"],
)
def test_a_name_that_only_looks_like_loopback_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "127.1.2.3",
            "localhost",
            "[::1]",
            interface_address(),
            "0.0.0.0",  # noqa: S104 - an address that is asked
            "[::]",
            "127.1",
            "2130706433",
        ),
        *("[::ffff:127.0.0.1]", "models.localhost", "localhost.", socket.gethostname()),
    ],
)
def test_an_address_of_this_machine_is_known_as_such(host: str) -> None:
    assert is_this_machine(f"http://{host}:8080/v1")


@pytest.mark.parametrize("host", ["203.0.113.1", "models.example", "localhost.example", "[2001:db8::1]", ""])
def test_an_address_elsewhere_or_one_that_a_name_server_chooses_is_not(host: str) -> None:
    assert not is_this_machine(f"http://{host}:8080/v1")


def test_invalid_url_is_not_this_machine() -> None:
    assert not is_this_machine("http://[::1")


@pytest.mark.parametrize(
    ("environment", "no_proxy"),
    [
        ({}, None),
        ({"no_proxy": "a.example", "http_proxy": ""}, None),
        ({"http_proxy": "http://p"}, "localhost,127.0.0.1,127.0.0.0/8,::1"),
        (
            {"HTTPS_PROXY": "http://p", "no_proxy": "a.example, localhost", "NO_PROXY": ".b.example"},
            "a.example,localhost,.b.example,127.0.0.1,127.0.0.0/8,::1",
        ),
        ({"all_proxy": "http://p", "NO_PROXY": "*"}, "*"),
    ],
)
def test_other_programs_are_told_to_reach_this_machine_without_a_proxy(
    environment: dict[str, str], no_proxy: str | None
) -> None:
    assert no_proxy_variables(environment) == (
        {"no_proxy": no_proxy, "NO_PROXY": no_proxy} if no_proxy is not None else {}
    )


def test_azures_clients_reach_this_machine_without_a_proxy_and_with_the_environments_certificates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/ca.crt")

    assert azure_settings_for("http://127.0.0.1:10000/a") == {
        "use_env_settings": False,
        "connection_verify": "/ca.crt",
    }
    assert azure_settings_for("https://account.blob.core.windows.net") == {}


class Recorder(ThreadingHTTPServer):
    """Answers 404 to everything, and keeps the paths."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _NotFound)
        self.paths: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class _NotFound(BaseHTTPRequestHandler):
    server: Recorder

    def handle_any(self) -> None:
        self.server.paths.append(self.path)
        self.send_error(404)

    do_GET = do_HEAD = do_CONNECT = do_POST = handle_any

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Recorder() as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def test_an_index_on_this_machine_is_asked_without_a_proxy(proxy: Recorder, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("six\n")
    with Recorder() as index:
        url = f"http://127.0.0.1:{index.server_port}/simple"
        command = [find_uv(), "pip", "compile", "--no-cache", "--default-index", url, "in.txt"]
        subprocess.run(command, cwd=tmp_path, env=build_variables(()), capture_output=True)
        index.shutdown()

    assert index.paths == ["/simple/six/"]
    assert proxy.paths == []


async def test_a_model_on_this_machine_is_fetched_without_a_proxy(proxy: Recorder, tmp_path: Path) -> None:
    with Recorder() as store:
        model = ModelSource("m", f"http://127.0.0.1:{store.server_port}/model.pkl")
        with pytest.raises(ImageError):
            await fetch_remote_models([model], Cache.at(tmp_path))
        store.shutdown()

    assert "/model.pkl" in store.paths
    assert proxy.paths == []


def test_a_record_in_an_emulator_on_this_machine_is_kept_without_a_proxy(
    proxy: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recorder() as emulator:
        account = f"http://127.0.0.1:{emulator.server_port}/devstoreaccount1"
        monkeypatch.setenv(
            "AZURE_STORAGE_CONNECTION_STRING",
            f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=a2V5;BlobEndpoint={account}",
        )
        client, _ = container_client(f"{account}/records/x", 0)
        with pytest.raises(AzureError):
            client.get_blob_client("a").download_blob().readall()
        emulator.shutdown()

    assert [path.partition("?")[0] for path in emulator.paths] == ["/devstoreaccount1/records/a"]
    assert proxy.paths == []
