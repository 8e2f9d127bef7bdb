"""`python -m scripts.demo [--treatment failing|slow|crash|flaky|skewed] [--metrics down]`, which `make demo` runs."""

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
from scripts.demo.demo_run import DemoRun
from scripts.demo.errors import DemoError
from scripts.demo.result import DemoResult
from scripts.demo.settings import Fault
from scripts.demo.view import View

FOLDER: Final = REPOSITORY / ".work" / "demo"
EXIT_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code: 0 if it ended as it should."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    demo = DemoRun(options.folder, fault=options.treatment, outage=options.metrics == "down")
    try:
        with View(console) as view:
            result = asyncio.run(_run_until_stopped(demo, view))
    except (DemoError, ControlledRolloutError) as error:
        console.print(f"logs: {demo.logs}", markup=False, soft_wrap=True)
        console.print(f"result: failed: {' '.join(str(error).split())}", markup=False, soft_wrap=True)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print("result: stopped before its end; everything it started has ended", soft_wrap=True)
        return EXIT_INTERRUPTED
    if not result.as_expected:
        console.print(f"logs: {demo.logs}", markup=False, soft_wrap=True)
    if result.evidence:
        console.print(result.evidence, markup=False, soft_wrap=True)
    console.print(result.counts, markup=False, soft_wrap=True)
    console.print(result.last_line, markup=False, soft_wrap=True)
    return 0 if result.as_expected else 1


async def _run_until_stopped(demo: DemoRun, view: View) -> DemoResult:
    """Run the demo; SIGINT or SIGTERM cancels it once, and further signals do not interrupt its clean-up."""
    running = asyncio.ensure_future(demo.run(view))
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
    parser.add_argument("--metrics", choices=["down"], help="stop the telemetry store for a minute")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the demo's folder (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
