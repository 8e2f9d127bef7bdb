"""The part of a failed program's output that an error shows."""

from controlled_rollout.image.run_command import EXCERPT_LINES, error_excerpt

STEPS = [f"STEP {number}/40: RUN something" for number in range(1, 41)]


def test_the_excerpt_begins_with_the_first_line_of_the_error() -> None:
    assert error_excerpt([*STEPS, "error: no such package", "", "hint: look at its name"]) == (
        "error: no such package\nhint: look at its name"
    )


def test_without_a_line_that_looks_like_an_error_the_excerpt_is_the_last_lines() -> None:
    assert error_excerpt([*STEPS, "Killed"]).splitlines() == [*STEPS[1 - EXCERPT_LINES :], "Killed"]


def test_a_program_without_output_is_reported_as_such() -> None:
    assert error_excerpt(["", "  "]) == "it wrote nothing"
