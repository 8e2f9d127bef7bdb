"""`make bench-gate`: the gate and other rules on collected data, written to docs/gate-benchmark-data.md."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

# numpy's own threads would only compete with the processes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.benchmarks.gate.data import page
from tests.benchmarks.gate.data.cells import CELLS
from tests.benchmarks.gate.data.run import Results, chunk

ROOT = Path(__file__).parents[4]
RESULTS = ROOT / ".work" / "gate-benchmark-data.json"
CHUNK = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5_000, help="rollouts of every healthy cell; 0: leave them out")
    parser.add_argument("--others", type=int, default=1_000, help="rollouts of every other cell; 0: leave them out")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="run cells whose family and name contain this, keep other results")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    given = parser.parse_args()
    if not given.page:
        simulate(given.runs, given.others, given.processes, given.only)
    page.write(ROOT / "docs", load())


def simulate(runs: int, others: int, processes: int, only: str) -> None:
    """Run the cells and store the results of each as soon as it is done.

    Args:
        runs: Rollouts of a healthy cell, of which few may be stopped.
        others: Rollouts of other cells.
        processes: How many at once.
        only: What the family and name of the cells contain.
    """
    results = load() if only else {}
    RESULTS.parent.mkdir(exist_ok=True)
    wanted = [index for index, cell in enumerate(CELLS) if only in f"{cell.family}: {cell.name}"]
    begin = time.monotonic()
    jobs = [(index, runs if CELLS[index].kind == "healthy" else others) for index in wanted]
    for index, found in _found([job for job in jobs if job[1]], processes):
        cell = CELLS[index]
        results[f"{cell.family}: {cell.name}"] = found
        RESULTS.write_text(json.dumps({name: asdict(one) for name, one in results.items()}))
        print(f"{time.monotonic() - begin:6.0f} s  {cell.family}: {cell.name}", flush=True)


def _found(jobs: list[tuple[int, int]], processes: int) -> Iterator[tuple[int, Results]]:
    """Yield the results of each cell and its number of rollouts, in their order."""
    parts = {index: [min(CHUNK, runs - first) for first in range(0, runs, CHUNK)] for index, runs in jobs}
    if processes == 1:
        for index, sizes in parts.items():
            whole = Results()
            for part, size in enumerate(sizes):
                whole.add(chunk(index, size, part))
            yield index, whole
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = [
            (index, [pool.submit(chunk, index, size, part) for part, size in enumerate(sizes)])
            for index, sizes in parts.items()
        ]
        for index, futures in running:
            whole = Results()
            for future in futures:
                whole.add(future.result())
            yield index, whole


def load() -> dict[str, Results]:
    """Return the last results, by family and name of the cell."""
    if not RESULTS.exists():
        return {}
    return {name: Results(**one) for name, one in json.loads(RESULTS.read_text()).items()}


if __name__ == "__main__":
    main()
