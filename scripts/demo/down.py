"""`python -m scripts.demo.down`: what `make down` runs. Ends what `make up` has started; its data stays."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from controlled_rollout.errors import ControlledRolloutError
from scripts.demo.problem import DemoError
from scripts.demo.stage import Stage
from scripts.demo.up import FOLDER


def main(arguments: Sequence[str] | None = None) -> int:
    """End what runs; return 0 if nothing of it runs then."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.down", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder of make up (default %(default)s)")
    stage = Stage(parser.parse_args(arguments).folder)
    try:
        with stage.alone():
            running = asyncio.run(_end(stage))
    except (DemoError, ControlledRolloutError) as error:
        print(f"down: {error}", file=sys.stderr)
        return 1
    print(f"ended: {', '.join(running)}; its data stays in {stage.folder}" if running else "nothing is running")
    return 0


async def _end(stage: Stage) -> list[str]:
    """End everything, and return the names of what ran."""
    running = await stage.running()
    await stage.end()
    return running


if __name__ == "__main__":
    sys.exit(main())
