"""What nothing needs any more is found and deleted; what something needs, or may need, stays."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controlled_rollout.cli import main
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import DamagedFileError
from controlled_rollout.target.local.leftovers import find_leftovers
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.protocol import Change
from controlled_rollout.workspace import Workspace

LONG_AGO = time.time() - 90 * 86_400
USED, UNUSED, RUNNING, NEW = (digit * 64 for digit in "abcd")


def age(path: Path) -> None:
    """Let all files below a path look as if nobody had used them for long."""
    for each in (path, *path.rglob("*")):
        os.utime(each, (LONG_AGO, LONG_AGO), follow_symlinks=False)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with one endpoint, and in its cache, logs and records more than that needs."""
    workspace = Workspace.from_settings({"root": str(tmp_path / "root"), "cache_folder": str(tmp_path / "cache")})
    endpoint = Endpoint(name="digits").create_version("one", image=f"local/digits@sha256:{USED}")
    RevisionStore(workspace.endpoints_folder).store(endpoint, Change(who="a test", reason="to see"))
    for image in (USED, UNUSED, RUNNING, NEW):
        folder = workspace.cache_folder / "images" / image
        (folder / "app").mkdir(parents=True)
        (folder / "app" / "score.py").write_text("0" * 1_000)
        (folder / "image.json").write_text(json.dumps({"environment_hash": f"e{image[:10]}"}))
        environment = workspace.cache_folder / "environments" / f"e{image[:10]}" / "bin"
        environment.mkdir(parents=True)
        (environment / "python").write_text("")
    for version in ("digits/one", "digits/two", "letters/one"):
        folder = workspace.logs_folder / version
        folder.mkdir(parents=True)
        (folder / "1.log").write_text("0" * 1_000)
    workspace.records_folder.mkdir(parents=True)
    for name in ("digits.jsonl", "letters.jsonl", "letters.20260101T000000000000.jsonl"):
        (workspace.records_folder / name).write_text("{}\n")
    for version in ("digits/one", "digits/two"):
        (workspace.spools_folder / version).mkdir(parents=True)
        (workspace.spools_folder / version / "one-1-0000000a.json").write_text("{}")
    (workspace.spools_folder / "digits" / "three" / "three-1-0000000a").mkdir(parents=True)
    copies = workspace.cache_folder / "collected"
    copies.mkdir()
    for name in ("old", "new"):
        (copies / f"{name}.parquet").write_text("0" * 1_000)
    age(copies / "old.parquet")
    age(workspace.spools_folder)
    for kind in ("images", "environments"):
        for entry in (workspace.cache_folder / kind).iterdir():
            if NEW[:10] not in entry.name:
                age(entry)
    age(workspace.logs_folder)
    age(workspace.records_folder)
    return workspace


@pytest.fixture
def running(workspace: Workspace) -> "Callable[[], None]":
    """Run a process that names an image of the cache; return what ends it."""
    program = [sys.executable, "-c", "input()"]
    variables = os.environ | {"AML_APP_ROOT": str(workspace.cache_folder / "images" / RUNNING / "app")}
    process = subprocess.Popen(program, env=variables, stdin=subprocess.PIPE)

    def end() -> None:
        process.communicate(b"\n", timeout=30)

    return end


def test_clean_shows_and_then_deletes_what_nothing_needs(
    workspace: Workspace,
    running: "Callable[[], None]",
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = workspace.cache_folder
    monkeypatch.setenv("CONTROLLED_ROLLOUT_CACHE", str(cache))
    unused = {
        workspace.logs_folder / "digits" / "two",
        workspace.logs_folder / "letters" / "one",
        workspace.records_folder / "letters.jsonl",
        workspace.records_folder / "letters.20260101T000000000000.jsonl",
        cache / "images" / UNUSED,
        cache / "environments" / f"e{UNUSED[:10]}",
        cache / "collected" / "old.parquet",
        workspace.spools_folder / "digits" / "two",
    }

    assert main(["clean", "--root", str(workspace.root)]) == 0
    shown = capsys.readouterr().out
    assert {path for path in unused if str(path) in shown and path.exists()} == unused
    assert str(cache / "images" / RUNNING) not in shown

    assert main(["clean", "--root", str(workspace.root), "--output", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert not document["deleted"]
    assert {each["path"] for each in document["found"]} >= {str(path) for path in unused}
    assert document["bytes"] == sum(each["bytes"] for each in document["found"])

    assert main(["clean", "--root", str(workspace.root), "--yes"]) == 0
    running()

    assert "MB freed" in capsys.readouterr().out
    assert not any(path.exists() for path in unused)
    assert {path.name for path in (cache / "images").iterdir()} == {USED, RUNNING, NEW}
    assert len(list((cache / "environments").iterdir())) == 3
    assert (workspace.logs_folder / "digits" / "one" / "1.log").exists()
    assert (cache / "collected" / "new.parquet").exists()
    assert (workspace.spools_folder / "digits" / "one" / "one-1-0000000a.json").exists()
    assert (workspace.spools_folder / "digits" / "three" / "three-1-0000000a").exists()
    assert (workspace.records_folder / "digits.jsonl").exists()
    # What ran until now is unused from now on.
    left = {each.path for each in find_leftovers(workspace, before=time.time() - 86_400)}
    assert left == {cache / "images" / RUNNING, cache / "environments" / f"e{RUNNING[:10]}"}


def test_what_was_used_lately_stays(workspace: Workspace) -> None:
    assert find_leftovers(workspace, before=LONG_AGO - 86_400) == []


def test_nothing_is_deleted_while_an_endpoint_s_needs_are_not_known(workspace: Workspace) -> None:
    [revision] = (workspace.endpoints_folder / "digits" / "revisions").iterdir()
    revision.write_text('{"half')

    with pytest.raises(DamagedFileError, match="nothing was deleted"):
        find_leftovers(workspace, before=time.time())


def test_records_of_a_cluster_s_endpoints_stay(workspace: Workspace) -> None:
    """The local workspace does not know which endpoints a cluster has."""
    cluster = workspace.model_copy(update={"target": "kubernetes", "namespace": "models"})
    cluster.records_folder.mkdir()
    record = cluster.records_folder / "unused.jsonl"
    record.write_text("{}\n")
    age(workspace.records_folder)

    assert record not in {each.path for each in find_leftovers(workspace, before=time.time())}


def test_copies_of_collected_parts_are_cleaned_for_a_workspace_on_kubernetes_too(
    workspace: Workspace, tmp_path: Path
) -> None:
    settings = tmp_path / "cluster.yaml"
    settings.write_text(
        f"target: kubernetes\ngateway: a/b\nnamespace: models\nroot: {workspace.root}\ncache_folder: cache\n"
    )

    assert main(["clean", "--workspace", str(settings), "--yes"]) == 0

    assert [path.name for path in (workspace.cache_folder / "collected").iterdir()] == ["new.parquet"]
    assert (workspace.cache_folder / "images" / UNUSED).exists()


def test_nothing_is_deleted_for_a_workspace_that_is_not_there(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTROLLED_ROLLOUT_CACHE", str(workspace.cache_folder))
    images = set((workspace.cache_folder / "images").iterdir())

    assert main(["clean", "--root", str(tmp_path / "mistyped"), "--yes"]) == 1

    assert f"there is no workspace in {tmp_path / 'mistyped'}" in capsys.readouterr().err
    assert set((workspace.cache_folder / "images").iterdir()) == images
