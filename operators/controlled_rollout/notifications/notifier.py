"""The notifier: tells people what has happened to a rollout, in the task's log, in Slack and in Teams.

Slack and Teams are the business of Airflow's standard providers: their hooks send, and their connections hold the
secrets.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from airflow.sdk import BaseNotifier, conf

from controlled_rollout.errors import ControlledRolloutError, EndpointNotFoundError, RecordUnavailableError
from controlled_rollout.hooks.workspace import WorkspaceHook, quieten_clients
from controlled_rollout.links.task_links import requests_url
from controlled_rollout.notifications.event import EVENT_KEY, Event
from controlled_rollout.page_address import endpoint_page_url
from controlled_rollout.version_name import version_of_run
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.notifications.message import RolloutMessage
    from controlled_rollout.record import Decision
    from controlled_rollout.target.protocol import Revision

__all__ = ["RolloutNotifier", "Subject", "links_of", "read_message"]

TIMEOUT_S: Final = 20
# Of the record, the newest: looks come at an interval, and the steps are between them.
MOST_DECISIONS: Final = 500


@dataclass(frozen=True, slots=True)
class Subject:
    """What a notification is about, from the context in which it is sent.

    Attributes:
        event: What has happened.
        conn_id, endpoint, version: Of which rollout; the version is empty if only the endpoint is known.
        reason, trouble, table: What is known of it already; `trouble`: what it should have done as well and has not.
        dag_id, run_id, task_id: Where; empty if that is not known.
    """

    event: Event
    conn_id: str
    endpoint: str
    version: str
    reason: str = ""
    trouble: str = ""
    table: str = ""
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""


class RolloutNotifier(BaseNotifier):
    """Tells people about a rollout: what has happened, why in a sentence, the versions, the claims, and where to look.

    For `on_hold`, `on_promoted` and `on_rolled_back` of `ControlledRollout`, for Airflow's callbacks of tasks and DAGs,
    and for a `DeadlineAlert`. The message is always in the log; a subclass may send it elsewhere, see `send`. A channel
    that does not answer keeps no other channel from being told, and changes nothing of the rollout.

    Args:
        slack_conn_id: A connection of the type `slackwebhook`; or, with a channel, of the type `slack`.
        slack_channel: The channel, for a connection of the type `slack`.
        teams_conn_id: A connection of the type `http`: its host is the server of a Teams workflow's address, and its
            password the rest of it, path and signature.
        endpoint, version, conn_id: Of which rollout, where the context does not tell: for a DAG's callbacks and for a
            deadline. By default those of the task.
        context: The context, for a notifier that is awaited; Airflow gives it.
    """

    template_fields: Sequence[str] = (
        "slack_conn_id",
        "slack_channel",
        "teams_conn_id",
        "endpoint",
        "version",
        "conn_id",
    )

    def __init__(
        self,
        *,
        slack_conn_id: str | None = None,
        slack_channel: str | None = None,
        teams_conn_id: str | None = None,
        endpoint: str | None = None,
        version: str | None = None,
        conn_id: str | None = None,
        context: "Context | None" = None,
    ) -> None:
        """Store the arguments; raise ValueError for a channel without a connection."""
        if slack_channel is not None and slack_conn_id is None:
            raise ValueError(f"slack_channel={slack_channel!r} was given without slack_conn_id: give that too")
        self.slack_conn_id = slack_conn_id
        self.slack_channel = slack_channel
        self.teams_conn_id = teams_conn_id
        self.endpoint = endpoint
        self.version = version
        self.conn_id = conn_id
        super().__init__(context)

    def notify(self, context: "Context") -> None:
        """Tell people, from a worker or the DAG processor.

        Raises:
            ControlledRolloutError: A channel could not be told; the others were.
        """
        subject = self.subject(context)

        async def workspace() -> Workspace:
            """Return the workspace."""
            return WorkspaceHook(subject.conn_id).get_workspace()

        from controlled_rollout.notifications.message import as_text

        quieten_clients()
        message = asyncio.run(self._message(subject, workspace()))
        if message is not None:
            self.log.info("%s", as_text(message))
            raise_failures(attempt(channel, message) for channel in self.channels)

    async def async_notify(self, context: "Context") -> None:
        """Tell people, from the triggerer: of a deadline that is over.

        Raises:
            ControlledRolloutError: A channel could not be told; the others were.
        """
        from asgiref.sync import sync_to_async

        from controlled_rollout.notifications.message import as_text

        quieten_clients()
        subject = self.subject(context)
        message = await self._message(subject, WorkspaceHook(subject.conn_id).aget_workspace())
        if message is not None:
            self.log.info("%s", as_text(message))
            raise_failures([await sync_to_async(attempt)(channel, message) for channel in self.channels])

    @property
    def channels(self) -> "tuple[Callable[[RolloutMessage], None], ...]":
        """What a message is sent by."""
        return (self._send_to_slack, self._send_to_teams, self.send)

    def send(self, message: "RolloutMessage") -> None:
        """Send a message to a channel of your own; a subclass implements it. It may block.

        Args:
            message: What to tell; `as_text` makes plain text of it.
        """

    def subject(self, context: "Context") -> Subject:
        """Return what a context is about.

        Raises:
            ControlledRolloutError: The endpoint is not known: it is neither the task's nor given.
        """
        task, ti = context.get("task"), context.get("ti")
        run: Any = context.get("dag_run")
        known: Any = context.get(EVENT_KEY) or {}
        endpoint = self.endpoint or str(getattr(task, "endpoint", None) or "")
        if not endpoint:
            raise ControlledRolloutError(
                "RolloutNotifier was called for a task or a DAG that is about no endpoint: give endpoint, and version"
            )
        has_deadline = "deadline" in context
        version = self.version or str(getattr(task, "version", None) or "")
        if not version and task is None and run is not None and not has_deadline:
            version = version_of_run(run)  # as ControlledRollout names it
        error: Any = context.get("exception") or context.get("reason")
        if known or has_deadline:
            event = Event(known.get("event", Event.STUCK))
        elif error and error != "success":
            event = getattr(task, "event_of_failure", Event.FAILED)
        else:
            event = getattr(task, "event_of_success", Event.DONE)
        reason = known.get("reason") or error or getattr(task, "change_reason", None)
        trouble = str(getattr(task, "trouble", None) or "")
        return Subject(
            event=event,
            conn_id=self.conn_id or str(getattr(task, "conn_id", None) or WorkspaceHook.default_conn_name),
            endpoint=endpoint,
            version=version,
            reason=str(reason or ""),
            trouble=trouble,
            table=str(known.get("table") or ""),
            dag_id=_field_text(ti, "dag_id") or _field_text(run, "dag_id"),
            run_id=_field_text(ti, "run_id") or _field_text(run, "run_id") or _field_text(run, "dag_run_id"),
            task_id=_field_text(ti, "task_id"),
        )

    async def _message(self, subject: Subject, workspace: Awaitable[Workspace]) -> "RolloutMessage | None":
        """Return what to tell; what cannot be read is missing from it. None if a deadline's rollout is over."""
        from controlled_rollout.notifications.message import message_about

        try:
            return await read_message(await workspace, subject)
        except Exception as error:  # people are told all the same
            self.log.warning("endpoint %r cannot be read for a notification: %s", subject.endpoint, error)
            return message_about(
                subject.event,
                endpoint=subject.endpoint,
                version=subject.version,
                reason=f"{subject.reason or 'no reason is known'} (the endpoint cannot be read now: {error})",
                table=subject.table,
                links=links_of(subject),
            )

    def _send_to_slack(self, message: "RolloutMessage") -> None:
        """Send a message to Slack, by a hook of its standard provider."""
        if not self.slack_conn_id:
            return
        from controlled_rollout.notifications.slack import slack_blocks, slack_text

        content = {"text": slack_text(message), "blocks": slack_blocks(message), "unfurl_links": False}
        if self.slack_channel:
            from airflow.providers.slack.hooks.slack import SlackHook

            hook = SlackHook(slack_conn_id=self.slack_conn_id, timeout=TIMEOUT_S)
            hook.call("chat.postMessage", json={"channel": self.slack_channel, **content})
        else:
            from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

            SlackWebhookHook(slack_webhook_conn_id=self.slack_conn_id, timeout=TIMEOUT_S).send_dict(content)

    def _send_to_teams(self, message: "RolloutMessage") -> None:
        """Send a message to a Teams workflow, by the HTTP provider's hook."""
        if not self.teams_conn_id:
            return
        from airflow.providers.http.hooks.http import HttpHook

        from controlled_rollout.notifications.teams import teams_message

        hook = HttpHook(http_conn_id=self.teams_conn_id)
        path = hook.get_connection(self.teams_conn_id).password
        hook.run(path, json=teams_message(message), extra_options={"timeout": TIMEOUT_S})


