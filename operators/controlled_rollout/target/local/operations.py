"""The operations that a running supervisor offers its clients: the methods of `Target` and a few for the workspace."""

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import DamagedFileError, TargetUnavailableError
from controlled_rollout.polling import until
from controlled_rollout.sizing import Load, total_load
from controlled_rollout.target import refusals
from controlled_rollout.target.local import keys, secret_files, signing_keys
from controlled_rollout.target.local.autoscaler import Autoscaler
from controlled_rollout.target.local.collector_process import CollectorProcess, collected_counts
from controlled_rollout.target.local.envoy_config import cluster_name, cluster_names
from controlled_rollout.target.local.envoy_process import EnvoyActivity, EnvoyProcess
from controlled_rollout.target.local.issuer_keys import IssuerKeys
from controlled_rollout.target.local.load_meter import LoadMeter
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.target.local.reconciler import Reconciler
from controlled_rollout.target.local.replica import LaunchSpec
from controlled_rollout.target.local.replica_numbers import VersionKey
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.router_certificate import RouterCertificate
from controlled_rollout.target.local.running_version import SETTLE_S
from controlled_rollout.target.local.silence_watch import SilenceWatch
from controlled_rollout.target.local.stored_endpoints import StoredEndpoints
from controlled_rollout.target.local.telemetry_process import TelemetryStoreProcess
from controlled_rollout.target.protocol import Change, EndpointStatus, Keys, LookNote, Revision, VersionStatus
from controlled_rollout.target.transition import CLOSED
from controlled_rollout.tokens import Token, key_set, sign
from controlled_rollout.version import check_name
from controlled_rollout.workspace import Workspace

__all__ = ["Operations"]

DELETE_TIMEOUT_S: Final = 600.0
# Shorter than clients wait for an answer.
KEYS_TIMEOUT_S: Final = 20.0


