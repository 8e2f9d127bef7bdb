"""What replicas that have ended have captured is known for good, and takes a bounded number of files."""

from pathlib import Path

import pytest

from controlled_rollout.target.local.collector_process import collected_counts
from controlled_rollout.target.protocol import CollectedCounts
from controlled_rollout_collector.ended_replicas import MOST_FILES, keep_state
from controlled_rollout_collector.shipping import SpoolState

STATE = SpoolState(
    replica="", shipped_until=0.0, captured=3, dropped=2, unreadable=1, lost_at=None, watched_since=0.0, shipped=3,
    pending_bytes=0, final=True, updated=0.0,
)  # fmt: skip


def end(folder: Path, *numbers: int) -> None:
    """Let replicas of a version end one after the other, as the collector does."""
    for number in numbers:
        spool = folder / "digits" / "v1" / f"v1-1-{number:08x}"
        spool.mkdir(parents=True)
        keep_state(spool, STATE)
        spool.rmdir()


def counted(folder: Path, replicas: int) -> bool:
    """Return whether the numbers of so many replicas are counted."""
    expected = CollectedCounts(captured=3 * replicas, dropped=2 * replicas, unreadable=replicas)
    return collected_counts(folder, "digits", "v1") == expected


def test_the_numbers_of_all_replicas_are_counted_and_their_files_are_few(tmp_path: Path) -> None:
    for number in range(3 * MOST_FILES):
        end(tmp_path, number)
        assert counted(tmp_path, number + 1)

    assert len(list((tmp_path / "digits" / "v1").iterdir())) <= MOST_FILES + 1


def test_a_collector_that_is_killed_while_it_adds_them_up_counts_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, left = Path.unlink, [7]

    def unlink_some(path: Path, missing_ok: bool = False) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, missing_ok=missing_ok)

    end(tmp_path, *range(MOST_FILES))
    monkeypatch.setattr(Path, "unlink", unlink_some)
    with pytest.raises(KeyboardInterrupt):
        end(tmp_path, MOST_FILES)
    monkeypatch.undo()
    assert counted(tmp_path, MOST_FILES + 1)

    end(tmp_path, *range(MOST_FILES + 1, 3 * MOST_FILES))
    assert counted(tmp_path, 3 * MOST_FILES)


def test_a_damaged_sum_stops_no_replica_from_ending(tmp_path: Path) -> None:
    end(tmp_path, *range(MOST_FILES))
    (tmp_path / "digits" / "v1" / "ended.json").write_text("[1")

    end(tmp_path, MOST_FILES)

    assert counted(tmp_path, MOST_FILES + 1)
