"""Notes of looks in the endpoints' folders: they outlive the supervisor, and what is wrong with one says nothing."""

import errno
from pathlib import Path

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.local.look_notes import FILE_NAME, LookNotes
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.protocol import Change


@pytest.fixture
def revisions(tmp_path: Path) -> RevisionStore:
    store = RevisionStore(tmp_path)
    store.store(Endpoint(name="digits").create_version("v1a", image="a@sha256:1"), Change(who="Ada"))
    return store


def test_note_outlives_the_supervisor_and_the_last_one_counts(revisions: RevisionStore) -> None:
    assert LookNotes(revisions).read("digits") is None
    notes = LookNotes(revisions)
    notes.write("digits", "v2a")
    notes.write("digits", "v3a")
    found = LookNotes(revisions).read("digits")
    assert found is not None and found == notes.read("digits")
    assert found.version == "v3a"


def test_on_a_full_disk_a_look_is_known_all_the_same(revisions: RevisionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = LookNotes(revisions)
    notes.write("digits", "v2a")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(atomic_files, "write_atomically", full)
    before = notes.read("digits")
    notes.write("digits", "v2a")
    after = notes.read("digits")
    assert before is not None and after is not None and after.at > before.at


@pytest.mark.parametrize("content", ["", "{", '{"version": "v2a", "at": "now"}', '{"version": "v2a"}'])
def test_note_that_cannot_be_read_is_none(content: str, revisions: RevisionStore) -> None:
    (revisions.endpoint_folder("digits") / FILE_NAME).write_text(content)
    assert LookNotes(revisions).read("digits") is None


def test_endpoint_that_is_gone_has_no_look(revisions: RevisionStore) -> None:
    notes = LookNotes(revisions)
    notes.write("digits", "v2a")
    revisions.delete("digits")
    assert notes.read("digits") is None
    notes.write("digits", "v2a")
    assert notes.read("digits") is None
    assert not revisions.endpoint_folder("digits").exists()
