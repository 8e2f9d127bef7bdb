"""Files of settings: nothing in them is guessed, dropped, or larger than it looks."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controlled_rollout.cli.settings_file import nearest, read_settings_file, read_value
from controlled_rollout.errors import ArgumentError

BOMB = "a: &a [x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefghi"))


def read(folder: Path, text: str) -> Any:
    (folder / "file.yaml").write_text(text)
    return read_settings_file(folder / "file.yaml")


def test_words_that_are_booleans_for_some_are_texts_and_true_is_true(tmp_path: Path) -> None:
    text = "country: no\nname: on\nyes: y\nright: true\nwrong: False\nnumber: 1.5\nday: 2026-01-05\n"

    found = read(tmp_path, text)

    assert found | {"day": None} == {
        "country": "no", "name": "on", "yes": "y", "right": True, "wrong": False, "number": 1.5, "day": None,
    }  # fmt: skip


def test_json_is_read_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, '{"a": [1, null, {"b": "no"}], "c": true}') == {"a": [1, None, {"b": "no"}], "c": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "'a' is given twice"),
        ("a: {b: 1, b: 2}\n", "'b' is given twice"),
        pytest.param(BOMB, "aliases", id="bomb"),
        ("a: &a {x: 1}\nb: {<<: *a}\n", "aliases"),
        ("b: {<<: {x: 1}}\n", "a name has to be a text"),
        ("? [a]\n: 1\n", "a name has to be a text"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1, column 4: a tag (!name) is not read here"),
        ("at: 12:30:45\n", "line 1, column 5: put a number with `:` in it into quotes"),
        ("a: 1\nb: 2026-13-45\n", "line 2, column 4: it is like a number or a date, and is none: put it into quotes"),
        ("a: !!timestamp x\n", "line 1, column 4: it is like a number or a date"),
        ("a: !!bool x\n", "line 1, column 4: it is like a number or a date"),
        ("- 1\n", "holds no settings"),
        ("", "holds no settings"),
        ("a: [\n", "neither YAML nor JSON"),
        ("a: 1\n--- \nb: 1\n", "neither YAML nor JSON"),
        pytest.param("[" * 5000, "nested too deep", id="deep"),
        pytest.param("a: " + "x" * 2_100_000, "cannot be read", id="large"),
    ],
)
def test_what_yaml_would_guess_drop_or_multiply_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as refused:
        read(tmp_path, text)
    assert message in str(refused.value)


@settings(max_examples=50)
@given(text=st.text(alphabet="ab:-&*!<>[]{}?|#'\" \n1~", max_size=30))
def test_whatever_the_file_says_it_is_settings_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        found = read(tmp_path_factory.getbasetemp(), text)
    except ArgumentError:
        return
    assert found == {str(name): value for name, value in yaml.safe_load(text).items()}


def test_a_mistyped_name_is_answered_with_the_nearest_known_one() -> None:
    assert nearest("pass_ratoi", ["alpha", "pass_ratio"]) == ": did you mean pass_ratio?"
    assert nearest("xyz", ["alpha"]) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1, a: 2}", "'a' is given twice"),
        ("[&a [1], *a]", "aliases"),
        ("{at: 12:30}", "put a number with `:` in it into quotes"),
        ("2026-13-45", "it is like a number or a date, and is none: put it into quotes"),
        ("{", "is not a value of YAML"),
        pytest.param("[" * 5000, "nested too deep", id="deep"),
    ],
)
def test_a_value_of_an_option_is_read_as_strictly_as_a_file(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        read_value(text)
    assert read_value("{country: no, on: true, cores: 0.5}") == {"country": "no", "on": True, "cores": 0.5}
