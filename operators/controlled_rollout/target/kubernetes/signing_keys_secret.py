"""The Secret with an endpoint's signing keys: only steps and who issues tokens read it, the router never does."""

import base64
from typing import Final

from pydantic import ValidationError

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import SECRET
from controlled_rollout.errors import ConflictError
from controlled_rollout.target.kubernetes import manifests
from controlled_rollout.target.kubernetes.drift import Drift
from controlled_rollout.target.kubernetes.names import endpoint_object_name
from controlled_rollout.target.kubernetes.ownership import find_own
from controlled_rollout.tokens import SigningKeys, key_set

__all__ = ["read", "restore", "rotate"]

PART: Final = "signing-keys"


async def restore(
    api: Api, namespace: str, endpoint: str, owner: Object, *, dry_run: bool
) -> tuple[SigningKeys | None, list[Drift]]:
    """Make sure that an endpoint has its signing keys; return them, and what was otherwise.

    Keys that are missing or damaged are made anew: tokens of before are refused then, and callers get new ones.

    Args:
        api: The cluster.
        namespace: Where the endpoint is.
        endpoint: Its name.
        owner: Its root object.
        dry_run: Whether to change nothing.

    Returns:
        The keys; None if there are none and nothing is changed.

    Raises:
        ConflictError: Others change the Secret in this moment, and it holds no keys.
    """
    secret = await _find(api, namespace, endpoint)
    if (keys := _decode_keys(secret)) is not None:
        return keys, []
    name = endpoint_object_name(endpoint, PART)
    drift = Drift(
        f"{SECRET.name} {name}",
        "does not exist" if secret is None else "does not have all of its keys",
        "every step makes new ones; tokens of before are refused then, `keys token` gives new ones",
    )
    if dry_run:
        return None, [drift]
    new = SigningKeys.new()
    if secret is None:
        manifest = manifests.signing_keys_secret(endpoint, new, namespace=namespace, owner=owner)
        created = await api.create(SECRET.path(namespace), manifest)
    else:
        created = await api.merge_if_unchanged(SECRET.path_of(secret), secret, {"stringData": new.model_dump()})
    if created is None:
        # Another writer has made them in this moment. Without keys no step may go on: it would make no policy, and the
        # route would be open to everybody.
        if (keys := await read(api, namespace, endpoint)) is None:
            raise ConflictError(
                f"the signing keys of endpoint {endpoint!r} could not be made, because somebody else changes "
                f"{SECRET.name} {name} in this moment: try again"
            )
        return keys, []
    return new, [drift]


async def read(api: Api, namespace: str, endpoint: str) -> SigningKeys | None:
    """Return an endpoint's signing keys; None if there is no Secret with all of them."""
    return _decode_keys(await _find(api, namespace, endpoint))


async def rotate(api: Api, namespace: str, endpoint: str, before: SigningKeys) -> SigningKeys:
    """Move each signing key a place on, and return all of them.

    Raises:
        ConflictError: They are no longer as they were before: somebody else has rotated or deleted them.
    """
    rotated = before.rotated()
    secret = await _find(api, namespace, endpoint)
    if secret is not None and _decode_keys(secret) == before:
        change = {"stringData": rotated.model_dump()}
        if await api.merge_if_unchanged(SECRET.path_of(secret), secret, change) is not None:
            return rotated
    raise ConflictError(
        f"the signing keys of endpoint {endpoint!r} were to be rotated, and somebody else changed them meanwhile: if "
        "that was another rotation nothing has to be done, otherwise rotate again"
    )


async def _find(api: Api, namespace: str, endpoint: str) -> Object | None:
    """Return the Secret of an endpoint's signing keys; None if there is none.

    Raises:
        NameTakenError: The Secret of that name is somebody else's: who has made it knows its keys.
    """
    return await find_own(api, SECRET, namespace, endpoint_object_name(endpoint, PART), endpoint)


def _decode_keys(secret: Object | None) -> SigningKeys | None:
    """Return the signing keys in a Secret; None if one of them is missing, or is no key."""
    data = (secret.get("data") or {}) if secret else {}
    try:
        texts = {name: base64.b64decode(data.get(name) or "").decode("ascii") for name in SigningKeys.model_fields}
        keys = SigningKeys(**texts)
        key_set(keys)
    except (ValueError, ValidationError):
        return None
    return keys
