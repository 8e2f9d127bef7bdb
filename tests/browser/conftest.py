"""The Airflow, the rollouts and the browser that all tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.browser.browser_lab import require_browser
from tests.browser.rollout_lab import Rollouts, rollouts


@pytest.fixture(scope="package")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    """Two real rollouts at 10 per cent, and a browser that is signed in to their Airflow."""
    require_browser()
    with rollouts(tmp_path_factory.mktemp("page")) as made:
        yield made
