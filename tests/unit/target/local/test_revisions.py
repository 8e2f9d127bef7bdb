"""Stored revisions: numbers without gaps, one winner, atomic writes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, EndpointNotFoundError, TargetUnavailableError
from controlled_rollout.target.local import atomic_files, keys, revisions
from controlled_rollout.target.local.reserve import Reserve, may_use_reserve
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.protocol import Change
from tests.small_disk import fill, fill_with_files, small_disk

ANNA = Change(who="anna", reason="the new model is better")
BERT = Change(who="bert", reason="the old model was better")


@pytest.fixture
def store(tmp_path: Path) -> RevisionStore:
    return RevisionStore(tmp_path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stored_revision_is_read_with_number_author_and_reason(store: RevisionStore) -> None:
    first = store.store(Endpoint(name="digits"), ANNA)
    second = store.store(first.endpoint.create_version("one"), BERT)

    assert [revision.number for revision in store.history("digits")] == [1, 2]
    assert store.newest("digits") == second
    assert (second.change, second.endpoint.revision) == (BERT, 2)
    assert store.endpoints() == ["digits"]


def test_a_change_of_an_old_revision_is_refused_with_who_when_and_why(store: RevisionStore, tmp_path: Path) -> None:
    first = store.store(Endpoint(name="digits"), ANNA).endpoint
    store.store(first.create_version("one"), ANNA)
    before = files_of(tmp_path)

    with pytest.raises(ConflictError, match=r"anna stored it at \d{4}-.* \(the new model is better\)"):
        store.already_stored(first.create_version("two"))
    with pytest.raises(ConflictError, match="anna"):
        store.store(first.create_version("two"), BERT)

    assert files_of(tmp_path) == before


def test_revision_that_is_stored_already_is_not_stored_again(store: RevisionStore) -> None:
    stored = store.store(Endpoint(name="digits").create_version("one"), ANNA).endpoint

    assert store.already_stored(Endpoint(name="digits").create_version("one")) == stored
    assert store.already_stored(stored.create_version("two")) is None


def test_a_change_of_a_deleted_endpoint_is_refused(store: RevisionStore, tmp_path: Path) -> None:
    stored = store.store(Endpoint(name="digits"), ANNA).endpoint
    store.delete("digits")

    with pytest.raises(ConflictError, match="deleted"):
        store.already_stored(stored.create_version("one"))
    assert store.endpoints() == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EndpointNotFoundError, match="it has none"):
        store.history("digits")
    store.delete("digits")


def test_old_revisions_are_deleted_and_numbers_go_on(store: RevisionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "KEPT_REVISIONS", 3)
    endpoint = store.store(Endpoint(name="digits"), ANNA).endpoint
    for number in range(5):
        endpoint = store.store(endpoint.model_copy(update={"description": str(number)}), ANNA).endpoint

    assert [revision.number for revision in store.history("digits")] == [4, 5, 6]


def test_leftovers_of_a_killed_writer_are_removed_and_never_read(store: RevisionStore, tmp_path: Path) -> None:
    store.store(Endpoint(name="digits"), ANNA)
    leftover = tmp_path / "digits" / "revisions" / ".00000002.json.xyz"
    leftover.write_text("{")
    (tmp_path / ".deleted-other-00").mkdir()

    assert store.endpoints() == ["digits"]
    store.remove_leftovers()

    assert not leftover.exists()
    assert not (tmp_path / ".deleted-other-00").exists()
    assert len(store.history("digits")) == 1


def test_files_are_private_and_keys_are_made_once(store: RevisionStore, tmp_path: Path) -> None:
    endpoint = store.store(Endpoint(name="digits"), ANNA).endpoint
    made = keys.read_keys(store.endpoint_folder("digits"))
    store.store(endpoint.create_version("one"), ANNA)
    changed = keys.replace_key(store.endpoint_folder("digits"), "secondary")

    assert changed.primary == made.primary
    assert changed.secondary != made.secondary
    assert keys.read_keys(store.endpoint_folder("digits")) == changed
    assert made.primary not in repr(made)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "digits").rglob("*"))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "256k") as disk:
        yield disk


def test_a_full_disk_is_reported_and_changes_nothing(tiny_disk: Path) -> None:
    store = RevisionStore(tiny_disk)
    endpoint = store.store(Endpoint(name="digits"), ANNA).endpoint
    fill(tiny_disk)
    before = files_of(tiny_disk)

    with pytest.raises(TargetUnavailableError, match="No space left on device; nothing was changed: free disk space"):
        store.store(endpoint.create_version("one"), ANNA)
    with pytest.raises(TargetUnavailableError, match="No space left"):
        store.store(Endpoint(name="letters"), ANNA)

    assert files_of(tiny_disk) == before
    assert store.endpoints() == ["digits"]
    (tiny_disk / "ballast").unlink()
    assert store.store(endpoint.create_version("one"), ANNA).number == 2


def store_with_reserve(disk: Path, number: int = 3) -> RevisionStore:
    reserve = Reserve(disk / "reserve", number=number, size_bytes=16 * 1024)
    reserve.fill()
    return RevisionStore(disk / "endpoints", reserve)


def test_a_full_disk_has_space_for_going_back_and_for_keys_and_for_nothing_else(tiny_disk: Path) -> None:
    store = store_with_reserve(tiny_disk)
    first = store.store(Endpoint(name="digits").create_version("one", is_control=True), ANNA).endpoint
    both = store.store(first.create_version("two", traffic_percentile=20), ANNA).endpoint
    fill(tiny_disk)

    with pytest.raises(TargetUnavailableError, match="No space left"):
        store.store(both.shift("two", 50), ANNA)
    with pytest.raises(TargetUnavailableError, match="No space left"):
        store.store(both.create_version("three"), ANNA)
    back = store.store(both.roll_back("two"), BERT)
    before = keys.read_keys(store.endpoint_folder("digits"))
    after = store.replace_key("digits", "primary")
    fill(tiny_disk)  # what a file of the reserve did not need
    retired = store.store(back.endpoint.delete_version("two"), BERT)

    assert store.newest("digits") == retired
    assert [revision.number for revision in store.history("digits")] == [1, 2, 3, 4]
    assert keys.read_keys(store.endpoint_folder("digits")) == after != before
    assert [path.name for path in (tiny_disk / "endpoints" / "digits" / "revisions").glob(".*")] == []


def test_a_disk_that_takes_no_more_files_takes_going_back_and_keys_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m", files=60) as disk:
        store = store_with_reserve(disk)
        first = store.store(Endpoint(name="digits").create_version("one", is_control=True), ANNA).endpoint
        both = store.store(first.create_version("two", traffic_percentile=20), ANNA).endpoint
        fill_with_files(disk)

        with pytest.raises(TargetUnavailableError, match="No space left"):
            store.store(both.shift("two", 50), ANNA)
        back = store.store(both.roll_back("two"), BERT)
        with pytest.raises(ConflictError, match="stored it"):
            store.store(both.roll_back("two"), ANNA)
        before = keys.read_keys(store.endpoint_folder("digits"))
        after = store.replace_key("digits", "primary")

        assert store.newest("digits") == back
        assert [revision.number for revision in store.history("digits")] == [1, 2, 3]
        assert keys.read_keys(store.endpoint_folder("digits")) == after != before
        assert [path.name for path in (disk / "endpoints" / "digits" / "revisions").glob(".*")] == []


def test_the_reserve_is_filled_again_once_there_is_space(tiny_disk: Path) -> None:
    store = store_with_reserve(tiny_disk, number=1)
    endpoint = store.store(Endpoint(name="digits").create_version("one"), ANNA).endpoint
    for number in range(1, 4):
        ballast = fill(tiny_disk)
        endpoint = store.store(endpoint.update_version("one", tags={"change": str(number)}), BERT).endpoint
        fill(tiny_disk)  # what the file of the reserve did not need
        with pytest.raises(TargetUnavailableError, match="No space left"):
            store.store(endpoint.update_version("one", tags={"change": "one more"}), BERT)
        ballast.unlink()
        endpoint = store.store(endpoint.update_version("one", tags={"change": "with space"}), ANNA).endpoint


def test_what_creates_a_version_or_gives_a_treatment_more_traffic_may_not_use_the_reserve() -> None:
    control = Endpoint(name="digits").create_version("one", is_control=True)
    both = control.create_version("two", traffic_percentile=20)
    assert may_use_reserve(both, both.roll_back("two"))
    assert may_use_reserve(both, both.shift("two", 10))
    assert may_use_reserve(both, both.delete_version("two"))
    assert may_use_reserve(both.promote("two"), both.promote("one"))
    assert not may_use_reserve(both, both.shift("two", 30))
    assert not may_use_reserve(both, both.create_version("three"))


def test_new_folders_are_on_disk_when_the_first_revision_is(
    store: RevisionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = atomic_files.sync_folder

    def note(folder: Path) -> None:
        synced.append(folder)
        sync(folder)

    monkeypatch.setattr(atomic_files, "sync_folder", note)
    store.store(Endpoint(name="digits"), ANNA)
    store.delete("digits")

    revisions_folder = tmp_path / "digits" / "revisions"
    assert {tmp_path, tmp_path / "digits", revisions_folder} <= set(synced)
    assert synced[-1] == tmp_path
