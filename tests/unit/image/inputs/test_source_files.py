import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError
from controlled_rollout.image.inputs.files import MAX_FILES, FileSet, copy_files, read_model_files, read_source_folder
from controlled_rollout.image.inputs.ignore_file import read_ignore_rules
from tests.examples import examples

Tree = dict[str, bytes]


def write(root: Path, tree: Tree) -> Path:
    for path, content in tree.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return root


def paths(packaged: FileSet) -> list[str]:
    return [file.path for file in packaged.files]


def test_digest_does_not_depend_on_order_times_umask_and_folder(tmp_path: Path) -> None:
    tree = {"score.py": b"1", "lib/a.py": b"2", "lib/b.py": b"3"}
    one = write(tmp_path / "one", tree)
    old_umask = os.umask(0o077)
    try:
        two = write(tmp_path / "two" / "deeper", dict(reversed(tree.items())))
    finally:
        os.umask(old_umask)
    os.utime(two / "score.py", (0, 0))

    assert read_source_folder(one).digest == read_source_folder(two).digest


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "score.py").write_bytes(b"2"),
        lambda root: (root / "score.py").rename(root / "scores.py"),
        lambda root: (root / "score.py").chmod(0o755),
        lambda root: (root / "empty").touch(),
        lambda root: (root / "lib" / "a.py").unlink(),
    ],
    ids=["content", "name", "executable", "new file", "file removed"],
)
def test_digest_changes_with_what_is_packaged(tmp_path: Path, change: object) -> None:
    write(tmp_path, {"score.py": b"1", "lib/a.py": b"2"})
    before = read_source_folder(tmp_path).digest

    assert callable(change)
    change(tmp_path)

    assert read_source_folder(tmp_path).digest != before


NAMES = st.text("ab.é ", min_size=1, max_size=3).filter(lambda name: name.strip(".") != "")
TREES = st.dictionaries(NAMES, st.binary(max_size=3), min_size=1, max_size=4)


@examples(40)
@given(TREES, TREES)
def test_digests_are_equal_exactly_for_equal_contents(one: Tree, two: Tree) -> None:
    with tempfile.TemporaryDirectory() as folder:
        digests = [read_source_folder(write(Path(folder) / str(at), tree)).digest for at, tree in enumerate((one, two))]

    assert (digests[0] == digests[1]) == (one == two)


