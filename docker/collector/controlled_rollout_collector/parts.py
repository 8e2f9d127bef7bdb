"""Parts: the files that a batch of records becomes, named so that the same batch has the same names again."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from urllib.parse import quote

from controlled_rollout_collector.entries import Entry
from controlled_rollout_collector.rows import MAX_CELLS

__all__ = ["Layout", "Part", "Replica", "make_parts", "path_element", "utc"]

# Of all requests in a part together; one request has fewer.
MAX_PART_COLUMNS: Final = 2_000
# Of all rows in memory together: some hundred bytes each.
MAX_VALUES: Final = 2_000_000
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
    """Yield the parts of a batch; of its entries only so many are in memory at a time.

    Args:
        entries: What the batch's records have added to collections.
        replica: Whose spool it is.
        layout: The author's choice of layout.
        batch: Names the batch, once for all batches of the replica.
    """
    groups: dict[str, _Group] = {}
    numbers: Counter[str] = Counter()

    def part(folder: str) -> Part:
        """Return the part of the group of a folder, which is empty then."""
        group = groups.pop(folder)
        number = numbers[folder]
        numbers[folder] += 1
        first_ms = group.entries[0].time_us // 1000
        name = f"{layout.prefix}{first_ms}-{path_element(replica.name)}-{batch}{f'-{number}' if number else ''}"
        return Part(f"{folder}/{name}{layout.suffix}", _content(layout, replica, group.entries))

    for entry in entries:
        folder = layout.folder(replica, entry)
        if folder in groups and not groups[folder].has_room(entry):
            yield part(folder)
        groups.setdefault(folder, _Group()).add(entry)
        if sum(group.values for group in groups.values()) > MAX_VALUES:
            yield part(max(groups, key=lambda name: groups[name].values))
    yield from map(part, list(groups))


def _content(layout: Layout, replica: Replica, entries: Sequence[Entry]) -> bytes:
    """Return the content of a part, without rows that a layout cannot write: they must not keep back all others."""
    try:
        return layout.encode(replica, entries)
    except (ImportError, MemoryError):
        raise
    except Exception:
        return layout.encode(
            replica, [entry if _can_write(layout, replica, entry) else _without_rows(entry) for entry in entries]
        )


def _can_write(layout: Layout, replica: Replica, entry: Entry) -> bool:
    """Return whether a layout can write an entry."""
    try:
        layout.encode(replica, [entry])
    except Exception:
        return False
    return True


def _without_rows(entry: Entry) -> Entry:
    """Return an entry without its rows and what its script has added: that there was a request is known."""
    return replace(entry, rows=[{}], truncated=True, body=None, fields={})


class _Group:
    """Entries of one part, with a bounded number of columns and cells, in which a lacking column takes space too.

    Attributes:
        entries: The entries.
        values: How many values their rows have.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.values = 0
        self._columns: set[str] = set()
        self._rows = 0

    def has_room(self, entry: Entry) -> bool:
        """Return whether one more entry fits."""
        columns = len(self._columns.union(*entry.rows))
        return columns <= MAX_PART_COLUMNS and columns * (self._rows + len(entry.rows)) <= MAX_CELLS

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        self.entries.append(entry)
        self.values += sum(map(len, entry.rows))
        self._columns.update(*entry.rows)
        self._rows += len(entry.rows)


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