async def read_message(workspace: Workspace, subject: Subject) -> "RolloutMessage | None":
    """Read endpoint and record, and return what to tell; None if it is about a deadline of a rollout that is over.

    Args:
        workspace: Where both are.
        subject: What it is about.

    Raises:
        TargetUnavailableError: The target does not answer.
    """
    from controlled_rollout import record
    from controlled_rollout.notifications.message import message_about, rollout_of_run
    from controlled_rollout.record.in_time import within_time
    from controlled_rollout.target.connect import connect

    history: Sequence[Revision] = ()
    async with connect(workspace) as target:
        with suppress(EndpointNotFoundError):
            history = await target.history(subject.endpoint)
    version, reason = subject.version, subject.reason
    if subject.event is Event.STUCK:
        run = f"{subject.dag_id}/{subject.run_id}"
        if not history or (rolled_out := rollout_of_run(history[-1].endpoint, run)) is None:
            return None
        version = rolled_out
    decisions: list[Decision] = []
    if version:
        newest_first = record.read_newest_first(workspace, subject.endpoint, version)
        try:
            where = record.storage_of(workspace, subject.endpoint).name
            decisions = await within_time(where, lambda: list(islice(newest_first, MOST_DECISIONS)))
        except RecordUnavailableError as error:
            reason = f"{reason or 'no reason is known'} (the record cannot be read now: {error})"
    return message_about(
        subject.event,
        endpoint=subject.endpoint,
        version=version,
        history=history,
        newest_first=decisions,
        reason=reason,
        trouble=subject.trouble,
        table=subject.table,
        links=links_of(subject, workspace),
    )


