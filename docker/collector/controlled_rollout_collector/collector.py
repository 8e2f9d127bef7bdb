"""The loop of the collector: all spools, round by round, until it is told to end."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from controlled_rollout_collector.atomic_files import write_json
from controlled_rollout_collector.ended_replicas import keep_state
from controlled_rollout_collector.settings import SETTINGS_FILE, SpoolSettingError, SpoolSettings
from controlled_rollout_collector.shipping import SpoolShipper, SpoolState
from controlled_rollout_collector.storage import Storage, StorageError

__all__ = ["STATUS_FILE", "Collector", "PauseAfterFailures"]

log = logging.getLogger(__name__)

STATUS_FILE: Final = "collector.json"
# The pauses while the storage takes nothing.
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
LOG_INTERVAL_S: Final = 60.0


@dataclass
class PauseAfterFailures:
    """The pause before the next round: the interval, or longer and longer pauses while the storage takes nothing.

    Attributes:
        interval_s: The time between rounds, in seconds.
        failures: Rounds in a row in which the storage took nothing.
    """

    interval_s: float
    failures: int = 0

    def next_s(self, *, has_failed: bool) -> float:
        """Return the pause after a round, in seconds."""
        self.failures = self.failures + 1 if has_failed else 0
        if not has_failed:
            return self.interval_s
        return min(FIRST_PAUSE_S * 2.0 ** min(self.failures - 1, 16), LONGEST_PAUSE_S)


@dataclass
class Collector:
    """Ships all spools below a folder.

    Attributes:
        folder: A spool, or a folder with spools in `<endpoint>/<version>/<replica>/`.
        storage: Where parts are written.
        interval_s: The time between rounds, in seconds.
        grace_s: How long shipping goes on after `end` is set, in seconds.
        end: Set by whoever wants the collector to ship what is there and to end.
        clock: A monotonic clock, in seconds.
        of_pod: The settings of the only spool if that is this pod's, whose other containers have ended when this one is
            told to: its replica's last state is then final.
    """

    folder: Path
    storage: Storage
    interval_s: float = 5.0
    grace_s: float = 20.0
    end: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    of_pod: SpoolSettings | None = None
    _shippers: dict[Path, SpoolShipper] = field(default_factory=dict)
    _states: dict[Path, SpoolState] = field(default_factory=dict)
    _logged_at: dict[str, float] = field(default_factory=dict)
    _dropped: dict[Path, int] = field(default_factory=dict)
    _reported: tuple[str | None, list[str]] = field(default_factory=lambda: (None, []))

    def run(self) -> None:
        """Ship round by round; once `end` is set, until nothing is left or the grace is over."""
        pause = PauseAfterFailures(self.interval_s)
        while not self.end.is_set():
            problem = self.ship_all()
            self.end.wait(pause.next_s(has_failed=problem is not None))
        log.info("has to end: ships what is left, for %g s at most", self.grace_s)
        deadline = self.clock() + self.grace_s
        while (problem := self.ship_all(is_last=True)) and self.clock() < deadline:
            time.sleep(min(FIRST_PAUSE_S, max(0.0, deadline - self.clock())))
        left = sum(state.pending_bytes for state in self._states.values())
        log.info("ended; %s bytes are left in the spools", f"{left:,}")

    def ship_all(self, *, is_last: bool = False) -> str | None:
        """Ship everything that is in the spools now; return what the storage did not take it for, None if it took it.

        Args:
            is_last: Whether nothing will be shipped afterwards.
        """
        problem: str | None = None
        spools = self._spool_folders()
        for forgotten in self._states.keys() - set(spools):
            self._shippers.pop(forgotten, None)
            self._states.pop(forgotten)
        faults: list[str] = []
        for spool in spools:
            try:
                self._ship_spool(spool, is_final=is_last and self.of_pod is not None)
            except StorageError as error:
                problem = str(error)
                # The others wait for the same storage.
                break
            except (OSError, SpoolSettingError) as error:
                faults.append(f"{spool}: {error}")
                self._shippers.pop(spool, None)
            except ImportError as error:
                package = f"airflow-provider-controlled-rollout needs its extra data for this ({error.name} is missing)"
                faults.append(f"{spool}: {package}")
            except Exception as error:
                # What one version has captured must not stop the others.
                log.exception("%s cannot be shipped", spool)
                faults.append(f"{spool}: {type(error).__name__}: {error}")
        self._refresh_states(spools)
        for fault in faults:
            self._log_seldom(fault, fault)
        if problem:
            left = sum(state.pending_bytes for state in self._states.values())
            self._log_seldom("storage", f"{problem}; {left:,} bytes wait in the spools, and nothing is lost")
        self._write_status(problem, faults)
        return problem

    def _spool_folders(self) -> list[Path]:
        """Return the folders of all spools."""
        if self.of_pod is not None or (self.folder / SETTINGS_FILE).exists():
            return [self.folder]
        return sorted(path.parent for path in self.folder.glob(f"*/*/*/{SETTINGS_FILE}"))

    def _ship_spool(self, spool: Path, *, is_final: bool) -> None:
        """Ship one spool; delete it if its replica has ended."""
        if spool not in self._shippers:
            self._shippers[spool] = SpoolShipper(spool, self.storage, settings=self.of_pod, on_batch=self._report_again)
        shipper = self._shippers[spool]
        state = self._states[spool] = shipper.ship(is_final=is_final)
        if shipper.has_ended and state.final and self.of_pod is None:
            keep_state(spool, state)
            shipper.remove()
            log.info("%s: shipped %s records in all; the replica has ended", spool, f"{state.shipped:,}")

    def _refresh_states(self, spools: list[Path]) -> None:
        """Read the states of spools that are not shipped, and log what was dropped since."""
        for spool in spools:
            with contextlib.suppress(OSError):
                if spool in self._shippers and spool.exists():
                    self._states[spool] = self._shippers[spool].state()
        for spool, state in self._states.items():
            if state.dropped > self._dropped.get(spool, 0):
                message = f"{spool}: {state.dropped:,} requests were answered but not captured; the gate is told"
                if self._log_seldom(f"dropped {spool}", message):
                    self._dropped[spool] = state.dropped

    def _log_seldom(self, key: str, message: str) -> bool:
        """Write a line to the log, at most one a minute of a kind; return whether it was written."""
        now = self.clock()
        if now - self._logged_at.get(key, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            return False
        self._logged_at[key] = now
        log.warning("%s", message)
        return True

    def _report_again(self) -> None:
        """Write the status of the last round again, with the time: who watches this process sees that it is at work."""
        self._write_status(*self._reported)

    def _write_status(self, problem: str | None, faults: list[str]) -> None:
        """Write the file in which `status` finds what this process does; a full disk does not stop it."""
        self._reported = problem, faults
        spools = [
            {
                "endpoint": self._shippers[spool].settings.replica.endpoint,
                "version": self._shippers[spool].settings.replica.version,
                **dataclasses.asdict(state),
            }
            for spool, state in self._states.items()
            if spool in self._shippers
        ]
        status = {"updated": time.time(), "storage": str(self.storage), "problem": problem, "faults": faults}
        with contextlib.suppress(OSError):
            write_json(self.folder / STATUS_FILE, {**status, "spools": spools})
