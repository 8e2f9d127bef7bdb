"""Check an entry script before anything is built: it exists, it compiles, it defines `init` and `run`."""

import codecs
import dis
from collections.abc import Iterator
from pathlib import PurePosixPath
from types import CodeType
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.inputs.files import FileSet

__all__ = ["EntryScriptSyntaxError", "check_entry_script"]

REQUIRED: Final = ("init", "run")
# A script that uses one of these may bind names that no reading of it can see: its start decides.
DYNAMIC: Final = frozenset(
    {"__dict__", "eval", "exec", "f_globals", "f_locals", "globals", "locals", "modules", "setattr", "vars"}
)
MODULE_GETATTR: Final = "__getattr__"


class EntryScriptSyntaxError(ImageError):
    """The entry script does not compile with this interpreter."""


def check_entry_script(source: FileSet, entry_script: str) -> None:
    """Check that an entry script defines `init()` and `run(...)` at module level, as the retired service required.

    Raises:
        EntryScriptSyntaxError: It does not compile.
        ImageError: It is not among the project folder's files, or lacks one of the two functions.
    """
    path = PurePosixPath(entry_script)
    if path.is_absolute() or ".." in path.parts or path.suffix != ".py":
        raise ImageError(f"entry script {entry_script!r} is not the path of a .py file inside the source folder")
    file = next((file for file in source.files if file.path == str(path)), None)
    if file is None:
        scripts = sorted(file.path for file in source.files if file.path.endswith(".py"))
        excluded = f" (or {source.ignore_file} excludes it)" if source.ignore_file else ""
        raise ImageError(
            f"entry script {entry_script!r} is not in the source folder{excluded}; "
            f"Python files there: {', '.join(scripts[:10]) or 'none'}"
        )
    code = _compile_script(file.source.read_bytes(), str(file.source))
    bound = set(_bound_names(code))
    missing = [name for name in REQUIRED if name not in bound]
    if missing and MODULE_GETATTR not in bound and not _binds_unseen_names(code):
        lacking = " and ".join(f"{name}()" for name in missing)
        raise ImageError(
            f"entry script {file.source} does not define {lacking} at module level: "
            "it needs init(), called once, and run(data), called for each request"
        )


def _compile_script(source: bytes, filename: str) -> CodeType:
    """Compile an entry script without running it; raise `EntryScriptSyntaxError` if it does not compile."""
    if source.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise EntryScriptSyntaxError(f"entry script {filename} does not compile: it is UTF-16, save it as UTF-8")
    try:
        return compile(source, filename, "exec", dont_inherit=True)
    except SyntaxError as error:
        text = f": {error.text.strip()}" if error.text else ""
        raise EntryScriptSyntaxError(
            f"entry script {filename} does not compile: line {error.lineno}: {error.msg}{text}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise EntryScriptSyntaxError(f"entry script {filename} does not compile: {error}") from error


def _bound_names(code: CodeType) -> Iterator[str]:
    """Yield the names that a module's code binds at module level, and those that its functions declare as global.

    The compiler knows all ways of binding a name: assignments of any kind, imports, definitions, loops, patterns.
    """
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_NAME":
            yield instruction.argval
    for inner in _with_inner_code(code):
        for instruction in dis.get_instructions(inner):
            if instruction.opname == "STORE_GLOBAL":
                yield instruction.argval


def _binds_unseen_names(code: CodeType) -> bool:
    """Whether the code has a star import, or uses what can bind names while it runs."""
    return any(
        not DYNAMIC.isdisjoint(inner.co_names)
        # An operation of its own in Python 3.11, an argument of another one from 3.12 on.
        or any("IMPORT_STAR" in step.opname + step.argrepr for step in dis.get_instructions(inner))
        for inner in _with_inner_code(code)
    )


def _with_inner_code(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of all functions, classes and comprehensions in it."""
    pending = [code]
    while pending:
        current = pending.pop()
        yield current
        pending += [constant for constant in current.co_consts if isinstance(constant, CodeType)]
