"""The part of a failed program's output that an error shows."""

import asyncio
import os
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.image import run_command
from controlled_rollout.image.run_command import EXCERPT_LINES, error_excerpt

STEPS = [f"STEP {number}/40: RUN something" for number in range(1, 41)]


def test_the_excerpt_begins_with_the_first_line_of_the_error() -> None:
    assert error_excerpt([*STEPS, "error: no such package", "", "hint: look at its name"]) == (
        "error: no such package\nhint: look at its name"
    )


def test_without_a_line_that_looks_like_an_error_the_excerpt_is_the_last_lines() -> None:
    assert error_excerpt([*STEPS, "Killed"]).splitlines() == [*STEPS[1 - EXCERPT_LINES :], "Killed"]


def test_a_program_without_output_is_reported_as_such() -> None:
    assert error_excerpt(["", "  "]) == "it wrote nothing"


async def test_a_line_without_an_end_neither_ends_the_build_nor_fills_the_memory(tmp_path: Path) -> None:
    seen: list[int] = []
    program = "print('x' * 5_000_000); print('last', end='')"

    with (tmp_path / "lock").open("w") as lock:
        exit_code, lines = await run_command.run_command(
            [sys.executable, "-c", program],
            tmp_path,
            environment=os.environ,
            lock=lock.fileno(),
            on_line=lambda line: seen.append(len(line)),
        )

    assert exit_code == 0
    assert sum(seen) == 5_000_004 and max(seen) < 1_200_000
    assert lines[-1] == "last"


@given(st.lists(st.binary(max_size=6).map(lambda text: text.replace(b"\0", b"\n")), max_size=8))
async def test_output_in_any_pieces_is_split_into_the_same_lines(pieces: list[bytes]) -> None:
    class Pieces(asyncio.StreamReader):
        async def read(self, n: int = -1) -> bytes:
            return next(remaining, b"")

    remaining = iter([piece for piece in pieces if piece])
    text = b"".join(pieces)

    assert [line async for line in run_command._lines(Pieces())] == (
        text.removesuffix(b"\n").split(b"\n") if text else []
    )
