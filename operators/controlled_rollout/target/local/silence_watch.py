"""Looks after the rollouts of a local workspace while nobody else does: a treatment that nobody looks at is taken back.

The supervisor only finds out that it is time. The roll-back itself is the step that tasks and commands take, in a
process of its own (`controlled_rollout.steps.silence`): whatever goes wrong there does not touch the supervisor.
"""

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from controlled_rollout.errors import DamagedFileError
from controlled_rollout.polling import cancel
from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.local.child_process import (
    RUNTIME_VARIABLE,
    ChildProcess,
    describe_exit,
    supervisor_environment,
)
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.look_notes import LookNotes
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.silence import TakeBack, Watched, unattended_rollout
from controlled_rollout.target.silence_checks import SilenceChecks
from controlled_rollout.text_file import read_regular_file
from controlled_rollout.visible_text import visible_text
from controlled_rollout.workspace import Workspace

__all__ = ["SilenceWatch"]

log = logging.getLogger(__name__)

MODULE: Final = "controlled_rollout.steps.silence"
INTERVAL_S: Final = 2.0
STOP_GRACE_S: Final = 5.0
WATCHED_FILE: Final = "watched.json"
# Of how much of a process's output its reason is taken.
REMEMBERED_BYTES: Final = 16_384


class SilenceWatch:
    """Checks every endpoint of a workspace again and again, and takes treatments back that nobody looks at.

    Args:
        workspace: The workspace.
        revisions: Its stored revisions.
        runtime: The supervisor's runtime folder.
        credentials: The variables with which the record is reached, if it is in Azure Blob Storage.

    Attributes:
        notes: When somebody last looked at each endpoint's treatment.
    """

    def __init__(
        self,
        workspace: Workspace,
        revisions: RevisionStore,
        *,
        runtime: Path,
        credentials: Mapping[str, str],
    ) -> None:
        self._watched_file = workspace.root / WATCHED_FILE
        self._watched: Watched | None = None
        self._checks = SilenceChecks(watched_since=datetime.now(UTC))
        self._settings = {
            "root": str(workspace.root),
            "cache_folder": str(workspace.cache_folder),
            "storage": workspace.storage,
            "records": workspace.records,
        }
        self.notes = LookNotes(revisions)
        self._revisions = revisions
        self._environment = {**supervisor_environment(), **credentials, RUNTIME_VARIABLE: str(runtime)}
        self._log = LogFile(workspace.logs_folder / "silence.log")
        self._problems: dict[str, str] = {}
        self._damaged: set[str] = set()
        self._listing_problem = ""
        self._round_problem = ""
        self._roll_backs: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the asyncio task that checks; it goes on where a supervisor has stopped a moment ago."""
        with contextlib.suppress(OSError, ValidationError):
            self._watched = Watched.model_validate_json(read_regular_file(self._watched_file))
        self._checks.watched_since = Watched.after(self._watched, datetime.now(UTC)).begun
        self._task = asyncio.create_task(self._keep_checking(), name="silence")

    async def stop(self) -> None:
        """Stop checking, and end the roll-backs that are under way: the next supervisor finds what is left to do."""
        await cancel(self._task, *self._roll_backs.values())

    def warnings(self, name: str) -> tuple[str, ...]:
        """Return what people have to know of an endpoint: that nobody can be seen to look, or why no try succeeds."""
        failed = self._checks.failed_tries(name)
        unchecked = self._round_problem or ("" if name in self._checks.names else self._listing_problem)
        if name not in self._damaged:  # that a file is damaged is said of the endpoint itself
            unchecked = unchecked or self._problems.get(name, "")
        sentence = (
            "whether somebody looks after its rollout cannot be checked, so a treatment that nobody looks at keeps its "
            f"traffic: {unchecked} (look into {self._log.path.with_name('supervisor.log')})"
        )
        return (*((failed.sentence,) if failed else ()), *((sentence,) if unchecked else ()))

    async def _keep_checking(self) -> None:
        """Check all endpoints until cancelled; whatever goes wrong in one round, the next one comes."""
        while True:
            try:
                self._check_all()
            except Exception as error:  # such as a fault of the software: without rounds nobody takes anything back
                problem = _describe(error)
                if problem != self._round_problem:
                    log.exception("whether somebody looks after the rollouts cannot be checked: %s", problem)
                self._round_problem = problem
            else:
                self._round_problem = ""
            await asyncio.sleep(INTERVAL_S)

    def _check_all(self) -> None:
        """Check all endpoints; one that cannot be checked concerns itself only."""
        names = self._endpoints()
        self._checks.begin_round(names)
        before, self._problems, self._damaged = self._problems, {}, set()
        for name in names:
            try:
                self._check(name)
            except Exception as error:  # such as a damaged file, or one that somebody removes meanwhile
                problem = self._problems[name] = _describe(error)
                is_damaged = isinstance(error, DamagedFileError)
                if is_damaged:
                    self._damaged.add(name)
                if before.get(name) != problem:
                    log.error(
                        *("whether somebody looks after endpoint %s cannot be checked: %s", name, problem),
                        exc_info=None if is_damaged else error,
                    )
        self._note_watched()

    def _note_watched(self) -> None:
        """Write down that somebody watches, while there is anything to watch."""
        self._watched = Watched.after(self._watched, datetime.now(UTC))
        if self._checks.names:
            with contextlib.suppress(
                OSError
            ):  # a full disk: the next supervisor gives more time, and takes nothing back
                atomic_files.write_atomically(
                    self._watched_file, self._watched.model_dump_json().encode(), durable=False
                )

    def _endpoints(self) -> list[str]:
        """Return all endpoints; those with a treatment that is known already while their folder cannot be listed."""
        try:
            names, problem = self._revisions.endpoints(), ""
        except OSError as error:  # such as too many open files: the next check may be able to
            names, problem = self._checks.names, str(error)
        if problem and problem != self._listing_problem:
            log.error("whether somebody looks after new rollouts cannot be checked: %s", problem)
        self._listing_problem = problem
        return names

    def _check(self, name: str) -> None:
        """Check one endpoint, and begin to take its treatment back if it is time."""
        newest = self._revisions.newest(name)
        if newest is None or name in self._roll_backs:
            return
        if unattended_rollout(newest.endpoint) is None:
            self._checks.forget(name)
            return
        order = self._checks.check(newest, self.notes.read(name))
        if order is not None:
            self._roll_backs[name] = asyncio.create_task(self._take_back(order), name=f"take back in {name}")

    async def _take_back(self, order: TakeBack) -> None:
        """Run the step in a process of its own, and log how it ended; the next check finds what is left to do."""
        name = order.endpoint
        log.warning("endpoint %s: %s is taken back: %s", name, order.rollout.version, order.reason)
        arguments = json.dumps({"workspace": self._settings, "take_back": order.model_dump(mode="json")})
        command = [sys.executable, "-P", "-m", MODULE, arguments]
        process: ChildProcess | None = None
        output = _RememberedLog(self._log.path)
        code, problem = 0, ""
        try:
            process = await ChildProcess.start(command, environment=self._environment, log=output)
            code = await process.wait()
        except Exception as error:  # whatever it is: the next try waits, and people are told
            problem = f"its process could not be started: {_describe(error)}"
        finally:
            try:
                if process is not None:
                    await process.stop(STOP_GRACE_S)
            finally:
                del self._roll_backs[name]
        if code:
            problem = f"{output.reason(name) or f'its process {describe_exit(code)}'} (look into {self._log.path})"
        self._note_end(order, problem)

    def _note_end(self, order: TakeBack, problem: str) -> None:
        """Remember that taking a treatment back has failed, if there is a problem, and say so in the log."""
        tries = self._checks.note_end(order, problem)
        if tries is not None:
            log.error("endpoint %s: %s", order.endpoint, tries.sentence)


def _describe(error: Exception) -> str:
    """Return what an error says, or its name if it says nothing."""
    return str(error) or type(error).__name__


class _RememberedLog(LogFile):
    """The log file, and what one process has written last: a full disk, on which that is wanted, takes no log."""

    _last = b""

    def write(self, data: bytes) -> None:
        """Append to the file, and remember."""
        super().write(data)
        self._last = (self._last + data)[-REMEMBERED_BYTES:]

    def reason(self, name: str) -> str:
        """Return why the process could not take an endpoint's treatment back; empty if it has not said it."""
        start = f"endpoint {name}: "
        lines = [line for line in self._last.decode(errors="replace").splitlines() if line.startswith(start)]
        return visible_text(lines[-1].removeprefix(start)) if lines else ""
