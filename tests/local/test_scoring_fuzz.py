"""A small sample of the random answers and requests that `make fuzz` tries 100,000 of each."""

from pathlib import Path

from tests.scoring_fuzz import fuzzed_replica, run


def test_whatever_scripts_and_callers_do_no_process_ends_and_nobody_gets_a_false_200_or_is_not_captured(
    tmp_path: Path,
) -> None:
    with fuzzed_replica(tmp_path) as replica:
        seen = run(replica, answers=400, requests=400, seed=13)

    assert {"answer: whole", "answer: 500", "answer: broken off", "request: scored", "request: 400"} <= set(seen)
