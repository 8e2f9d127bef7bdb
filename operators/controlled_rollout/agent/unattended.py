"""Rollouts that nobody looks at any more: the agent takes their treatments back, as a roll-back by a person would."""

import asyncio
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Final

from controlled_rollout.agent.namespace_state import NamespaceState
from controlled_rollout.cluster.api import Api
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.target.kubernetes.take_back_notes import write_take_back_note
from controlled_rollout.target.kubernetes.target import KubernetesTarget
from controlled_rollout.target.protocol import Revision
from controlled_rollout.target.silence import FailedTries, unattended_rollout
from controlled_rollout.target.silence_checks import SilenceChecks
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.steps.silence import SilenceWatch

__all__ = ["UnattendedRollouts"]

log = logging.getLogger(__name__)

INTERVAL_S: Final = 10.0


class UnattendedRollouts:
    """Looks for rollouts without anybody who looks at them, while it runs.

    Args:
        api: The cluster.
        workspace: The workspace of the namespace.
        state: What is known of the namespace, kept up to date by others.
        watched_since: Since when an agent has been at work there without a gap.
    """

    def __init__(self, api: Api, workspace: Workspace, state: NamespaceState, watched_since: datetime) -> None:
        self._api = api
        self._checks = SilenceChecks(watched_since=watched_since)
        self._target = KubernetesTarget(workspace, api)
        self._workspace = workspace
        self._state = state
        self._running: dict[str, asyncio.Task[None]] = {}
        self._watch: SilenceWatch | None = None

    async def run(self) -> None:
        """Look every few seconds until this is cancelled; each endpoint by itself, because a roll-back takes time."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._running = {name: task for name, task in self._running.items() if not task.done()}
                unattended = {
                    name: revision
                    for name, revision in self._state.revisions.items()
                    if unattended_rollout(revision.endpoint) is not None
                }
                self._checks.begin_round(unattended)
                for name, revision in unattended.items():
                    if name not in self._running:
                        self._running[name] = tasks.create_task(self._take_back_if_due(name, revision))
                await asyncio.sleep(INTERVAL_S)

    async def _take_back_if_due(self, name: str, newest: Revision) -> None:
        """Check one endpoint, and take its treatment back if that is due."""
        before = self._checks.failed_tries(name)
        try:
            await self._silence_watch().look_after(self._target, newest, progress=log.info)
        except ControlledRolloutError as error:
            log.warning("endpoint %s: whether somebody looks at its rollout: %s", name, error)
        except Exception:  # whatever it is: it must not keep the agent from the other endpoints
            log.exception("endpoint %s: whether somebody looks at its rollout is not known", name)
        tries = self._checks.failed_tries(name)
        if tries is not None and tries != before:
            await self._note_failed(name, tries)

    async def _note_failed(self, name: str, tries: FailedTries) -> None:
        """Write where `status` and the page see it that a treatment could not be taken back; the log says it anyway."""
        log.error("endpoint %s: %s", name, tries.sentence)
        try:
            await write_take_back_note(self._api, self._workspace.namespace, name, tries)
        except ControlledRolloutError as error:
            log.warning(
                "endpoint %s: the note that its treatment is not taken back could not be written: %s", name, error
            )

    def _silence_watch(self) -> "SilenceWatch":
        """Return what takes treatments back; made only now, because its imports take memory."""
        if self._watch is None:
            from controlled_rollout.steps.silence import SilenceWatch

            self._watch = SilenceWatch(self._workspace, self._checks)
        return self._watch
