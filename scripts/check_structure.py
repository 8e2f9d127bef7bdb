"""Check what no linter does: no circle of imports, no file and no function that is too long without a stated reason.

A reason is a comment that begins with "Long because": directly above the function, or before a file's first import.
"""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("operators", "plugins", "docker", "scripts", "dags", "tests")
PACKAGES = ("controlled_rollout", "controlled_rollout_ui", "controlled_rollout_scoring", "controlled_rollout_collector")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
REASON = re.compile(r"\s*# Long because \w+")


def main() -> int:
    """Print a line for each thing that is wrong; return 1 if there is one."""
    # First: an installed package must not be checked instead of this one.
    sys.path[:0] = [
        str(REPOSITORY / "operators"),
        str(REPOSITORY / "plugins"),
        *map(str, (REPOSITORY / "docker").glob("*/")),
    ]
    complaints = [line for package in PACKAGES for line in circles(package)]
    for file in sorted(file for folder in FOLDERS for file in (REPOSITORY / folder).rglob("*.py")):
        complaints.extend(too_long(file.read_text(encoding="utf-8"), file.relative_to(REPOSITORY).as_posix()))
    for line in complaints:
        print(line)
    return 1 if complaints else 0


def circles(package: str) -> Iterator[str]:
    """Yield the first circle of imports in a package. Imports in functions count, those for type checkers do not."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        # The nodes come in the order in which they are imported, the opposite of the reader's.
        yield f"circle of imports: {' imports '.join(reversed(error.args[1]))}"


def too_long(text: str, name: str) -> Iterator[str]:
    """Yield a line for a file, and for each of its functions, that is too long and states no reason.

    Args:
        text: The source text of the file.
        name: Its path, for the message.
    """
    lines = text.splitlines()
    tree = ast.parse(text)
    if len(lines) > MAX_FILE_LINES and not _reason_at_top(lines, tree):
        yield f"{name}: {len(lines)} lines, at most {MAX_FILE_LINES}: split it, or say `# Long because …` at its top"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES and not _reason_above(lines, first):
                advice = "split it, or say `# Long because …` above it"
                yield f"{name}:{node.lineno}: {node.name}: {length} lines, at most {MAX_FUNCTION_LINES}: {advice}"


def _reason_at_top(lines: list[str], tree: ast.Module) -> bool:
    """Whether a comment before the first import, not its docstring, states a reason."""
    first = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    begin = (tree.body[0].end_lineno or 0) if first is not tree.body else 0
    imports = (node.lineno for node in first if isinstance(node, ast.Import | ast.ImportFrom))
    return any(REASON.match(line) for line in lines[begin : next(imports, len(lines)) - 1])


def _reason_above(lines: list[str], first: int) -> bool:
    """Whether the comment that ends on the line above `first` (counted from 1) states a reason."""
    for line in reversed(lines[: first - 1]):
        if not line.lstrip().startswith("#"):
            return False
        if REASON.match(line):
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
