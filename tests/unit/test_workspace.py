"""The folders of a workspace."""

import pwd
from pathlib import Path

import pytest

from controlled_rollout.cli.workspace_file import read_workspace
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.storage.blob_account import BlobAddress
from controlled_rollout.workspace import Workspace

BLOBS = "https://account.blob.core.windows.net/rollouts"
CLUSTER = {"target": "kubernetes", "gateway": "gateway/models", "namespace": "models"}


def test_workspaces_of_a_user_share_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTROLLED_ROLLOUT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    first, second = Workspace.local(tmp_path / "first"), Workspace.from_settings({"root": str(tmp_path / "second")})

    assert first.root != second.root
    assert first.cache_folder == second.cache_folder == tmp_path / "controlled-rollout" / "images"


def test_a_variable_chooses_the_cache_of_all_workspaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROLLED_ROLLOUT_CACHE", str(tmp_path / "cache"))

    assert Workspace.local(tmp_path).cache_folder == tmp_path / "cache"


def test_a_setting_chooses_the_cache_of_one_workspace(tmp_path: Path) -> None:
    settings = {"root": str(tmp_path), "cache_folder": str(tmp_path / "own")}

    assert Workspace.from_settings(settings).cache_folder == tmp_path / "own"


def test_storage_is_in_the_workspaces_folder_unless_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert Workspace.local(tmp_path).storage_place == f"{tmp_path}/storage"
    assert Workspace.from_settings({"storage": "data"}).storage_place == f"{tmp_path}/data"
    assert Workspace.from_settings({"storage": f"{BLOBS}/team"}).storage_place == f"{BLOBS}/team"


def test_storage_in_a_workspace_file_is_relative_to_the_files_folder(tmp_path: Path) -> None:
    file = tmp_path / "team.yaml"
    for place, expected in (("data", f"{tmp_path}/data"), (BLOBS, BLOBS)):
        file.write_text(f"storage: {place}\n")
        assert read_workspace(file).storage_place == expected


def test_files_of_tls_belong_together_and_to_the_local_workspace(tmp_path: Path) -> None:
    pair = {"tls_certificate": "tls.crt", "tls_key": "~/tls.key"}
    file = tmp_path / "team.yaml"
    file.write_text("tls_certificate: tls.crt\ntls_key: tls.key\nendpoint_ca: ca.crt\n")

    assert not Workspace.from_settings({}).has_tls
    assert Workspace.from_settings({"tls": True}).has_tls
    assert Workspace.from_settings(pair).has_tls
    assert Workspace.from_settings(pair).tls_key == Path.home() / "tls.key"
    assert read_workspace(file).endpoint_ca == tmp_path / "ca.crt"
    for settings, problem in (
        ({"tls_certificate": "tls.crt"}, "belong together"),
        ({"tls_key": "tls.key"}, "belong together"),
        ({**CLUSTER, **pair}, "the Gateway's listener names the Secret with the certificate"),
        ({**CLUSTER, "tls": True, "endpoint_url": "http://models.example"}, "endpoint_url is plain http"),
    ):
        with pytest.raises(WorkspaceError, match=problem):
            Workspace.from_settings(settings)
    assert Workspace.from_settings({**CLUSTER, "tls": True, "endpoint_url": "https://models.example"}).tls


def test_data_is_summarised_by_duckdb_or_by_spark() -> None:
    assert Workspace.from_settings({}).data_engine == "duckdb"
    remote = "sc://spark.example:15002/;use_ssl=true;x-databricks-cluster-id=1"
    assert Workspace.from_settings({"data_engine": "spark", "spark_remote": remote}).spark_remote == remote
    assert Workspace.from_settings({"data_engine": "spark"}).spark_remote is None
    with pytest.raises(WorkspaceError, match="spark_remote is only for data_engine 'spark'"):
        Workspace.from_settings({"spark_remote": remote})


@pytest.mark.parametrize("remote", ["spark://host:7077", "sc://", "sc://host/;token=secret", "sc://u:secret@host", ""])
def test_a_spark_server_is_named_without_its_token(remote: str) -> None:
    with pytest.raises(WorkspaceError, match="SPARK_CONNECT_AUTHENTICATE_TOKEN") as refusal:
        Workspace.from_settings({"data_engine": "spark", "spark_remote": remote})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "place",
    [
        "https://account.blob.core.windows.net",
        "http://account.blob.core.windows.net/rollouts",
        f"{BLOBS}?sig=secret",
        "https://example.com/rollouts",
        "http://storage.example/account/rollouts",
        "http://10.0.0.7:10000/devstoreaccount1/rollouts",
        "https://user:word@storage.example/account/rollouts",
        "https://team.account.blob.core.windows.net/rollouts",
        "s3://bucket/rollouts",
        "abfs://rollouts/team",
        "file:/rollouts",
        7,
    ],
)
def test_storage_is_a_folder_or_a_container_without_signature(place: object) -> None:
    with pytest.raises(WorkspaceError, match="storage") as refusal:
        Workspace.from_settings({"storage": place})
    assert "sig=" not in str(refusal.value)


