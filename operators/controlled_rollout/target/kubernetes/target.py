"""The Kubernetes target: `Target` over an API server. Nobody of ours runs in the cluster: who waits does the work."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self

from controlled_rollout.cluster.api import FIELD_MANAGER, Api, ApiError, Object
from controlled_rollout.cluster.kinds import (
    BACKEND_TRAFFIC_POLICY,
    CONFIG_MAP,
    DEPLOYMENT,
    EVENT,
    GATEWAY,
    HTTP_ROUTE,
    HTTP_ROUTE_FILTER,
    POD,
    SECRET,
    SECURITY_POLICY,
    SERVICE,
)
from controlled_rollout.cluster.pods import newest_warning
from controlled_rollout.endpoint import Auth, Endpoint, EndpointError, Version
from controlled_rollout.errors import (
    AccessError,
    ConflictError,
    TargetUnavailableError,
    WorkspaceError,
)
from controlled_rollout.polling import until
from controlled_rollout.sizing import Load
from controlled_rollout.target import refusals
from controlled_rollout.target.kubernetes import envoy, manifests, revisions, view
from controlled_rollout.target.kubernetes import route as routes
from controlled_rollout.target.kubernetes.names import (
    ENDPOINT_LABEL,
    VERSION_LABEL,
    endpoint_labels,
    endpoint_object,
    route_name,
    selector,
    version_labels,
    version_object,
)
from controlled_rollout.target.kubernetes.route_transition import CONTROLLER, DIGEST, changed_by_hand, services
from controlled_rollout.target.kubernetes.view import View
from controlled_rollout.target.protocol import Change, EndpointStatus, Keys, ReplicaState, Revision, VersionStatus
from controlled_rollout.workspace import Workspace

__all__ = ["KubernetesTarget"]

log = logging.getLogger(__name__)

# On a Deployment and on an endpoint's root: what it was last made from, so that what is the same is not sent again.
MADE_FROM: Final = "controlled-rollout/made-from"
LOAD_WINDOW_S: Final = 1.0
DELETE_TIMEOUT_S: Final = 600.0
DELETE_POLL_S: Final = 0.25
WRITES: Final = 5


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
        """Open the target of a workspace: one sign-in for everything that is done with it.

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
        found = await revisions.history(self._api, self._namespace, name)
        if not found:
            raise refusals.not_found(name, await revisions.endpoints_of(self._api, self._namespace))
        return found

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store `endpoint` as the next revision and make it so as far as that is possible now; see `Target.apply`."""
        self._check(endpoint)
        stored = await revisions.history(self._api, self._namespace, endpoint.name)
        newest = refusals.already_stored(endpoint, stored[-1] if stored else None)
        if newest is None:
            await self._check_cluster(endpoint)
            owner = await self._root(endpoint.name)
            made = await revisions.store(self._api, self._namespace, endpoint, change, owner=owner, stored=stored)
            newest = made.endpoint
        else:
            owner = await self._root(endpoint.name)
        await self._provide(newest, owner)
        await self._carry_on(newest)
        return newest

    async def status(self, name: str) -> EndpointStatus:
        """Return how the endpoint and its versions are now."""
        newest = await self.endpoint(name)
        seen = await view.look(self._api, self._workspace, newest)
        status = seen.status(self._url_base(await self._gateway()), datetime.now(UTC))
        return await self._told(status, [one for one in status.versions.values() if not one.ready])

    async def watch(self, name: str, *, carry_on: bool = False) -> AsyncIterator[EndpointStatus]:
        """Yield how the endpoint is, whenever that has changed, from the API server's own watches."""
        base = self._url_base(await self._gateway())

        async def go_on(seen: View) -> View:
            return await self._go_on(seen) if carry_on else seen

        newest = await self.endpoint(name)
        said: EndpointStatus | None = None
        async with aclosing(view.changes(self._api, self._workspace, newest, go_on)) as changes:
            async for seen in changes:
                status = seen.status(base, datetime.now(UTC))
                if status != said:
                    said = status
                    yield await self._told(status, [one for one in status.versions.values() if one.failed])

    async def load(self, name: str) -> Mapping[str, Load]:
        """Return the load of each version, from two looks at every Envoy one second apart."""
        newest = await self.endpoint(name)
        route = await self._api.find(self._path(HTTP_ROUTE, route_name(name)))
        before = await envoy.look(self._api, self._workspace, name)
        await asyncio.sleep(LOAD_WINDOW_S)
        after = await envoy.look(self._api, self._workspace, name)
        names = services(newest.versions, name)
        clusters = view.clusters(route, names, by_name=False) | view.clusters(route, names, by_name=True)
        return view.loads(before, after, clusters, LOAD_WINDOW_S)

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        """Return the last `tail` lines of a version's pods; what a deleted pod wrote is with the cluster's own logs."""
        return await self._logs(name, version, tail)

    async def keys(self, name: str) -> Keys:
        """Return the endpoint's two keys."""
        return _keys(await self._secret(name))

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key; the other keeps working the whole time."""
        for _ in range(WRITES):
            found = await self._secret(name)
            change = {"stringData": {which: getattr(_keys(found).renewed(which), which)}}
            path = self._path(SECRET, endpoint_object(name, "keys"))
            if (changed := await self._api.merge_if_unchanged(path, found, change)) is not None:
                return _keys(changed)
        raise ConflictError(f"the keys of endpoint {name!r} are being changed by others all the time: try again")

    async def scale(self, name: str, version: str, replicas: int) -> None:
        """Set the number of replicas that run now, without a new revision."""
        refusals.check_replicas(version, replicas)
        try:
            await self._scale(name, version, replicas)
        except ApiError as error:
            if error.status == 404:
                # Say which is missing, the endpoint or the version.
                (await self.endpoint(name)).version(version)
            raise

    async def delete(self, name: str, change: Change) -> None:
        """Delete the endpoint: our rules in its route first, then, by their owner, all objects that are ours."""
        path = self._path(CONFIG_MAP, endpoint_object(name))
        await self._leave_route(name)
        await self._api.delete(path, propagation="Foreground")

        async def is_gone() -> bool:
            return await self._api.find(path) is None

        if not await until(is_gone, DELETE_TIMEOUT_S, interval_s=DELETE_POLL_S):
            raise TargetUnavailableError(
                f"endpoint {name!r} is being deleted, and its objects are not gone within "
                f"{DELETE_TIMEOUT_S:g} s: call again to go on waiting; `kubectl get all -n {self._namespace} "
                f"-l {ENDPOINT_LABEL}={name}` shows what is left"
            )
        log.info("endpoint %s was deleted by %s: %s", name, change.who, change.why)

    # What is refused before anything is changed

    def _check(self, endpoint: Endpoint) -> None:
        refusals.check_supported(endpoint, "Kubernetes")
        if endpoint.namespace not in ("default", self._namespace):
            raise EndpointError(
                f"endpoint {endpoint.name!r} asks for namespace {endpoint.namespace!r}, and workspace "
                f"{self._workspace.name!r} is on {self._namespace!r}: use a workspace of that namespace"
            )
        for version in endpoint.versions.values():
            if not version.image:
                raise EndpointError(f"version {version.name!r} names no image: build one and give its reference")

    async def _check_cluster(self, endpoint: Endpoint) -> None:
        """Refuse a cluster that cannot do what is asked, and a route that somebody has changed.

        Raises:
            WorkspaceError: Gateway API, Envoy Gateway or the Gateway is missing, or another controller serves it.
            ConflictError: Somebody has changed our rules, or has a route of that name.
        """
        for kind in (HTTP_ROUTE, SECURITY_POLICY):
            resources = await self._api.find(f"/apis/{kind.version}")
            names = [resource["name"] for resource in (resources or {}).get("resources", [])]
            if kind.plural not in names:
                raise WorkspaceError(
                    f"the cluster {self._api.server} does not know {kind.plural}.{kind.group}: install "
                    f"{'the Gateway API' if kind is HTTP_ROUTE else 'Envoy Gateway'} first, docs/aks.md says how"
                    + ("" if kind is HTTP_ROUTE else "; without it nobody would ask callers for their keys")
                )
        await self._check_controller(await self._gateway())
        found = await self._api.find(self._path(HTTP_ROUTE, route_name(endpoint.name)))
        if found is None:
            await self._check_path(endpoint.name)
            return
        if found["metadata"].get("labels", {}).get(ENDPOINT_LABEL) != endpoint.name:
            raise ConflictError(
                f"namespace {self._namespace!r} has an HTTPRoute {endpoint.name!r} that is not ours, and endpoint "
                f"{endpoint.name!r} needs one of that name: choose another name for the endpoint"
            )
        if changed := changed_by_hand(found):
            raise ConflictError(f"{changed}; nothing was changed now")

    async def _check_path(self, name: str) -> None:
        """Refuse an endpoint whose path on the Gateway another namespace has: the older route would get its callers."""
        others = (await envoy.look(self._api, self._workspace, name)).namespaces() - {self._namespace}
        if others:
            raise ConflictError(
                f"Gateway {self._workspace.gateway!r} serves an endpoint {name!r} of namespace "
                f"{', '.join(map(repr, sorted(others)))} already, and both would have the path /api/v1/service/{name}: "
                "choose another name, or another Gateway"
            )

    async def _check_controller(self, gateway: Object) -> None:
        name = gateway["spec"]["gatewayClassName"]
        try:
            found = await self._api.find(f"/apis/{GATEWAY.version}/gatewayclasses/{name}")
        except AccessError:
            # Not in every Role. A route stays closed until Envoy Gateway itself says that the policy is in force.
            return
        controller = found["spec"]["controllerName"] if found else "nobody"
        if controller != CONTROLLER:
            raise WorkspaceError(
                f"Gateway {self._workspace.gateway!r} is served by {controller}, and only Envoy Gateway ({CONTROLLER}) "
                "is known to ask callers for their keys: name a Gateway of its class"
            )

    async def _gateway(self) -> Object:
        namespace, name = self._workspace.gateway_name
        found = await self._api.find(GATEWAY.path(namespace, name))
        if found is None:
            raise WorkspaceError(
                f"the cluster {self._api.server} has no Gateway {name!r} in namespace {namespace!r}: create it, or "
                f"correct the setting gateway of workspace {self._workspace.name!r}; docs/aks.md says how"
            )
        return found

    # What is made so

    async def _root(self, name: str) -> Object:
        return await self._api.apply(
            self._path(CONFIG_MAP, endpoint_object(name)), manifests.root(name, self._namespace)
        )

    async def _provide(self, endpoint: Endpoint, owner: Object) -> None:
        """Apply everything but the route; what was made from the same before is not sent again."""
        await self._provide_policies(endpoint, owner)
        found = await self._api.items(
            DEPLOYMENT.path(self._namespace), labelSelector=selector(endpoint_labels(endpoint.name))
        )
        there = {deployment["metadata"]["labels"][VERSION_LABEL]: deployment for deployment in found}
        for version in endpoint.versions.values():
            await self._provide_version(endpoint, version, owner, there.get(version.name))

    async def _provide_policies(self, endpoint: Endpoint, owner: Object) -> None:
        name, namespace = endpoint.name, self._namespace
        if endpoint.auth is Auth.KEY:
            made = manifests.keys_secret(name, Keys.new(), namespace=namespace, owner=owner)
            wanted = {SECURITY_POLICY: manifests.security_policy(name, namespace=namespace, owner=owner)}
        else:
            made, wanted = None, {}
        versions = ", ".join(endpoint.versions) or "none"
        answers = {
            "closed": (503, f"endpoint {name} has no version that is ready yet"),
            "unknown": (404, f"endpoint {name} has no version of that name that is ready: it has {versions}"),
        }
        filters = [
            manifests.not_here(name, part, status, text, namespace=namespace, owner=owner)
            for part, (status, text) in answers.items()
        ]
        wanted |= {BACKEND_TRAFFIC_POLICY: manifests.traffic_policy(endpoint, namespace=namespace, owner=owner)}
        made_from = _digest([*wanted.values(), *filters])
        if (owner["metadata"].get("annotations") or {}).get(MADE_FROM) == made_from:
            return
        if made is not None:
            await self._api.create(SECRET.path(namespace), made)
        for kind, body in wanted.items():
            await self._api.apply(self._path(kind, endpoint_object(name)), body)
        for body in filters:
            await self._api.apply(self._path(HTTP_ROUTE_FILTER, body["metadata"]["name"]), body)
        if endpoint.auth is Auth.NONE:
            await self._api.delete(self._path(SECURITY_POLICY, endpoint_object(name)))
        await self._api.merge(
            self._path(CONFIG_MAP, endpoint_object(name)),
            {"metadata": {"annotations": {MADE_FROM: made_from}}},
            manager=f"{FIELD_MANAGER}-notes",
        )

    async def _provide_version(self, endpoint: Endpoint, version: Version, owner: Object, there: Object | None) -> None:
        name = version_object(endpoint.name, version.name)
        body = manifests.deployment(
            endpoint,
            version,
            namespace=self._namespace,
            owner=owner,
            image_pull_secret=self._workspace.image_pull_secret,
        )
        made_from = _digest(body)
        if there is None or (there["metadata"].get("annotations") or {}).get(MADE_FROM) != made_from:
            service = manifests.service(endpoint.name, version.name, namespace=self._namespace, owner=owner)
            await self._api.apply(self._path(SERVICE, name), service)
            body["metadata"]["annotations"] = {MADE_FROM: made_from}
            there = await self._api.apply(self._path(DEPLOYMENT, name), body)
        runs = there["spec"].get("replicas", 1)
        if runs < version.replicas_at_start or (version.num_replicas and runs != version.num_replicas):
            await self._scale(endpoint.name, version.name, version.replicas_at_start)

    async def _scale(self, endpoint: str, version: str, replicas: int) -> None:
        # Under a manager of its own: applying the Deployment again must not take the number back.
        path = self._path(DEPLOYMENT, version_object(endpoint, version), "scale")
        await self._api.merge(path, {"spec": {"replicas": replicas}}, manager=f"{FIELD_MANAGER}-scale")

    async def _carry_on(self, endpoint: Endpoint) -> None:
        """Do what can be done now, whoever else is at the route."""
        for _ in range(WRITES):
            seen = await view.look(self._api, self._workspace, endpoint)
            if changed := changed_by_hand(seen.route):
                log.warning("%s", changed)
                return
            if await self._work(seen):
                return

    async def _go_on(self, seen: View) -> View:
        """Do what can be done as things were seen; the next look will show whether somebody else was faster."""
        if not seen.has_work:
            return seen
        # Two who wait for two revisions would undo each other's rules.
        newest = await self.endpoint(seen.endpoint.name)
        if newest != seen.endpoint:
            seen = replace(seen, endpoint=newest)
        if seen.has_work:
            await self._work(seen)
        return seen

    async def _work(self, seen: View) -> bool:
        """Give the route the rules that it can have now, or else delete what no router refers to any more.

        Returns:
            False if somebody has changed the route since it was seen: nothing was done.
        """
        if seen.next_rules != seen.rules:
            return await self._write_route(seen.endpoint.name, seen.route, seen.next_rules)
        for name in seen.left_over:
            await self._api.delete(self._path(SERVICE, name))
            # Last, because it is what is found.
            await self._api.delete(self._path(DEPLOYMENT, name))
        return True

    async def _write_route(self, name: str, found: Object | None, rules: Sequence[Object]) -> bool:
        """Write all rules of a route; return False, and write nothing, if somebody has changed it since it was read."""
        note = {DIGEST: routes.digest(rules)}
        if found is None:
            owner = await self._root(name)
            body = manifests.http_route(name, self._parent, rules, note, namespace=self._namespace, owner=owner)
            return await self._api.create(HTTP_ROUTE.path(self._namespace), body) is not None
        metadata: Object = {"annotations": note}
        if routes.without_ours(rules):
            # The endpoint's end must not be the end of others' rules.
            metadata["ownerReferences"] = []
        change = {"metadata": metadata, "spec": {"rules": list(rules)}}
        return await self._api.merge_if_unchanged(self._path(HTTP_ROUTE, route_name(name)), found, change) is not None

    async def _leave_route(self, name: str) -> None:
        path = self._path(HTTP_ROUTE, route_name(name))
        for _ in range(WRITES):
            found = await self._api.find(path)
            if found is None or found["metadata"].get("labels", {}).get(ENDPOINT_LABEL) != name:
                return
            others = routes.without_ours(found["spec"].get("rules") or [])
            if not others:
                await self._api.delete(path)
                return
            change = {
                "metadata": {
                    "annotations": {DIGEST: None},
                    "labels": dict.fromkeys(endpoint_labels(name)),
                    "ownerReferences": [],
                },
                "spec": {"rules": others},
            }
            if await self._api.merge_if_unchanged(path, found, change) is not None:
                return
        raise ConflictError(f"HTTPRoute {name!r} is being changed by others all the time: delete the endpoint again")

    # What is seen

    async def _told(self, status: EndpointStatus, versions: Sequence[VersionStatus]) -> EndpointStatus:
        """Add to some versions their last log lines, and what Kubernetes warns of their pods."""
        if not versions:
            return status
        told = {}
        for one in versions:
            tail = await self._logs(status.name, one.name, view.LOG_TAIL)
            warning = await self._warning(one)
            cause = f"{one.cause}; Kubernetes: {warning}" if one.cause and warning else warning or one.cause
            told[one.name] = one.model_copy(update={"log_tail": tail, "cause": cause})
        return status.model_copy(update={"versions": {**status.versions, **told}})

    async def _warning(self, version: VersionStatus) -> str | None:
        """Return the newest warning of the first pod that is not ready."""
        pod = next((one.name for one in version.replicas if one.state is not ReplicaState.READY), None)
        if pod is None:
            return None
        of_it = f"type=Warning,involvedObject.kind=Pod,involvedObject.name={pod}"
        try:
            return newest_warning(await self._api.items(EVENT.path(self._namespace), fieldSelector=of_it))
        except AccessError:
            return None  # a Role without events only means fewer words

    async def _logs(self, name: str, version: str, tail: int) -> str:
        labels = selector(version_labels(name, version))
        pods = await self._api.items(POD.path(self._namespace), labelSelector=labels)
        lines: list[str] = []
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
            label = f"[{pod['metadata']['name']}] " if len(pods) > 1 else ""
            text = await self._pod_log(pod, tail)
            lines += [label + line for line in text.splitlines()]
        return "\n".join(lines[-tail:])

    async def _pod_log(self, pod: Object, tail: int) -> str:
        path = self._path(POD, pod["metadata"]["name"], "log")
        containers = (pod.get("status") or {}).get("containerStatuses") or [{}]
        # While it waits for its next start, the one that counts is the one that has ended.
        previous = "waiting" in (containers[0].get("state") or {}) and containers[0].get("restartCount", 0) > 0
        query = {"container": manifests.CONTAINER, "tailLines": str(tail), "previous": str(previous).lower()}
        try:
            return (await self._api.request("GET", path, query=query, accept="*/*")).decode(errors="replace")
        except ApiError:
            return ""  # a container that never started has no log

    async def _secret(self, name: str) -> Object:
        found = await self._api.find(self._path(SECRET, endpoint_object(name, "keys")))
        if found is None:
            newest = await self.endpoint(name)
            raise EndpointError(f"endpoint {name!r} has no keys: its auth is {newest.auth.value!r}")
        return found

    # Where things are

    def _path(self, kind: Any, name: str, subresource: str = "") -> str:
        return str(kind.path(self._namespace, name, subresource))

    @property
    def _parent(self) -> Object:
        (namespace, name), listener = self._workspace.gateway_name, self._workspace.gateway_listener
        section = {"sectionName": listener} if listener else {}
        return {"group": GATEWAY.group, "kind": GATEWAY.name, "namespace": namespace, "name": name, **section}

    def _url_base(self, gateway: Object) -> str:
        return self._workspace.endpoint_url or view.address(gateway, self._workspace.gateway_listener)


def _keys(secret: Object) -> Keys:
    import base64

    data: Collection[tuple[str, str]] = (secret.get("data") or {}).items()
    texts = {name: base64.b64decode(value).decode() for name, value in data}
    return Keys(primary=texts["primary"], secondary=texts["secondary"])


def _digest(objects: Any) -> str:
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()
