"""Being the one agent at work for a namespace: take its Lease, renew it, and stop all work before it is another's."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import LEASE
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.target.kubernetes import agent_lease
from controlled_rollout.target.kubernetes.agent_lease import LEASE_NAME, Sighting
from controlled_rollout.target.silence import Watched

__all__ = ["RENEW_DEADLINE_S", "RETRY_S", "Leadership"]

log = logging.getLogger(__name__)

# How long a holder that cannot renew goes on: shorter than the Lease's duration by more than its work takes to end.
RENEW_DEADLINE_S: Final = 10.0
# How long one try may take: after one that was in vain there is time for another.
TRY_S: Final = RENEW_DEADLINE_S / 2
RETRY_S: Final = 2.0
RELEASE_TIMEOUT_S: Final = 3.0
# After work that failed, before the Lease is sought again.
FAILED_PAUSE_S: Final = 5.0

# Is given since when an agent has been at work without a gap, this one or others before it.
Work = Callable[[datetime], Awaitable[None]]


class Leadership:
    """The Lease of one namespace, as one agent seeks and holds it.

    Args:
        api: The cluster; not the connection of the work, which is closed to it while the Lease is not held.
        namespace: The namespace of the Lease.
        identity: The agent's name, which no other agent has.
    """

    def __init__(self, api: Api, namespace: str, identity: str) -> None:
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._seen: Sighting | None = None
        self._watched: Watched | None = None
        self._held_until_s = 0.0
        self._last_error = ""

    def may_act(self) -> bool:
        """Whether this agent may act now; false at once when renewing has failed for too long, whatever is running."""
        return time.monotonic() < self._held_until_s

    async def run(self, work: Work) -> None:
        """Seek the Lease and do the work while it is held, again and again until this is cancelled."""
        while True:
            await self._acquire()
            log.info("%s is at work for namespace %s", self._identity, self._namespace)
            try:
                await self._work_while_held(work)
            finally:
                self._held_until_s = 0.0

    async def _acquire(self) -> None:
        """Try to get the Lease until it is held."""
        complaint = ""
        while not await self._try_once(TRY_S):
            if self._last_error and self._last_error != complaint:
                log.warning("the Lease of namespace %s cannot be had: %s", self._namespace, self._last_error)
            complaint = self._last_error
            await asyncio.sleep(RETRY_S * random.uniform(1.0, 1.2))  # noqa: S311

    async def _work_while_held(self, work: Work) -> None:
        """Run the work and renew the Lease beside it; return when the work has failed or the Lease is lost."""
        self._watched = Watched.after(self._watched, datetime.now(UTC))
        working = asyncio.ensure_future(work(self._watched.begun))
        try:
            while True:
                done, _ = await asyncio.wait({working}, timeout=RETRY_S)
                if done:
                    break
                remaining_s = self._held_until_s - time.monotonic()
                if remaining_s <= 0 or (not await self._try_once(min(remaining_s, TRY_S)) and not self.may_act()):
                    log.warning(
                        "%s stops its work for namespace %s: its Lease was not renewed for %g s (%s)",
                        *(self._identity, self._namespace, RENEW_DEADLINE_S, self._last_error or "another one has it"),
                    )
                    return
        finally:
            working.cancel()
            # An agent that is ended meanwhile ends: it does not wait for work that takes long to stop.
            await asyncio.wait({working})
            if working.done() and not working.cancelled() and (error := working.exception()):
                log.error("the work for namespace %s failed", self._namespace, exc_info=error)
            if self.may_act():
                await self._release_lease()
        await asyncio.sleep(FAILED_PAUSE_S)

    async def _try_once(self, within_s: float) -> bool:
        """Try once to take or renew the Lease, in at most `within_s` seconds; return whether that succeeded."""
        begun_s = time.monotonic()
        self._last_error = ""
        try:
            async with asyncio.timeout(within_s):
                is_ours = await self._take_or_renew()
        except (ControlledRolloutError, TimeoutError) as error:
            self._last_error = str(error) or "the API server did not answer in time"
            return False
        if is_ours:
            self._held_until_s = begun_s + RENEW_DEADLINE_S
        elif self._seen is not None and self._seen.holder != self._identity:
            # Somebody else has it, who thinks that we are gone.
            self._held_until_s = 0.0
        return is_ours

    async def _take_or_renew(self) -> bool:
        """Take or renew the Lease; return False if it is another one's, or somebody changed it at the same time."""
        path, now = LEASE.path(self._namespace, LEASE_NAME), datetime.now(UTC)
        lease = await self._api.find(path)
        if lease is None:
            lease = agent_lease.new_lease(self._namespace, self._identity, now)
            return await self._api.create(LEASE.path(self._namespace), lease) is not None
        now_s = time.monotonic()
        before, self._seen = self._seen, agent_lease.sighted(lease, self._seen, now_s)
        if self._seen is not before and self._seen.holder:
            # Somebody renews it, so somebody is at work; the clock is the own one.
            self._watched = Watched.after(self._watched, now)
        change = agent_lease.claimed(lease, self._seen, self._identity, now=now, now_s=now_s)
        if change is None:
            return False
        return await self._api.merge_if_unchanged(path, lease, change) is not None

    async def _release_lease(self) -> None:
        """Give the Lease up, if it is still ours and the API server answers soon."""
        path = LEASE.path(self._namespace, LEASE_NAME)
        with contextlib.suppress(ControlledRolloutError, ApiError, TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                lease: Object | None = await self._api.find(path)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    await self._api.merge_if_unchanged(path, lease, agent_lease.released(datetime.now(UTC)))
