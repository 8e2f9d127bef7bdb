"""The spool that capture appends to: bounded, whole records only, every record that is not kept is counted."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout_scoring import spool as spool_module
from controlled_rollout_scoring.spool import SEGMENT_BYTES, Spool
from tests.polling import wait_until
from tests.small_disk import fill, small_disk
from tests.unit.scoring.spool_reader import Counts, counts, is_locked, records, records_of, segments

RUNTIME = Path(__file__).parents[3] / "docker" / "scoring"
HEAD = b'{"kind": "exchange"}'


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Spool]]:
    """Return a function that begins workers, which share a folder unless another one is given."""
    spools = []

    def begin(max_bytes: int = 100_000_000, workers: int = 1, folder: Path = tmp_path / "spool") -> Spool:
        spools.append(Spool(str(folder), max_bytes=max_bytes, workers=workers, clock=clock))
        return spools[-1]

    yield begin
    for spool in spools:
        spool.close()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(spool_module, "log", lines.append)
    return lines


@given(st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary(), st.binary()), max_size=8))
def test_records_are_read_as_they_were_appended(
    appended: list[tuple[dict[str, int], bytes, bytes]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(folder, max_bytes=10_000_000)
        try:
            assert all(spool.append(json.dumps(head).encode(), *bodies) for head, *bodies in appended)
        finally:
            spool.close()
        assert records(Path(folder)) == [(head, first + second) for head, first, second in appended]
        assert counts(Path(folder)) == (len(appended), 0, 0)


def test_segment_is_locked_until_the_next_one_begins_after_five_seconds(
    make: Callable[..., Spool], clock: Clock, tmp_path: Path
) -> None:
    spool, folder = make(), tmp_path / "spool"
    assert [is_locked(file) for file in folder.glob("*.counts")] == [True]
    spool.append(HEAD)
    clock.now = 4.9
    spool.append(HEAD)
    assert [is_locked(segment) for segment in segments(folder)] == [True]
    clock.now = 5.0
    spool.append(HEAD)
    assert [is_locked(segment) for segment in segments(folder)] == [False, True]
    assert [len(list(records_of(segment.read_bytes()))) for segment in segments(folder)] == [2, 1]

    spool.close()

    assert not any(is_locked(file) for file in folder.iterdir())


def test_segment_ends_after_eight_megabytes(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make()
    for _ in range(5):
        assert spool.append(HEAD, bytes(SEGMENT_BYTES // 2))
    sizes = [segment.stat().st_size for segment in segments(tmp_path / "spool")]
    assert len(sizes) == 5
    assert all(size <= SEGMENT_BYTES for size in sizes)
    # A larger record has a segment of its own.
    assert spool.append(HEAD, bytes(SEGMENT_BYTES + 1))
    assert len(records(tmp_path / "spool")) == 6


def test_spool_never_exceeds_its_bound_and_goes_on_when_segments_are_deleted(
    make: Callable[..., Spool], clock: Clock, tmp_path: Path, logged: list[str]
) -> None:
    spool, folder = make(max_bytes=100_000), tmp_path / "spool"
    kept = [spool.append(HEAD, bytes(10_000)) for _ in range(20)]
    assert kept == [True] * 9 + [False] * 11
    assert sum(segment.stat().st_size for segment in segments(folder)) <= 100_000
    assert counts(folder) == (9, 11, 0)
    assert len(logged) == 1
    assert "not captured (1 so far): a record needs 10,036 bytes, and of 100,000 in all" in logged[0]

    # The full segment was closed, so that the collector may delete it.
    [segment] = segments(folder)
    assert not is_locked(segment)
    segment.unlink()
    assert not spool.append(HEAD, bytes(10_000)), "the folder is looked at once a second"
    clock.now = 1.0
    assert spool.append(HEAD, bytes(10_000))
    assert counts(folder) == (10, 12, 0)


def test_workers_share_the_bound_equally_and_what_ended_ones_left_counts_for_all(
    make: Callable[..., Spool], tmp_path: Path
) -> None:
    ended = make(max_bytes=400_000)
    assert ended.append(HEAD, bytes(80_000))
    first, second = make(max_bytes=400_000, workers=2), make(max_bytes=400_000, workers=2)
    assert sum(first.append(HEAD, bytes(9_000)) for _ in range(50)) == 22, "its half"
    ended.close()
    assert sum(second.append(HEAD, bytes(9_000)) for _ in range(50)) == 12, "its half, less what is there already"
    assert sum(segment.stat().st_size for segment in segments(tmp_path / "spool")) <= 400_000


def test_workers_started_again_and_again_never_exceed_the_bound(make: Callable[..., Spool], tmp_path: Path) -> None:
    for _ in range(10):
        spool = make(max_bytes=100_000)
        while spool.append(HEAD, bytes(3_000)):
            pass
        spool.close()
    assert sum(segment.stat().st_size for segment in segments(tmp_path / "spool")) <= 100_000
    assert counts(tmp_path / "spool").dropped == 10


def test_full_disk_drops_and_counts_records_until_there_is_space(
    make: Callable[..., Spool], clock: Clock, tmp_path: Path, logged: list[str]
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        spool = make(folder=disk / "spool")
        assert spool.append(HEAD, b"first")
        ballast = fill(disk)
        assert not any(spool.append(HEAD, bytes(5_000)) for _ in range(3))
        clock.now = 60.0
        assert not spool.append(HEAD, b"in a new segment, which has no space")
        assert counts(disk / "spool") == (1, 4, 0)
        ballast.unlink()
        clock.now = 61.0
        assert spool.append(HEAD, b"second")
        assert [record.bodies for record in records(disk / "spool")] == [b"first", b"second"]
        assert counts(disk / "spool") == (2, 4, 0)
        assert len(logged) == 2, "a line a minute"
        spool.close()


def test_disk_that_is_full_at_the_start_loses_no_number(make: Callable[..., Spool], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        ballast = fill(disk)
        spool = make(folder=disk / "spool")
        assert not spool.append(HEAD, b"x")
        ballast.unlink()
        spool.count_dropped("a reason")
        assert counts(disk / "spool") == (0, 2, 0)
        spool.close()


def test_record_that_the_disk_takes_half_of_is_cut_off(
    make: Callable[..., Spool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, write = make(), os.writev
    spool.append(HEAD, b"first")

    def write_half(descriptor: int, parts: list[bytes]) -> int:
        return os.write(descriptor, b"".join(parts)[:20])

    monkeypatch.setattr(os, "writev", write_half)
    assert not spool.append(HEAD, b"half")
    monkeypatch.setattr(os, "writev", write)
    assert spool.append(HEAD, b"second")
    # Where not even cutting off works, the segment ends with the half record, and another one begins.
    monkeypatch.setattr(os, "writev", write_half)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda descriptor, length: write_half(-1, []))
        assert not spool.append(HEAD, b"half")
    monkeypatch.setattr(os, "writev", write)
    assert spool.append(HEAD, b"third")

    assert [record.bodies for record in records(tmp_path / "spool")] == [b"first", b"second", b"third"]
    assert counts(tmp_path / "spool") == (3, 2, 0)
    assert len(segments(tmp_path / "spool")) == 2


def test_time_out_of_a_script_that_collects_is_not_kept_from_it(
    make: Callable[..., Spool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make()

    def interrupted(descriptor: int, parts: list[bytes]) -> int:
        raise TimeoutError

    monkeypatch.setattr(os, "writev", interrupted)
    with pytest.raises(TimeoutError):
        spool.append(HEAD)
    assert counts(tmp_path / "spool") == (0, 1, 0)


def test_record_that_a_killed_process_wrote_in_part_is_none_wherever_it_ends(
    make: Callable[..., Spool], tmp_path: Path
) -> None:
    spool = make()
    spool.append(HEAD, b"whole")
    spool.append(HEAD, b"last", b"one")
    [segment] = segments(tmp_path / "spool")
    content = segment.read_bytes()
    first = 16 + len(HEAD) + len(b"whole")
    for end in range(first, len(content)):
        assert [record.bodies for record in records_of(content[:end])] == [b"whole"]
    for place in range(first, len(content)):
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        assert [record.bodies for record in records_of(damaged)] == [b"whole"]


APPENDS_FOR_EVER = """
import sys
from controlled_rollout_scoring.spool import Spool
spool = Spool(sys.argv[1], max_bytes=100_000_000)
while True:
    spool.append(b'{"kind": "exchange"}', b"x" * 5_000)
