"""All tests; what they share is imported as `tests.…`, by the tests themselves and by `python -m tests.…` alike."""
