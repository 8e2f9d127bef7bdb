"""Check an entry script before anything is built: it exists, it compiles, it defines `init` and `run`."""

import ast
import threading
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.inputs.files import FileSet

__all__ = ["EntryScriptSyntaxError", "check_entry_script"]

REQUIRED: Final = ("init", "run")
# In two threads at once, `ast.parse` of Python 3.11 and 3.12 can fail: they count the depth in one place
# (https://github.com/python/cpython/issues/106905).
_PARSING: Final = threading.Lock()


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
    tree = _parse_script(file.source.read_bytes(), str(file.source))
    names = set(_module_level_names(tree.body))
    missing = [name for name in REQUIRED if name not in names]
    if missing and "*" not in names:
        lacking = " and ".join(f"{name}()" for name in missing)
        raise ImageError(
            f"entry script {file.source} does not define {lacking} at module level: "
            "it needs init(), called once, and run(data), called for each request"
        )


def _parse_script(source: bytes, filename: str) -> ast.Module:
    """Parse an entry script's source; raise `EntryScriptSyntaxError` if it does not compile."""
    try:
        with _PARSING:
            return ast.parse(source, filename)
    except SyntaxError as error:
        text = f": {error.text.strip()}" if error.text else ""
        raise EntryScriptSyntaxError(
            f"entry script {filename} does not compile: line {error.lineno}: {error.msg}{text}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise EntryScriptSyntaxError(f"entry script {filename} does not compile: {error}") from error


def _module_level_names(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names bound at module level, also inside if, try, with and loops. `*` stands for unknown names."""
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                for alias in aliases:
                    yield alias.asname or alias.name.partition(".")[0]
            case _:
                yield from _assigned_names(statement)
                for block in ("body", "orelse", "finalbody"):
                    yield from _module_level_names(getattr(statement, block, []))
                for part in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
                    yield from _module_level_names(part.body)


def _assigned_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that an assignment statement binds; an annotation without a value binds none."""
    if isinstance(statement, ast.AnnAssign) and statement.value is None:
        return
    targets: list[ast.expr] = list(getattr(statement, "targets", []))
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
