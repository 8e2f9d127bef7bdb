"""What a watcher remembers of all endpoints from one check for silence to the next, and what is to be done now."""

import logging
from collections.abc import Collection
from datetime import datetime, timedelta

from controlled_rollout.duration import format_duration
from controlled_rollout.target.protocol import LookNote, Revision
from controlled_rollout.target.silence import FailedTries, Observation, Signs, TakeBack, check_silence
from controlled_rollout.target.watch_clock import WatchClock

__all__ = ["SilenceChecks"]

log = logging.getLogger(__name__)


class SilenceChecks:
    """The checks of one watcher: of a local supervisor, or of a cluster's agent.

    It counts time as it passes: where the machine's clock is set, or the machine is suspended, what was counted moves
    with the clock.

    Args:
        watched_since: Since when others have been watching before without a gap; None for nobody.
        clock: The watcher's clock.

    Attributes:
        watched_since: As above; a watcher that finds it out later sets it.
    """

    def __init__(self, *, watched_since: datetime | None = None, clock: WatchClock | None = None) -> None:
        self.watched_since = watched_since
        self._clock = clock or WatchClock()
        self._observations: dict[str, Observation] = {}
        self._failed: dict[str, FailedTries] = {}
        # When an endpoint that is not checked yet was seen to need nobody; None for those there from the beginning.
        self._unseen_at: dict[str, datetime | None] = {}
        self._this_round: datetime | None = None

    @property
    def names(self) -> list[str]:
        """The endpoints of which something is remembered: those with a treatment that somebody has to look at."""
        return list(self._observations)

    def begin_round(self, names: Collection[str]) -> None:
        """Begin to check all endpoints, and forget others: one that is made again has the same revision numbers.

        Args:
            names: The endpoints that are to be checked now.
        """
        now = self.now()
        round_before, self._this_round = self._this_round, now
        self._unseen_at = {name: self._unseen_at.get(name, round_before) for name in names}
        self._observations = {name: seen for name, seen in self._observations.items() if name in names}
        self._failed = {name: tries for name, tries in self._failed.items() if name in names}

    def forget(self, name: str) -> None:
        """Forget an endpoint whose treatment, if there is one, nobody has to look at.

        Args:
            name: The endpoint.
        """
        self._observations.pop(name, None)
        self._failed.pop(name, None)
        self._unseen_at.pop(name, None)

    def check(self, newest: Revision, looked: LookNote | None) -> TakeBack | None:
        """Return what is to be taken back now; None if nothing is, or the next try is not due yet.

        Args:
            newest: The newest revision of an endpoint whose treatment somebody has to look at.
            looked: The last look; None if there was none.
        """
        name, now = newest.endpoint.name, self.now()
        check = check_silence(
            Signs(newest, looked),
            self._observations.get(name),
            now=now,
            watched_since=self.watched_since,
            unseen_at=self._unseen_at.get(name),
        )
        self._observations[name] = check.observation
        order, failed = check.take_back, self._failed.get(name)
        if order is None:
            self._failed.pop(name, None)  # somebody has looked meanwhile
        elif failed is not None and failed.is_too_soon(order, now):
            return None
        return order

    def note_end(self, order: TakeBack, problem: str) -> FailedTries | None:
        """Remember how a try to take a treatment back has ended; return what people have to know if it has failed.

        Args:
            order: What was to be taken back.
            problem: Why it failed; empty if it did not.
        """
        failed, now = self._failed.pop(order.endpoint, None), self.now()
        if not problem:
            return None
        tries = failed.and_another(order, problem, now) if failed else FailedTries(order, problem, now)
        self._failed[order.endpoint] = tries
        return tries

    def failed_tries(self, name: str) -> FailedTries | None:
        """Return the tries to take an endpoint's treatment back that have failed; None if none has.

        Args:
            name: The endpoint.
        """
        return self._failed.get(name)

    def now(self) -> datetime:
        """Return the time of the machine's clock; if it has jumped, all that is remembered jumps with it."""
        now, jump = self._clock.read()
        if jump:
            log.warning(
                "the clock of this machine was set %s by %s, or the machine was suspended: for how long nobody has "
                "looked is counted without that",
                *("forward" if jump > timedelta(0) else "back", format_duration(abs(jump))),
            )
            self._observations = {name: seen.moved(jump) for name, seen in self._observations.items()}
            self._failed = {name: tries.moved(jump) for name, tries in self._failed.items()}
            self.watched_since = self.watched_since and self.watched_since + jump
            self._this_round = self._this_round and self._this_round + jump
            self._unseen_at = {name: at and at + jump for name, at in self._unseen_at.items()}
        return now
