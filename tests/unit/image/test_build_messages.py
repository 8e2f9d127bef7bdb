"""What a failed command's lines are boiled down to."""

from controlled_rollout.image.run_command import TOLD_LINES, essence

STEPS = [f"STEP {number}/40: RUN something" for number in range(1, 41)]


def test_what_is_wrong_is_told_from_its_first_line_on() -> None:
    assert essence([*STEPS, "error: no such package", "", "hint: look at its name"]) == (
        "error: no such package\nhint: look at its name"
    )


def test_where_nothing_looks_like_an_error_the_last_lines_are_told() -> None:
    assert essence([*STEPS, "Killed"]).splitlines() == [*STEPS[1 - TOLD_LINES :], "Killed"]


def test_a_command_that_said_nothing_is_said_to_have() -> None:
    assert essence(["", "  "]) == "it said nothing"
