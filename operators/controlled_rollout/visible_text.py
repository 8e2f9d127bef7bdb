"""What strangers have written, such as a model's log, made safe to show: nothing in it acts on a terminal."""

__all__ = ["short_text", "visible_text"]

# Those that are laid out and do nothing else.
_KEPT = frozenset("\n\t")


def visible_text(text: str) -> str:
    r"""Return text with all that is not printable spelled out, such as `\x1b[2J` for what would clear the screen.

    Line breaks and tabs stay. Characters that turn the direction of writing are not printable either.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character in _KEPT or character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def short_text(text: str, *, most: int = 40) -> str:
    r"""Return text as one visible line of at most so many characters; a line break becomes `\n`.

    Args:
        text: What a stranger has written, such as a category of collected data.
        most: The most characters; a longer text ends with `…`.
    """
    line = visible_text(text[: most + 1]).replace("\n", r"\n").replace("\t", r"\t")
    return line if len(line) <= most else f"{line[: most - 1]}…"
