"""How many replicas each version should have, on disk: a supervisor that starts again starts as many as there were."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from controlled_rollout.autoscaling import Floor
from controlled_rollout.endpoint import Version
from controlled_rollout.target.local import atomic_files
from controlled_rollout.text_file import read_regular_file

__all__ = ["ReplicaNumber", "ReplicaNumbers", "VersionKey"]

log = logging.getLogger(__name__)

FILE_NAME: Final = "replicas.json"


class VersionKey(NamedTuple):
    """A version of an endpoint.

    Attributes:
        endpoint: The endpoint's name.
        version: The version's name.
    """

    endpoint: str
    version: str


class ReplicaNumber(BaseModel):
    """How many replicas an autoscaled version should have.

    Attributes:
        replicas: The number.
        floor: The fewest for a while, as `Floor` writes it; None if nobody has set any.
        why: Why it is this number; None if it was not changed yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: PositiveInt
    floor: str | None = None
    why: str | None = None

    @property
    def parsed_floor(self) -> Floor | None:
        """The floor, read from its text; None if there is none, or its text is damaged."""
        return Floor.parse(self.floor) if self.floor else None


class _Document(BaseModel):
    """The content of an endpoint's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: dict[str, ReplicaNumber]


class ReplicaNumbers:
    """The numbers of replicas of all autoscaled versions, kept in `<endpoint's folder>/replicas.json`.

    A file that is missing, damaged or cannot be written costs no more than a start with fewer replicas.

    Args:
        endpoint_folder: Returns the folder of an endpoint.
    """

    def __init__(self, endpoint_folder: Callable[[str], Path]) -> None:
        self._endpoint_folder = endpoint_folder
        self._numbers: dict[VersionKey, ReplicaNumber] = {}
        self._started: set[VersionKey] = set()

    def at_start(self, key: VersionKey, version: Version) -> int:
        """Return with how many replicas a version starts: those that it had, if this supervisor starts it first."""
        restored = None
        if key not in self._started and version.num_replicas is None:
            restored = self._read_numbers(key.endpoint).get(key.version)
        self._started.add(key)
        if restored is None:
            self._numbers.pop(key, None)
            return version.replicas_at_start
        self._numbers[key] = restored
        return min(version.autoscale_max_replicas, max(version.autoscale_min_replicas, restored.replicas))

    def get(self, key: VersionKey) -> ReplicaNumber | None:
        """Return the number of a version; None if it has none of its own."""
        return self._numbers.get(key)

    def all(self) -> dict[VersionKey, ReplicaNumber]:
        """Return a copy of the numbers of all versions."""
        return dict(self._numbers)

    def keep(self, numbers: Mapping[VersionKey, ReplicaNumber]) -> None:
        """Store these numbers and forget all others; write the files of the endpoints whose numbers have changed."""
        changed = {key.endpoint for key in {*numbers, *self._numbers} if numbers.get(key) != self._numbers.get(key)}
        self._numbers = dict(numbers)
        for endpoint in sorted(changed):
            self._write_numbers(endpoint)

    def _write_numbers(self, endpoint: str) -> None:
        """Write the file of an endpoint; what it says of versions that have not started yet stays."""
        kept = {name: of for name, of in self._read_numbers(endpoint).items() if (endpoint, name) not in self._started}
        own = {key.version: number for key, number in self._numbers.items() if key.endpoint == endpoint}
        document = _Document(versions=kept | own)
        path = self._path(endpoint)
        try:
            if path.parent.is_dir():
                atomic_files.write_atomically(path, document.model_dump_json(indent=1).encode(), durable=False)
        except OSError as error:
            log.warning("%s could not be written (%s): after a restart there may be fewer replicas", path, error)

    def _read_numbers(self, endpoint: str) -> Mapping[str, ReplicaNumber]:
        """Return what the file of an endpoint says; nothing if it cannot be read."""
        with contextlib.suppress(OSError, ValidationError):
            return _Document.model_validate_json(read_regular_file(self._path(endpoint))).versions
        return {}

    def _path(self, endpoint: str) -> Path:
        """Return the path of the file of an endpoint."""
        return self._endpoint_folder(endpoint) / FILE_NAME
