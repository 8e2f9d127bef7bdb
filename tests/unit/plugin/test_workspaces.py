"""The endpoint of a run is looked for in all workspaces, and none is said to lack it before it was read."""

import threading
from collections.abc import Iterator

import pytest

from controlled_rollout.errors import EndpointNotFoundError, TargetUnavailableError, WorkspaceError
from controlled_rollout.workspace import Workspace
from controlled_rollout_ui.api import workspaces
from controlled_rollout_ui.api.workspaces import Workspaces
from tests.polling import until

DEADLINE_S = 30.0


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event at which the only workspace's connection answers, with an error."""
    event = threading.Event()

    def read_connection(_: str) -> Workspace:
        event.wait(DEADLINE_S)
        raise WorkspaceError("there is no connection 'ml': create it")

    monkeypatch.setattr(workspaces, "_read_connection", read_connection)
    monkeypatch.setattr(workspaces, "workspace_names", lambda: ("ml",))
    monkeypatch.setattr(workspaces, "FIRST_DETAIL_WAIT_S", 0.05)
    yield event
    event.set()


async def test_a_run_is_not_said_to_have_no_endpoint_while_workspaces_are_read(answers: threading.Event) -> None:
    shown = Workspaces()
    with pytest.raises(TargetUnavailableError, match=r"workspaces are being read \(ml\)"):
        await shown.detail_of_run("weekly", "run-1")
    answers.set()

    async def refusal() -> str | None:
        try:
            await shown.detail_of_run("weekly", "run-1")
        except TargetUnavailableError:
            return None
        except EndpointNotFoundError as error:
            return str(error)
        return None

    text = await until(refusal, "the answer", timeout_s=DEADLINE_S)
    assert text == "no version of any endpoint is of the run weekly/run-1; these workspaces do not answer: ml"
