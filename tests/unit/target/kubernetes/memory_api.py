"""An API server in memory, with as much of field managers as whose an object is depends on."""

import base64
import copy
import itertools
from collections.abc import Mapping
from typing import Any, Final

from controlled_rollout.cluster.api import FIELD_MANAGER, ApiError, Object
from controlled_rollout.cluster.kinds import CONFIG_MAP, GATEWAY, HTTP_ROUTE, SECURITY_POLICY
from controlled_rollout.target.kubernetes.gateway import CONTROLLER

__all__ = ["MemoryApi"]

TIME: Final = "2026-01-05T12:00:00Z"


class MemoryApi:
    """The objects of a cluster by their paths: no controller runs, and the root object takes what it owns with it."""

    server = "https://cluster.example"

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self._numbers = itertools.count(1)

    @classmethod
    def with_gateway(cls, namespace: str, name: str) -> "MemoryApi":
        """Return an API server that knows the kinds of the Gateway API, and has a Gateway of Envoy Gateway."""
        api = cls()
        gateway = {"metadata": {}, "spec": {"gatewayClassName": "envoy", "listeners": [{"name": "http"}]}}
        api.objects = {
            GATEWAY.path(namespace, name): gateway,
            f"/apis/{GATEWAY.version}/gatewayclasses/envoy": {"spec": {"controllerName": CONTROLLER}},
            **{
                f"/apis/{kind.version}": {"resources": [{"name": kind.plural}]}
                for kind in (HTTP_ROUTE, SECURITY_POLICY)
            },
        }
        return api

    def seed(self, path: str, kind: str, content: Object, *, manager: str, **metadata: Any) -> None:
        """Have somebody make an object."""
        collection, _, name = path.rpartition("/")
        self._store(collection, {"kind": kind, "metadata": {"name": name, **metadata}, **content}, manager)

    async def find(self, path: str) -> Object | None:
        return copy.deepcopy(self.objects.get(path))

    async def get(self, path: str, **query: str) -> Object:
        if "labelSelector" in query:
            return {"items": await self.items(path, **query), "metadata": {"resourceVersion": "1"}}
        found = await self.find(path)
        if found is None:
            raise ApiError(f"there is no {path}", status=404, reason="NotFound")
        return found

    async def items(self, path: str, **query: str) -> list[Object]:
        labels = [pair.split("=") for pair in query.get("labelSelector", "").split(",") if "=" in pair]
        name = query.get("fieldSelector", "=").partition("=")[2]
        found = [one for place, one in self.objects.items() if place.rpartition("/")[0] == path]
        return [
            {part: value for part, value in copy.deepcopy(one).items() if part != "kind"}
            for one in found
            if all(one["metadata"].get("labels", {}).get(key) == value for key, value in labels)
            and name in ("", one["metadata"]["name"])
        ]

    async def create(self, path: str, body: Object, *, dry_run: bool = False) -> Object | None:
        if f"{path}/{body['metadata']['name']}" in self.objects:
            return None
        return copy.deepcopy(body) if dry_run else self._store(path, body, FIELD_MANAGER)

    async def apply(
        self, path: str, body: Object, *, manager: str = FIELD_MANAGER, force: bool = False, dry_run: bool = False
    ) -> Object:
        if path not in self.objects and not dry_run:
            return self._store(path.rpartition("/")[0], body, manager)
        return await self.merge_patch(path, body, manager=manager, dry_run=dry_run)

    async def merge_patch(
        self, path: str, body: Object, *, manager: str = FIELD_MANAGER, dry_run: bool = False
    ) -> Object:
        changed = _merged(await self.get(path), _encoded(body))
        if not dry_run:
            self.objects[path] = _noted(changed, body, manager)
        return copy.deepcopy(changed)

    async def merge_if_unchanged(
        self, path: str, current: Object, body: Object, *, manager: str = FIELD_MANAGER
    ) -> Object | None:
        return await self.merge_patch(path, body, manager=manager)

    async def delete(self, path: str, *, propagation: str = "Background") -> bool:
        root = self.objects.pop(path, None)
        if root is not None and f"/{CONFIG_MAP.plural}/" in path:
            uid = root["metadata"]["uid"]
            owned = {
                place
                for place, one in self.objects.items()
                if any(owner["uid"] == uid for owner in one.get("metadata", {}).get("ownerReferences", []))
            }
            self.objects = {place: one for place, one in self.objects.items() if place not in owned}
        return root is not None

    def _store(self, collection: str, body: Object, manager: str) -> Object:
        """Store a new object and return it."""
        made = _noted(_encoded(copy.deepcopy(body)), body, manager)
        number = str(next(self._numbers))
        namespace = collection.split("/namespaces/")[1].split("/")[0]
        made["metadata"] |= {
            "namespace": namespace,
            "uid": number,
            "resourceVersion": number,
            "creationTimestamp": TIME,
            "generation": 1,
        }
        self.objects[f"{collection}/{made['metadata']['name']}"] = made
        return copy.deepcopy(made)


def _merged(found: Object, patch: Mapping[str, Any]) -> Object:
    """Return an object after a JSON merge patch."""
    merged = dict(found)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = _merged(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _encoded(body: Object) -> Object:
    """Return an object, or a patch, with a Secret's texts as the API server stores them."""
    texts = body.get("stringData")
    if texts is None:
        return body
    data = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
    return {
        **{key: value for key, value in body.items() if key != "stringData"},
        "data": {**body.get("data", {}), **data},
    }


def _noted(resource: Object, written: Object, manager: str) -> Object:
    """Return an object with the field manager that has written a part of it."""
    parts = {"data" if part == "stringData" else part for part in written} - {"apiVersion", "kind"}
    metadata = resource["metadata"]
    others = [one for one in metadata.get("managedFields", []) if one["manager"] != manager]
    before = [one["fieldsV1"] for one in metadata.get("managedFields", []) if one["manager"] == manager]
    fields: Object = {f"f:{part}": {} for part in parts}
    for entry in before:
        fields = {**entry, **fields}
    entries = [*others, {"manager": manager, "time": TIME, "fieldsV1": fields}]
    return {**resource, "metadata": {**metadata, "managedFields": entries}}
