"""The manifests of a build: its pod and the pod's Secret. Values in, Kubernetes objects out; no I/O."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from controlled_rollout.addresses import is_loopback
from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.kinds import MANAGED_BY
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.image.builders.build_context import BUILDAH_OPTIONS
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.text_file import read_text_file

__all__ = [
    "AUTH_FILE",
    "CONTAINER",
    "NOT_BUILT",
    "NOT_PUSHED",
    "NO_CONTEXT",
    "OWNER",
    "SELECTOR",
    "pod_manifest",
    "pod_name",
    "read_pod_template",
    "secret_manifest",
    "secret_name_of",
]

CONTAINER: Final = "build"
LABEL: Final = "controlled-rollout/builds"
LABELS: Final = {**MANAGED_BY, LABEL: "environment"}
SELECTOR: Final = f"{LABEL}=environment"
OWNER: Final = "controlled-rollout/for"

# Kubernetes ends a pod whose task was killed and never retried.
MAX_LIFETIME_S: Final = 3600
# The layers of one environment, twice; a build that grows without end is evicted, not what runs beside it.
WORK_SIZE: Final = "50Gi"
WORK: Final = "/var/lib/controlled-rollout"
SECRETS_MOUNT: Final = "/run/controlled-rollout"
VOLUME: Final = "secrets"
AUTH_FILE: Final = "auth.json"
CERTIFICATES: Final = "certificates"

# Exit codes of the script when one of its three parts fails.
NO_CONTEXT, NOT_BUILT, NOT_PUSHED = 90, 91, 92

# As in quay.io/buildah/stable: an ordinary user with a range of sub-ids, who makes a user namespace. The node must not
# filter these system calls; only newuidmap uses the capabilities.
USER_ID: Final = 1000
CAPABILITIES: Final = ("SETUID", "SETGID")

BEGIN: Final = f"""\
set -eu
export HOME={WORK} TMPDIR={WORK} BUILDAH_ISOLATION=chroot CONTAINERS_STORAGE_CONF={WORK}/storage.conf
storage() {{
    printf '[storage]\\ndriver = "%s"\\nrunroot = "{WORK}/run"\\ngraphroot = "{WORK}/images"\\n' "$1" \\
        >"$CONTAINERS_STORAGE_CONF"
}}
storage overlay
buildah info >/dev/null 2>&1 || storage vfs
if [ -f {SECRETS_MOUNT}/{CERTIFICATES} ]; then export SSL_CERT_FILE={SECRETS_MOUNT}/{CERTIFICATES}; fi
exec buildah unshare sh -c "$BUILD"
"""

BUILD: Final = f"""\
set -eu
auth={SECRETS_MOUNT}/{AUTH_FILE}
container=$(buildah from --quiet --authfile "$auth" --tls-verify="$TARGET_TLS" "$CONTEXT") || exit {NO_CONTEXT}
context=$(buildah mount "$container") || exit {NO_CONTEXT}
set -- {" ".join(BUILDAH_OPTIONS)} --authfile "$auth" --tls-verify="$BASE_TLS"
for secret in $SECRETS; do set -- "$@" --secret="id=$secret,src={SECRETS_MOUNT}/$secret"; done
set -- "$@" --build-arg="BASE_IMAGE=$BASE_IMAGE" --build-arg="PYTHON=$PYTHON"
buildah build "$@" --tag environment "$context" || exit {NOT_BUILT}
buildah push --authfile "$auth" --tls-verify="$TARGET_TLS" environment "docker://$TARGET" || exit {NOT_PUSHED}
"""


def pod_name(request: BuildRequest) -> str:
    """Return the name of the pod that builds an image. It is derived from the tag: one pod for each image."""
    return f"build-environment-{request.tag[:32]}"


def pod_manifest(
    request: BuildRequest,
    *,
    context_image: str,
    namespace: str,
    builder_image: str,
    owner: str,
    secret_name: str,
    secret_files: Sequence[str],
    image_pull_secret: str | None = None,
    template: Object | None = None,
) -> Object:
    """Return the Kubernetes manifest of the pod that builds an environment image.

    Args:
        request: What is to be built.
        context_image: The image that has the build's files.
        namespace: Where the pod runs.
        builder_image: What it runs: an image with buildah in it.
        owner: The task that builds: a retry with the same owner takes the pod over.
        secret_name: The Secret that the pod waits for.
        secret_files: Names of the secrets that the build may read; their content is only in the Secret.
        image_pull_secret: The Secret for pulling `builder_image`.
        template: A pod whose fields win over these; lists of named entries are joined.
    """
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(request),
            "namespace": namespace,
            "labels": dict(LABELS),
            "annotations": {OWNER: owner},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": MAX_LIFETIME_S,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
            },
            "containers": [_build_container(request, context_image, builder_image, secret_files)],
            "volumes": [
                {"name": "work", "emptyDir": {"sizeLimit": WORK_SIZE}},
                {"name": VOLUME, "secret": {"secretName": secret_name, "defaultMode": 0o440}},
            ],
            **({"imagePullSecrets": [{"name": image_pull_secret}]} if image_pull_secret else {}),
        },
    }
    joined: Object = _merge_template(pod, template or {})
    return joined


def _build_container(
    request: BuildRequest, context_image: str, builder_image: str, secret_files: Sequence[str]
) -> Object:
    """Return the manifest of the build container: image, command, environment variables and volumes."""
    environment = {
        "BUILD": BUILD,
        "CONTEXT": context_image,
        "BASE_IMAGE": request.base_image,
        "BASE_TLS": _tls_verify(request.base_image.partition("/")[0]),
        "TARGET": f"{request.repository}:{request.tag}",
        "TARGET_TLS": _tls_verify(request.repository.host),
        "PYTHON": request.python,
        "SECRETS": " ".join(sorted(secret_files)),
    }
    return {
        "name": CONTAINER,
        "image": builder_image,
        "command": ["/bin/sh", "-c", BEGIN],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [
            {"name": "work", "mountPath": WORK},
            {"name": VOLUME, "mountPath": SECRETS_MOUNT, "readOnly": True},
        ],
        "securityContext": {
            # newuidmap gets its capabilities from its file: without this it could not map a range of ids.
            "allowPrivilegeEscalation": True,
            "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
            "seccompProfile": {"type": "Unconfined"},
            "appArmorProfile": {"type": "Unconfined"},
        },
    }


def secret_manifest(name: str, namespace: str, pod: Object, data: Mapping[str, str]) -> Object:
    """Return the manifest of the Secret that the pod mounts. The pod owns it, so it is deleted with the pod.

    Args:
        name: Its name.
        namespace: Where both are.
        pod: The pod as the API server has it.
        data: Content by file name, in base64.
    """
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(LABELS), "ownerReferences": [owner]},
        "immutable": True,
        "data": dict(data),
    }


def secret_name_of(pod: Object) -> str:
    """Return the name of the Secret that a build pod mounts."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    return str(volumes[VOLUME]["secret"]["secretName"])


