"""Text files that people write: any bytes are text, or an error that says what to do."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.text_file import read_text_file

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def read(content: bytes, *, keeps_bytes: bool = False) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_bytes(content)
        return read_text_file(Path(folder) / "file", keeps_bytes=keeps_bytes)


@given(TEXTS, st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]))
def test_a_text_with_a_byte_order_mark_is_read_as_it_was_written(text: str, encoding: str) -> None:
    assert read(text.encode(encoding)) == text


@given(st.binary(max_size=30), st.booleans())
def test_any_bytes_are_a_text_or_an_error_that_says_how_to_save_them(content: bytes, keeps_bytes: bool) -> None:
    try:
        read(content, keeps_bytes=keeps_bytes)
    except ValueError as error:
        assert "save it as UTF-8" in str(error)


def test_bytes_that_are_kept_are_those_of_names_of_files() -> None:
    assert read(b"a\xe9", keeps_bytes=True) == "a\udce9"
    with pytest.raises(ValueError, match="line 1 is not utf-8"):
        read(b"a\xe9")
