"""`make bench-gate`: the gate and other tools' rules on the same rollouts, written to docs/gate-benchmark.md."""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

# numpy's own threads would only compete with the processes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.benchmarks.gate import look, page
from tests.benchmarks.gate.run import Chunk, chunk, merged
from tests.benchmarks.gate.traffic import ALL

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / ".work" / "gate-benchmark.json"
CHUNK = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000, help="runs of every cell")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="cells whose name contains this; writes no page")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    given = parser.parse_args()
    if not given.page:
        simulate(given.runs, given.processes, given.only)
    cells, took = load()
    text = page.text(cells, took, look.seconds())
    if given.only:
        print(text)
        return
    page.write(ROOT / "docs", cells, text)


def simulate(runs: int, processes: int, only: str) -> None:
    """Run all cells and store their results."""
    begin = time.monotonic()
    wanted = [index for index, cell in enumerate(ALL) if only in cell.name]
    jobs = [(index, part) for index in wanted for part in range(-(-runs // CHUNK))]
    done: dict[int, list[Chunk]] = {index: [] for index in wanted}
    cells: list[dict[str, object]] = []
    RESULTS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = [(index, pool.submit(chunk, index, min(CHUNK, runs), (index, part))) for index, part in jobs]
        for index, future in running:
            done[index].append(future.result())
            if len(done[index]) == -(-runs // CHUNK):
                cells.append(asdict(merged(done.pop(index))))
                RESULTS.write_text(
                    json.dumps({"cells": cells, "elapsed": time.monotonic() - begin, "processes": processes})
                )
                print(f"{ALL[index].name}: {time.monotonic() - begin:.0f} s", flush=True)


def load() -> tuple[list[Chunk], str]:
    """Return the last results, and how long they took."""
    kept = json.loads(RESULTS.read_text())
    took = f"{kept['elapsed'] / 60:.0f} min by the clock in {kept['processes']} processes"
    return [Chunk(**cell) for cell in kept["cells"]], took


if __name__ == "__main__":
    main()
