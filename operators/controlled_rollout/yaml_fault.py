"""What is wrong with a text of YAML, in words, without the text itself: a line of it may hold a secret. Pure."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import yaml

__all__ = ["yaml_fault"]

# What a person is to do, by what PyYAML says.
ADVICE: Final = {
    "found character '\\t'": "a tab begins a value or indents a line: use spaces",
    "mapping values are not allowed here": "a second `: ` in a line, or a wrong indentation: put a text with `: ` into "
    "quotes, and let names that belong together begin in the same column",
    # Not which: what begins with `!` may be a password without quotes.
    "could not determine a constructor": "a tag (!name) is not read here: put a text that begins with ! into quotes",
    "found undefined tag handle": "a tag (!name) is not read here: put a text that begins with ! into quotes",
    "found undefined alias": "an alias (*name) of nothing in the file: put a text that begins with * into quotes",
    "could not find expected ':'": "a name without `: ` behind it",
    "found unexpected end of stream": "a quote that begins here is not closed",
    "but found another document": "a second document (---) in the file: give one",
}


def yaml_fault(error: "yaml.YAMLError") -> str:
    """Return where a text is no YAML, and why, without repeating a line of it.

    Args:
        error: What PyYAML has raised.
    """
    from yaml import MarkedYAMLError
    from yaml.reader import ReaderError

    if isinstance(error, ReaderError):
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f"it has the character U+{code:04X}, which YAML does not allow"
    if not isinstance(error, MarkedYAMLError):
        return "it cannot be parsed"
    problem, begin = error.problem or error.context or "", error.context_mark
    place = error.problem_mark or begin
    if advice := next((words for said, words in ADVICE.items() if problem.startswith(said)), ""):
        # What is no name is found where the next one begins, and a quote without an end at the end of the file.
        place = begin if begin and problem.startswith(("could not find", "found unexpected end")) else place
    elif error.context and begin and place and begin.line != place.line:
        advice = f"{problem} ({error.context}, which begins in line {begin.line + 1})"
    said = advice or problem
    return f"line {place.line + 1}, column {place.column + 1}: {said}" if place else said
