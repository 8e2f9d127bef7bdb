"""The bins of a look as the difference to the look before, so that the record grows with time, not with its square.

Every look judges all bins since the rollout began. A line holds only those that the previous look did not have; its
digest covers all of them.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Bin
from controlled_rollout.record.decision import BinDelta

__all__ = ["BinFingerprints", "bins_from_json", "canonical_json"]

# Eight bytes tell two versions of one bin apart; the digest over all of them proves that none is missing.
FINGERPRINT_BYTES: Final = 8


def canonical_json(value: Any) -> bytes:
    """Return a value as JSON bytes that are equal for equal values: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@lru_cache(maxsize=1)
def _bins_adapter() -> TypeAdapter[tuple[Bin, ...]]:
    """Return pydantic's reader and writer of bins, built once because that is slow."""
    return TypeAdapter(tuple[Bin, ...])


def bins_to_json(bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """Return bins as JSON values; fields that have their default are left out."""
    values: list[dict[str, Any]] = _bins_adapter().dump_python(tuple(bins), mode="json", exclude_defaults=True)
    return list(values)


def bins_from_json(values: Iterable[dict[str, Any]]) -> tuple[Bin, ...]:
    """Return the bins that `bins_to_json` wrote.

    Raises:
        EvidenceError: The values are not bins.
    """
    try:
        return _bins_adapter().validate_python(tuple(values))
    except ValidationError as error:
        raise EvidenceError(
            f"the bins cannot be read ({error.error_count()} faults): give a line of the record"
        ) from error


@dataclass(slots=True)
class BinFingerprints:
    """Which bins a series of looks has so far, eight bytes each: small enough to be kept for a thousand gates.

    Attributes:
        fingerprints: The bins' fingerprints, one after the other.
    """

    fingerprints: bytes = b""

    @property
    def digest(self) -> str:
        """A hash of all fingerprints together."""
        return hashlib.blake2b(self.fingerprints, digest_size=8).hexdigest()

    def apply(self, delta: BinDelta) -> None:
        """Apply a delta that was read from the record."""
        self.fingerprints = self.fingerprints[: delta.keep * FINGERPRINT_BYTES] + _fingerprints(delta.add)

    def delta_to(self, bins: Sequence[Bin]) -> BinDelta:
        """Return the delta from the present bins to `bins`, then make those the present ones."""
        values = bins_to_json(bins)
        fingerprints = _fingerprints(values)
        keep = _common_length(self.fingerprints, fingerprints)
        self.fingerprints = fingerprints
        return BinDelta(keep=keep, add=tuple(values[keep:]), digest=self.digest)


def _fingerprints(values: Iterable[dict[str, Any]]) -> bytes:
    """Return the hashes of bins, `FINGERPRINT_BYTES` each, joined."""
    return b"".join(hashlib.blake2b(canonical_json(value), digest_size=FINGERPRINT_BYTES).digest() for value in values)


def _common_length(before: bytes, after: bytes) -> int:
    """Return how many fingerprints two byte strings share at their start."""
    shorter = min(len(before), len(after)) // FINGERPRINT_BYTES
    if before[: shorter * FINGERPRINT_BYTES] == after[: shorter * FINGERPRINT_BYTES]:
        return shorter
    ranges = (slice(index * FINGERPRINT_BYTES, (index + 1) * FINGERPRINT_BYTES) for index in range(shorter))
    return next(index for index, bytes_of in enumerate(ranges) if before[bytes_of] != after[bytes_of])
