"""A log file of bounded size."""

import os
from pathlib import Path

from controlled_rollout.target.local.log_file import LogFile, remove_oldest_logs


def test_a_log_stays_below_its_limit_and_keeps_the_newest_lines(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "one.log", limit_bytes=2000)
    for number in range(500):
        log.write(f"line {number}\n".encode())

    assert sum(path.stat().st_size for path in (log.path, log.older)) <= 2000
    assert log.tail(3) == ["line 497", "line 498", "line 499"]
    assert len(log.tail(1000)) > 100
    assert log.path.stat().st_mode & 0o077 == 0


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert LogFile(tmp_path / "none.log").tail(5) == []


def test_what_a_model_writes_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log")
    log.write(b"\x1b[2J\x1b]0;yours\x07ready\n")

    assert log.tail(1) == [r"\x1b[2J\x1b]0;yours\x07ready"]


def test_the_logs_of_versions_without_processes_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("digits/one", "digits/two", "letters/one", "digits/three", "digits/live")]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for name in ("1.log", "1.log.1"):
            (folder / name).write_bytes(b"0" * 500)
            os.utime(folder / name, (number, number))
    (tmp_path / "router.log").write_bytes(b"0" * 5000)

    remove_oldest_logs(tmp_path, {("digits", "live")}, limit_bytes=2500)

    assert [folder.exists() for folder in folders] == [False, False, True, True, True]
    remove_oldest_logs(tmp_path, {("digits", "live")}, limit_bytes=1500)
    assert not (tmp_path / "letters").exists()
    assert (tmp_path / "router.log").exists()
