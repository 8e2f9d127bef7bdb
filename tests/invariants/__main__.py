"""Run many random sequences: `python -m tests.invariants --sequences 100000 --seed 1`."""

import argparse
import gc
import sys
import time
from typing import Final

from tests.invariants.sequences import Failure, random_sequence, replay_sequence, shrink
from tests.invariants.surroundings import simulated_surroundings

__all__ = ["main"]

# After so many sequences their objects are freed.
COLLECT_AFTER: Final = 50


def main() -> int:
    """Run the sequences; print those that break an invariant, made short, one of each kind. Return 1 if there are.

    It ends earlier after `--minutes`, or when it is interrupted (Ctrl+C), with what it has by then.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.invariants", description=__doc__)
    parser.add_argument("--sequences", type=int, default=1_000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="the number of the first (default: 1)")
    parser.add_argument("--minutes", type=float, default=600, help="stop after so long")
    parser.add_argument("--verbose", action="store_true", help="say what happens in a sequence that fails")
    arguments = parser.parse_args()
    failures: dict[str, list[Failure]] = {}
    begin = time.monotonic()
    done = 0
    with simulated_surroundings():
        gc.freeze()
        gc.disable()  # what Airflow has loaded need not be looked through again and again
        try:
            for seed in range(arguments.seed, arguments.seed + arguments.sequences):
                if time.monotonic() - begin > 60 * arguments.minutes:
                    break
                failure = random_sequence(seed)
                done += 1
                if done % COLLECT_AFTER == 0:
                    gc.collect()
                if failure is not None:
                    failures.setdefault(failure.kind, []).append(failure)
        except KeyboardInterrupt:
            print("interrupted")
        took = time.monotonic() - begin
        print(f"{done} sequences from seed {arguments.seed} in {took:.0f} s: {len(failures)} kinds of failures")
        for kind, found in failures.items():
            print(f"\n{len(found)} x {kind}; seeds {', '.join(str(failure.seed) for failure in found[:8])}")
            _print_failure(shrink(min(found, key=lambda failure: len(failure.events))), verbose=arguments.verbose)
    return 1 if failures else 0


def _print_failure(failure: Failure, *, verbose: bool) -> None:
    """Print a failure's events and what is wrong after them."""
    print(f"  seed={failure.seed}, first_version={failure.first_version}")
    for event in failure.events:
        print(f"  {event},")
    print(f"  {failure.error}")
    if verbose:
        try:
            replay_sequence(failure.events, first_version=failure.first_version, seed=failure.seed, log=print)
        except Exception as error:
            print(f"  {type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
