"""The check of the structure: what is too long is named, unless a comment says why."""

from pathlib import Path

import pytest

from scripts.check_structure import circles, too_long

BODY = "\n".join("    pass" for _ in range(61))


def test_a_long_function_is_named_with_its_line_and_length() -> None:
    text = f"import os\n\n\ndef short() -> None:\n    pass\n\n\nasync def long() -> None:\n{BODY}\n"

    assert [line.rpartition(": at most")[0] or line.split(", at most")[0] for line in too_long(text, "a.py")] == [
        "a.py:8: long: 62 lines"
    ]


def test_a_reason_above_a_function_or_its_decorator_is_enough() -> None:
    reason = "# Long because it is a table of states,\n# which is read as a whole.\n"

    assert not list(too_long(f"{reason}def long() -> None:\n{BODY}\n", "a.py"))
    assert not list(too_long(f"{reason}@cache\ndef long() -> None:\n{BODY}\n", "a.py"))


def test_a_reason_must_follow_the_words() -> None:
    assert list(too_long(f"# Long because\ndef long() -> None:\n{BODY}\n", "a.py"))
    assert list(too_long(f"# Long because it is.\n\ndef long() -> None:\n{BODY}\n", "a.py"))


def test_a_long_file_states_its_reason_before_its_first_import() -> None:
    rest = "import os\n" + "A = 1\n" * 500

    assert [line.split(":")[0] for line in too_long(rest, "a.py")] == ["a.py"]
    assert not list(too_long(f'"""A table."""\n\n# Long because it is a table.\n\n{rest}', "a.py"))
    assert list(too_long(f'"""A table.\n\n# Long because it is a table.\n"""\n\n{rest}', "a.py"))


def test_a_circle_by_an_import_in_a_function_is_found_and_one_for_types_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "round_trip"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("import round_trip.two\n")
    (package / "two.py").write_text("def later() -> None:\n    import round_trip.one\n")
    (package / "three.py").write_text(
        "from typing import TYPE_CHECKING\n\nimport round_trip.four\n\nif TYPE_CHECKING:\n    import round_trip.one\n"
    )
    (package / "four.py").write_text("import round_trip.one\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    [circle] = circles("round_trip")

    assert {"round_trip.one", "round_trip.two"} == set(circle.removeprefix("circle of imports: ").split(" imports "))