def test_amlignore_replaces_gitignore(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", "a.csv": b"", "b.log": b"", ".gitignore": b"*.csv\n", ".amlignore": b"*.log\n"})

    packaged = read_source_folder(tmp_path)

    assert paths(packaged) == [".amlignore", ".gitignore", "a.csv", "score.py"]
    assert packaged.ignore_file == ".amlignore"


def test_gitignore_applies_without_an_amlignore(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", "data/a.csv": b"", "b.log": b"", ".gitignore": b"data/\n*.log\n"})

    assert paths(read_source_folder(tmp_path)) == [".gitignore", "score.py"]


def test_ignore_files_below_the_root_do_not_apply(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", "lib/a.csv": b"", "lib/.gitignore": b"*.csv\n", "lib/.amlignore": b"*\n"})

    assert "lib/a.csv" in paths(read_source_folder(tmp_path))


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("*\n!score.py\n!lib/a.py\n", ["lib/a.py", "score.py"]),
        ("lib/\n!lib/a.py\n", [".amlignore", "data/x/y.csv", "lib/a.py", "score.py"]),
        ("**/*.csv\n# *.py\n\nlib\n", [".amlignore", "score.py"]),
        # As in git, a set of characters never stands for a slash: not for that after `data`.
        ("dat[!b][!c]\ndat?[^c]\nlib/?[!x]py\n", [".amlignore", "data/x/y.csv", "score.py"]),
        ("/data/**\nlib/[bc].py\n", [".amlignore", "lib/a.py", "score.py"]),
        ("data/*\n", [".amlignore", "lib/a.py", "lib/b.py", "score.py"]),
    ],
)
def test_the_last_pattern_that_matches_a_file_decides(tmp_path: Path, patterns: str, kept: list[str]) -> None:
    write(tmp_path, {"score.py": b"", "lib/a.py": b"", "lib/b.py": b"", "data/x/y.csv": b""})
    (tmp_path / ".amlignore").write_text(patterns)

    assert paths(read_source_folder(tmp_path)) == kept


def test_git_and_bytecode_are_left_out_even_if_a_pattern_asks_for_them(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", ".git/config": b"", "lib/__pycache__/a.pyc": b"", "lib/.git": b"gitdir: x"})
    (tmp_path / ".amlignore").write_text("!.git\n!__pycache__\n.amlignore\n")

    assert paths(read_source_folder(tmp_path)) == ["score.py"]


@pytest.mark.parametrize("pattern", ["[z-a]", "!", "bin\\Debug\\", "a\\", "[b-a]*.py"])
def test_a_pattern_that_git_cannot_read_matches_nothing_and_is_named(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, {"score.py": b"", "bin/Debug/a": b"", "b.csv": b""})
    (tmp_path / ".amlignore").write_text(f"*.csv\n{pattern}\n.amlignore\n")

    packaged = read_source_folder(tmp_path)

    assert paths(packaged) == ["bin/Debug/a", "score.py"]
    assert packaged.patterns_without_effect == (pattern,)


def test_a_class_of_characters_is_read_as_in_git_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", "a1": b"", "ab": b"", "a_": b"", ".amlignore": b"a[[:digit:]b]\n"})

    assert paths(read_source_folder(tmp_path)) == [".amlignore", "a_", "score.py"]
    (tmp_path / ".amlignore").write_text("a[[:punct:]]\n")
    with pytest.raises(ImageError, match=r"\.amlignore: pattern .* has \[:punct:\], which is not known: write the"):
        read_source_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("données.csv", "données.csv\r\n*.log\r\n".encode("utf-16")),
        ("données.csv", "\ufeffdonnées.csv\n*.log".encode()),
        ("données.csv", "# -*- coding: latin-1 -*-\ndonnées.csv\n*.log".encode("latin-1")),
        (os.fsdecode("données.csv".encode("latin-1")), "données.csv\n*.log".encode("latin-1")),
        ("a\x85b", "a\x85b\n*.log".encode()),
        ("a\x0cb", b"a\x0cb\n*.log"),
    ],
    ids=["utf-16", "utf-8 with a mark", "declared", "bytes of the name", "next line", "form feed"],
)
def test_an_ignore_file_is_read_in_its_encoding_or_by_its_bytes(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, {"score.py": b"", "a.log": b"", name: b"", "b": b"", ".gitignore": content})

    assert paths(read_source_folder(tmp_path)) == [".gitignore", "b", "score.py"]


def test_an_ignore_file_without_a_byte_order_mark_in_utf_16_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", ".gitignore": "*.csv\n".encode("utf-16-le")})

    with pytest.raises(ImageError, match=r"ignore file .*\.gitignore cannot be read: it has zero bytes.*as UTF-8"):
        read_source_folder(tmp_path)


@given(st.text(max_size=12) | st.text("a/*?[]!\\-^: #\n\r", max_size=12), st.text("ab/[", min_size=1, max_size=4))
def test_any_patterns_are_rules_or_refused(patterns: str, path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ".gitignore").write_bytes(patterns.encode())
        try:
            rules = read_ignore_rules(Path(folder))
        except ImageError:
            return
        assert rules.excludes(path) in (True, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "does not exist"), ("score.py", "is a file"), ("empty", "has no file: there is nothing")],
)
def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path, {"score.py": b""})
    (tmp_path / "empty").mkdir()

    with pytest.raises(ImageError, match=message):
        read_source_folder(tmp_path / name)


def test_a_folder_of_which_everything_is_ignored_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", ".amlignore": b"*\n"})

    with pytest.raises(ImageError, match=r"no file that \.amlignore does not exclude"):
        read_source_folder(tmp_path)


def test_a_link_out_of_the_folder_is_refused_unless_it_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, {"secret": b"", "source/score.py": b""})
    source = tmp_path / "source"
    (source / "link").symlink_to("../secret")

    with pytest.raises(ImageError, match=r"link .*/link points out of the source folder, to .*/secret"):
        read_source_folder(source)
    (source / ".amlignore").write_text("link\n.amlignore\n")

    assert paths(read_source_folder(source)) == ["score.py"]


def test_link_to_a_sibling_folder_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    write(tmp_path, {"source/score.py": b"", "source-2/a": b""})
    (tmp_path / "source" / "link").symlink_to(tmp_path / "source-2")

    with pytest.raises(ImageError, match="points out of the source folder"):
        read_source_folder(tmp_path / "source")


