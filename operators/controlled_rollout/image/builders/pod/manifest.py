"""The pod that builds an environment image, and its Secret: values in, Kubernetes objects out. No I/O."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from controlled_rollout.addresses import is_loopback
from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.kinds import MANAGED_BY
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.worker.buildah import BUILD_OPTIONS

__all__ = [
    "CONTAINER",
    "NOT_BUILT",
    "NOT_PUSHED",
    "NO_CONTEXT",
    "OWNER",
    "SELECTOR",
    "pod",
    "pod_name",
    "read_template",
    "secret",
    "secret_of",
]

CONTAINER: Final = "build"
LABEL: Final = "controlled-rollout/builds"
LABELS: Final = {**MANAGED_BY, LABEL: "environment"}
SELECTOR: Final = f"{LABEL}=environment"
OWNER: Final = "controlled-rollout/for"

# An orphan ends by itself, whatever happens to whoever began it.
DEADLINE_S: Final = 3600
WORK: Final = "/var/lib/controlled-rollout"
GIVEN: Final = "/run/controlled-rollout"
USERS: Final = "users.json"
CERTIFICATES: Final = "certificates"

# How the script ends when one of its three parts fails.
NO_CONTEXT, NOT_BUILT, NOT_PUSHED = 90, 91, 92

# As images with buildah have it (quay.io/buildah/stable): an ordinary user with a range of sub-ids, who makes a user
# namespace. It takes a node that does not filter these calls, and newuidmap, which alone ever has these rights.
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
if [ -f {GIVEN}/{CERTIFICATES} ]; then export SSL_CERT_FILE={GIVEN}/{CERTIFICATES}; fi
exec buildah unshare sh -c "$BUILD"
"""

BUILD: Final = f"""\
set -eu
container=$(buildah from --quiet --authfile {GIVEN}/{USERS} --tls-verify="$TARGET_TLS" "$CONTEXT") || exit {NO_CONTEXT}
context=$(buildah mount "$container") || exit {NO_CONTEXT}
set -- {" ".join(BUILD_OPTIONS)} --authfile {GIVEN}/{USERS} --tls-verify="$BASE_TLS"
for secret in $SECRETS; do set -- "$@" --secret="id=$secret,src={GIVEN}/$secret"; done
mkdir -p {WORK}/wheels
set -- "$@" --build-arg="BASE_IMAGE=$BASE_IMAGE" --build-arg="PYTHON=$PYTHON" --volume={WORK}/wheels:/run/wheels
buildah build "$@" --tag environment "$context" || exit {NOT_BUILT}
buildah push --authfile {GIVEN}/{USERS} --tls-verify="$TARGET_TLS" environment "docker://$TARGET" || exit {NOT_PUSHED}
"""


def pod_name(order: BuildRequest) -> str:
    """Return the name of the one pod that builds an image: the API server takes it once."""
    return f"build-environment-{order.tag[:32]}"


def pod(
    order: BuildRequest,
    *,
    context: str,
    namespace: str,
    image: str,
    owner: str,
    secret_name: str,
    secrets: Mapping[str, bytes],
    image_pull_secret: str | None = None,
    template: Object | None = None,
) -> Object:
    """Return the pod that builds an image.

    Args:
        order: What is built.
        context: The image that has the build's files.
        namespace: Where it runs.
        image: What it runs: an image with buildah in it.
        owner: Who asked.
        secret_name: The Secret that it waits for.
        secrets: What only the build may know; here only their names count.
        image_pull_secret: The Secret for pulling `image`.
        template: A pod to begin with: its fields count where it has them, lists are joined.
    """
    base = order.base_image.partition("/")[0]
    environment = {
        "BUILD": BUILD,
        "CONTEXT": context,
        "BASE_IMAGE": order.base_image,
        "BASE_TLS": _tls(base),
        "TARGET": f"{order.target}:{order.tag}",
        "TARGET_TLS": _tls(order.target.host),
        "PYTHON": order.python,
        "SECRETS": " ".join(sorted(secrets)),
    }
    container: Object = {
        "name": CONTAINER,
        "image": image,
        "command": ["/bin/sh", "-c", BEGIN],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [
            {"name": "work", "mountPath": WORK},
            {"name": "given", "mountPath": GIVEN, "readOnly": True},
        ],
        "securityContext": {
            # newuidmap is a program with more rights than who calls it: that is how a range of ids is had.
            "allowPrivilegeEscalation": True,
            "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
            "seccompProfile": {"type": "Unconfined"},
            "appArmorProfile": {"type": "Unconfined"},
        },
    }
    made: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(order),
            "namespace": namespace,
            "labels": dict(LABELS),
            "annotations": {OWNER: owner},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_S,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
            },
            "containers": [container],
            "volumes": [
                {"name": "work", "emptyDir": {}},
                {"name": "given", "secret": {"secretName": secret_name, "defaultMode": 0o440}},
            ],
            **({"imagePullSecrets": [{"name": image_pull_secret}]} if image_pull_secret else {}),
        },
    }
    joined: Object = _joined(made, template or {})
    return joined


def secret(name: str, namespace: str, pod: Object, files: Mapping[str, str]) -> Object:
    """Return the Secret that a pod waits for; it goes when the pod goes.

    Args:
        name: Its name.
        namespace: Where both are.
        pod: The pod as the API server has it.
        files: Their content, in base64.
    """
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(LABELS), "ownerReferences": [owner]},
        "immutable": True,
        "data": dict(files),
    }


def secret_of(pod: Object) -> str:
    """Return the name of the Secret that a pod waits for."""
    [name] = [one["secret"]["secretName"] for one in pod["spec"]["volumes"] if one["name"] == "given"]
    return str(name)


def read_template(path: Path) -> Object:
    """Return the pod in a file.

    Raises:
        WorkspaceError: The file cannot be read, or holds no pod.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WorkspaceError(f"builder_pod_template {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or found.get("kind") != "Pod":
        raise WorkspaceError(f"builder_pod_template {path} holds no object of the kind Pod")
    return found


def _joined(ours: Any, theirs: Any) -> Any:
    """Return our object with the fields of the template: named entries of lists are joined, others are added."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        both = {key: _joined(ours[key], theirs[key]) if key in ours else theirs[key] for key in theirs}
        return {**ours, **both}
    if isinstance(ours, list) and isinstance(theirs, list):
        if not all(isinstance(one, dict) and "name" in one for one in (*ours, *theirs)):
            return theirs
        named = {one["name"]: one for one in theirs}
        kept = [_joined(one, named.pop(one["name"], {})) for one in ours]
        return kept + list(named.values())
    return theirs


def _tls(host: str) -> str:
    return str(not is_loopback(host)).lower()
