"""Reads the pages of the documentation: their blocks of code, and the command lines in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

__all__ = ["PAGES", "REPOSITORY", "Block", "CommandLine", "command_lines", "inline_code", "read_blocks", "table_rows"]

REPOSITORY = Path(__file__).parents[1]
PAGES = tuple(sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")]))
PROGRAM = "controlled-rollout"
BEGINS_WITH_PROGRAM = re.compile(rf"^(?:\$ )?(?:\w+=\$\()?{PROGRAM} (?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
# Blocks without a language may be commands too.
SHELLS = ("", "bash", "sh", "console")
HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(\w+)\1[^\n]*\n.*?^\2$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: The page's file.
        line: The number of its first line.
        language: The first word behind its fence.
        options: The other words there: `title=score.py` is `{"title": "score.py"}`.
        text: What is in it.
    """

    page: Path
    line: int
    language: str
    options: dict[str, str]
    text: str

    def __str__(self) -> str:
        """Where it is, as editors and test reports show it."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


@dataclass(frozen=True)
class CommandLine:
    """A call of this project's program on a page.

    Attributes:
        place: Where it is.
        arguments: The arguments after the program's name.
    """

    place: str
    arguments: tuple[str, ...]

    @property
    def is_shortened(self) -> bool:
        """Whether the page leaves arguments out by `…`."""
        return "…" in self.arguments


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in their order."""
    blocks = []
    for token in _markdown().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.map:
            language, *rest = token.info.split() or [""]
            options = {name: value for name, _, value in (word.partition("=") for word in rest)}
            blocks.append(Block(page, token.map[0] + 2, language, options, token.content))
    return blocks


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the code within a page's sentences, each with the number of its paragraph's first line."""
    for token in _markdown().parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            if child.type == "code_inline":
                yield (token.map or [0])[0] + 1, child.content


def table_rows(page: Path) -> Iterator[list[list[str]]]:
    """Yield each row of a page's tables: for each cell the code in it."""
    row: list[list[str]] = []
    for token in _markdown().parse(page.read_text(encoding="utf-8")):
        if token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            yield row
        elif token.type == "inline":
            row.append([child.content for child in token.children or () if child.type == "code_inline"])


def command_lines(block: Block) -> list[CommandLine]:
    """Return the calls of this project's program in a block of shell commands; none for another language."""
    if block.language not in SHELLS:
        return []
    found = []
    # Without a language it may be what a program has printed: a command begins a line there.
    lines = [block.text] if block.language else BEGINS_WITH_PROGRAM.findall(block.text)
    for words in (words for line in lines for words in _commands(line)):
        while words and (words[0] == "$" or re.match(r"\w+=", words[0])):
            words = words[1:]
        if words[:1] == [PROGRAM]:
            found.append(CommandLine(str(block), tuple(words[1:])))
    return found


def _markdown() -> MarkdownIt:
    """Return a parser for pages with tables."""
    return MarkdownIt("commonmark").enable("table")


def _commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of a script, also of those in `$(…)`."""
    script = HERE_DOCUMENT.sub("", script).replace("\\\n", " ").replace('"$(', "$(").replace(')"', ")")
    script = re.sub(r"(^|\s)#[^\n]*", r"\1", script)
    script = re.sub(r"<([a-z][a-z ]*)>", r"\1", script)
    lexer = shlex.shlex(script, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in lexer:
        if word.strip("();|&\n"):
            words.append(word)
        else:
            yield words
            words = []
    yield words
