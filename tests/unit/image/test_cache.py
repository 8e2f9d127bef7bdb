import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import Cache, DiskFullError, remove_tree

KEY = "a" * 64
OTHER = "b" * 64
Make = Callable[[Path, int], Awaitable[None]]


def writes(text: str) -> Make:
    async def make(unfinished: Path, lock: int) -> None:
        (unfinished / "file").write_text(text)

    return make


async def never(unfinished: Path, lock: int) -> None:
    raise AssertionError("a hit builds nothing")


def is_complete(folder: Path) -> bool:
    return (folder / "file").is_file()


def left_over(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.image(KEY).parent.iterdir() if path.name not in (KEY, OTHER))


def environment(root: Path, key: str) -> Path:
    """Create an environment as far as the cache checks it: an executable interpreter."""
    python = root / "environments" / key / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return python.parent.parent


async def test_an_entry_is_built_once_and_then_found(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")

    assert await cache.build(cache.image(KEY), is_complete, writes("whole")) is True
    assert await cache.build(cache.image(KEY), is_complete, never) is False
    assert (cache.image(KEY) / "file").read_text() == "whole"
    assert left_over(cache) == []


async def test_an_entry_is_not_seen_before_it_is_complete(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    async def make(unfinished: Path, lock: int) -> None:
        (unfinished / "file").touch()
        assert not cache.image(KEY).exists()

    assert await cache.build(cache.image(KEY), is_complete, make)


async def test_several_builds_of_the_same_at_once_become_one(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    started, go_on, waiting = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def make(unfinished: Path, lock: int) -> None:
        started.set()
        await go_on.wait()
        (unfinished / "file").touch()

    first = asyncio.create_task(cache.build(cache.image(KEY), is_complete, make))
    await started.wait()
    waiting_builds = [
        asyncio.create_task(cache.build(cache.image(KEY), is_complete, never, on_wait=waiting.set)) for _ in range(3)
    ]
    await waiting.wait()
    go_on.set()

    assert await first is True
    assert await asyncio.gather(*waiting_builds) == [False, False, False]


async def test_a_waiting_build_starts_if_the_first_fails(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    started, waiting = asyncio.Event(), asyncio.Event()

    async def fails(unfinished: Path, lock: int) -> None:
        started.set()
        await waiting.wait()
        raise ImageError("cannot be solved")

    first = asyncio.create_task(cache.build(cache.image(KEY), is_complete, fails))
    await started.wait()
    second = asyncio.create_task(cache.build(cache.image(KEY), is_complete, writes("second"), on_wait=waiting.set))

    with pytest.raises(ImageError, match="cannot be solved"):
        await first
    assert await second is True


async def test_a_waiting_build_can_be_cancelled_and_holds_no_lock(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    started, go_on, waiting = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def make(unfinished: Path, lock: int) -> None:
        started.set()
        await go_on.wait()
        (unfinished / "file").touch()

    first = asyncio.create_task(cache.build(cache.image(KEY), is_complete, make))
    await started.wait()
    second = asyncio.create_task(cache.build(cache.image(KEY), is_complete, never, on_wait=waiting.set))
    await waiting.wait()

    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()

    assert await first is True


@pytest.mark.parametrize("error", [ImageError("bad"), ValueError("bad"), asyncio.CancelledError()])
async def test_a_build_that_ends_in_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    cache = Cache(tmp_path)

    async def fails(unfinished: Path, lock: int) -> None:
        (unfinished / "half").touch()
        raise error

    with pytest.raises(type(error)):
        await cache.build(cache.image(KEY), is_complete, fails)

    assert left_over(cache) == []
    assert not cache.image(KEY).exists()
    assert await cache.build(cache.image(KEY), is_complete, writes("whole")) is True


async def test_leftovers_of_killed_builds_are_removed_by_the_next_but_not_builds_that_are_running(
    tmp_path: Path,
) -> None:
    cache = Cache(tmp_path)
    third = "c" * 64
    for key in (KEY, OTHER):
        (tmp_path / "images" / f".{key}.building" / "lib").mkdir(parents=True)
        (tmp_path / "images" / f".{key}.building" / "lib" / "half").touch()

    async def builds_another_meanwhile(unfinished: Path, lock: int) -> None:
        assert await cache.build(cache.image(third), is_complete, writes("third"))
        assert unfinished.is_dir()
        assert not (unfinished / "lib").exists()
        (unfinished / "file").touch()

    assert await cache.build(cache.image(KEY), is_complete, builds_another_meanwhile)

    assert left_over(cache) == [third]


async def test_a_child_process_of_a_killed_build_keeps_its_lock(tmp_path: Path) -> None:
    """The kernel gives the lock up with its last holder: here a process that inherited it and outlives the builder."""
    builder = (
        "import asyncio, os, signal, subprocess, sys\n"
        "from pathlib import Path\n"
        "from controlled_rollout.image.cache import Cache\n"
        "async def make(unfinished, lock):\n"
        "    orphan = subprocess.Popen(['cat'], pass_fds=(lock,), stdin=sys.stdin)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"cache = Cache(Path({str(tmp_path)!r}))\n"
        f"asyncio.run(cache.build(cache.image({KEY!r}), lambda folder: False, make))\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", builder], stdin=subprocess.PIPE)
    assert await asyncio.to_thread(killed.wait, 30) == -9
    cache, waiting = Cache(tmp_path), asyncio.Event()

    second = asyncio.create_task(cache.build(cache.image(KEY), is_complete, writes("second"), on_wait=waiting.set))
    await asyncio.wait_for(waiting.wait(), 10)
    assert killed.stdin is not None
    killed.stdin.close()

    assert await asyncio.wait_for(second, 10) is True


async def test_a_full_disk_is_an_error_with_the_folder_and_the_free_space(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    async def ours(unfinished: Path, lock: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(unfinished / "a"))

    async def of_a_process(unfinished: Path, lock: int) -> None:
        raise DiskFullError("error: failed to write: No space left on device (os error 28)")

    for make in (ours, of_a_process):
        with pytest.raises(
            ImageError, match=rf"disk is full: .*more than the [\d,.]+ MB that are free in the cache folder {tmp_path}"
        ):
            await cache.build(cache.image(KEY), is_complete, make)
        assert left_over(cache) == []


async def test_a_cache_that_cannot_be_written_is_an_error_but_a_hit_needs_no_writing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    await cache.build(cache.image(KEY), is_complete, writes("whole"))
    (tmp_path / "cache" / "locks").rename(tmp_path / "locks")
    (tmp_path / "cache" / "locks").write_text("a file, so that no lock can be made")

    assert await cache.build(cache.image(KEY), is_complete, never) is False
    with pytest.raises(ImageError, match=r"cache folder .*/cache cannot be written"):
        await cache.build(cache.image(OTHER), is_complete, never)


async def test_an_incomplete_entry_is_built_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    await cache.build(cache.image(KEY), is_complete, writes("first"))
    (cache.image(KEY) / "file").rename(cache.image(KEY) / "other")

    assert await cache.build(cache.image(KEY), is_complete, writes("second")) is True
    assert sorted(path.name for path in cache.image(KEY).iterdir()) == ["file"]


def test_an_environment_whose_interpreter_was_removed_is_not_found(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    python = environment(tmp_path, KEY) / "bin" / "python"
    assert cache.find_environment(KEY) is not None

    python.unlink()
    python.symlink_to(tmp_path / "no-such-python")

    assert cache.find_environment(KEY) is None


async def test_an_entry_and_all_that_is_in_it_are_read_only_and_can_be_built_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    async def make(unfinished: Path, lock: int) -> None:
        (unfinished / "folder").mkdir()
        (unfinished / "folder" / "script").touch(mode=0o777)
        (unfinished / "link").symlink_to("/etc/hostname")

    entry = cache.image(KEY)
    for _ in range(2):
        assert await cache.build(entry, lambda folder: False, make) is True
        assert [oct(path.stat().st_mode & 0o777) for path in (entry, entry / "folder")] == ["0o555", "0o555"]
        assert (entry / "folder" / "script").stat().st_mode & 0o222 == 0

    remove_tree(entry)
    assert not entry.exists()