def read_pod_template(path: Path) -> Object:
    """Read a pod template from a YAML file, and check that it is one pod.

    Raises:
        WorkspaceError: The file cannot be read, or holds no pod.
    """
    try:
        pod = yaml.safe_load(read_text_file(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise WorkspaceError(f"builder_pod_template {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(pod, dict) or pod.get("kind") != "Pod":
        raise WorkspaceError(f"builder_pod_template {path} holds no object of the kind Pod")
    return pod


def _merge_template(value: Any, template: Any) -> Any:
    """Merge a pod template into a manifest. Lists of named entries are merged by name, all other values replaced."""
    if isinstance(value, dict) and isinstance(template, dict):
        overrides = {
            key: _merge_template(value[key], template[key]) if key in value else template[key] for key in template
        }
        return {**value, **overrides}
    if isinstance(value, list) and isinstance(template, list):
        if not all(isinstance(entry, dict) and "name" in entry for entry in (*value, *template)):
            return template
        named = {entry["name"]: entry for entry in template}
        joined = [_merge_template(entry, named.pop(entry["name"], {})) for entry in value]
        return joined + list(named.values())
    return template


def _tls_verify(host: str) -> str:
    """Return buildah's `--tls-verify` value for a registry host: `false` for a loopback host only."""
    return str(not is_loopback(host)).lower()
