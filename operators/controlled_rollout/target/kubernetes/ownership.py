"""Whose an object is that has a name which an endpoint uses: only the endpoint's own are changed or deleted.

An object is an endpoint's own by any one of these marks, so that an edit of its labels does not disown it:

- the endpoint's label;
- the endpoint's root object as its owner;
- content that was written by our field manager, unless the root object of another endpoint owns it.

Why it takes no more than one: docs/adr/0084.
"""

import asyncio

from controlled_rollout.cluster.api import FIELD_MANAGER, Api, Object
from controlled_rollout.cluster.kinds import (
    BACKEND_TRAFFIC_POLICY,
    CONFIG_MAP,
    DEPLOYMENT,
    HTTP_ROUTE,
    HTTP_ROUTE_FILTER,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    SECRET,
    SECURITY_POLICY,
    SERVICE,
    Kind,
)
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import NameTakenError
from controlled_rollout.target.kubernetes.drift import CONTENT, is_other, last_writer
from controlled_rollout.target.kubernetes.names import (
    ENDPOINT_LABEL,
    OBJECT_PREFIX,
    endpoint_object_name,
    version_object_name,
)
from controlled_rollout.target.kubernetes.route_rules import is_written_by_us

__all__ = ["check_is_own", "check_names_are_free", "find_own", "is_own", "object_names"]


def is_own(resource: Object, endpoint: str) -> bool:
    """Return whether an object is an endpoint's own. Pure.

    Args:
        resource: The object, as the API server gives it by its name.
        endpoint: The endpoint's name.
    """
    roots = _roots(resource)
    if _endpoint_label(resource) == endpoint or endpoint_object_name(endpoint) in roots:
        return True
    if resource.get("kind") == HTTP_ROUTE.name:
        # Rules of others stay in a route that we made, when the endpoint is deleted: then it is theirs.
        return is_written_by_us(resource)
    return not roots and _has_content_of_ours(resource)


def check_is_own(resource: Object, endpoint: str) -> None:
    """Raise NameTakenError if an object is not an endpoint's own; the message says which, whose and what to do. Pure.

    Args:
        resource: The object, as the API server gives it by its name.
        endpoint: The endpoint's name.
    """
    if is_own(resource, endpoint):
        return
    kind, name, namespace = resource["kind"], resource["metadata"]["name"], resource["metadata"]["namespace"]
    asked = f"endpoint {endpoint!r} needs the name of {kind} {name}, and the one in namespace {namespace!r}"
    rename = "no step changes or deletes it; choose another name for the endpoint"
    if others := _other_endpoints(resource):
        raise NameTakenError(f"{asked} belongs to endpoint {others[0]!r}: {rename}")
    raise NameTakenError(
        f"{asked} is not its own ({_writers(resource)}): {rename}, or delete that {kind}; if it is the endpoint's own "
        "and has lost its marks, give it its label back: "
        f"`kubectl label {kind.lower()} {name} -n {namespace} {ENDPOINT_LABEL}={endpoint}`"
    )


async def find_own(api: Api, kind: Kind, namespace: str, name: str, endpoint: str) -> Object | None:
    """Return an endpoint's object; None if there is none.

    Args:
        api: The cluster.
        kind: The object's kind.
        namespace: Its namespace.
        name: Its name.
        endpoint: The endpoint's name.

    Raises:
        NameTakenError: The object of that name is not the endpoint's own.
    """
    found = await api.find(kind.path(namespace, name))
    if found is not None:
        check_is_own(found, endpoint)
    return found


async def check_names_are_free(api: Api, namespace: str, endpoint: Endpoint) -> None:
    """Raise NameTakenError if an object that is not an endpoint's own has a name that a revision of it needs.

    Nothing is changed: it is looked at before the revision is stored.
    """
    paths = [kind.path(namespace, name) for kind, name in object_names(endpoint)]
    for found in await asyncio.gather(*map(api.find, paths)):
        if found is not None:
            check_is_own(found, endpoint.name)


def object_names(endpoint: Endpoint) -> list[tuple[Kind, str]]:
    """Return kind and name of each object that a revision of an endpoint has, except its route. Pure."""
    name = endpoint_object_name(endpoint.name)
    secrets = ["keys", "keys-copy"] if endpoint.auth is Auth.KEY else []
    if endpoint.has_signing_keys:
        secrets.append("signing-keys")
    return [
        *((kind, name) for kind in (CONFIG_MAP, BACKEND_TRAFFIC_POLICY, NETWORK_POLICY, SECURITY_POLICY)),
        *((SECRET, endpoint_object_name(endpoint.name, part)) for part in secrets),
        *((HTTP_ROUTE_FILTER, endpoint_object_name(endpoint.name, part)) for part in ("closed", "unknown")),
        *(
            (kind, version_object_name(endpoint.name, version))
            for version in endpoint.versions
            for kind in (SERVICE, POD_DISRUPTION_BUDGET, DEPLOYMENT)
        ),
    ]


def _endpoint_label(resource: Object) -> str | None:
    """Return the endpoint that an object's labels name."""
    return (resource["metadata"].get("labels") or {}).get(ENDPOINT_LABEL)


def _roots(resource: Object) -> list[str]:
    """Return the names of the endpoints' root objects that own an object."""
    references = resource["metadata"].get("ownerReferences") or []
    return [
        str(one["name"])
        for one in references
        if one["kind"] == CONFIG_MAP.name and one["name"].startswith(OBJECT_PREFIX)
    ]


def _has_content_of_ours(resource: Object) -> bool:
    """Return whether our field manager has written an object's content, not only a note or a number of replicas."""
    return any(
        entry["manager"] == FIELD_MANAGER and any(f"f:{part}" in (entry.get("fieldsV1") or {}) for part in CONTENT)
        for entry in resource["metadata"].get("managedFields") or []
    )


def _other_endpoints(resource: Object) -> list[str]:
    """Return the endpoints that an object seems to belong to, by its label and its owners."""
    label = _endpoint_label(resource)
    return [*([label] if label else []), *(name.removeprefix(OBJECT_PREFIX) for name in _roots(resource))]


def _writers(resource: Object) -> str:
    """Return in words who has written an object, newest first, and when."""
    entries = [
        one for one in resource["metadata"].get("managedFields") or [] if is_other(one) and not one.get("subresource")
    ]
    entries.sort(key=lambda entry: str(entry.get("time", "")), reverse=True)
    writers = ", ".join(dict.fromkeys(map(last_writer, entries)))
    return f"written by {writers}" if writers else "nobody is noted as its writer"
