"""An entry script whose init() raises: the version never becomes ready."""

from score import run  # noqa: F401 - the entry script has to have it


def init() -> None:
    raise RuntimeError("injected: the model file is damaged")
