"""Parts: the files that a batch of records becomes, named so that the same batch has the same names again."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from urllib.parse import quote

from controlled_rollout_collector.entries import Entry
from controlled_rollout_collector.rows import MAX_CELLS

__all__ = ["Layout", "Part", "Replica", "make_parts", "path_element", "utc"]

# Of all requests in a part together; one request has fewer.
MAX_PART_COLUMNS: Final = 2_000
# What an element of a path may have: file systems allow 255 bytes, and a container about a thousand for a whole path.
MAX_ELEMENT: Final = 80
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Replica:
    """Whose spool is shipped.

    Attributes:
        endpoint: Its endpoint.
        version: Its version.
        name: Its name, which no other replica of the version has ever had.
        subscription: For the layout of the old service, version 1: the Azure subscription,
        resource_group: the resource group,
        workspace: and the workspace that its paths name.
    """

    endpoint: str
    version: str
    name: str
    subscription: str = "default"
    resource_group: str = "default"
    workspace: str = "default"


@dataclass(frozen=True)
class Part:
    """A file for the storage.

    Attributes:
        name: Its path in the storage.
        content: Its bytes.
    """

    name: str
    content: bytes


class Layout(Protocol):
    """Where parts are and how they are written: the names of the files begin and end with the prefix and the suffix."""

    prefix: str
    suffix: str

    def folder(self, replica: Replica, entry: Entry) -> str:
        """Return the folder in the storage that an entry belongs to."""
        ...

    def encode(self, replica: Replica, entries: Iterable[Entry]) -> bytes:
        """Return the content of a part."""
        ...


def make_parts(entries: Iterable[Entry], replica: Replica, layout: Layout, batch: str) -> Iterator[Part]:
    """Yield the parts of a batch.

    Args:
        entries: What the batch's records have added to collections.
        replica: Whose spool it is.
        layout: The author's choice of layout.
        batch: Names the batch, once for all batches of the replica.
    """
    folders: dict[str, list[Entry]] = {}
    for entry in entries:
        folders.setdefault(layout.folder(replica, entry), []).append(entry)
    for folder, members in folders.items():
        for number, group in enumerate(_groups(members)):
            first_ms = group[0].time_us // 1000
            name = f"{layout.prefix}{first_ms}-{path_element(replica.name)}-{batch}{f'-{number}' if number else ''}"
            yield Part(f"{folder}/{name}{layout.suffix}", layout.encode(replica, group))


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield entries in groups with a bounded number of columns and cells, in which a lacking column takes space too."""
    group: list[Entry] = []
    columns: set[str] = set()
    rows = 0
    for entry in entries:
        more = {name for row in entry.rows for name in row}
        union = len(columns | more)
        if group and (union > MAX_PART_COLUMNS or union * (rows + len(entry.rows)) > MAX_CELLS):
            yield group
            group, columns, rows = [], set(), 0
        group.append(entry)
        columns |= more
        rows += len(entry.rows)
    if group:
        yield group


def path_element(name: str) -> str:
    """Return a name as one element of a path: other characters than those of host names and files are encoded."""
    element = quote(name, safe="")
    if element.endswith("."):
        # `.` and `..` mean something else in a path, and a container's names lose dots at their end.
        element = f"{element[:-1]}%2E"
    element = element or "%00"
    if len(element) > MAX_ELEMENT:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        element = f"{element[: MAX_ELEMENT - 17]}-{digest}"
    return element


def utc(entry: Entry) -> datetime:
    """Return the time of an entry."""
    return EPOCH + timedelta(microseconds=entry.time_us)
