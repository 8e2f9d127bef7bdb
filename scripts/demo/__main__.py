"""`python -m scripts.demo [--treatment failing|slow|crash|flaky] [--metrics down]`: what `make demo` runs."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from controlled_rollout.errors import ControlledRolloutError
from scripts.demo.airflow import REPOSITORY
from scripts.demo.outcome import End
from scripts.demo.performance import Performance
from scripts.demo.plan import Fault
from scripts.demo.problem import DemoError
from scripts.demo.view import View

FOLDER: Final = REPOSITORY / ".work" / "demo"
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if it ended as it should."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    performance = Performance(options.folder, fault=options.treatment, outage=options.metrics == "down")
    try:
        with View(console) as view:
            end = asyncio.run(_until_told_to_stop(performance, view))
    except (DemoError, ControlledRolloutError) as error:
        console.print(f"logs: {performance.logs}", markup=False, soft_wrap=True)
        console.print(f"result: failed: {' '.join(str(error).split())}", markup=False, soft_wrap=True)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print("result: stopped before its end; everything it started has ended", soft_wrap=True)
        return INTERRUPTED
    if not end.as_expected:
        console.print(f"logs: {performance.logs}", markup=False, soft_wrap=True)
    if end.evidence:
        console.print(end.evidence, markup=False, soft_wrap=True)
    console.print(end.counts, markup=False, soft_wrap=True)
    console.print(end.result, markup=False, soft_wrap=True)
    return 0 if end.as_expected else 1


async def _until_told_to_stop(performance: Performance, view: View) -> End:
    """Run the demo; SIGINT and SIGTERM cancel it, so that it clears up, and a second one does not cut that short."""
    running = asyncio.ensure_future(performance.run(view))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: None)
        running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return await running


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo", description=__doc__)
    parser.add_argument("--treatment", type=Fault, choices=list(Fault), help="what is wrong with the new model")
    parser.add_argument("--metrics", choices=["down"], help="take the telemetry store away for a minute")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where everything is (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
