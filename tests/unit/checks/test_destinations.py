"""Which servers a workspace needs, from the worker and from the pods."""

from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.checks.connectivity import version_to_be
from controlled_rollout.checks.destinations import Wanted, destination_of, from_pods, from_worker
from controlled_rollout.checks.probe import Destination
from controlled_rollout.endpoint import Endpoint, Version
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

IMAGE = "registry.example/models/digits@sha256:" + "0" * 64
API = Destination("API server", "team.hcp.westeurope.azmk8s.io", 443)
AZURE = {
    "registry": "team.azurecr.io/models",
    "base_image": "python:3.11-slim",
    "storage": "https://team.blob.core.windows.net/data/ml",
    "telemetry_workspace_id": "11111111-2222-3333-4444-555555555555",
}


def cluster(folder: Path, **settings: Any) -> Workspace:
    return Workspace.from_settings(
        {"root": str(folder), "target": "kubernetes", "gateway": "gateway/models", "namespace": "models", **settings}
    )


def places(wanted: list[Wanted]) -> dict[str, tuple[str, bool]]:
    return {each.name: (f"{each.destination.host}:{each.destination.port}", each.needed) for each in wanted}


def test_worker_needs_all_parts_of_a_workspace_of_azure_but_the_tables(tmp_path: Path) -> None:
    wanted = from_worker(
        cluster(tmp_path, **AZURE), api_server=API, endpoints_url="https://models.example", environment={}
    )

    assert places(wanted) == {
        "API server": ("team.hcp.westeurope.azmk8s.io:443", True),
        "endpoints' address": ("models.example:443", True),
        "storage": ("team.blob.core.windows.net:443", True),
        "table storage": ("team.table.core.windows.net:443", False),
        "metric store": ("api.loganalytics.io:443", True),
        "sign-in": ("login.microsoftonline.com:443", True),
        "registry": ("team.azurecr.io:443", True),
        "base images": ("registry-1.docker.io:443", True),
    }


def test_sign_in_is_that_of_the_cloud_and_not_needed_with_secrets(tmp_path: Path) -> None:
    china = cluster(tmp_path, storage="https://team.blob.core.chinacloudapi.cn/data/ml", prometheus_url="http://p:9090")
    named = {"AZURE_AUTHORITY_HOST": "login.other.example"}
    by_string = {"AZURE_STORAGE_CONNECTION_STRING": "of a test"}

    assert places(from_worker(china, environment={}))["sign-in"] == ("login.chinacloudapi.cn:443", True)
    assert places(from_worker(china, environment=named))["sign-in"] == ("login.other.example:443", True)
    assert places(from_worker(china, environment=by_string))["sign-in"] == ("login.chinacloudapi.cn:443", False)
    assert places(from_worker(china, environment={}))["metric store"] == ("p:9090", True)


def test_pods_need_what_their_collector_and_their_script_call(tmp_path: Path) -> None:
    settings = AZURE | {
        "collector_image": IMAGE,
        "collector_service_account": "collector",
    }
    plain = Version(name="one", image=IMAGE)
    collects = Version(name="one", image=IMAGE, collect_model_data=True)

    def needed(version: Version, own: tuple[str, ...] = ()) -> list[str]:
        wanted = from_pods(cluster(tmp_path, **settings), version, own=own, api_server=API, environment={})
        return [each.name for each in wanted if each.needed]

    assert needed(plain) == []
    assert needed(collects) == ["storage", "sign-in"]
    assert needed(plain, ("tcp://database.example:5432", "https://features.example/v1")) == [
        "database.example:5432",
        "features.example:443",
    ]


def test_local_workspace_probes_what_is_not_of_this_machine_itself(tmp_path: Path) -> None:
    local = Workspace.from_settings({"root": str(tmp_path)})
    azure = Workspace.from_settings({"root": str(tmp_path), "storage": AZURE["storage"]})

    assert from_worker(local, environment={}) == []
    assert list(places(from_worker(azure, own=["tcp://db.example:5432"], environment={}))) == [
        "storage", "table storage", "sign-in", "db.example:5432",
    ]  # fmt: skip


@pytest.mark.parametrize("url", ["models.example", "ftp://models.example", "https://", "tcp://host", "http://h:port"])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(WorkspaceError, match="not the address of a server"):
        destination_of("one", url)


@pytest.mark.parametrize("url", ["https://user:geheim@host.example/path", "ftp://user:geheim@host.example"])
def test_address_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(WorkspaceError) as refused:
        destination_of("one", url)
    assert "geheim" not in str(refused.value)


def test_query_of_an_address_is_not_sent() -> None:
    assert destination_of("one", "https://host.example/path?sig=geheim#x").path == "/path"


def test_too_many_destinations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="51 destinations are given, and at most 50"):
        from_worker(cluster(tmp_path), own=[f"tcp://host{number}:1" for number in range(51)], environment={})


def test_identity_is_that_of_the_named_version_else_of_control() -> None:
    endpoint = Endpoint(name="digits").create_version("one", image=IMAGE).create_version("two", image=IMAGE)

    assert [version_to_be(endpoint, name) for name in ("two", "", "of-this-rollout")] == [
        endpoint.version("two"), endpoint.version("one"), endpoint.version("one"),
    ]  # fmt: skip
    assert version_to_be(Endpoint(name="digits"), "") is None
