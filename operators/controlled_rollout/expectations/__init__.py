"""Suites of Great Expectations on collected data: read without the library, validated in a process of their own."""

from controlled_rollout.expectations.suite import Expectation, Suite, read_suite

__all__ = ["Expectation", "Suite", "read_suite"]
