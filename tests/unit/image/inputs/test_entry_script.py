import gc
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError
from controlled_rollout.image.inputs.entry_script import EntryScriptSyntaxError, check_entry_script
from controlled_rollout.image.inputs.files import read_source_folder


def check(folder: Path, text: str, *, entry_script: str = "score.py") -> None:
    (folder / "score.py").write_text(text)
    check_entry_script(read_source_folder(folder), entry_script)


@pytest.mark.parametrize(
    "text",
    [
        "def init(): ...\ndef run(data): ...",
        "async def init(): ...\nasync def run(data, request_headers): ...",
        "from model import init, predict as run",
        "import init\nrun = init.run",
        "init, (run, _) = make()",
        "init: object = make()\nrun = other = make()",
        "@decorated(x=1)\ndef run(data): ...\n@rawhttp\ndef init(): ...",
        "class run: ...\nif True:\n    def init(): ...\nelse:\n    pass",
        "try:\n    from fast import run\nexcept ImportError:\n    from slow import run\nfinally:\n    def init(): ...",
        "from model import *",
        "with context():\n    def init(): ...\nfor _ in [1]:\n    run = print",
        "match 1:\n    case _:\n        init = run = print",
        "if (init := make()) and [run := make() for _ in [1]]: ...",
        "match make():\n    case {'init': init, 'run': run}: ...",
        "with make() as init:\n    for run in [print]: ...",
        "def setup():\n    global init, run\n    init = run = print\nsetup()",
    ],
)
def test_a_script_that_binds_init_and_run_is_accepted(tmp_path: Path, text: str) -> None:
    check(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "globals()['init'] = globals()['run'] = print",
        "globals().update(init=print, run=print)",
        "def __getattr__(name): return print",
        "import model\n__getattr__ = model.find",
        "import sys\nsys.modules[__name__] = object()",
        "import sys\nsetattr(sys.modules[__name__], 'run', print)",
        "import inspect\ninspect.currentframe().f_globals['run'] = print\ndef init(): ...",
        "eval('[run := print]')\ndef init(): ...",
        "exec('def init(): ...')\ndef run(data): ...",
        "def setup(names=vars()):\n    names['init'] = names['run'] = print\nsetup()",
    ],
)
def test_names_that_only_the_start_can_show_are_left_to_the_start(tmp_path: Path, text: str) -> None:
    check(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("def init(): ...", r"run\(\)"),
        ("def run(data): ...", r"init\(\)"),
        ("", r"init\(\) and run\(\)"),
        ("class Model:\n    def init(self): ...\n    def run(self, data): ...", r"init\(\) and run\(\)"),
        ("def outer():\n    def init(): ...\n    run = 1", r"init\(\) and run\(\)"),
        ("init: object\nrun: object", r"init\(\) and run\(\)"),
        ("if False:\n    def run(data): ...\ndef init(): ...", r"run\(\)"),
        ("class Model:\n    def __getattr__(self, name): ...\n[init for init in []]", r"init\(\) and run\(\)"),
        ("from init import x\nobject.run = 1\nstore['init'] = run", r"init\(\) and run\(\)"),
        ("from model import init as other_init\nimport model.run", r"init\(\) and run\(\)"),
    ],
)
def test_a_script_without_init_or_run_is_refused_saying_which(tmp_path: Path, text: str, missing: str) -> None:
    with pytest.raises(ImageError, match=rf"score\.py does not define {missing} at module level"):
        check(tmp_path, text)


def test_a_syntax_error_is_reported_with_file_line_and_text(tmp_path: Path) -> None:
    with pytest.raises(EntryScriptSyntaxError, match=r"score\.py does not compile: line 2: .*: def run\(data:$"):
        check(tmp_path, "def init(): ...\ndef run(data:\n")


def test_what_the_compiler_refuses_after_parsing_is_refused_as_well(tmp_path: Path) -> None:
    with pytest.raises(EntryScriptSyntaxError, match=r"line 3: 'return' outside function"):
        check(tmp_path, "def init(): ...\ndef run(data): ...\nreturn 1\n")


def test_a_script_saved_as_utf_16_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("def init(): ...\ndef run(data): ...\n", encoding="utf-16")

    with pytest.raises(EntryScriptSyntaxError, match="it is UTF-16, save it as UTF-8"):
        check_entry_script(read_source_folder(tmp_path), "score.py")


@pytest.mark.parametrize("content", [b"\0", b"# coding: nonsense\n", b"\xff = 1\n", b"(" * 5000])
def test_script_that_is_not_python_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "score.py").write_bytes(content)

    with pytest.raises(EntryScriptSyntaxError, match="does not compile"):
        check_entry_script(read_source_folder(tmp_path), "score.py")


@pytest.mark.parametrize("path", ["../score.py", "/score.py", "lib/../../score.py", "score", "score.txt"])
def test_a_path_that_is_not_a_script_inside_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ImageError, match=r"is not the path of a \.py file inside the source folder"):
        check(tmp_path, "def init(): ...\ndef run(data): ...", entry_script=path)


def test_missing_script_is_refused_with_the_scripts_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"'main\.py' is not in the source folder; Python files there: score\.py"):
        check(tmp_path, "", entry_script="main.py")


def test_a_script_that_is_ignored_is_refused_naming_the_ignore_file(tmp_path: Path) -> None:
    (tmp_path / ".amlignore").write_text("score.py\n")

    with pytest.raises(ImageError, match=r"\(or \.amlignore excludes it\)"):
        check(tmp_path, "def init(): ...\ndef run(data): ...")


def test_a_script_in_a_folder_may_be_written_with_a_leading_dot(tmp_path: Path) -> None:
    check(tmp_path, "def init(): ...\ndef run(data): ...", entry_script="./score.py")


SCRIPTS = st.lists(
    st.sampled_from(
        "def init run ( ) : \n = := [ ] lambda import from * 1 ' \" # if return é \0 coding: \t".split(" ")
    ),
    max_size=15,
).map(lambda parts: " ".join(parts).encode())


@given(st.binary(max_size=30) | SCRIPTS)
def test_whatever_bytes_a_script_has_it_is_accepted_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "score.py").write_bytes(content)
        with suppress(ImageError), warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            check_entry_script(read_source_folder(Path(folder)), "score.py")


@contextmanager
def other_threads_run_in_collections() -> Iterator[None]:
    """Let other threads run at each garbage collection, as any finalizer may that waits."""

    def wait(phase: str, info: dict[str, int]) -> None:
        time.sleep(0.0005)

    threshold = gc.get_threshold()
    gc.callbacks.append(wait)
    gc.set_threshold(100)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(wait)


def test_scripts_of_builds_side_by_side_are_all_read(tmp_path: Path) -> None:
    lines = "\n".join(f"x{number} = (a + {number}) * [b, c]" for number in range(300))
    (tmp_path / "score.py").write_text(f"{lines}\ndef init(): ...\ndef run(data): ...")
    source = read_source_folder(tmp_path)

    def check_below(depth: int) -> None:
        # The depth at which Python counts differs between the threads.
        if depth:
            return check_below(depth - 1)
        for _ in range(5):
            check_entry_script(source, "score.py")

    with other_threads_run_in_collections(), ThreadPoolExecutor(4) as threads:
        list(threads.map(check_below, range(0, 20, 5)))
