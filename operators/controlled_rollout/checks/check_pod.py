"""The pod that checks from where versions run: with a version's labels, account, node selector and proxies.

NetworkPolicies select pods by labels, so the pod has the version's own. So that nobody takes it for a replica, it has
one label more, is never ready (no Service sends requests to it), and has no Deployment as its owner.
"""

import asyncio
import contextlib
import inspect
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Final

from controlled_rollout.checks import probe as probe_program
from controlled_rollout.checks.probe import Destination, Probe
from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import CONFIG_MAP, POD
from controlled_rollout.cluster.pods import pod_problem
from controlled_rollout.endpoint import Endpoint, Version
from controlled_rollout.errors import ControlledRolloutError, TargetUnavailableError, WorkspaceError
from controlled_rollout.polling import until
from controlled_rollout.target.kubernetes.manifests import CONTAINER, deployment, owner_reference
from controlled_rollout.target.kubernetes.names import (
    CHECK_LABEL,
    endpoint_labels,
    endpoint_object_name,
    selector,
    version_labels,
)
from controlled_rollout.workspace import Workspace

__all__ = ["check_pod", "probe_from_pod"]

# Until the pod runs, which includes to pull the image on a node that does not have it.
START_TIMEOUT_S: Final = 60.0
# The API server and the node take a moment each after the probes are over.
END_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.2
NEVER_READY: Final = "controlled-rollout/never-ready"
PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
AUTHORITIES: Final = "/var/run/controlled-rollout/authorities"
# Authorities of destinations come as an annotation that the pod sees as a file: one argument of a program is at most
# 128 KB, all annotations of an object together 256 KB.
TRUSTED: Final = "/var/run/controlled-rollout/trusted"
TRUSTED_ANNOTATION: Final = "controlled-rollout/trusted"
MAX_TRUSTED_BYTES: Final = 200_000


def check_pod(
    endpoint: Endpoint,
    version: Version,
    workspace: Workspace,
    wanted: Sequence[Destination],
    *,
    owner: Object,
    seconds: float,
) -> Object:
    """Return the pod that asks destinations with a version's network identity.

    Args:
        endpoint: The endpoint.
        version: The version: labels, image, account, node selector, tolerations and proxies are its own.
        workspace: Where it runs.
        wanted: What is asked.
        owner: The endpoint's root object: the pod goes with it.
        seconds: How long all destinations together may take.

    Raises:
        WorkspaceError: The authorities that destinations are checked against are too large for a pod.
    """
    trusted = _trusted_authorities(wanted)
    template = deployment(endpoint, version, workspace, owner=owner)["spec"]["template"]
    spec, [model] = template["spec"], template["spec"]["containers"]
    kept = ("securityContext", "serviceAccountName", "nodeSelector", "tolerations", "imagePullSecrets")
    labels = version_labels(endpoint.name, version.name)
    asked = {"destinations": [asdict(_by_file(each, trusted)) for each in wanted], "seconds": seconds}
    container = _container(version.image, model, asked)
    pod: Object = {key: spec[key] for key in kept if key in spec} | {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        # Whoever checks may be killed: the cluster ends the pod by itself.
        "activeDeadlineSeconds": round(START_TIMEOUT_S + seconds + END_TIMEOUT_S),
        "readinessGates": [{"conditionType": NEVER_READY}],
        "affinity": _node_affinity(labels),
        "containers": [container],
    }
    if workspace.collector_secret and version.collected is not None:
        _mount_authorities(pod, container, workspace.collector_secret)
    if trusted:
        _mount_trusted(pod, container, trusted.values())
    return {
        "apiVersion": POD.version,
        "kind": POD.name,
        "metadata": {
            "name": endpoint_object_name(endpoint.name, f"check-{secrets.token_hex(4)}"),
            "namespace": workspace.namespace,
            "labels": template["metadata"]["labels"] | {CHECK_LABEL: "true"},
            "annotations": {
                "azure.workload.identity/skip-containers": CONTAINER,
                **{f"{TRUSTED_ANNOTATION}-{name}": text for text, name in trusted.items()},
            },
            "ownerReferences": [owner_reference(owner) | {"blockOwnerDeletion": False}],
        },
        "spec": pod,
    }


