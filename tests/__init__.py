"""All tests. Shared code is imported as `tests.…`, by tests and by `python -m tests.…` alike."""