"""


def test_records_and_counts_survive_a_process_that_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDS_FOR_EVER, tmp_path], env={**os.environ, "PYTHONPATH": str(RUNTIME)}
    )
    try:
        wait_until(lambda: counts(tmp_path).captured > 500, "500 records are appended")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

    # The number may be some milliseconds old; the records are what was appended.
    assert 500 < counts(tmp_path).captured <= len(records(tmp_path))
    assert not any(is_locked(file) for file in tmp_path.iterdir())


def test_captured_records_are_counted_within_a_tenth_of_a_second_and_dropped_ones_at_once(
    make: Callable[..., Spool], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "COUNTS_INTERVAL_S", 0.1)
    spool = make()
    for seconds, counted in ((0.0, 0), (0.09, 0), (0.1, 3), (0.15, 3)):
        clock.now = seconds
        spool.append(HEAD)
        assert counts(tmp_path / "spool").captured == counted
    spool.count_dropped("a reason")
    assert counts(tmp_path / "spool") == (4, 1, 0)
    spool.append(HEAD)
    spool.write_counts()
    assert counts(tmp_path / "spool") == (5, 1, 0)


def test_forked_process_of_a_script_has_files_of_its_own(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make()
    spool.append(HEAD, b"parent")
    child = os.fork()
    if not child:
        os._exit(0 if spool.append(HEAD, b"child") else 1)
    assert os.waitpid(child, 0)[1] == 0
    spool.append(HEAD, b"parent again")

    bodies = [[record.bodies for record in records_of(file.read_bytes())] for file in segments(tmp_path / "spool")]
    assert sorted(bodies) == [[b"child"], [b"parent", b"parent again"]]
    assert sorted(map(is_locked, segments(tmp_path / "spool"))) == [False, True]
    assert counts(tmp_path / "spool") == Counts(captured=3, dropped=0, unreadable=0)


def test_threads_append_whole_records(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make()

    def append(number: int) -> None:
        for _ in range(100):
            spool.append(HEAD, bytes([number]) * (1_000 + number))

    threads = [threading.Thread(target=append, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [record.bodies for record in records(tmp_path / "spool")]
    assert sorted(found) == sorted(bytes([number]) * (1_000 + number) for number in range(8) for _ in range(100))


def test_data_of_a_script_that_cannot_be_kept_is_counted(
    make: Callable[..., Spool], tmp_path: Path, logged: list[str]
) -> None:
    make().count_unreadable("it is no table")
    assert counts(tmp_path / "spool") == (0, 0, 1)
    assert logged == ["capture: what the script has collected cannot be kept: it is no table"]
