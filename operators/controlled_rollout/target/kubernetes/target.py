"""The Kubernetes target: `Target` over an API server.

There is no controller in the cluster; the waiting caller reconciles (docs/adr/0007).
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, Self

from controlled_rollout.autoscaling import Floor
from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import CONFIG_MAP, DEPLOYMENT, HTTP_ROUTE
from controlled_rollout.endpoint import Endpoint, EndpointError
from controlled_rollout.errors import AccessError, ConflictError, DamagedFileError, TargetUnavailableError
from controlled_rollout.polling import until
from controlled_rollout.sizing import Load
from controlled_rollout.target import refusals, transition
from controlled_rollout.target.kubernetes import (
    envoy_stats,
    key_set_standby,
    keys_secret,
    own_secrets,
    ownership,
    pod_logs,
    provisioning,
    reconciling,
    revisions,
    scaling,
    signing_keys_secret,
)
from controlled_rollout.target.kubernetes.confirmation import unconfirmed_after
from controlled_rollout.target.kubernetes.gateway import base_url, find_gateway
from controlled_rollout.target.kubernetes.look_notes import read_look_note, write_look_note
from controlled_rollout.target.kubernetes.names import (
    ENDPOINT_LABEL,
    endpoint_object_name,
    route_name,
    version_object_name,
)
from controlled_rollout.target.kubernetes.preconditions import check_cluster, check_endpoint
from controlled_rollout.target.kubernetes.shadowing import find_shadows
from controlled_rollout.target.kubernetes.sticky_split import check_gateway_splits_by_key
from controlled_rollout.target.kubernetes.take_back_notes import take_back_problem
from controlled_rollout.target.kubernetes.view import EndpointView, versions_by_cluster, versions_by_service
from controlled_rollout.target.kubernetes.watching import read_view, watch_views
from controlled_rollout.target.protocol import Change, EndpointStatus, Keys, LookNote, Revision
from controlled_rollout.tokens import DEFAULT_LIFETIME, Token, check_lifetime, sign
from controlled_rollout.workspace import Workspace

__all__ = ["KubernetesTarget"]

log = logging.getLogger(__name__)

LOAD_WINDOW_S: Final = 1.0
DELETE_TIMEOUT_S: Final = 600.0
DELETE_POLL_S: Final = 0.25
KEYS_TIMEOUT_S: Final = 60.0


class KubernetesTarget:
    """The endpoints of one namespace of a cluster, behind one Gateway of Envoy Gateway.

    Args:
        workspace: A workspace whose target is `kubernetes`.
        api: The open API server of its cluster.
    """

    def __init__(self, workspace: Workspace, api: Api) -> None:
        self._workspace = workspace
        self._api = api
        self._namespace = workspace.namespace

    @classmethod
    @asynccontextmanager
    async def open(cls, workspace: Workspace) -> AsyncIterator[Self]:
        """Context manager: sign in to a workspace's cluster and yield the target; close the connection on exit.

        Raises:
            WorkspaceError: The workspace does not lead to a cluster.
        """
        async with Api.open(workspace) as api:
            yield cls(workspace, api)

    async def endpoints(self) -> list[str]:
        """Return the names of all endpoints, sorted."""
        return await revisions.endpoints_of(self._api, self._namespace)

    async def endpoint(self, name: str) -> Endpoint:
        """Return the newest revision of an endpoint."""
        return (await self.history(name))[-1].endpoint

    async def history(self, name: str) -> list[Revision]:
        """Return all kept revisions of an endpoint, oldest first."""
        return await revisions.existing_history(self._api, self._namespace, name)

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store `endpoint` as the next revision, and reconcile it as far as is possible now; see `Target.apply`."""
        check_endpoint(endpoint, self._workspace)
        history = await revisions.history(self._api, self._namespace, endpoint.name)
        newest = history[-1].endpoint if history else None
        if newest is None:
            await revisions.check_not_lost(self._api, self._namespace, endpoint.name)
        stored = refusals.already_stored(endpoint, history[-1] if history else None)
        former = history[:-1] if stored else history
        is_forward = not former or transition.sends_more(former[-1].endpoint, endpoint)
        if stored is None:
            await check_cluster(self._api, self._workspace, endpoint.name, is_forward=is_forward)
            if is_forward:
                await ownership.check_names_are_free(self._api, self._namespace, endpoint)
                await check_gateway_splits_by_key(self._api, endpoint)
            refusals.check_collection(endpoint, newest, self._workspace)
            await own_secrets.check_references(self._api, self._namespace, endpoint, newest)
            await own_secrets.check_collector_secret(self._api, self._workspace, endpoint, newest)
            if newest is not None and is_forward:
                await self._check_nothing_is_left_edited(newest)
        owner = await provisioning.apply_root(self._api, self._workspace, endpoint.name)
        if stored is None:
            revision = await revisions.store_revision(
                self._api, self._namespace, endpoint, change, owner=owner, kept=history
            )
            stored = revision.endpoint
        await self._apply_objects(stored, owner, before=newest, must=is_forward)
        await reconciling.reconcile_endpoint(self._api, self._workspace, stored, is_forward=is_forward)
        return stored

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        """Return the state of an endpoint and its versions; see `Target.status`."""
        try:
            newest = (await self.history(name))[-1]
        except DamagedFileError as error:
            url = f"{await self._base_url()}/api/v1/service/{name}/score"
            return EndpointStatus(name=name, url=url, revision=0, served_revision=0, trouble=str(error))
        view = await read_view(self._api, self._workspace, newest.endpoint)
        if inspect:
            view = await self._with_drift(view, newest)
        status = view.status(await self._base_url(), datetime.now(UTC))
        unready = [version for version in status.versions.values() if not version.ready]
        return await pod_logs.with_logs(self._api, self._workspace, status, unready)

    async def _with_drift(self, view: EndpointView, newest: Revision) -> EndpointView:
        """Return a view with what others have deleted, edited or put in the way, and since when nobody is at work."""
        name = newest.endpoint.name
        drift, shadows, root = await asyncio.gather(
            provisioning.find_drift(self._api, self._workspace, newest.endpoint),
            find_shadows(self._api, self._workspace, name),
            self._api.find(CONFIG_MAP.path(self._namespace, endpoint_object_name(name))),
        )
        idle = reconciling.idle_since(root, newest, datetime.now(UTC))
        return replace(
            view,
            drift=tuple(drift),
            shadows=tuple(shadows),
            idle_since=idle,
            changed_by=newest.change.who,
            not_taken_back=take_back_problem(root, newest),
        )

    async def watch(self, name: str, *, reconcile: bool = False) -> AsyncGenerator[EndpointStatus]:
        """Yield the state of an endpoint whenever it has changed, from the API server's own watches."""
        noted = datetime.now(UTC)

        async def reconcile_if_asked(view: EndpointView) -> EndpointView:
            """Reconcile the view first if the caller asked for it; return the view that was acted on."""
            nonlocal noted
            if not reconcile:
                return view
            if (now := datetime.now(UTC)) - noted > reconciling.WORKED_INTERVAL:
                noted = now
                await reconciling.note_work(self._api, self._workspace, name, now)
                await self._repair_drift(name)
            return await reconciling.reconcile_view(self._api, self._workspace, view)

        url = await self._base_url()
        newest = await self.endpoint(name)
        if reconcile:
            # Before anything is waited for: what somebody has deleted may be what would be waited for.
            await self._repair_drift(name)
        latest: EndpointStatus | None = None
        async with aclosing(watch_views(self._api, self._workspace, newest, reconcile_if_asked)) as views:
            async for view in views:
                status = view.status(url, datetime.now(UTC))
                if status != latest:
                    latest = status
                    failed = [version for version in status.versions.values() if version.failed]
                    yield await pod_logs.with_logs(self._api, self._workspace, status, failed)

    async def load(self, name: str) -> Mapping[str, Load]:
        """Return the load of each version, from two readings of every Envoy's counters one second apart."""
        newest = await self.endpoint(name)
        route = await self._api.find(HTTP_ROUTE.path(self._namespace, route_name(name)))
        before = await envoy_stats.read_gateway_stats(self._api, self._workspace, name)
        await asyncio.sleep(LOAD_WINDOW_S)
        after = await envoy_stats.read_gateway_stats(self._api, self._workspace, name)
        names = versions_by_service(name, newest.versions)
        versions = versions_by_cluster(route, names, by_name=False) | versions_by_cluster(route, names, by_name=True)
        return envoy_stats.version_loads(before, after, versions, LOAD_WINDOW_S)

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        """Return the last `tail` lines of the logs of a version's pods; those of deleted pods are not kept."""
        return await pod_logs.version_logs(self._api, self._workspace, name, version, tail)

    async def keys(self, name: str) -> Keys:
        """Return the endpoint's two API keys, with which callers authenticate."""
        refusals.check_has_keys(await self.endpoint(name))
        keys = await keys_secret.read(self._api, self._namespace, name)
        if keys is None:
            raise self._no_keys_error(name)
        return keys

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key, and wait until every Envoy accepts the new one and refuses the old one.

        Raises:
            TargetUnavailableError: Not every Envoy has confirmed it; the Secret has the new key.
        """
        endpoint = await self.endpoint(name)
        refusals.check_has_keys(endpoint)
        keys = await keys_secret.regenerate(self._api, self._namespace, name, which)
        if keys is None:
            raise self._no_keys_error(name)
        if reason := await unconfirmed_after(self._api, self._workspace, endpoint, KEYS_TIMEOUT_S):
            raise TargetUnavailableError(
                f"the new {which} key of endpoint {name!r} is stored, but whether every Envoy has it is not confirmed: "
                f"the old key may still open the endpoint; {reason}; mend that, and make another key"
            )
        return keys

    async def token(self, name: str, *, lifetime: timedelta = DEFAULT_LIFETIME) -> Token:
        """Return a new token for the endpoint's callers; see `Target.token`."""
        check_lifetime(lifetime)
        refusals.check_has_signing_keys(await self.endpoint(name))
        keys = await signing_keys_secret.read(self._api, self._namespace, name)
        if keys is None:
            raise self._no_keys_error(name, "signing keys", "signing-keys")
        return sign(keys, name, lifetime, datetime.now(UTC))

    async def rotate_signing_keys(self, name: str) -> None:
        """Rotate the endpoint's signing keys, and wait until every Envoy has confirmed it; no caller is interrupted.

        Raises:
            TargetUnavailableError: Not every Envoy has confirmed it; the keys are rotated.
        """
        endpoint = await self.endpoint(name)
        refusals.check_has_signing_keys(endpoint)
        before = await signing_keys_secret.read(self._api, self._namespace, name)
        if before is None:
            raise self._no_keys_error(name, "signing keys", "signing-keys")
        owner = await provisioning.apply_root(self._api, self._workspace, name)
        await provisioning.keep_key_sets(self._api, self._workspace, endpoint, owner, before)
        await key_set_standby.wait_until_known(self._api, self._namespace, name, before)
        keys = await signing_keys_secret.rotate(self._api, self._namespace, name, before)
        await provisioning.apply_key_set(self._api, self._workspace, endpoint, owner, keys)
        if reason := await unconfirmed_after(self._api, self._workspace, endpoint, KEYS_TIMEOUT_S):
            raise TargetUnavailableError(
                f"the signing keys of endpoint {name!r} are rotated, but whether every Envoy has them is not "
                f"confirmed: tokens of the key that is gone may still open the endpoint; {reason}"
            )
        await provisioning.keep_key_sets(self._api, self._workspace, endpoint, owner, keys)

    async def scale(self, name: str, version: str, replicas: int, *, at_least: bool = False) -> None:
        """Change how many replicas of a version run; see `Target.scale`."""
        refusals.check_replicas(version, replicas)
        # Raises the error that names what is missing, the endpoint or the version.
        (await self.endpoint(name)).version(version)
        deployment = version_object_name(name, version)
        await ownership.find_own(self._api, DEPLOYMENT, self._namespace, deployment, name)
        if at_least:
            await scaling.keep_at_least(self._api, self._workspace, name, version, replicas, now=time.time())
        else:
            floor = Floor.for_shift(replicas, time.time())
            await scaling.scale_version(self._api, self._workspace, name, version, replicas, floor=floor)

    async def store_secret(self, name: str, values: Mapping[str, str]) -> None:
        """Store values in a Secret; other keys of it stay."""
        await own_secrets.store(self._api, self._namespace, name, values)

    async def note_look(self, name: str, version: str) -> None:
        """Write down at the endpoint's root object that somebody looks at a treatment now."""
        await write_look_note(self._api, self._namespace, name, version, datetime.now(UTC))

    async def last_look(self, name: str) -> LookNote | None:
        """Return what `note_look` has written down last."""
        return await read_look_note(self._api, self._namespace, name)

    async def delete(self, name: str, change: Change) -> None:
        """Delete an endpoint: first our rules in its route, then its root object and all objects that this owns.

        Raises:
            NameTakenError: The ConfigMap of the root object's name is somebody else's; nothing was deleted.
        """
        root = endpoint_object_name(name)
        path = CONFIG_MAP.path(self._namespace, root)
        # Before anything is deleted: somebody else's ConfigMap of that name stays.
        await ownership.find_own(self._api, CONFIG_MAP, self._namespace, root, name)
        await reconciling.delete_rules(self._api, self._workspace, name)
        await self._api.delete(path, propagation="Foreground")

        async def is_deleted() -> bool:
            """Return whether the endpoint's root object is deleted, and with it all that it owns."""
            return await self._api.find(path) is None

        if not await until(is_deleted, DELETE_TIMEOUT_S, interval_s=DELETE_POLL_S):
            raise TargetUnavailableError(
                f"endpoint {name!r} is being deleted, and its objects are not gone within "
                f"{DELETE_TIMEOUT_S:g} s: call again to go on waiting; `kubectl get all -n {self._namespace} "
                f"-l {ENDPOINT_LABEL}={name}` shows what is left"
            )
        log.info("endpoint %s was deleted by %s: %s", name, change.who, change.reason)

    async def _base_url(self) -> str:
        """Return the URL at which callers reach the Gateway now."""
        return base_url(await find_gateway(self._api, self._workspace), self._workspace)

    async def _repair_drift(self, name: str) -> None:
        """Remake what others have deleted or edited among the objects of an endpoint; while a step waits."""
        newest = await self.endpoint(name)
        owner = await provisioning.apply_root(self._api, self._workspace, name)
        # Somebody may be deleting the endpoint: its objects are not to come back.
        if "deletionTimestamp" not in owner["metadata"]:
            await self._apply_objects(newest, owner, before=newest, must=False)

    async def _apply_objects(self, endpoint: Endpoint, owner: Object, *, before: Endpoint | None, must: bool) -> None:
        """Apply all objects of an endpoint but its route, and warn of what others have deleted or edited.

        Args:
            endpoint: The newest revision.
            owner: The endpoint's root object.
            before: The revision that the objects were made from; None if there was none. What differs only because
                that was another one is no drift.
            must: Whether an object that the API server refuses is an error. If not, it is only reported: going back
                does not depend on it, and who waits sees whether it matters.
        """
        try:
            found = await provisioning.apply_objects(self._api, self._workspace, endpoint, owner)
        except (AccessError, ApiError, ConflictError) as error:
            if must:
                raise
            log.warning("endpoint %s: not all of its objects could be looked at: %s", endpoint.name, error)
            return
        for drift in found:
            is_new = before is None or (drift.version is not None and drift.version not in before.versions)
            is_change = before is not None and before.revision != endpoint.revision and drift.is_unattributed
            if not (is_new or is_change):
                log.warning("endpoint %s: %s", endpoint.name, drift)

    async def _check_nothing_is_left_edited(self, newest: Endpoint) -> None:
        """Raise ConflictError if others have edited what steps leave as it is, such as a Deployment's image."""
        for drift in await provisioning.find_drift(self._api, self._workspace, newest):
            if drift.is_left:
                raise ConflictError(f"endpoint {newest.name!r}: {drift}; nothing was changed now")

    def _no_keys_error(self, name: str, what: str = "keys", part: str = "keys") -> EndpointError:
        """Return the error for an endpoint whose keys somebody has deleted."""
        return EndpointError(
            f"the {what} of endpoint {name!r} are not in their Secret {endpoint_object_name(name, part)}: somebody has "
            "deleted or edited it; any step, such as a shift to the present share, brings them back"
        )
