import pytest

from controlled_rollout.text_table import text_table


def test_each_row_is_one_line_with_any_content() -> None:
    rows = [("version", "state", "active"), ("one", "failed: exit code 1\n[last line]", "0"), ("a-longer-one", "", "")]
    assert text_table(rows).splitlines() == [
        "version       state                            active",
        "one           failed: exit code 1 [last line]  0",
        "a-longer-one",
    ]


def test_numbers_are_aligned_right_behind_the_columns_of_text() -> None:
    assert text_table([("claim", "e-value", "of"), ("errors", "1.5", "40")], left_columns=1).splitlines() == [
        "claim   e-value  of",
        "errors      1.5  40",
    ]


def test_table_without_rows_is_empty() -> None:
    assert text_table([]) == ""


def test_rows_of_different_lengths_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        text_table([("a", "b"), ("c",)])
