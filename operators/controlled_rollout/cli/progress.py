"""Shows on a terminal that a command is at work, and for how long; nothing anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["at_work"]


@contextmanager
def at_work(purpose: str) -> Iterator[None]:
    """Show a moving bar with the elapsed time below what is printed, until the block ends, if a person looks.

    Args:
        purpose: What is being done, in a few words.
    """
    # What rich draws goes through stdout, and the lines that are printed meanwhile with it.
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(), transient=True) as progress:
        progress.add_task(escape(purpose), total=None)
        yield