def test_a_link_inside_is_packaged_as_what_it_points_to(tmp_path: Path) -> None:
    linked = write(tmp_path / "linked", {"score.py": b"1", "lib/a.py": b"2"})
    (linked / "same.py").symlink_to("score.py")
    (linked / "also").symlink_to(linked / "lib")
    copied = write(tmp_path / "copied", {"score.py": b"1", "lib/a.py": b"2", "same.py": b"1", "also/a.py": b"2"})

    assert read_source_folder(linked) == read_source_folder(linked)
    assert read_source_folder(linked).digest == read_source_folder(copied).digest


def test_the_source_folder_itself_may_be_reached_through_a_link(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"score.py": b"", "lib/a.py": b""})
    (source / "same.py").symlink_to("score.py")
    (tmp_path / "link").symlink_to(source)

    assert read_source_folder(tmp_path / "link").digest == read_source_folder(source).digest


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "does not exist"),
        (".", "points back to"),
        ("..", "points back to"),
        ("../.git", "never part of an image"),
        ("link", "does not exist"),
    ],
    ids=["dangling", "loop", "loop to the root", "into .git", "itself"],
)
def test_unusable_link_is_refused(tmp_path: Path, target: str, message: str) -> None:
    write(tmp_path, {"score.py": b"", "lib/a.py": b"", ".git/config": b""})
    (tmp_path / "lib" / "link").symlink_to(target)

    with pytest.raises(ImageError, match=message):
        read_source_folder(tmp_path)


def test_two_links_that_lead_to_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", "one/a": b"", "two/b": b""})
    (tmp_path / "one" / "link").symlink_to("../two")
    (tmp_path / "two" / "link").symlink_to("../one")

    with pytest.raises(ImageError, match="points back to"):
        read_source_folder(tmp_path)


def test_special_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b""})
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ImageError, match="pipe is neither a file nor a folder"):
        read_source_folder(tmp_path)


def test_too_many_files_are_refused_naming_the_biggest_folder(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", "lib/a.py": b""})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0").touch()
    for number in range(1, MAX_FILES):
        os.link(tmp_path / "data" / "0", tmp_path / "data" / str(number))

    with pytest.raises(ImageError, match=r"10,002 files .* at most 10,000 .* biggest are data/ \(10,000 files"):
        read_source_folder(tmp_path)
    (tmp_path / ".amlignore").write_text("data/\n")
    began = time.process_time()

    assert len(read_source_folder(tmp_path).files) == 3
    assert time.process_time() - began < 0.1, "an ignored folder is not walked"


def test_too_many_bytes_are_refused_naming_the_biggest_folder(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", "data/big.bin": b""})
    os.truncate(tmp_path / "data" / "big.bin", 300_000_001)

    with pytest.raises(ImageError, match=r"2 files of 300\.0 MB .* biggest are data/ \(1 files, 300\.0 MB\)"):
        read_source_folder(tmp_path)


def test_copy_is_exact_and_read_only_for_any_umask(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"score.py": b"1", "lib/run.sh": b"2"})
    (source / "lib" / "run.sh").chmod(0o700)
    packaged = read_source_folder(source)

    copy_files(packaged, tmp_path / "copy")

    assert read_source_folder(tmp_path / "copy").digest == packaged.digest
    assert (tmp_path / "copy" / "score.py").stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "copy" / "lib" / "run.sh").stat().st_mode & 0o777 == 0o555


def test_file_that_changes_between_packaging_and_copying_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"score.py": b"1"})
    packaged = read_source_folder(source)
    (source / "score.py").write_bytes(b"2")

    with pytest.raises(ImageError, match=r"score\.py changed during the build"):
        copy_files(packaged, tmp_path / "copy")


def test_a_model_is_a_file_or_a_folder_that_keeps_its_name(tmp_path: Path) -> None:
    write(tmp_path, {"model.pkl": b"1", "trained/weights/a.bin": b"2", "trained/.gitignore": b"*\n"})

    assert paths(read_model_files(tmp_path / "model.pkl")) == ["model.pkl"]
    assert paths(read_model_files(tmp_path / "trained")) == ["trained/.gitignore", "trained/weights/a.bin"]


def test_a_models_links_are_followed_out_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path, {"blobs/123": b"1", "snapshot/config.json": b"{}"})
    (tmp_path / "snapshot" / "model.bin").symlink_to("../blobs/123")

    packaged = read_model_files(tmp_path / "snapshot")
    copy_files(packaged, tmp_path / "copy")

    assert (tmp_path / "copy" / "snapshot" / "model.bin").read_bytes() == b"1"


def test_an_empty_model_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()

    with pytest.raises(ImageError, match="trained has no file"):
        read_model_files(tmp_path / "trained")
