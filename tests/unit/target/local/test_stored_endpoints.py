"""What damaged files of one endpoint do: close that endpoint, name the file, and leave all others as they are."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import DamagedFileError
from controlled_rollout.target.local.keys import read_keys, replace_key
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.stored_endpoints import StoredEndpoints
from controlled_rollout.target.protocol import Change

CHANGE = Change(who="anna", reason="the new model is better")


@pytest.fixture
def store(tmp_path: Path) -> RevisionStore:
    """Two endpoints: the tests damage the files of beta-x."""
    store = RevisionStore(tmp_path)
    for name in ("alpha", "beta-x"):
        first = store.store(Endpoint(name=name), CHANGE).endpoint
        store.store(first.create_version("one"), CHANGE)
    return store


def newest_file(store: RevisionStore) -> Path:
    return store.revision_file("beta-x", 2)


DAMAGES: dict[str, Callable[[str], str]] = {
    "half": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not JSON": lambda text: "\0" * len(text),
    "of another kind": lambda text: "[1, 2]",
    "of another endpoint": lambda text: text.replace("beta-x", "beta-y"),
    "of another revision": lambda text: text.replace('"number": 2', '"number": 1'),
    "of a later program": lambda text: text.replace('"number": 2', '"number": 2, "colour": "red"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_revision_closes_its_endpoint_and_is_named(store: RevisionStore, damage: str) -> None:
    path = newest_file(store)
    path.write_text(DAMAGES[damage](path.read_text()))

    stored = StoredEndpoints(store).read_all()

    assert stored["alpha"].damage is None
    assert stored["alpha"].endpoint == store.history("alpha")[-1].endpoint
    assert (stored["beta-x"].endpoint, stored["beta-x"].revision) == (None, 2)
    assert str(path) in str(stored["beta-x"].damage)
    assert "endpoint 'beta-x' is closed" in str(stored["beta-x"].damage)
    with pytest.raises(DamagedFileError, match=r"00000002\.json"):
        store.newest("beta-x")


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_old_revision_that_is_damaged_takes_only_what_was_before_it(store: RevisionStore, damage: str) -> None:
    for share in (10.0, 20.0, 30.0):
        newest = store.history("beta-x")[-1].endpoint
        store.store(newest.update_version("one", traffic_percentile=share), CHANGE)
    path = store.revision_file("beta-x", 2)
    path.write_text(DAMAGES[damage](path.read_text()))

    assert [revision.number for revision in store.history("beta-x")] == [3, 4, 5]
    assert StoredEndpoints(store).read("beta-x").damage is None


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("file", ["revision", "keys"])
def test_a_file_that_is_a_pipe_or_a_device_closes_its_endpoint_and_keeps_no_reader(
    store: RevisionStore, file: str, kind: str
) -> None:
    path = newest_file(store) if file == "revision" else store.endpoint_folder("beta-x") / "keys.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")

    stored = StoredEndpoints(store).read_all()

    assert stored["alpha"].damage is None
    assert f"{path} cannot be read (not a regular file)" in str(stored["beta-x"].damage)


def test_a_revision_that_is_a_folder_closes_its_endpoint(store: RevisionStore) -> None:
    newest_file(store).unlink()
    newest_file(store).mkdir()

    stored = StoredEndpoints(store).read_all()

    assert "Is a directory" in str(stored["beta-x"].damage)
    assert stored["alpha"].damage is None


def test_without_its_damaged_newest_revision_an_endpoint_has_the_one_before(store: RevisionStore) -> None:
    newest_file(store).write_text("{")
    newest_file(store).unlink()

    assert StoredEndpoints(store).read("beta-x").revision == 1
    assert StoredEndpoints(store).read("beta-x").damage is None


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "{}",
        '{"primary": "only-one-key"}',
        '{"primary": "", "secondary": ""}',
        '{"primary": "twice-the-same", "secondary": "twice-the-same"}',
        '{"primary": "with a space in it", "secondary": "another-key"}',
        '{"primary": "key-of-beta-x", "secondary": "key-of-beta-x-2", "third": "key-of-beta-x-3"}',
    ],
)
def test_a_damaged_keys_file_closes_its_endpoint_and_shows_no_key(store: RevisionStore, content: str | None) -> None:
    path = store.endpoint_folder("beta-x") / "keys.json"
    path.unlink()
    if content is not None:
        path.write_text(content)

    stored = StoredEndpoints(store).read_all()

    assert stored["alpha"].keys == read_keys(store.endpoint_folder("alpha"))
    assert stored["beta-x"].keys is None
    assert f"the file {path} cannot be read" in str(stored["beta-x"].damage)
    assert "keys beta-x --regenerate primary" in str(stored["beta-x"].damage)
    assert "key-of-beta-x" not in str(stored["beta-x"].damage)
    assert "only-one-key" not in str(stored["beta-x"].damage)


def test_new_keys_replace_a_damaged_file(store: RevisionStore) -> None:
    folder = store.endpoint_folder("beta-x")
    (folder / "keys.json").write_text("{")

    renewed = replace_key(folder, "primary")

    assert StoredEndpoints(store).read("beta-x").keys == renewed
    assert StoredEndpoints(store).read("beta-x").damage is None


def test_a_further_revision_makes_no_new_keys_in_place_of_lost_ones(store: RevisionStore) -> None:
    (store.endpoint_folder("beta-x") / "keys.json").unlink()
    newest = store.history("beta-x")[-1].endpoint

    store.store(newest.create_version("two"), CHANGE)

    assert "keys.json" in str(StoredEndpoints(store).read("beta-x").damage)


def test_an_endpoint_without_keys_needs_no_keys_file(store: RevisionStore) -> None:
    store.store(Endpoint(name="gamma", auth=Auth.NONE), CHANGE)
    (store.endpoint_folder("gamma") / "keys.json").unlink()

    assert StoredEndpoints(store).read("gamma").damage is None


def test_what_is_no_endpoint_is_not_taken_for_one(store: RevisionStore, tmp_path: Path) -> None:
    (tmp_path / "Not A Name" / "revisions").mkdir(parents=True)
    (tmp_path / "Not A Name" / "revisions" / "00000001.json").write_text("{")
    (tmp_path / "a-file").write_text("")
    (tmp_path / "an-empty-folder").mkdir()
    (tmp_path / "alpha" / "revisions" / ".00000003.json.folder").mkdir()

    store.remove_leftovers()

    assert set(StoredEndpoints(store).read_all()) == {"alpha", "beta-x"}


def test_the_signature_changes_with_the_newest_revision_and_the_keys_of_any_endpoint(store: RevisionStore) -> None:
    stored = StoredEndpoints(store)
    signatures = [stored.signature()]
    newest_file(store).write_text("{")
    signatures.append(stored.signature())
    (store.endpoint_folder("alpha") / "keys.json").unlink()
    signatures.append(stored.signature())
    store.delete("beta-x")
    signatures.append(stored.signature())

    assert len(set(signatures)) == 4
    assert stored.signature() == signatures[-1]
