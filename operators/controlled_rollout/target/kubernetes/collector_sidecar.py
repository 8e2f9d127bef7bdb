"""The collector beside a version that collects: a native sidecar, which ends after the model and ships the rest. Pure.

The two containers share the spool and nothing else: the model's has no credential of the storage, and is told none of
the rules by which columns are kept.
"""

import json
from typing import Final

from controlled_rollout.cluster.api import Object
from controlled_rollout.collection_settings import MEGABYTE, Collection
from controlled_rollout.endpoint import Version
from controlled_rollout.workspace import Workspace

__all__ = ["GRACE_S", "RESTRICTED", "add_collector"]

NAME: Final = "collector"
SPOOL: Final = "/var/spool/controlled-rollout"
CREDENTIAL: Final = "/var/run/controlled-rollout/storage"
SALT: Final = "/var/run/controlled-rollout/salt"
# How long the collector goes on shipping after the model has ended.
GRACE_S: Final = 20
# What the collector writes itself, and the records that are being appended while the bound is reached.
SPARE_SPOOL_MB: Final = 64
# What a batch of the collector takes at worst, with a request and an answer of the longest that become rows.
MEMORY_LIMIT: Final = "1536Mi"
RESTRICTED: Final[Object] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def add_collector(pod: Object, metadata: Object, endpoint: str, version: Version, workspace: Workspace) -> None:
    """Add the spool, the collector and what the model's container needs to capture to a version's pod.

    Args:
        pod: The pod's spec; its only container is the model's.
        metadata: The pod's metadata.
        endpoint: The endpoint's name.
        version: The version, which collects.
        workspace: Has the collector's image and its credential.
    """
    collection = version.collected or Collection()
    [model] = pod["containers"]
    spool = {"name": "spool", "mountPath": SPOOL}
    model["env"] = [*model["env"], *_capture_variables(endpoint, version, collection)]
    model["volumeMounts"] = [*model["volumeMounts"], spool]
    collector: Object = {
        "name": NAME,
        "image": workspace.collector_image,
        # What makes it a sidecar: it starts before the model, and ends after it.
        "restartPolicy": "Always",
        "args": ["--spools", SPOOL, "--storage", workspace.storage, "--grace", str(GRACE_S), "--sidecar"],
        "env": [
            {"name": "COLLECTOR_REPLICA", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "COLLECTOR_SPOOL", "value": _spool_settings(endpoint, version.name, collection)},
        ],
        "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": MEMORY_LIMIT}},
        "securityContext": dict(RESTRICTED),
        "volumeMounts": [spool, {"name": "collector-tmp", "mountPath": "/tmp"}],  # noqa: S108 - the container's own
    }
    pod["initContainers"] = [collector]
    pod["volumes"] = [
        *pod["volumes"],
        {"name": "spool", "emptyDir": {"sizeLimit": f"{collection.spool_mb + SPARE_SPOOL_MB}M"}},
        {"name": "collector-tmp", "emptyDir": {"sizeLimit": "256Mi"}},
    ]
    pod["terminationGracePeriodSeconds"] += GRACE_S
    if workspace.collector_secret:
        _mount_secret(pod, collector, "storage-credential", workspace.collector_secret, CREDENTIAL)
        for key in ("connection_string", "sas_token"):
            collector["env"].append({"name": f"AZURE_STORAGE_{key.upper()}_FILE", "value": f"{CREDENTIAL}/{key}"})
        collector["env"].append({"name": "AZURE_STORAGE_CA_FILE", "value": f"{CREDENTIAL}/ca.crt"})
    if workspace.collector_service_account:
        pod["serviceAccountName"] = workspace.collector_service_account
        metadata["labels"] = metadata["labels"] | {"azure.workload.identity/use": "true"}
        # Azure's webhook hands the identity to every container that is not named here.
        metadata["annotations"] = {"azure.workload.identity/skip-containers": model["name"]}
    if collection.salt is not None:
        _mount_secret(pod, collector, "salt", collection.salt.secret, SALT, key=collection.salt.key)


def _capture_variables(endpoint: str, version: Version, collection: Collection) -> list[Object]:
    """Return the variables by which the model's container captures."""
    settings = {
        "CAPTURE_SPOOL": SPOOL,
        "CAPTURE_SHARE": repr(collection.share),
        "CAPTURE_MAX_BODY_BYTES": str(collection.max_body_bytes),
        "CAPTURE_SPOOL_BYTES": str(collection.spool_mb * MEGABYTE),
        "CAPTURE_ENDPOINT": endpoint,
        "CAPTURE_VERSION": version.name,
    }
    return [
        *({"name": name, "value": value} for name, value in settings.items()),
        {"name": "CAPTURE_REPLICA", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]


def _spool_settings(endpoint: str, version: str, collection: Collection) -> str:
    """Return what the collector has to know of the spool, but for the replica's name, which is the pod's."""
    settings = {
        "endpoint": endpoint,
        "version": version,
        "layout": collection.layout,
        "keep": collection.keep,
        "mask": collection.mask,
        "hash": collection.hash,
        "salt_file": None if collection.salt is None else f"{SALT}/{collection.salt.key}",
    }
    # Kubernetes would replace `$(NAME)`; `$$` is a `$`.
    return json.dumps(settings).replace("$", "$$")


def _mount_secret(
    pod: Object, container: Object, name: str, secret: str, folder: str, *, key: str | None = None
) -> None:
    """Mount a Secret, or one of its keys, into one container only."""
    source: Object = {"secretName": secret, "defaultMode": 0o440}
    if key is not None:
        source["items"] = [{"key": key, "path": key}]
    pod["volumes"].append({"name": name, "secret": source})
    container["volumeMounts"].append({"name": name, "mountPath": folder, "readOnly": True})
