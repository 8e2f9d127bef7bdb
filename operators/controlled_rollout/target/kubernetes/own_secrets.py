"""Secrets that versions name in their environment variables, and the collector's: what is stored, what is there."""

from collections.abc import Mapping
from typing import Final

from controlled_rollout.cluster.api import Api
from controlled_rollout.cluster.kinds import MANAGED_BY, SECRET
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.environment_variables import check_secret_values
from controlled_rollout.errors import EndpointError
from controlled_rollout.target import refusals
from controlled_rollout.workspace import Workspace

__all__ = ["check_collector_secret", "check_references", "store"]

# The collector's credentials, and what it may need beside a workload identity.
CREDENTIALS: Final = ("connection_string", "sas_token")
AUTHORITY: Final = "ca.crt"


async def store(api: Api, namespace: str, name: str, values: Mapping[str, str]) -> None:
    """Store values in a Secret; other keys of it stay.

    Args:
        api: The cluster.
        namespace: Where the versions are.
        name: The Secret's name.
        values: The values, by key.

    Raises:
        EndpointError: A name is not valid, a value could be no environment variable, or somebody else has made the
            Secret.
    """
    check_secret_values(name, values)
    path = SECRET.path(namespace, name)
    manifest = {
        "apiVersion": SECRET.version,
        "kind": SECRET.name,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(MANAGED_BY)},
        "type": "Opaque",
        "stringData": dict(values),
    }
    found = await api.find(path)
    if found is None and await api.create(SECRET.path(namespace), manifest) is not None:
        return
    found = found or await api.get(path)
    labels = found["metadata"].get("labels") or {}
    if not MANAGED_BY.items() <= labels.items():
        raise EndpointError(
            f"the Secret {name!r} in namespace {namespace!r} was made by somebody else, and is not changed: choose "
            f"another name, or change it with `kubectl edit secret {name} -n {namespace}`"
        )
    await api.merge_patch(path, {"stringData": dict(values)})


async def check_references(api: Api, namespace: str, endpoint: Endpoint, newest: Endpoint | None) -> None:
    """Check that every key of a Secret that the newest revision does not name yet is there.

    Raises:
        EndpointError: One is not.
    """
    for reference, version in refusals.new_references(endpoint, newest).items():
        secret = await api.find(SECRET.path(namespace, reference.secret))
        keys = None if secret is None else secret.get("data") or {}
        refusals.check_secret_keys(reference, version, keys, f"in namespace {namespace!r}")


async def check_collector_secret(api: Api, workspace: Workspace, endpoint: Endpoint, newest: Endpoint | None) -> None:
    """Check that the collector's Secret is there, with a credential, if a new version collects.

    Raises:
        EndpointError: It is not: the version's pods would wait for it for ever, or could not write to the storage.
    """
    name = workspace.collector_secret
    new = [one for one in endpoint.versions.values() if newest is None or one.name not in newest.versions]
    if name is None or not any(one.collect_model_data for one in new):
        return
    secret = await api.find(SECRET.path(workspace.namespace, name))
    keys = set() if secret is None else set(secret.get("data") or {})
    needed = (*CREDENTIALS, AUTHORITY) if workspace.collector_service_account else CREDENTIALS
    if keys.isdisjoint(needed):
        found = "there is no such Secret" if secret is None else f"it has {', '.join(sorted(keys)) or 'no keys'}"
        raise EndpointError(
            f"the workspace names {name!r} as its collector_secret, and in namespace {workspace.namespace!r} {found}: "
            f"create it with one of the keys {', '.join(needed)} (docs/collected-data.md)"
        )
