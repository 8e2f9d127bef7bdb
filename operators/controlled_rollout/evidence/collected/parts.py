"""Which files of the storage are parts that a look needs, by their names. Pure."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout.storage import StoredFile

__all__ = ["baseline_parts", "day_prefixes", "parts_since", "state_prefix"]

PARQUET: Final = ".parquet"
# A part's name begins with the time of its first record, in milliseconds since 1970.
BEGINS: Final = re.compile(r"(\d{1,15})-")
# Clocks of the storage and of replicas may differ by so much.
CLOCKS_DIFFER: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)


def state_prefix(endpoint: str, version: str) -> str:
    """Return what the names of the files begin with in which collectors say what a version's replicas have shipped."""
    return f"collected/{endpoint}/{version}/_state/"


def day_prefixes(endpoint: str, version: str, collection: str, *, since: datetime, until: datetime) -> Iterator[str]:
    """Yield what the names of parts begin with, by day: no folder of another day is listed."""
    day, last = (since - CLOCKS_DIFFER).astimezone(UTC).date(), (until + CLOCKS_DIFFER).astimezone(UTC).date()
    while day <= last:
        yield f"collected/{endpoint}/{version}/{collection}/{day:%Y/%m/%d}/"
        day += DAY


def parts_since(files: Iterable[StoredFile], since: datetime) -> list[StoredFile]:
    """Return the parts that may hold requests since a moment: those that were written since then."""
    return [file for file in files if file.name.endswith(PARQUET) and file.modified >= since - CLOCKS_DIFFER]


def baseline_parts(files: Iterable[StoredFile], *, since: datetime, started: datetime) -> list[StoredFile]:
    """Return the parts whose requests may be from before the rollout: their first record is from before it.

    A part that begins later is never among them, whatever a later look finds: the baseline does not change any more.
    """
    return [
        file for file in parts_since(files, since) if (begin := _first_record_time(file)) is None or begin < started
    ]


def _first_record_time(file: StoredFile) -> datetime | None:
    """Return the time of a part's first record; None if its name does not say."""
    match = BEGINS.match(file.name.rpartition("/")[2])
    return datetime.fromtimestamp(int(match[1]) / 1_000, UTC) if match else None
