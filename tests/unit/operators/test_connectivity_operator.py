"""The arguments of the task that checks the network. With a workspace: tests/local, with a cluster: tests/cluster."""

from typing import Any

import pytest

import tests.airflow_home  # noqa: F401 - before anything of Airflow
from controlled_rollout import CheckConnectivityOperator
from controlled_rollout.checks.connectivity import CheckScope
from controlled_rollout.errors import ArgumentError


def operator(**arguments: Any) -> CheckConnectivityOperator:
    return CheckConnectivityOperator(task_id="check", **arguments)


def test_without_arguments_only_the_workspace_is_checked() -> None:
    assert operator().check_scope() == CheckScope()


def test_endpoint_and_destinations_are_asked_of_pods_too() -> None:
    asked = operator(endpoint="digits", version="two", destinations=["tcp://db.example:5432"]).check_scope()

    assert asked == CheckScope("digits", "two", ("tcp://db.example:5432",), needs_pod=True)


@pytest.mark.parametrize("given", ["https://one.example", [1], [None], ["tcp://a:1", b"tcp://b:2"], None, 5])
def test_destinations_that_are_no_list_of_texts_are_refused(given: Any) -> None:
    with pytest.raises(ArgumentError, match="no list of addresses"):
        operator(destinations=given).check_scope()
