"""The Secret with an endpoint's keys, and its copy, from which the keys are restored if somebody deletes the Secret.

The Secret is what callers' keys are checked against, and what is believed. Envoy Gateway lets callers in with the value
of each of its entries, whatever the entry's name: one that is neither `primary` nor `secondary` is taken out.

The copy follows the Secret, and never has a key that the Secret had and has no more: before a key is replaced, it is
taken out of the copy.
"""

import base64
from typing import Final, Literal

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import SECRET
from controlled_rollout.errors import ConflictError
from controlled_rollout.target.kubernetes import manifests
from controlled_rollout.target.kubernetes.drift import Drift
from controlled_rollout.target.kubernetes.names import endpoint_object_name
from controlled_rollout.target.kubernetes.ownership import find_own
from controlled_rollout.target.protocol import Keys

__all__ = ["read", "regenerate", "restore"]

ATTEMPTS: Final = 5
NAMES: Final = ("primary", "secondary")


async def restore(api: Api, namespace: str, endpoint: str, owner: Object, *, dry_run: bool) -> list[Drift]:
    """Make sure that an endpoint has its keys, and that their copy is the same; return what was otherwise.

    A key that is missing comes from the copy. Only one that is not there either is made anew: then callers need it.
    Other entries are taken out.

    Args:
        api: The cluster.
        namespace: Where the endpoint is.
        endpoint: Its name.
        owner: Its root object.
        dry_run: Whether to change nothing.

    Raises:
        NameTakenError: A Secret of that name is somebody else's: who has made it knows its keys.
    """
    secret = await _find(api, namespace, endpoint, "keys")
    copy = await _find(api, namespace, endpoint, "keys-copy")
    present, copied = _decode_keys(secret), _decode_keys(copy)
    missing = [name for name in NAMES if name not in present]
    other = _other_entries(secret)
    keys = Keys(**{**Keys.new().model_dump(), **copied, **present})
    if not dry_run:
        if secret is None:
            manifest = manifests.keys_secret(endpoint, keys, namespace=namespace, owner=owner)
            if await api.create(SECRET.path(namespace), manifest) is None:
                return []  # another writer has made it in this moment
        elif missing or other:
            await _write_keys(api, secret, {name: getattr(keys, name) for name in missing})
        await _write_copy(api, namespace, endpoint, copy, keys, owner)
    found = [_missing_keys(endpoint, secret, [name for name in missing if name not in copied])] if missing else []
    return [*found, *([_other_keys(endpoint, other)] if other else [])]


async def read(api: Api, namespace: str, endpoint: str) -> Keys | None:
    """Return an endpoint's keys; None if there is no Secret with both of them."""
    secret = await _find(api, namespace, endpoint, "keys")
    present = _decode_keys(secret)
    return Keys(**present) if set(present) == set(NAMES) else None


async def regenerate(api: Api, namespace: str, endpoint: str, which: Literal["primary", "secondary"]) -> Keys | None:
    """Replace one key, in the Secret and in its copy; return both keys, or None if there is no Secret with both.

    Raises:
        ConflictError: Others change the keys all the time.
    """
    for _ in range(ATTEMPTS):
        secret = await _find(api, namespace, endpoint, "keys")
        copy = await _find(api, namespace, endpoint, "keys-copy")
        present = _decode_keys(secret)
        if secret is None or set(present) != set(NAMES):
            return None
        if copy is not None and which in (copy.get("data") or {}):
            # First: nothing may bring a key back that was replaced.
            await api.merge_patch(SECRET.path_of(copy), {"data": {which: None}})
        changed = await _write_keys(api, secret, {which: getattr(Keys(**present).renewed(which), which)})
        if changed is not None:
            keys = Keys(**_decode_keys(changed))
            if copy is not None:
                await api.merge_patch(SECRET.path_of(copy), {"stringData": keys.model_dump()})
            return keys
    raise ConflictError(
        f"the {which} key of endpoint {endpoint!r} was to be replaced, and others changed the keys at each of "
        f"{ATTEMPTS} attempts: try again"
    )


async def _find(api: Api, namespace: str, endpoint: str, part: str) -> Object | None:
    """Return the Secret of an endpoint's keys, or its copy; None if there is none."""
    return await find_own(api, SECRET, namespace, endpoint_object_name(endpoint, part), endpoint)


async def _write_keys(api: Api, secret: Object, keys: dict[str, str]) -> Object | None:
    """Write keys into the Secret, and take out what is none of both.

    Returns:
        The Secret; None if somebody else has changed it since it was read.
    """
    change = {"data": dict.fromkeys(_other_entries(secret)), "stringData": keys}
    return await api.merge_if_unchanged(SECRET.path_of(secret), secret, change)


async def _write_copy(api: Api, namespace: str, endpoint: str, copy: Object | None, keys: Keys, owner: Object) -> None:
    """Make the copy of the keys the same as the keys."""
    if copy is None:
        manifest = manifests.keys_secret(endpoint, keys, namespace=namespace, owner=owner, part="keys-copy")
        await api.create(SECRET.path(namespace), manifest)
    elif _decode_keys(copy) != keys.model_dump():
        await api.merge_patch(SECRET.path_of(copy), {"stringData": keys.model_dump()})


def _missing_keys(endpoint: str, secret: Object | None, new: list[str]) -> Drift:
    """Return that keys are missing, and whether callers can keep theirs."""
    name = endpoint_object_name(endpoint, "keys")
    found = "does not exist" if secret is None else "does not have both keys"
    if new:
        remedy = f"every step makes new keys: {', '.join(new)}; callers have to be given them (`keys` prints them)"
    else:
        remedy = "every step restores the keys from their copy; callers keep theirs"
    return Drift(f"{SECRET.name} {name}", found, remedy)


def _other_keys(endpoint: str, names: list[str]) -> Drift:
    """Return that the Secret has entries that are no keys of the endpoint, and yet would let callers in."""
    return Drift(
        f"{SECRET.name} {endpoint_object_name(endpoint, 'keys')}",
        f"has other entries than primary and secondary ({', '.join(names)}), and each of them lets callers in",
        "every step takes them out",
    )


def _other_entries(secret: Object | None) -> list[str]:
    """Return the names of a Secret's entries that are none of the endpoint's two keys."""
    return sorted(((secret or {}).get("data") or {}).keys() - set(NAMES))


def _decode_keys(secret: Object | None) -> dict[str, str]:
    """Return the keys that a Secret has, by name; those that are empty or no text are left out."""
    data = (secret.get("data") or {}) if secret else {}
    keys: dict[str, str] = {}
    for name in NAMES:
        try:
            keys[name] = base64.b64decode(data.get(name) or "").decode("ascii")
        except ValueError:
            continue
    return {name: key for name, key in keys.items() if key}
