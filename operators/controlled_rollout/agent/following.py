"""Following the objects of one kind: all of them first, page by page, and then every change."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.errors import ControlledRolloutError

__all__ = ["Followed"]

log = logging.getLogger(__name__)

# A page at a time is in memory: an endpoint may have 200 revisions.
PAGE: Final = "50"
PAUSE_S: Final = 2.0
# The API server forgot what came in between.
EXPIRED: Final = 410

T = TypeVar("T")


@dataclass
class Followed(Generic[T]):
    """What is kept of the objects of one kind; what is kept of each is made by `read`.

    Attributes:
        path: The path of the list on the API server.
        labels: Which objects, as a selector.
        key: The name that an object is kept under; objects of one name are one.
        read: What is kept of an object, from it and from what was kept before; None for nothing.
        on_change: Called after each change with the object's name, and what was kept of it before and is now; None for
            nothing. Of what changed while nothing could be watched, it is called when the objects are listed again.
        is_older: Whether an object is older than the one of the same name from which what is kept was made: it and its
            deletion then change nothing.
        items: What is kept, by name; always the same dictionary.
        is_current: Whether all objects are known, and changes are seen.
    """

    path: str
    labels: str
    key: Callable[[Object], str]
    read: Callable[[Object, T | None], T | None]
    on_change: Callable[[str, T | None, T | None], None] = lambda _key, _before, _now: None
    is_older: Callable[[Object, T], bool] = lambda _object, _kept: False
    items: dict[str, T] = field(default_factory=dict)
    is_current: bool = False

    async def run(self, api: Api) -> None:
        """Follow the objects until this is cancelled; list them again when changes were missed."""
        complaint = ""
        while True:
            try:
                version = await self._list(api)
                self.is_current, complaint = True, ""
                while True:
                    query = {"labelSelector": self.labels, "allowWatchBookmarks": "true"}
                    async for event in api.watch(self.path, version, **query):
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            self._apply_change(event["type"], event["object"])
            except ControlledRolloutError as error:
                expired = isinstance(error, ApiError) and error.status == EXPIRED
                if not expired and str(error) != complaint:
                    complaint = str(error)
                    log.warning("%s is not followed: %s", self.path, complaint)
            self.is_current = False
            await asyncio.sleep(PAUSE_S)

    async def _list(self, api: Api) -> str:
        """List all objects, and keep what `read` makes of them; return the version from which they can be watched."""
        kept: dict[str, T] = {}
        query = {"labelSelector": self.labels, "limit": PAGE}
        while True:
            page = await api.get(self.path, **query)
            for item in page.get("items") or []:
                key = self.key(item)
                if key in kept and self.is_older(item, kept[key]):
                    continue
                if (made := self.read(item, kept.get(key, self.items.get(key)))) is not None:
                    kept[key] = made
                else:
                    kept.pop(key, None)
            if not page["metadata"].get("continue"):
                break
            query["continue"] = page["metadata"]["continue"]
        before = dict(self.items)
        self.items.clear()
        self.items.update(kept)
        for key in before.keys() | kept.keys():
            if before.get(key) != kept.get(key):
                self.on_change(key, before.get(key), kept.get(key))
        return str(page["metadata"]["resourceVersion"])

    def _apply_change(self, event: str, changed: Object) -> None:
        """Bring what is kept up to date by one change."""
        key = self.key(changed)
        before = self.items.get(key)
        if before is not None and self.is_older(changed, before):
            return
        made = None if event == "DELETED" else self.read(changed, before)
        if made is None:
            self.items.pop(key, None)
        else:
            self.items[key] = made
        if made != before:
            self.on_change(key, before, made)
