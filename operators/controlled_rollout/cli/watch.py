"""Shows a result again whenever it has changed: redrawn on a terminal, appended elsewhere."""

import argparse
import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn

from controlled_rollout.cli.output import is_table, show
from controlled_rollout.duration import format_duration
from controlled_rollout.errors import ArgumentError, ControlledRolloutError, WorkspaceError
from controlled_rollout.visible_text import visible_text

__all__ = ["WATCH_INTERVAL", "screen_lines", "watch"]

WATCH_INTERVAL: Final = timedelta(seconds=5)
# A target has to answer others as well.
LEAST_INTERVAL: Final = timedelta(seconds=1)

Result = tuple[Any, list[str]]


async def watch(options: argparse.Namespace, read: Callable[[], Awaitable[Result]], *, interval: timedelta) -> NoReturn:
    """Show a result until Ctrl-C, again whenever it has changed; a target that does not answer is asked again.

    Args:
        options: The command's options.
        read: Returns the result as JSON values and as lines of text.
        interval: The time between two looks.

    Raises:
        ArgumentError: The interval is too short.
        WorkspaceError: The workspace's settings cannot be used at the first look.
    """
    if interval < LEAST_INTERVAL:
        raise ArgumentError(
            f"--interval {format_duration(interval)} is too short: give {format_duration(LEAST_INTERVAL)} or more"
        )
    redraws = is_table(options) and sys.stdout.isatty()
    shown: Result | None = None
    while True:
        try:
            result = await read()
        except ControlledRolloutError as error:
            if shown is None and isinstance(error, WorkspaceError):
                raise
            result = {"error": str(error)}, [f"not known now: {error}"]
        if redraws:
            _redraw(result[1], options.endpoint or "endpoints")
        elif result != shown:
            now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S %Z}"
            show(options, result[0], [*([""] if shown else []), now, *result[1]])
        shown = result
        await asyncio.sleep(interval.total_seconds())


def _redraw(lines: Sequence[str], title: str) -> None:
    """Draw lines from the top of the terminal, no more than it has room for."""
    size = shutil.get_terminal_size()
    heading = f"{title}  {datetime.now(UTC):%H:%M:%S %Z}  (Ctrl-C ends)"
    drawn = screen_lines([heading, *lines], columns=size.columns, rows=size.lines - 1)
    # Home, each line with what is right of it cleared, then all below: no flicker, as a clear of the screen would give.
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in drawn) + "\x1b[J")
    sys.stdout.flush()


def screen_lines(lines: Sequence[str], *, columns: int, rows: int) -> list[str]:
    """Return lines that fit a terminal: long ones end with `…`, and the last says how many are not shown. Pure.

    Args:
        lines: The lines of text; others may have written parts of them.
        columns: The characters of a line.
        rows: The lines of the terminal.
    """
    visible = [text for line in lines for text in visible_text(line).expandtabs().splitlines() or [""]]
    cut = [line if len(line) <= columns else f"{line[: max(columns - 1, 0)]}…" for line in visible]
    if len(cut) <= rows:
        return cut
    return [*cut[: max(rows - 1, 0)], f"… {len(cut) - max(rows - 1, 0)} more lines"[:columns]]
