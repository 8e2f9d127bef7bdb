"""Brings processes and routes in line with the newest revisions of all endpoints, again and again."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.polling import cancel, until
from controlled_rollout.sticky import StickyKey, UserRange, arranged
from controlled_rollout.target.local.envoy_config import ClusterSpec, cluster_names
from controlled_rollout.target.local.envoy_process import EnvoyProcess, PublishState
from controlled_rollout.target.local.envoy_routes import EndpointRoute, VersionRoute
from controlled_rollout.target.local.envoy_sticky import StickyRoute
from controlled_rollout.target.local.envoy_tokens import TokenRoute
from controlled_rollout.target.local.issuer_keys import IssuerKeys
from controlled_rollout.target.local.log_file import remove_oldest_logs
from controlled_rollout.target.local.replica import LaunchSpec
from controlled_rollout.target.local.replica_numbers import ReplicaNumbers, VersionKey
from controlled_rollout.target.local.running_version import RunningVersion
from controlled_rollout.target.local.stored_endpoints import FileSignature, StoredEndpoint, StoredEndpoints
from controlled_rollout.target.transition import CLOSED, Split, allowed_split
from controlled_rollout.tokens import OWN_ISSUER
from controlled_rollout.workspace import Workspace

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

# The pause before what failed, or is not confirmed yet, is tried again without an event.
RETRY_S: Final = 0.25
# How often the files of the endpoints are looked at without an event: somebody may edit, damage or restore one.
FILES_INTERVAL_S: Final = 1.0
# A caller may send its body slowly, and the router asks a replica only once it has the whole body. A version without a
# route therefore goes on answering until no request at all is open for a moment, or for so long.
LINGER_S: Final = 10.0


class Reconciler:
    """The replicas and routes of all endpoints.

    Args:
        workspace: The workspace.
        envoy: The router.
        runtime: The supervisor's runtime folder.
        stored: The endpoints as their files define them.
        issuer_keys: The public keys of outside issuers.
        replica_numbers: How many replicas each version had.

    Attributes:
        running: The versions that have processes, also those that are being removed.
        served: By endpoint: the split that the router has confirmed.
        served_revision: By endpoint: the newest revision whose whole split the router has confirmed.
        start_errors: Why a version of a newest revision has no processes, or still those of an older revision.
        accepted_keys: By endpoint: the keys that the router has confirmed to accept; None if it asks for none.
        accepted_tokens: By endpoint: the tokens that the router has confirmed to accept; of endpoints with tokens only.
        is_prepared: Whether the router has every endpoint's whole split, as far as its versions can become ready.
    """

    def __init__(
        self,
        workspace: Workspace,
        envoy: EnvoyProcess,
        *,
        stored: StoredEndpoints,
        runtime: Path,
        issuer_keys: IssuerKeys,
        replica_numbers: ReplicaNumbers,
    ) -> None:
        self.running: dict[VersionKey, RunningVersion] = {}
        self.served: dict[str, Split] = {}
        self.served_revision: dict[str, int] = {}
        self.accepted_keys: dict[str, tuple[str, ...] | None] = {}
        self.accepted_tokens: dict[str, TokenRoute] = {}
        self.start_errors: dict[VersionKey, str] = {}
        self.is_prepared = False
        self._workspace = workspace
        self._envoy = envoy
        self._stored = stored
        self._runtime = runtime
        self._ranges: dict[str, tuple[UserRange, ...]] = {}
        self._issuer_keys = issuer_keys
        self._replica_numbers = replica_numbers
        self._damages: dict[str, str] = {}
        self._wake_up = asyncio.Event()
        self._retirements: dict[VersionKey, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the asyncio task that reconciles all endpoints."""
        self._task = asyncio.create_task(self._keep_reconciling(), name="reconciler")

    def wake(self) -> None:
        """Make the reconciler take its next step at once, because something has changed."""
        self._wake_up.set()

    async def remove(self, endpoint: str, timeout_s: float) -> bool:
        """Stop serving a deleted endpoint; return False if a replica still runs after `timeout_s` seconds."""
        self.wake()

        def is_removed() -> bool:
            """Return whether the endpoint has no route and no replica any more."""
            return endpoint not in self.served and not self._running_versions(endpoint)

        return await until(is_removed, timeout_s)

    async def stop(self) -> None:
        """Stop reconciling, then end all replicas."""
        await cancel(*self._retirements.values(), self._task)
        await asyncio.gather(*(running.stop() for running in self.running.values()))

    async def _keep_reconciling(self) -> None:
        """Reconcile after every change until cancelled; try again every `RETRY_S` while something is not done."""
        last_error = ""
        while True:
            is_done = False
            self._wake_up.clear()
            signature = None
            try:
                signature = self._stored.signature()
                is_done = await self._reconcile()
            except Exception as error:
                # An error that lasts is logged once, not at every retry.
                if repr(error) != last_error:
                    last_error = repr(error)
                    log.exception("the endpoints could not be reconciled; trying again every %g s", RETRY_S)
            await self._wait_for_change(signature if is_done else None)

    async def _wait_for_change(self, signature: FileSignature | None) -> None:
        """Return after an event or once the files have another signature; without a signature, after `RETRY_S`."""
        while True:
            # Unlike `wait_for` this never loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if signature is None else FILES_INTERVAL_S):
                    await self._wake_up.wait()
            if signature is None or self._wake_up.is_set() or self._stored.signature() != signature:
                return

    async def _reconcile(self) -> bool:
        """Take one step; return whether the router has confirmed that the newest revisions are served."""
        stored = self._stored.read_all()
        self._log_damages(stored)
        open_endpoints = {name: entry.endpoint for name, entry in stored.items() if entry.endpoint and not entry.damage}
        self._start_versions(stored)
        for running in self.running.values():
            running.release_outgoing()
        splits = {
            # Closed is what every revision may be, and a roll-back needs no more than that.
            name: self._split_to_serve(open_endpoints[name]) if name in open_endpoints else _closed_split(entry)
            for name, entry in stored.items()
        }
        up_to_date = {name for name, endpoint in open_endpoints.items() if self._is_up_to_date(endpoint)}
        stopping = [(running, running.stopping_replicas()) for running in self.running.values()]
        routes = [self._endpoint_route(entry, splits[name]) for name, entry in stored.items()]
        self._issuer_keys.forget_others(
            {endpoint.token_issuer.jwks_uri for endpoint in open_endpoints.values() if endpoint.token_issuer}
        )
        published = await self._envoy.publish(
            [
                ClusterSpec(cluster, running.version.longest_answer_ms)
                for key, running in self.running.items()
                for cluster in cluster_names(*key)
            ],
            {cluster: running.sockets() for key, running in self.running.items() for cluster in cluster_names(*key)},
            routes,
        )
        self.is_prepared = published is not PublishState.PENDING and all(
            self._is_split_final(name, splits[name]) for name in open_endpoints
        )
        if published is not PublishState.SERVED:
            return False
        self.served = splits
        self.served_revision = {
            name: endpoint.revision
            if splits[name].complete and name in up_to_date
            else self.served_revision.get(name, 0)
            for name, endpoint in open_endpoints.items()
        }
        self.accepted_keys = {route.name: route.keys for route in routes}
        self.accepted_tokens = {route.name: route.token for route in routes if route.token}
        for running, replicas in stopping:
            running.stop_replicas(replicas)
        self._retire_unserved(stored)
        return not self.start_errors

    def _log_damages(self, stored: Mapping[str, StoredEndpoint]) -> None:
        """Log each endpoint that has to be closed, once."""
        damages = {name: entry.damage for name, entry in stored.items() if entry.damage}
        for name, damage in damages.items():
            if self._damages.get(name) != damage:
                log.error("%s", damage)
        self._damages = damages

    def _start_versions(self, stored: Mapping[str, StoredEndpoint]) -> None:
        """Start or update the processes of all desired versions, except of one whose older processes still end."""
        desired = {
            VersionKey(name, version.name): version
            for name, entry in stored.items()
            if entry.endpoint
            for version in entry.endpoint.versions.values()
        }
        self.start_errors = {key: text for key, text in self.start_errors.items() if key in desired}
        for key, version in desired.items():
            running = self.running.get(key)
            if running is None:
                with self._recorded_start_error(key):
                    self.running[key] = RunningVersion(
                        version,
                        LaunchSpec.from_cache(version, self._workspace),
                        replicas=self._replica_numbers.at_start(key, version),
                        runtime=self._runtime,
                        logs_folder=self._workspace.logs_folder / key.endpoint / key.version,
                        spools_folder=self._workspace.spools_folder / key.endpoint / key.version,
                        on_change=self.wake,
                    )
            elif not running.retiring and running.version != version:
                with self._recorded_start_error(key):
                    running.update(version, LaunchSpec.from_cache(version, self._workspace))

    @contextlib.contextmanager
    def _recorded_start_error(self, key: VersionKey) -> Iterator[None]:
        """Context manager: record an error while starting one version, and do not raise it."""
        try:
            yield
        except Exception as error:
            # Whatever is wrong with one version, such as half a file of its image, is that version's error only.
            if self.start_errors.get(key) != str(error):
                log.warning("version %s of endpoint %s cannot be started: %s", key.version, key.endpoint, error)
            self.start_errors[key] = str(error)
        else:
            self.start_errors.pop(key, None)

    def _running_versions(self, endpoint: str) -> dict[str, RunningVersion]:
        """Return the versions of an endpoint that have processes, by version name."""
        return {key.version: running for key, running in self.running.items() if key.endpoint == endpoint}

    def _is_up_to_date(self, endpoint: Endpoint) -> bool:
        """Return whether every version of an endpoint runs as its newest revision defines it."""
        running = self._running_versions(endpoint.name)
        return all(
            name in running and not running[name].retiring and running[name].up_to_date for name in endpoint.versions
        )

    def _is_split_final(self, endpoint: str, split: Split) -> bool:
        """Return whether a split is complete, or every version that it waits for has failed."""
        running = self._running_versions(endpoint)
        return split.complete or all(
            running[version].failed if version in running else VersionKey(endpoint, version) in self.start_errors
            for version in split.waits_for
        )

    def _split_to_serve(self, endpoint: Endpoint) -> Split:
        """Return the split that the router may serve now for an endpoint, from the readiness of its versions."""
        running = {
            name: version for name, version in self._running_versions(endpoint.name).items() if not version.retiring
        }
        return allowed_split(
            endpoint,
            served=self.served.get(endpoint.name, CLOSED),
            ready=[name for name, version in running.items() if version.ready],
            live=[name for name, version in running.items() if version.sockets()],
        )

    def _endpoint_route(self, stored: StoredEndpoint, split: Split) -> EndpointRoute:
        """Return the endpoint's route: all its versions, and those that have a share only until the split is served."""
        endpoint = stored.endpoint
        if endpoint is None or stored.damage:
            return EndpointRoute(stored.name, (), (), closed=True)
        running = self._running_versions(endpoint.name)
        versions = dict(endpoint.versions)
        versions |= {name: running[name].version for name in split.weights if name not in versions}
        return EndpointRoute(
            name=endpoint.name,
            versions=tuple(
                VersionRoute(name, split.weights.get(name, 0), version.longest_answer_ms)
                for name, version in versions.items()
            ),
            keys=(stored.keys.primary, stored.keys.secondary) if stored.keys else None,
            token=self._token_route(endpoint, stored.key_set),
            traced=endpoint.enable_app_insights,
            sticky=self._sticky_route(endpoint, split),
        )

    def _sticky_route(self, endpoint: Endpoint, split: Split) -> StickyRoute | None:
        """Return how the split goes by callers' keys, if it does; on the way to a split as few as possible move."""
        if endpoint.sticky is None or split.default is None:
            self._ranges.pop(endpoint.name, None)
            return None
        before = endpoint.user_ranges if split.complete else self._ranges.get(endpoint.name, endpoint.user_ranges)
        ranges = arranged(before, split.weights, split.default)
        self._ranges[endpoint.name] = ranges
        return StickyRoute(StickyKey.parse(endpoint.sticky), ranges)

    def _token_route(self, endpoint: Endpoint, key_set: str | None) -> TokenRoute | None:
        """Return the tokens that open an endpoint; None if its callers have none.

        Args:
            endpoint: The endpoint.
            key_set: The public parts of its signing keys; None if it has none.
        """
        if key_set is not None:
            return TokenRoute(OWN_ISSUER, endpoint.name, key_set)
        if (outside := endpoint.token_issuer) is None:
            return None
        return TokenRoute(
            outside.issuer,
            outside.audience,
            self._issuer_keys.key_set(outside.jwks_uri),
            claims=outside.required_claims,
            scopes=outside.required_scopes,
        )

    def failed_versions(self) -> list[str]:
        """Return a sentence for each version that keeps a split from being served because it has failed."""
        sentences = []
        for name, split in self.served.items():
            running = self._running_versions(name)
            for version in split.waits_for:
                start_error = self.start_errors.get(VersionKey(name, version))
                failed = running[version].failed if version in running else start_error is not None
                if failed:
                    cause = running[version].cause if version in running else start_error
                    sentences.append(f"version {version!r} of endpoint {name!r} has failed: {cause}")
        return sentences

    # Versions that are removed

    def _retire_unserved(self, stored: Mapping[str, StoredEndpoint]) -> None:
        """Begin to remove the versions that no revision asks for and no route leads to.

        The versions of an endpoint whose revision cannot be read go on running, without a route: once the file is
        restored they serve at once.
        """
        for key, running in self.running.items():
            entry = stored.get(key.endpoint)
            is_desired = entry is not None and (entry.endpoint is None or key.version in entry.endpoint.versions)
            is_served = key.version in self.served.get(key.endpoint, CLOSED).weights
            if not is_desired and not is_served and key not in self._retirements:
                running.retiring = True
                self._retirements[key] = asyncio.create_task(self._retire_version(key), name=f"retire {key.version}")

    async def _retire_version(self, key: VersionKey) -> None:
        """Wait until a version gets no request any more, stop its replicas and forget it."""
        running = self.running[key]
        try:
            await self._wait_until_drained(cluster_names(*key), running.version.scoring_timeout_ms / 1000)
            await running.stop()
            del self.running[key]
            await asyncio.to_thread(remove_oldest_logs, self._workspace.logs_folder, set(self.running))
        finally:
            del self._retirements[key]
            self.wake()

    async def _wait_until_drained(self, clusters: Iterable[str], scoring_timeout_s: float) -> None:
        """Wait, for a bounded time, until no request can still reach clusters that have lost their routes."""
        linger_deadline = time.monotonic() + LINGER_S
        was_idle = False

        async def is_drained() -> bool:
            """Return whether the cluster has no open request, and none can still be on its way to it."""
            nonlocal was_idle
            activity = await self._envoy.activity()
            if activity is None:
                return True
            was_idle = was_idle or activity.downstream == 0 or time.monotonic() > linger_deadline
            return was_idle and not any(activity.active.get(cluster, 0) for cluster in clusters)

        await until(is_drained, LINGER_S + scoring_timeout_s)


def _closed_split(stored: StoredEndpoint) -> Split:
    """Return the split of an endpoint that is closed: nobody gets traffic, whatever its newest revision asks for."""
    return Split(revision=stored.revision if stored.endpoint else 0)