class Operations:
    """The operations of a local workspace.

    Args:
        workspace: The workspace.
        revisions: The stored revisions.
        stored: The endpoints as their files define them.
        reconciler: Makes the newest revisions run.
        envoy: The router.
        telemetry: The telemetry store.
        load_meter: Measures the load of every version.
        autoscaler: Decides how many replicas a version has.
        collector: The collector.
        certificate: The router's certificate; None without TLS.
        silence: When somebody last looked at each endpoint's treatment, and what becomes of those that nobody looks at.
        issuer_keys: The public keys of outside issuers.
    """

    def __init__(
        self,
        workspace: Workspace,
        revisions: RevisionStore,
        stored: StoredEndpoints,
        reconciler: Reconciler,
        envoy: EnvoyProcess,
        telemetry: TelemetryStoreProcess,
        load_meter: LoadMeter,
        autoscaler: Autoscaler,
        *,
        collector: CollectorProcess,
        silence: SilenceWatch,
        issuer_keys: IssuerKeys,
        certificate: RouterCertificate | None = None,
    ) -> None:
        self._workspace = workspace
        self._revisions = revisions
        self._stored = stored
        self._reconciler = reconciler
        self._envoy = envoy
        self._telemetry = telemetry
        self._load_meter = load_meter
        self._autoscaler = autoscaler
        self._collector = collector
        self._certificate = certificate
        self._silence = silence
        self._issuer_keys = issuer_keys
        # One writer at a time for each endpoint.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def endpoints(self) -> list[str]:
        """Return the names of all endpoints, sorted."""
        return self._revisions.endpoints()

    def endpoint(self, name: str) -> Endpoint:
        """Return an endpoint's newest revision."""
        newest = self._revisions.newest(name)
        if newest is None:
            raise self._revisions.not_found_error(name)
        return newest.endpoint

    def history(self, name: str) -> list[Revision]:
        """Return all kept revisions of an endpoint, oldest first."""
        return self._revisions.history(name)

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store an endpoint as its next revision and begin to serve it; see `Target.apply`."""
        refusals.check_supported(endpoint, "local")
        async with self._locks[endpoint.name]:
            stored = self._revisions.already_stored(endpoint)
            if stored is None:
                await asyncio.to_thread(self._check_images_and_secrets, endpoint)
                stored = self._revisions.store(endpoint, change).endpoint
            self._reconciler.wake()
            return stored

    def _check_images_and_secrets(self, endpoint: Endpoint) -> None:
        """Check that every image and every secret that the newest revision does not use yet is there.

        Raises:
            EndpointError: A secret is not there, or does not have the key.
            ImageError: An image is not in the cache.
        """
        newest = self._revisions.newest(endpoint.name)
        used = {version.image for version in newest.endpoint.versions.values()} if newest else set()
        for version in endpoint.versions.values():
            if not version.image or version.image not in used:
                LaunchSpec.from_cache(version, self._workspace)
        for reference, name in refusals.new_references(endpoint, newest.endpoint if newest else None).items():
            present = secret_files.keys_of(self._workspace.secrets_folder, reference.secret)
            refusals.check_secret_keys(reference, name, present, "in this workspace")

    async def status(self, name: str) -> EndpointStatus:
        """Return the state of an endpoint and its versions; the versions of a revision that is unreadable are none."""
        stored = self._stored.read(name)
        activity = await self._envoy.activity()
        names = stored.endpoint.versions if stored.endpoint else ()
        versions = {version: self._version_status(VersionKey(name, version), activity) for version in names}
        split = self._reconciler.served.get(name, CLOSED)
        outside = stored.endpoint.token_issuer if stored.endpoint else None
        # A revision that was just stored is closed, too, in a moment: until then that is waited for.
        is_behind = stored.endpoint is not None and split.revision != stored.revision
        return EndpointStatus(
            name=name,
            url=f"{self.router_url}/api/v1/service/{name}/score",
            revision=stored.revision,
            served_revision=self._reconciler.served_revision.get(name, 0),
            versions=versions,
            trouble=None if is_behind else stored.damage,
            certificate_ends=self._certificate.ends if self._certificate else None,
            warnings=(
                *(self._certificate.warnings() if self._certificate else ()),
                *(self._issuer_keys.warnings(outside.jwks_uri) if outside else ()),
                *self._silence.warnings(name),
            ),
            weight_ppm={version: weight for version, weight in split.weights.items() if weight},
            split_revision=split.revision,
            waiting_for=stored.damage or split.waiting_for,
            clusters={version: cluster_name(name, version) for version in versions},
            routers={activity.router: activity.since} if activity else {},
        )

    def _version_status(self, key: VersionKey, activity: EnvoyActivity | None) -> VersionStatus:
        """Return the status of one version from its replicas and the router's request counts."""
        running = self._reconciler.running.get(key)
        if running is None or running.retiring:
            start_error = self._reconciler.start_errors.get(key)
            return VersionStatus(name=key.version, ready=False, failed=start_error is not None, cause=start_error)
        status = running.status().model_copy(update={"scaling": self._autoscaler.why(key)})
        if running.version.collect_model_data:
            collected = collected_counts(self._workspace.spools_folder, *key)
            status = status.model_copy(update={"collected": collected})
        if activity is None:
            return status
        cluster = cluster_name(*key)
        counts = {
            "requests": activity.requests.get(cluster, 0),
            "unsent": activity.unsent.get(cluster, 0),
            "active": sum(activity.active.get(name, 0) for name in cluster_names(*key)),
        }
        return status.model_copy(update=counts)

    def load(self, name: str) -> dict[str, Load]:
        """Return the measured load of each version of an endpoint, also of a version that is being removed."""
        self.endpoint(name)
        loads: dict[str, list[Load]] = {}
        for cluster, load in self._load_meter.loads().items():
            endpoint, _, version = cluster.partition("/")
            if endpoint == name and version:
                loads.setdefault(version.partition("/")[0], []).append(load)
        return {version: total_load(parts) for version, parts in loads.items()}

    @property
    def router_url(self) -> str:
        """The router's address for callers."""
        return self._envoy.url

    def logs(self, name: str, version: str, tail: int) -> str:
        """Return the last `tail` lines of all logs of a version; the log that was written last comes last."""
        folder = self._workspace.logs_folder / check_name(name) / check_name(version)
        paths = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines: list[str] = []
        for path in paths:
            label = f"[{path.stem}] " if len(paths) > 1 else ""
            lines += [label + line for line in LogFile(path).tail(tail)]
        return "\n".join(lines[-tail:])

    def note_look(self, name: str, version: str) -> None:
        """Write down that somebody looks at a treatment now."""
        self._silence.notes.write(name, version)

    def last_look(self, name: str) -> LookNote | None:
        """Return the last look that was written down."""
        return self._silence.notes.read(name)

    def keys(self, name: str) -> Keys:
        """Return an endpoint's keys."""
        refusals.check_has_keys(self.endpoint(name))
        return keys.read_keys(self._revisions.endpoint_folder(name))

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key of an endpoint, and wait until the router has confirmed it; the other keeps working.

        If the file of the keys cannot be read, both are new.

        Raises:
            TargetUnavailableError: The router has not confirmed it; the file has the new key.
        """
        async with self._locks[name]:
            self._check_may_renew(name, refusals.check_has_keys)
            renewed = self._revisions.replace_key(name, which)
            self._reconciler.wake()
            if not await until(lambda: self._are_confirmed(name, renewed), KEYS_TIMEOUT_S):
                raise TargetUnavailableError(
                    f"the new {which} key of endpoint {name!r} is stored, but the router has not confirmed it within "
                    f"{KEYS_TIMEOUT_S:g} s: the old key may still open the endpoint; look into router.log, and make "
                    "another one"
                )
            # A worker thread of the router may still check the keys of before for a moment.
            await asyncio.sleep(SETTLE_S)
            return renewed

    def _check_may_renew(self, name: str, check: Callable[[Endpoint], None]) -> None:
        """Check that an endpoint has what is to be renewed; one whose revision cannot be read may.

        Raises:
            EndpointError: It does not have it, or does not exist.
        """
        if not self._revisions.exists(name):
            raise self._revisions.not_found_error(name)
        with contextlib.suppress(DamagedFileError):
            check(self.endpoint(name))

    def token(self, name: str, lifetime: timedelta) -> Token:
        """Return a new token for an endpoint's callers; see `Target.token`."""
        refusals.check_has_signing_keys(self.endpoint(name))
        keys_of_endpoint, _ = signing_keys.read_signing_keys(self._revisions.endpoint_folder(name))
        return sign(keys_of_endpoint, name, lifetime, datetime.now(UTC))

    async def rotate_signing_keys(self, name: str) -> None:
        """Rotate an endpoint's signing keys, and wait until the router has confirmed it.

        If their file cannot be read, all of them are new.

        Raises:
            TargetUnavailableError: The router has not confirmed it; the file has the new keys.
        """
        async with self._locks[name]:
            self._check_may_renew(name, refusals.check_has_signing_keys)
            rotated = key_set(self._revisions.rotate_signing_keys(name))
            self._reconciler.wake()

            def is_confirmed() -> bool:
                """Return whether the router accepts tokens of these keys, or nobody because the endpoint is closed."""
                accepted = self._reconciler.accepted_tokens.get(name)
                if self._stored.read(name).damage:
                    return accepted is None
                return accepted is not None and accepted.key_set == rotated

            if not await until(is_confirmed, KEYS_TIMEOUT_S):
                raise TargetUnavailableError(
                    f"the signing keys of endpoint {name!r} are rotated, but the router has not confirmed it within "
                    f"{KEYS_TIMEOUT_S:g} s: tokens of the key that is gone may still open the endpoint; look into "
                    "router.log, and restart the workspace"
                )
            # A worker thread of the router may still check the keys of before for a moment.
            await asyncio.sleep(SETTLE_S)

    def _are_confirmed(self, name: str, renewed: Keys) -> bool:
        """Return whether the router accepts these keys of an endpoint and no others, or none because it is closed."""
        stored = self._stored.read(name)
        accepted = self._reconciler.accepted_keys.get(name, ())
        if stored.damage:
            return accepted == ()
        return accepted == (None if stored.keys is None else (renewed.primary, renewed.secondary))

    def scale(self, name: str, version: str, replicas: int, *, at_least: bool) -> None:
        """Change how many replicas of a version run; see `Target.scale`."""
        self.endpoint(name).version(version)
        refusals.check_replicas(version, replicas)
        self._autoscaler.set_replicas(VersionKey(name, version), replicas, at_least=at_least)

    def store_secret(self, name: str, values: Mapping[str, str]) -> None:
        """Store values in a secret; other keys of it stay."""
        secret_files.store(self._workspace.secrets_folder, name, values)

    async def delete(self, name: str) -> None:
        """Delete an endpoint; wait until its replicas have answered their open requests and have ended."""
        async with self._locks[check_name(name)]:
            self._revisions.delete(name)
            if not await self._reconciler.remove(name, DELETE_TIMEOUT_S):
                raise TargetUnavailableError(
                    f"endpoint {name!r} is deleted, but its replicas have not ended within {DELETE_TIMEOUT_S:g} s: "
                    "delete it again to go on waiting, and look into supervisor.log and router.log"
                )

    async def set_telemetry(self, running: bool) -> None:
        """Start or stop the telemetry store."""
        await (self._telemetry.start() if running else self._telemetry.stop())

    def _router_status(self) -> ProcessStatus:
        """Return the status of the router, with what is wrong with its certificate."""
        status = self._envoy.status
        problems = self._certificate.problems() if self._certificate else []
        return status.model_copy(update={"problem": status.problem or "; ".join(problems) or None})

    def processes(self) -> list[ProcessStatus]:
        """Return the status of the supervisor, the router, the telemetry store, the collector and all replicas."""
        return [
            ProcessStatus(name="supervisor", pid=os.getpid()),
            self._router_status(),
            self._telemetry.status,
            *filter(None, [self._collector.status()]),
            *(
                replica.process_status(key.endpoint)
                for key, running in self._reconciler.running.items()
                for replica in running.replicas
            ),
        ]
