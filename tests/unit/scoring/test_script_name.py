"""The name of a script as a module."""

import pytest

from controlled_rollout_scoring.project import module_name


@pytest.mark.parametrize(
    ("entry_script", "name"),
    [
        ("score.py", "score"),
        ("./score.py", "score"),
        ("src/onlinescoring/score.py", "src.onlinescoring.score"),
        # Names that other modules have, or that are none.
        ("queue.py", "entry_module"),
        ("email/score.py", "entry_module"),
        ("pytest.py", "entry_module"),
        ("my-score.py", "entry_module"),
        ("2026/score.py", "entry_module"),
        ("../score.py", "entry_module"),
        ("score", "entry_module"),
    ],
)
def test_a_script_has_the_name_by_which_other_modules_would_import_it(entry_script: str, name: str) -> None:
    assert module_name(entry_script) == name
