"""The names of failed tests, as pytest takes them again."""

import json
from pathlib import Path

import pytest

from scripts import failed_tests


@pytest.mark.parametrize(
    ("kept", "name"),
    [
        ("tests/unit/test_a.py::test_b", "tests/unit/test_a.py::test_b"),
        ("tests/local/test_a.py::test_b[x]@local/test_a.py", "tests/local/test_a.py::test_b[x]"),
        ("tests/local/test_a.py::test_b[x@y]@breaks_lab", "tests/local/test_a.py::test_b[x@y]"),
        ("tests/unit/test_a.py::test_b[x@y]", "tests/unit/test_a.py::test_b[x@y]"),
    ],
)
def test_a_failed_test_is_named_without_the_group_that_it_ran_in(
    kept: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last_failed = tmp_path / "lastfailed"
    last_failed.write_text(json.dumps({kept: True}))
    monkeypatch.setattr(failed_tests, "LAST_FAILED", last_failed)

    failed_tests.main()

    assert capsys.readouterr().out == f"{name}\n"


def test_nothing_is_printed_where_no_test_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(failed_tests, "LAST_FAILED", tmp_path / "lastfailed")

    failed_tests.main()

    assert capsys.readouterr().out == ""
