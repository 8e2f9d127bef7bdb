"""What a model writes does nothing to the terminal that shows it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.visible_text import short_text, visible_text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("loss 0.25\tα 漢字 🙂\n", "loss 0.25\tα 漢字 🙂\n"),
        ("\x1b[2J\x1b[31mready", r"\x1b[2J\x1b[31mready"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("failed\rready ", r"failed\rready "),
        ("\x9b31m\x00\x7f\b", r"\x9b31m\x00\x7f\x08"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
    ],
)
def test_what_acts_on_a_terminal_is_spelled_out(written: str, shown: str) -> None:
    assert visible_text(written) == shown


@given(st.text())
def test_any_text_is_shown_printable_and_line_by_line(text: str) -> None:
    shown = visible_text(text)

    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert shown.count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("written", "shown"),
    [("setosa", "setosa"), ("a\n\tb", r"a\n\tb"), ("x" * 50, "x" * 39 + "…"), ("\x1b" * 30, r"\x1b" * 9 + r"\x1…")],
)
def test_a_category_is_shown_as_one_short_line(written: str, shown: str) -> None:
    assert short_text(written) == shown