def _container(image: str, model: Object, asked: Object) -> Object:
    """Return the container that asks, with the model's image and the proxies of its container."""
    return {
        "name": CONTAINER,
        "image": image,
        # Passed in: the pod has nothing of this package.
        "command": [
            "python3",
            "-c",
            _escape_dollars(inspect.getsource(probe_program)),
            _escape_dollars(json.dumps(asked)),
        ],
        # Of the model's variables only those that say which way requests take: no secret of the script.
        "env": [each for each in model["env"] if each["name"].lower() in PROXIES],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}},
        "securityContext": dict(model["securityContext"]),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _by_file(destination: Destination, trusted: Mapping[str, str]) -> Destination:
    """Return a destination with the pod's file of its authorities instead of their text."""
    if not destination.authorities:
        return destination
    return replace(destination, authorities="", authorities_file=f"{TRUSTED}/{trusted[destination.authorities]}")


def _trusted_authorities(wanted: Sequence[Destination]) -> dict[str, str]:
    """Return the authorities that destinations are checked against, each once, with the name of its file."""
    found = dict.fromkeys(each.authorities for each in wanted if each.authorities)
    size = sum(len(text.encode()) for text in found)
    if size > MAX_TRUSTED_BYTES:
        raise WorkspaceError(
            f"the file endpoint_ca has {size:,} bytes, and a pod is given {MAX_TRUSTED_BYTES:,} at most: write only "
            "the authority of the endpoints' certificate into it"
        )
    return {text: str(number) for number, text in enumerate(found)}


def _mount_trusted(pod: Object, container: Object, names: Iterable[str]) -> None:
    """Mount the annotations with the authorities as files."""
    items = [
        {"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['{TRUSTED_ANNOTATION}-{name}']"}}
        for name in names
    ]
    pod["volumes"] = [*pod.get("volumes", []), {"name": "trusted", "downwardAPI": {"items": items}}]
    mount = {"name": "trusted", "mountPath": TRUSTED, "readOnly": True}
    container["volumeMounts"] = [*container.get("volumeMounts", []), mount]


def _escape_dollars(text: str) -> str:
    """Return a text with each `$` doubled: Kubernetes replaces `$(NAME)` by a variable, and reads `$$` as `$`."""
    return text.replace("$", "$$")


def _node_affinity(labels: dict[str, str]) -> Object:
    """Return the affinity to a node that runs the version: the image is there, and the node's rules apply."""
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    return {
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    }


def _mount_authorities(pod: Object, container: Object, secret: str) -> None:
    """Mount the certificate of the storage's authority, and nothing else of the collector's Secret."""
    source = {"secretName": secret, "items": [{"key": "ca.crt", "path": "ca.crt"}], "optional": True}
    pod["volumes"] = [{"name": "authorities", "secret": source}]
    container["volumeMounts"] = [{"name": "authorities", "mountPath": AUTHORITIES, "readOnly": True}]
    container["env"] = [*container["env"], {"name": "REQUESTS_CA_BUNDLE", "value": f"{AUTHORITIES}/ca.crt"}]


async def probe_from_pod(
    api: Api, workspace: Workspace, endpoint: Endpoint, version: Version, wanted: Sequence[Destination], seconds: float
) -> list[Probe]:
    """Run the pod, and return what it has found; it is deleted in any case.

    Raises:
        TargetUnavailableError: It did not run, or not to its end; the message says why.
        AccessError: This identity may not create pods there.
    """
    owner = await api.find(CONFIG_MAP.path(workspace.namespace, endpoint_object_name(endpoint.name)))
    if owner is None:
        raise TargetUnavailableError(f"endpoint {endpoint.name!r} has been deleted meanwhile: nothing was checked")
    await _delete_former(api, workspace, endpoint.name)
    body = check_pod(endpoint, version, workspace, wanted, owner=owner, seconds=seconds)
    async with _running_pod(api, workspace.namespace, body) as path:
        return _probes_of(await _log_at_its_end(api, path, seconds))