@pytest.mark.parametrize(
    ("address", "account", "is_azure"),
    [
        (BLOBS, "https://account.blob.core.windows.net", True),
        ("https://a12.blob.core.chinacloudapi.cn/rollouts/team", "https://a12.blob.core.chinacloudapi.cn", True),
        ("https://a12.blob.core.usgovcloudapi.net/rollouts", "https://a12.blob.core.usgovcloudapi.net", True),
        ("https://a12.z07.blob.storage.azure.net/rollouts", "https://a12.z07.blob.storage.azure.net", True),
        ("https://a12.blob.local.azurestack.external/rollouts", "https://a12.blob.local.azurestack.external", True),
        ("https://10.0.0.7:10000/devstoreaccount1/rollouts", "https://10.0.0.7:10000/devstoreaccount1", False),
        ("https://edge.example/account/rollouts/team/a", "https://edge.example/account", False),
        ("http://127.0.0.1:10000/devstoreaccount1/rollouts", "http://127.0.0.1:10000/devstoreaccount1", False),
    ],
)
def test_storage_may_be_in_any_cloud_and_at_a_private_host(address: str, account: str, is_azure: bool) -> None:
    assert Workspace.from_settings({"storage": address}).storage_place == address
    place = BlobAddress.parse(address)
    assert (place.account, place.container, place.is_azure) == (account, "rollouts", is_azure)


@pytest.mark.parametrize(
    ("settings", "folder", "address"),
    [
        ({}, "root/records", None),
        ({"storage": "data"}, "data/records", None),
        ({"storage": f"{BLOBS}/team/"}, "root/records", f"{BLOBS}/team/records"),
        ({"records": f"{BLOBS}/all"}, "root/records", f"{BLOBS}/all"),
        ({"records": f"{BLOBS}/all", "storage": "data"}, "data/records", f"{BLOBS}/all"),
        ({"records": f"{BLOBS}/all", "storage": f"{BLOBS}/team"}, "root/records", f"{BLOBS}/all"),
        (CLUSTER, "root/records/models", None),
        ({**CLUSTER, "storage": f"{BLOBS}/team/"}, "root/records/models", f"{BLOBS}/team/records/models"),
        ({**CLUSTER, "records": f"{BLOBS}/all"}, "root/records/models", f"{BLOBS}/all"),
    ],
)
def test_records_are_in_the_storage_unless_one_of_both_is_not_set(
    settings: dict[str, str], folder: str, address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace.from_settings({"root": "root", **settings})

    assert (workspace.records_folder, workspace.records_address) == (tmp_path / folder, address)


@pytest.mark.parametrize(("setting", "variable"), [("root", "HOME"), ("cache_folder", "CACHE")])
def test_a_user_without_a_home_is_told_which_folder_to_name(
    setting: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with a user id of its own: nothing may land in a folder that is called `~`."""

    def nameless(user_id: int) -> pwd.struct_passwd:
        raise KeyError(user_id)

    for name in ("HOME", "XDG_CACHE_HOME", "CONTROLLED_ROLLOUT_HOME", "CONTROLLED_ROLLOUT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nameless)
    other = {"root", "cache_folder"} - {setting}

    with pytest.raises(WorkspaceError, match=rf"{setting} = '~.*\$CONTROLLED_ROLLOUT_{variable}"):
        Workspace.from_settings({name: str(tmp_path) for name in other})


@pytest.mark.parametrize("value", [2026, ["a"], "a\0b"])
def test_a_folder_that_is_no_path_is_refused(value: object) -> None:
    with pytest.raises(WorkspaceError, match="is no path"):
        Workspace.from_settings({"root": value})


def test_records_of_clusters_are_apart_by_namespace(tmp_path: Path) -> None:
    """Endpoints of one name in two workspaces that share a folder are two endpoints: each has a record of its own."""
    cluster = {**CLUSTER, "root": str(tmp_path)}
    workspaces = [
        Workspace.local(tmp_path),
        *(Workspace.from_settings({**cluster, "namespace": name}) for name in ("staging", "production")),
    ]

    assert len({workspace.records_folder for workspace in workspaces}) == 3


def test_a_command_in_a_message_names_its_workspace(tmp_path: Path) -> None:
    assert Workspace.local("/a b").local_command("up") == "controlled-rollout local up --root '/a b'"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gateway": "models"}, "gateway: give the name of a Gateway, as namespace/name"),
        ({"osv_url": "https://me:hunter2@osv.example"}, "osv_url: give an address such as https://api"),
        ({"records": "https://a.example/x?sig=hunter2"}, "records: give an address in Azure Blob Storage"),
        ({"target": "kubernetes"}, "target 'kubernetes' needs the setting gateway"),
    ],
)
def test_a_wrong_setting_says_what_it_has_to_be_and_not_its_value(settings: dict[str, str], message: str) -> None:
    with pytest.raises(WorkspaceError) as refused:
        Workspace.from_settings(settings)

    assert message in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "known are" not in str(refused.value)


def test_all_settings_that_contradict_each_other_are_said_at_once() -> None:
    with pytest.raises(WorkspaceError) as refused:
        Workspace.from_settings(
            {"target": "kubernetes", "tls_key": "a", "spark_remote": "sc://a", "builder_namespace": "default"}
        )
    said = ("needs the setting gateway", "belong together", "only for data_engine", "are both 'default'")
    assert [words for words in said if words not in str(refused.value)] == []
