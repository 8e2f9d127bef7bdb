"""What the command line prints of texts that others wrote."""

import io

import pytest

from controlled_rollout.cli.view import print_answer

ANSWER = '"\x1b[2J and a\u00a0space"'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("output", "printed"),
    [(io.StringIO(), ANSWER), (Terminal(), r'"\x1b[2J and a\xa0space"')],
    ids=["pipe", "terminal"],
)
def test_the_answer_of_a_model_goes_unchanged_into_a_pipe_and_does_not_act_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, output: io.StringIO, printed: str
) -> None:
    monkeypatch.setattr("sys.stdout", output)

    print_answer(ANSWER)

    assert output.getvalue() == f"{printed}\n"