def links_of(subject: Subject, workspace: Workspace | None = None) -> list[tuple[str, str]]:
    """Return where people may look: the endpoint's page, the task, the requests. None of it holds a secret.

    Without Airflow's own address (`[api] base_url`) there are no links into it.
    """
    links = []
    if base := (conf.get("api", "base_url", fallback="") or "").rstrip("/"):
        links.append(("Endpoint", f"{base}/{endpoint_page_url(subject.conn_id, subject.endpoint, subject.version)}"))
        if subject.dag_id and subject.run_id:
            run = f"{base}/dags/{quote(subject.dag_id, safe='')}/runs/{quote(subject.run_id, safe='')}"
            task = f"/tasks/{quote(subject.task_id, safe='')}" if subject.task_id else ""
            links.append(("Run in Airflow", f"{run}{task}"))
    if workspace is not None and (address := requests_url(workspace, subject.endpoint, None, now=datetime.now(UTC))):
        links.append(("Requests in Azure", address))
    return links


def _field_text(of: Any, name: str) -> str:
    """Return a field of a value or a mapping as text; empty without one."""
    value = of.get(name) if isinstance(of, Mapping) else getattr(of, name, None)
    return "" if value is None else str(value)


def attempt(channel: "Callable[[RolloutMessage], None]", message: "RolloutMessage") -> Exception | None:
    """Send a message through a channel; return what kept it from being sent, None if nothing did."""
    try:
        channel(message)
    except Exception as error:
        return error
    return None


def raise_failures(outcomes: Iterable[Exception | None]) -> None:
    """Raise ControlledRolloutError if a channel could not be told."""
    if failures := [error for error in outcomes if error is not None]:
        reasons = "; ".join(f"{type(error).__name__}: {error}" for error in failures)
        raise ControlledRolloutError(f"people could not be told everywhere: {reasons}") from failures[0]
