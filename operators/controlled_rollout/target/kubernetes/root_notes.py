"""Notes about an endpoint: annotations of its root object, each kind with a field manager of its own."""

from collections.abc import Mapping

from controlled_rollout.cluster.api import FIELD_MANAGER, Api, ApiError, Object
from controlled_rollout.cluster.kinds import CONFIG_MAP
from controlled_rollout.target.kubernetes.names import endpoint_object_name

__all__ = ["notes_of", "write_note"]


async def write_note(api: Api, namespace: str, endpoint: str, name: str, text: str, *, writer: str) -> None:
    """Write a note; do nothing if the endpoint is gone.

    Args:
        api: The cluster.
        namespace: Where the endpoint is.
        endpoint: Its name.
        name: The annotation's name.
        text: What it says.
        writer: What the field manager's name ends with.
    """
    path = CONFIG_MAP.path(namespace, endpoint_object_name(endpoint))
    try:
        await api.merge_patch(path, {"metadata": {"annotations": {name: text}}}, manager=f"{FIELD_MANAGER}-{writer}")
    except ApiError as error:
        if error.status != 404:
            raise


def notes_of(root: Object | None) -> Mapping[str, str]:
    """Return the notes of an endpoint's root object, by name; none if there is no object. Pure."""
    return ((root or {}).get("metadata") or {}).get("annotations") or {}
