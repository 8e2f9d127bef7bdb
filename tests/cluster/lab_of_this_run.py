"""The lab that a test run uses: the one that is up, or one that is brought up for the run."""

import contextlib
import os

import pytest

from tests.cluster.lab import Lab, LabError
from tests.cluster.lab.cache import locked
from tests.cluster.lab.network import owner
from tests.cluster.lab.preparation import why_not_prepared
from tests.needs import skip

__all__ = ["lab_of_this_run"]


def lab_of_this_run() -> Lab:
    """Return the lab; skip the test where none can be brought up, or fail it if a cluster is required."""
    # One process brings it up and the others wait: `up` on a lab that a test of another process breaks would fail.
    with locked("first-use"):
        with contextlib.suppress(LabError):
            return Lab.connect()
        if why_not := why_not_prepared():
            message = f"no cluster: {why_not}; or set KUBECONFIG to use one"
            if os.environ.get("CONTROLLED_ROLLOUT_CLUSTER") == "required":
                pytest.fail(message)
            skip(message)
        return Lab.up(owner(), started_by=os.environ["CONTROLLED_ROLLOUT_TEST_RUN"])
