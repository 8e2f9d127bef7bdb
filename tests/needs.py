"""Tests that need what a machine may not have: skipped there, but not in CI."""

import os
from typing import NoReturn

import pytest

__all__ = ["is_ci", "skip"]


def is_ci() -> bool:
    """Whether this is a run in CI, where every test has to run."""
    return os.environ.get("CI") == "true"


def skip(why: str) -> NoReturn:
    """Skip the test, or fail it in CI, where `make lab` has prepared the machine for all of them.

    Args:
        why: What is missing and what to do about it.
    """
    if is_ci():
        pytest.fail(why)
    pytest.skip(why)
