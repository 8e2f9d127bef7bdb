"""What strangers have written, such as a model's log, made safe to show: nothing in it acts on a terminal."""

__all__ = ["visible_text"]

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