async def _delete_former(api: Api, workspace: Workspace, endpoint: str) -> None:
    """Delete pods of checks that were killed, once these pods are over."""
    labels = selector({**endpoint_labels(endpoint), CHECK_LABEL: "true"})
    for pod in await api.items(POD.path(workspace.namespace), labelSelector=labels):
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            await api.delete(POD.path(workspace.namespace, pod["metadata"]["name"]))


@asynccontextmanager
async def _running_pod(api: Api, namespace: str, body: Object) -> AsyncIterator[str]:
    """Context manager: create a pod, yield its path, and delete it on exit, also when this is cancelled."""
    path = POD.path(namespace, body["metadata"]["name"])
    try:
        await api.create(POD.path(namespace), body)
        yield path
    finally:
        # A create whose answer was lost may have created it.
        await asyncio.shield(_delete(api, path))


async def _delete(api: Api, path: str) -> None:
    """Delete a pod; if that fails, the cluster ends it by its deadline, and the next check deletes it."""
    with contextlib.suppress(ControlledRolloutError):
        await api.delete(path)


async def _log_at_its_end(api: Api, path: str, seconds: float) -> str:
    """Wait until a pod has ended, and return its log.

    Raises:
        TargetUnavailableError: It does not start, or does not end, or failed.
    """
    seen: Object = {}

    async def is_over() -> bool:
        """Read the pod; return whether waiting for it is over."""
        nonlocal seen
        seen = await api.find(path) or {}
        problem = pod_problem(seen, datetime.now(UTC)) if seen else None
        return not seen or _pod_phase(seen) in ("Succeeded", "Failed") or bool(problem and problem.is_permanent)

    await until(is_over, START_TIMEOUT_S + seconds + END_TIMEOUT_S, interval_s=POLL_S)
    if not seen:
        raise TargetUnavailableError("the pod of the check was deleted by somebody: check again")
    if _pod_phase(seen) != "Succeeded":
        raise TargetUnavailableError(_why_not(seen))
    try:
        return (await api.request("GET", f"{path}/log", query={"container": CONTAINER}, accept="*/*")).decode()
    except ApiError as error:
        raise TargetUnavailableError(f"the pod of the check has ended, and its log cannot be read: {error}") from error


def _pod_phase(pod: Object) -> str:
    """Return a pod's phase."""
    return str((pod.get("status") or {}).get("phase"))


def _why_not(pod: Object) -> str:
    """Return why a pod of a check has not come to its end."""
    if _pod_phase(pod) in ("Pending", "Unknown"):
        problem = pod_problem(pod, None)
        return f"the pod of the check did not start: {problem.message if problem else 'see its events'}"
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended:
            lines = str(ended.get("message") or "").strip().splitlines() or [str(ended.get("reason"))]
            return f"the pod of the check exited with code {ended.get('exitCode')}: {lines[-1][:300]}"
    return f"the pod of the check did not end in time ({(pod.get('status') or {}).get('message') or _pod_phase(pod)})"


def _probes_of(log: str) -> list[Probe]:
    """Return the probes in a pod's log: its last line.

    Raises:
        TargetUnavailableError: The log holds none.
    """
    try:
        documents = json.loads(log.strip().splitlines()[-1])
        return [
            Probe(**{**each, "passed": tuple(each["passed"]), "addresses": tuple(each["addresses"])})
            for each in documents
        ]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise TargetUnavailableError(
            f"the pod of the check has written no result, but {log.strip()[-200:]!r}: check that the version's image "
            "starts Python as python3"
        ) from error
