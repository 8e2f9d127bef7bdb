from pathlib import Path

from controlled_rollout.target.local.runtime_folder import parent_of_sockets, runtime_folder


def test_sockets_are_in_the_folder_for_temporary_files() -> None:
    assert parent_of_sockets(Path("/run/user/1000")) == Path("/run/user/1000")


def test_sockets_are_in_tmp_where_their_paths_would_be_too_long() -> None:
    assert parent_of_sockets(Path("/scratch") / ("folder" * 12)) == Path("/tmp")  # noqa: S108 - what it returns


def test_the_folder_is_private_and_removed_at_the_end() -> None:
    with runtime_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        path = folder / "envoy" / "admin.sock"
    assert len(str(path)) <= 107
    assert not folder.exists()
