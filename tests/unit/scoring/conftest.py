"""What the tests of capture share."""

import pytest

from controlled_rollout_scoring import spool


@pytest.fixture(autouse=True)
def exact_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the counts with every record, as tests read them while the worker lives."""
    monkeypatch.setattr(spool, "COUNTS_INTERVAL_S", 0.0)
