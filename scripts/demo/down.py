"""`python -m scripts.demo.down`, which `make down` runs: ends what `make up` has started; its data stays."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from controlled_rollout.errors import ControlledRolloutError
from scripts.demo.errors import DemoError
from scripts.demo.local_stack import LocalStack
from scripts.demo.up import FOLDER


def main(arguments: Sequence[str] | None = None) -> int:
    """End the workspace and Airflow of `make up`; return 0 if neither runs afterwards."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.down", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder of make up (default %(default)s)")
    stack = LocalStack(parser.parse_args(arguments).folder)
    try:
        with stack.exclusive():
            running = asyncio.run(_end(stack))
    except (DemoError, ControlledRolloutError) as error:
        print(f"down: {error}", file=sys.stderr)
        return 1
    print(f"ended: {', '.join(running)}; its data stays in {stack.folder}" if running else "nothing is running")
    return 0


async def _end(stack: LocalStack) -> list[str]:
    """End all parts, and return the names of those that ran."""
    running = await stack.running()
    await stack.end()
    return running


if __name__ == "__main__":
    sys.exit(main())
