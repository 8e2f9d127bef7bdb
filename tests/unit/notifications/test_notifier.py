"""The notifier: through the hooks of the standard providers to a server that stands for Slack and for Teams."""

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import DAG, Context

from controlled_rollout import ControlledRollout, PromoteToControlOperator, RolloutNotifier, record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError, TargetUnavailableError
from controlled_rollout.notifications.event import Event, call_each, with_event
from controlled_rollout.notifications.message import RolloutMessage
from controlled_rollout.operators.promotion import RollBackOperator
from controlled_rollout.record import Decision
from controlled_rollout.target import connect
from controlled_rollout.target.protocol import Change
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

BEGAN = datetime(2026, 11, 29, 12, tzinfo=UTC)
IMAGE = "models/digits@sha256:" + "1" * 64


class Chat(ThreadingHTTPServer):
    """A server that keeps what is posted, or refuses it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.refuses: tuple[str, ...] = ()


class Handler(BaseHTTPRequestHandler):
    """Takes one message."""

    server: Chat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = self.path.startswith(self.server.refuses) if self.server.refuses else False
        if not refused:
            self.server.posted.append((self.path, body))
        answer = b'{"ok": true}' if self.path.startswith("/api/") else b"ok"
        self.send_response(500 if refused else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    server = Chat()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, connection in {
        "CHAT": {"conn_type": "slackwebhook", "host": f"{url}/services", "password": "T0/B0/hook-secret"},
        "BOT": {"conn_type": "slack", "password": "xoxb-secret", "extra": {"base_url": f"{url}/api/"}},
        "TEAMS": {"conn_type": "http", "host": url, "password": "workflows/1/triggers/manual?sig=teams-secret"},
    }.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/base")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    """A target with an endpoint whose version `new` is being rolled out by weekly/run-1."""
    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))
    memory = MemoryTarget()
    monkeypatch.setattr(connect, "connect", memory.open)
    endpoint = Endpoint(name="digits").create_version("old", is_control=True, image=IMAGE)
    endpoint = endpoint.create_version("new", image=IMAGE).claim("new", owner="weekly/run-1", at=BEGAN)
    memory.store(endpoint.shift("new", 10), Change(who="weekly/run-1/shift"))
    why = "fail: errors are higher"
    step = Decision(time=BEGAN, endpoint="digits", version="new", step="roll_back", who="weekly/run-1/x", reason=why)
    record.append(Workspace.local(), step)
    return memory


def context(task: Any = None, **more: Any) -> Context:
    ti = SimpleNamespace(dag_id="weekly", run_id="run-1", task_id=task.task_id) if task else None
    return cast("Context", {"ti": ti, "task": task, **more})


def roll_back() -> RollBackOperator:
    return RollBackOperator(task_id="roll_back", endpoint="digits", version="new")


def test_slack_and_teams_are_told_through_the_hooks_of_their_providers(chat: Chat, target: MemoryTarget) -> None:
    RolloutNotifier(slack_conn_id="chat", teams_conn_id="teams")(context(roll_back()))

    (slack_path, slack), (teams_path, teams) = chat.posted
    assert (slack_path, teams_path) == ("/services/T0/B0/hook-secret", "/workflows/1/triggers/manual?sig=teams-secret")
    assert slack["text"] == ("version new of endpoint digits is rolled back. fail: errors are higher (weekly/run-1/x)")
    links = slack["blocks"][-1]["text"]["text"]
    page = "https://airflow.example/base/plugin/controlled-rollout/controlled_rollout_default/digits?version=new"
    assert f"<{page}|Endpoint>" in links
    assert "<https://airflow.example/base/dags/weekly/runs/run-1/tasks/roll_back|Run in Airflow>" in links
    assert "10 %" in json.dumps(slack["blocks"])
    assert teams["attachments"][0]["content"]["body"][0]["inlines"][0]["text"].endswith("is rolled back")
    assert "secret" not in json.dumps([slack, teams])


def test_a_channel_of_slack_is_told_by_its_api(chat: Chat, target: MemoryTarget) -> None:
    RolloutNotifier(slack_conn_id="bot", slack_channel="#models")(context(roll_back()))
    [(path, body)] = chat.posted
    assert path == "/api/chat.postMessage"
    assert (body["channel"], body["blocks"][0]["type"]) == ("#models", "header")


def test_a_channel_that_refuses_keeps_no_other_from_being_told(chat: Chat, target: MemoryTarget) -> None:
    chat.refuses = ("/services",)
    with pytest.raises(ControlledRolloutError, match="people could not be told everywhere"):
        RolloutNotifier(slack_conn_id="chat", teams_conn_id="teams")(context(roll_back()))
    assert [path.partition("?")[0] for path, _ in chat.posted] == ["/workflows/1/triggers/manual"]


class Mail(RolloutNotifier):
    """A channel of one's own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.sent: list[RolloutMessage] = []

    def send(self, message: RolloutMessage) -> None:
        self.sent.append(message)


