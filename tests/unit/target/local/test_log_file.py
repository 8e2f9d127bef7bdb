"""A log file of bounded size."""

from pathlib import Path

from controlled_rollout.target.local.log_file import LogFile


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
