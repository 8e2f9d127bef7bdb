"""Makes what runs and what is served equal to the newest revisions, over and over, one step at a time."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from controlled_rollout.endpoint import Auth, Endpoint, Version
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.polling import until
from controlled_rollout.target.local import envoy_config
from controlled_rollout.target.local.envoy_process import Activity, Published, Router
from controlled_rollout.target.local.replicas import Launch, RunningVersion
from controlled_rollout.target.protocol import Keys
from controlled_rollout.target.transition import CLOSED, Split, allowed_split

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

# A look without an event, for what failed last time.
LOOK_AGAIN_S: Final = 0.25
# A caller may be slow to send a body that the router collects before it asks a replica: until no request at all was
# open once, or for so long, a version that lost its route goes on answering.
LINGER_S: Final = 10.0

Place = tuple[str, str]


class Reconciler:
    """Replicas and routes of all endpoints.

    Attributes:
        desired: The newest revision of every endpoint.
        running: The versions that have processes, also those on their way out.
        served: By endpoint: the split that the router has confirmed.
        served_revision: By endpoint: the newest revision whose whole split the router has confirmed.
        refused: Why a wanted version has no processes, or still those of its old definition.
        prepared: Whether the router has been given every endpoint's whole split, except where a version with traffic
            fails to start.
    """

    def __init__(
        self,
        the_router: Router,
        *,
        runtime: Path,
        logs_folder: Path,
        launch: Callable[[Version], Launch],
        keys: Callable[[str], Keys],
    ) -> None:
        self.desired: dict[str, Endpoint] = {}
        self.running: dict[Place, RunningVersion] = {}
        self.served_revision: dict[str, int] = {}
        self.refused: dict[Place, str] = {}
        self.prepared = False
        self._router = the_router
        self._runtime = runtime
        self._logs_folder = logs_folder
        self._launch = launch
        self._keys = keys
        self.served: dict[str, Split] = {}
        self._event = asyncio.Event()
        self._retirements: dict[Place, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="reconciler")

    def changed(self) -> None:
        """Have another look at once: something is not as it was."""
        self._event.set()

    def want(self, endpoint: Endpoint) -> None:
        """Take over an endpoint's newest revision."""
        self.desired[endpoint.name] = endpoint
        self.changed()

    async def remove(self, endpoint: str, timeout_s: float) -> bool:
        """Stop serving an endpoint; return whether its last replica has ended in time."""
        self.desired.pop(endpoint, None)
        for place in [place for place in self.refused if place[0] == endpoint]:
            del self.refused[place]
        self.changed()

        def is_gone() -> bool:
            return endpoint not in self.served and all(place[0] != endpoint for place in self.running)

        return await until(is_gone, timeout_s)

    async def stop(self) -> None:
        """Stop looking, then end all replicas."""
        for task in [*self._retirements.values(), self._task]:
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await asyncio.gather(*(running.stop() for running in self.running.values()))

    def _is_prepared(self, endpoint: str, split: Split) -> bool:
        """Whether a split is complete, or as near to it as waiting can bring it."""
        failed = [
            running.failed
            if (running := self.running.get((endpoint, version)))
            else (endpoint, version) in self.refused
            for version in split.waits_for
        ]
        return split.complete or all(failed)

    async def _run(self) -> None:
        said = ""
        while True:
            done = False
            self._event.clear()
            try:
                done = await self._reconcile()
            except Exception as error:
                # Once, not four times a second for as long as it lasts.
                if said != (said := repr(error)):
                    log.exception("could not make things as they are wanted; trying again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._event.wait(), None if done else LOOK_AGAIN_S)

    async def _reconcile(self) -> bool:
        """Do what can be done now; return whether the router has confirmed it."""
        self._start_versions()
        for running in self.running.values():
            running.look()
        desired = dict(self.desired)
        splits = {name: self._split(endpoint) for name, endpoint in desired.items()}
        current = {
            name
            for name, endpoint in desired.items()
            if all(self._is_current(name, version) for version in endpoint.versions)
        }
        leaving = [(running, running.off_the_list()) for running in self.running.values()]
        published = await self._router.publish(
            [
                envoy_config.ClusterSpec(*place, running.spec.scoring_timeout_ms)
                for place, running in self.running.items()
            ],
            {envoy_config.cluster_name(*place): running.sockets() for place, running in self.running.items()},
            [self._route(endpoint, splits[name]) for name, endpoint in sorted(desired.items())],
        )
        self.prepared = published is not Published.BEHIND and all(
            self._is_prepared(name, split) for name, split in splits.items()
        )
        if published is not Published.SERVED:
            return False
        self.served = splits
        self.served_revision = {
            name: desired[name].revision if split.complete and name in current else self.served_revision.get(name, 0)
            for name, split in splits.items()
        }
        for running, replicas in leaving:
            running.end(replicas)
        self._retire_unserved()
        return not self.refused

    def _start_versions(self) -> None:
        """Give every wanted version its processes; one that is still on its way out has to be gone first."""
        for name, endpoint in self.desired.items():
            for version in endpoint.versions.values():
                running = self.running.get((name, version.name))
                place = name, version.name
                if running is None:
                    with self._noting_refusal(place):
                        self.running[name, version.name] = RunningVersion(
                            version,
                            self._launch(version),
                            runtime=self._runtime,
                            logs_folder=self._logs_folder / name / version.name,
                            changed=self.changed,
                        )
                elif not running.retiring and running.spec != version:
                    with self._noting_refusal(place):
                        running.update(version, self._launch(version))

    @contextlib.contextmanager
    def _noting_refusal(self, place: Place) -> Iterator[None]:
        """One version that cannot be started must not keep the others from being served."""
        try:
            yield
        except (ControlledRolloutError, OSError) as error:
            if self.refused.get(place) != str(error):
                log.warning("version %s of endpoint %s cannot be started: %s", place[1], place[0], error)
            self.refused[place] = str(error)
        else:
            self.refused.pop(place, None)

    def _of(self, endpoint: str) -> list[tuple[str, RunningVersion]]:
        return [(version, running) for (name, version), running in self.running.items() if name == endpoint]

    def _is_current(self, endpoint: str, version: str) -> bool:
        running = self.running.get((endpoint, version))
        return running is not None and not running.retiring and running.up_to_date

    def _split(self, endpoint: Endpoint) -> Split:
        running = {name: version for name, version in self._of(endpoint.name) if not version.retiring}
        return allowed_split(
            endpoint,
            served=self.served.get(endpoint.name, CLOSED),
            ready=[name for name, version in running.items() if version.ready],
            live=[name for name, version in running.items() if version.sockets()],
        )

    def _route(self, endpoint: Endpoint, split: Split) -> envoy_config.EndpointRoute:
        """Return the endpoint's route; a version that loses its share keeps it until the new split is served."""
        specs = {name: running.spec for name, running in self._of(endpoint.name)} | dict(endpoint.versions)
        names = [*endpoint.versions, *(name for name in split.weights if name not in endpoint.versions)]
        keys = None if endpoint.auth is Auth.NONE else self._keys(endpoint.name)
        return envoy_config.EndpointRoute(
            name=endpoint.name,
            versions=tuple(
                envoy_config.VersionRoute(name, split.weights.get(name, 0), specs[name].scoring_timeout_ms)
                for name in names
            ),
            keys=(keys.primary, keys.secondary) if keys else None,
            traced=endpoint.enable_app_insights,
        )

    # On the way out

    def _retire_unserved(self) -> None:
        """Begin to end the versions that nobody wants and no route leads to any more."""
        for place in self.running:
            endpoint, version = place
            wanted = endpoint in self.desired and version in self.desired[endpoint].versions
            if wanted or version in self.served.get(endpoint, CLOSED).weights or place in self._retirements:
                continue
            self.running[place].retiring = True
            self._retirements[place] = asyncio.create_task(self._retire(place), name=f"retire {version}")

    async def _retire(self, place: Place) -> None:
        running = self.running[place]
        try:
            await self._drained(envoy_config.cluster_name(*place), running.spec.scoring_timeout_ms / 1000)
            await running.stop()
            del self.running[place]
        finally:
            del self._retirements[place]
            self.changed()

    async def _drained(self, cluster: str, scoring_timeout_s: float) -> None:
        """Wait until no request can be on its way to a cluster that has lost its route; bounded."""
        linger_until = time.monotonic() + LINGER_S
        was_idle = False

        async def is_drained() -> bool:
            nonlocal was_idle
            activity = await self._router.activity()
            is_idle = activity is None or activity.downstream == 0
            was_idle = was_idle or is_idle or time.monotonic() > linger_until
            return was_idle and _active(activity, cluster) == 0

        await until(is_drained, LINGER_S + scoring_timeout_s)


def _active(activity: Activity | None, cluster: str) -> int:
    return activity.active.get(cluster, 0) if activity else 0
