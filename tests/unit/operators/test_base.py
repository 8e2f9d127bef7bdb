"""What a task makes of the engine's errors and of decisions."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from controlled_rollout.errors import (
    ConflictError,
    ControlledRolloutError,
    EvidenceUnavailableError,
    NothingToDoError,
    RegistryUnavailableError,
    ScanUnavailableError,
    TargetUnavailableError,
)
from controlled_rollout.operators.base import FAILURE_KEY, RolloutOperator, change_of, run_of, task_of
from controlled_rollout.workspace import Workspace


class Failing(RolloutOperator):
    """A task whose step raises an error, or returns."""

    def __init__(self, error: ControlledRolloutError | None = None, **arguments: Any) -> None:
        super().__init__(task_id="step", endpoint="digits", **arguments)
        self.error = error

    async def step(self, context: Context, workspace: Workspace) -> str:
        if self.error is not None:
            raise self.error
        return workspace.name


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))


def context() -> tuple[Context, dict[str, Any]]:
    """Return a task's context, and where its XComs are kept, but for its links."""
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(dag_id="weekly", run_id="run-1", task_id="step")
    ti.xcom_push = lambda key, value: None if key.startswith("_link_") else pushed.__setitem__(key, value)
    return cast("Context", {"ti": ti}), pushed


def test_a_step_runs_on_the_workspace_of_the_task_s_connection() -> None:
    assert Failing().execute(context()[0]) == "local"


def test_an_error_that_would_come_again_fails_the_task_for_good_and_keeps_its_cause() -> None:
    content, pushed = context()
    error = ConflictError("weekly/run-0 holds it\nand more")

    with pytest.raises(AirflowFailException) as failed:
        Failing(error=error).execute(content)

    assert failed.value.__cause__ is error
    assert pushed == {FAILURE_KEY: "weekly/run-0 holds it"}


@pytest.mark.parametrize(
    "error", [TargetUnavailableError, EvidenceUnavailableError, RegistryUnavailableError, ScanUnavailableError]
)
def test_temporary_error_is_retried(error: type[ControlledRolloutError]) -> None:
    content, pushed = context()
    with pytest.raises(error):
        Failing(error=error("away")).execute(content)
    assert pushed == {FAILURE_KEY: "away"}


def test_a_step_that_has_nothing_to_do_is_skipped() -> None:
    content, pushed = context()
    with pytest.raises(AirflowSkipException, match="first version"):
        Failing(error=NothingToDoError("first version")).execute(content)
    assert pushed == {}


def test_a_decision_fails_the_task_without_a_cause() -> None:
    content, pushed = context()
    with pytest.raises(AirflowFailException) as failed:
        Failing().fail(content, "fail: errors are higher\nthe table")
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
    assert pushed == {FAILURE_KEY: "fail: errors are higher"}


def test_a_task_has_names_for_the_history_and_for_the_rollout_that_it_belongs_to() -> None:
    content, _ = context()
    assert run_of(content) == "weekly/run-1"
    assert task_of(content) == "weekly/run-1/step"
    assert change_of(content, 1234).model_dump() == {"who": "weekly/run-1/step", "reason": "1234"}
    assert Failing().required_owner(content) == "weekly/run-1"
    assert Failing(own_rollout=False).required_owner(content) is None


def test_instances_of_a_mapped_group_own_rollouts_of_their_own() -> None:
    content, _ = context()
    content["ti"].map_index = 1
    assert run_of(content) == Failing().required_owner(content) == "weekly/run-1[1]"
    assert task_of(content) == "weekly/run-1[1]/step"
    content["ti"].map_index = -1
    assert run_of(content) == "weekly/run-1"
