"""What is wrong with a text of YAML is said with its place, and no line of the text is repeated."""

from pathlib import Path

import pytest
import yaml

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.file import read_environment
from controlled_rollout.yaml_fault import yaml_fault


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n\thunter2: 2", "line 3, column 1: a tab begins a value or indents a line: use spaces"),
        ("a: b: hunter2", "line 1, column 5: a second `: ` in a line"),
        ("a: !hunter2 b", "line 1, column 4: a tag (!name) is not read here"),
        ("a: !hunter2!b c", "line 1, column 4: a tag (!name) is not read here"),
        ("a: *hunter2", "line 1, column 4: an alias (*name) of nothing in the file"),
        ("a: 1\nhunter2\nb: 1", "line 2, column 1: a name without `: ` behind it"),
        ("a: 1\n---\nhunter2: 1", "line 2, column 1: a second document (---) in the file"),
        ("a: [\nhunter2", "expected ',' or ']', but got '<stream end>' (while parsing a flow sequence, which begins "),
        ("a: 'hunter2", "line 1, column 4: a quote that begins here is not closed"),
        ("a: hunter2\x01", "it has the character U+0001, which YAML does not allow"),
    ],
)  # fmt: skip
def test_a_fault_is_said_with_its_place_and_without_the_text(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError) as refused:
        yaml.safe_load(text)

    assert said in yaml_fault(refused.value)
    assert "hunter2" not in yaml_fault(refused.value)


def test_a_password_in_an_environment_file_that_is_not_yaml_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "environment.yml"
    file.write_text("requirements:\n  - --index-url https://me:hunter2@index.example: x: [\n")

    with pytest.raises(ImageError, match=r"is not YAML: line 2, column \d+: ") as refused:
        read_environment(file)
    assert "hunter2" not in str(refused.value)
