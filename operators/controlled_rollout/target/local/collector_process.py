"""The collector as a supervised process: it runs while there are spools, and alone holds the storage's credentials."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.polling import cancel
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE, inherited_environment
from controlled_rollout.target.local.liveness import LivenessCheck
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.target.local.spools import has_spools
from controlled_rollout.target.local.supervised_process import BackOff, Command, SupervisedProcess
from controlled_rollout.target.protocol import CollectedCounts
from controlled_rollout.text_file import read_regular_file

__all__ = ["CollectorProcess", "collected_counts", "storage_credentials"]

PACKAGE: Final = "controlled_rollout_collector"
# Written by the collector after each round, and once for each replica that has ended.
STATUS_FILE: Final = "collector.json"
# The sum of replicas that have ended, without the last ones of them, which have files of their own.
ENDED_REPLICAS: Final = "ended"
CHECK_INTERVAL_S: Final = 0.5
# How long it goes on shipping when the workspace ends, and when it is killed: what is left is shipped next time.
SHIPPING_GRACE_S: Final = 10.0
STOP_GRACE_S: Final = 15.0
# A round may wait for a storage that does not answer, and the next one is up to a minute later.
SILENT_S: Final = 240.0
LIVENESS_INTERVAL_S: Final = 5.0

# The variables of the shell that runs `local up` with which Azure's clients sign in, and reach the storage.
_CREDENTIALS: Final = (
    "AZURE_AUTHORITY_HOST",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_CONFIG_DIR",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_STORAGE_CA_FILE",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_CONNECTION_STRING_FILE",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_SAS_TOKEN_FILE",
    "AZURE_TENANT_ID",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
)


def storage_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which the collector signs in to the storage, of all variables of an environment."""
    return {name: environment[name] for name in _CREDENTIALS if name in environment}


class CollectorProcess:
    """The process that ships what replicas have captured from their spools to the storage.

    Args:
        spools: The folder of the spools.
        storage: The storage's folder or address.
        credentials: The variables with which it signs in there.
        runtime: The supervisor's runtime folder.
        log: Receives its output.
    """

    def __init__(
        self, *, spools: Path, storage: str, credentials: Mapping[str, str], runtime: Path, log: LogFile
    ) -> None:
        self._spools = spools
        self._storage = storage
        self._credentials = dict(credentials)
        self._runtime = runtime
        self._started_at = 0.0
        self._liveness = LivenessCheck(
            self._has_reported, start_s=SILENT_S, interval_s=LIVENESS_INTERVAL_S, max_failures=1
        )
        self._process = SupervisedProcess(
            "collector",
            self._command,
            log=log,
            back_off=BackOff(first_s=0.2, longest_s=30.0, healthy_s=30.0),
            watch=self._liveness.watch,
        )
        self._watching: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None while no process runs."""
        return self._process.pid

    def status(self) -> ProcessStatus | None:
        """Return the process's status for clients; None while there is nothing to collect."""
        if self.pid is None and not has_spools(self._spools):
            return None
        status = ProcessStatus.of(self._process, is_answering=self._liveness.is_answering)
        report = _last_report(self._spools)
        problems = [report.get("problem"), *report.get("faults", [])]
        problem = status.problem or "; ".join(filter(None, problems)) or None
        return status.model_copy(update={"problem": problem})

    def start(self) -> None:
        """Run the collector from now on whenever there is a spool."""
        self._watching = asyncio.create_task(self._start_or_end_collector(), name="collector's spools")

    async def stop(self) -> None:
        """Let the collector ship what is there, in bounded time, and end it."""
        await cancel(self._watching)
        await self._process.stop(STOP_GRACE_S)

    async def _start_or_end_collector(self) -> None:
        """Start the collector once there is a spool, and end it when there is none any more."""
        while True:
            if has_spools(self._spools):
                self._process.start()
            elif self.pid is not None:
                await self._process.stop(STOP_GRACE_S)
            await asyncio.sleep(CHECK_INTERVAL_S)

    def _command(self) -> Command:
        """Return the command that starts the collector.

        Raises:
            WorkspaceError: The installation lacks it.
        """
        self._started_at = time.time()
        arguments = [
            sys.executable,
            "-P",
            "-m",
            PACKAGE,
            "--spools",
            str(self._spools),
            "--storage",
            self._storage,
            "--grace",
            str(SHIPPING_GRACE_S),
            "--exit-with-parent",
        ]
        environment = {
            **inherited_environment(),
            **self._credentials,
            RUNTIME_VARIABLE: str(self._runtime),
            "PYTHONPATH": str(_package_folder()),
            "PYTHONUNBUFFERED": "1",
        }
        return Command(arguments, environment)

    async def _has_reported(self) -> bool:
        """Return whether this start of the collector has reported a round, and not too long ago."""
        updated = float(_last_report(self._spools).get("updated", 0.0))
        return updated >= self._started_at and time.time() - updated < SILENT_S


def _last_report(spools: Path) -> dict[str, Any]:
    """Return what the collector has reported of its last round; nothing if it never did."""
    try:
        report = json.loads(read_regular_file(spools / STATUS_FILE))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def collected_counts(spools: Path, endpoint: str, version: str) -> CollectedCounts:
    """Return what the replicas of a version, those that have ended included, have captured, as the collector saw it."""
    states: dict[str, dict[str, Any]] = {}
    for path in (spools / endpoint / version).glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            states[path.stem] = json.loads(read_regular_file(path))
    # Of these the sum has the numbers already; a collector that was killed has left their files.
    added = set(states.get(ENDED_REPLICAS, {}).get("replicas", ()))
    for state in _last_report(spools).get("spools", []):
        if (state["endpoint"], state["version"]) == (endpoint, version):
            states.setdefault(state["replica"], state)
    for replica in added:
        states.pop(replica, None)
    names = ("captured", "dropped", "unreadable", "pending_bytes")
    return CollectedCounts(**{name: sum(state[name] for state in states.values()) for name in names})


def _package_folder() -> Path:
    """Return the folder that contains the collector's package; raise WorkspaceError if the installation lacks it."""
    here = Path(__file__).resolve()
    # An installed wheel carries the collector beside this module; a checkout has it where it is written.
    candidates = [here.parent / "collector", here.parents[4] / "docker" / "collector"]
    for folder in candidates:
        if (folder / PACKAGE / "__init__.py").is_file():
            return folder
    raise WorkspaceError(
        f"the collector ({PACKAGE}) is in neither of {', '.join(map(str, candidates))}: this installation is not "
        "complete, install the package again"
    )