def messages_told(given: Context, **arguments: Any) -> list[RolloutMessage]:
    mail = Mail(**arguments)
    mail(given)
    return mail.sent


def test_people_are_told_although_endpoint_and_record_cannot_be_read(
    target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.failing_calls = 1
    given = with_event(context(roll_back()), Event.ON_HOLD, "no decision in 6 h", "errors e 3")
    [message] = messages_told(given)
    assert message.event is Event.ON_HOLD
    assert message.reason.startswith("no decision in 6 h (the endpoint cannot be read now: ")
    assert message.claims == ("errors e 3",)


def test_a_failed_roll_back_says_that_the_version_may_have_traffic(target: MemoryTarget) -> None:
    [message] = messages_told(context(roll_back(), exception=TargetUnavailableError("no answer for 1 h")))
    assert message.event is Event.NOT_ROLLED_BACK
    assert message.reason == "no answer for 1 h"
    assert ("new", "Treatment", "10 %", IMAGE.rpartition("@")[2][:19]) in message.versions


def test_a_promotion_says_so_and_another_task_what_became_of_it(target: MemoryTarget) -> None:
    promote = PromoteToControlOperator(task_id="promote", endpoint="digits", version="new")
    assert messages_told(context(promote))[0].event is Event.PROMOTED
    assert messages_told(context(promote, exception=ValueError("no")))[0].event is Event.FAILED


def test_callbacks_of_a_dag_name_the_endpoint_and_find_the_version_of_the_run(target: MemoryTarget) -> None:
    run = SimpleNamespace(dag_id="weekly", run_id="run-1", run_after=BEGAN)
    given = cast("Context", {"dag": None, "dag_run": run, "reason": "task_failure"})
    [message] = messages_told(given, endpoint="digits")
    assert "version v20261129t120000-" in message.headline
    assert message.reason == "task_failure"
    with pytest.raises(ControlledRolloutError, match="is about no endpoint: give endpoint"):
        messages_told(given)


def test_a_channel_without_a_connection_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="slack_channel='#models' was given without slack_conn_id"):
        RolloutNotifier(slack_channel="#models")


def deadline(run_id: str) -> Context:
    """Return the context that Airflow gives the callback of a deadline."""
    run = {"dag_run_id": run_id, "dag_id": "weekly", "run_after": BEGAN.isoformat()}
    return cast("Context", {"dag_run": run, "deadline": {"id": "1", "deadline_time": BEGAN}})


async def awaited(**arguments: Any) -> None:
    """Await the notifier as a triggerer does."""
    await RolloutNotifier(**arguments)


def test_a_deadline_tells_people_of_a_rollout_that_is_still_under_way(chat: Chat, target: MemoryTarget) -> None:
    asyncio.run(awaited(endpoint="digits", slack_conn_id="chat", context=deadline("run-1")))
    [(_, body)] = chat.posted
    assert body["text"].startswith("version new of endpoint digits is still being rolled out")


def test_a_deadline_tells_nobody_of_a_rollout_that_is_over(chat: Chat, target: MemoryTarget) -> None:
    asyncio.run(awaited(endpoint="digits", slack_conn_id="chat", context=deadline("run-0")))
    assert chat.posted == []


def test_the_group_calls_its_notifiers_beside_those_of_the_default_arguments() -> None:
    promoted, rolled_back = Mail(), Mail()

    def own(context: Context) -> None:
        """Do nothing."""

    with DAG("weekly", schedule=None, default_args={"on_success_callback": own}):
        group = ControlledRollout(
            endpoint="digits", image=IMAGE, on_promoted=promoted, on_rolled_back=[rolled_back], on_hold=promoted
        )
    assert list(group.promote.on_success_callback) == [own, promoted]
    assert list(group.roll_back.on_success_callback) == [own, rolled_back]
    assert list(group.roll_back.on_failure_callback) == [rolled_back]
    assert list(group.result.on_success_callback) == [own]
    assert all(gate.on_hold == [promoted] for gate in group.gates)


def test_a_notifier_that_fails_or_hangs_keeps_no_other_from_being_called() -> None:
    called: list[str] = []
    forever = threading.Event()

    def fails(context: Context) -> None:
        raise ConnectionError("the chat is away")

    lines: list[str] = []
    notifiers = [lambda _: forever.wait(), fails, lambda _: called.append("told")]
    call_each(notifiers, cast("Context", {}), lines.append, longest_s=0.05)
    forever.set()
    assert called == ["told"]
    assert len(lines) == 2
    assert "the chat is away" in lines[1]
