"""What of a row is kept: columns that are left out, masked, or hashed with a secret salt."""

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from controlled_rollout_collector.rows import Row, Value, json_text

__all__ = ["MASK", "Selection"]

MASK: Final = "***"


@dataclass(frozen=True)
class Selection:
    """The author's rules for columns, applied before anything leaves the machine.

    A rule names a column plainly, `age`, which means it in every collection, or with its collection, `inputs.age`.

    Attributes:
        keep: The columns that are kept; None for all.
        mask: Columns whose values are replaced by `***`.
        hash: Columns whose values are replaced by their HMAC-SHA256.
        salt: The key of the HMAC; needed if `hash` names a column.
    """

    keep: frozenset[str] | None = None
    mask: frozenset[str] = frozenset()
    hash: frozenset[str] = frozenset()
    salt: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError if columns are to be hashed without a salt: a hash of a short value is easily guessed."""
        if self.hash and not self.salt:
            raise ValueError(
                f"the columns {', '.join(sorted(self.hash))} are to be hashed, and the settings name no salt: give the "
                "collection a salt"
            )

    @property
    def has_rules(self) -> bool:
        """Whether there is any rule; bytes that are no rows, to which no rule can be applied, are then not kept."""
        return self.keep is not None or bool(self.mask or self.hash)

    def apply(self, rows: Iterable[Row], collection: str) -> list[Row]:
        """Return rows as they may be stored.

        Args:
            rows: The rows of one request.
            collection: The collection that they belong to.
        """
        if not self.has_rules:
            return list(rows)
        return [self._apply_to_row(row, collection) for row in rows]

    def _apply_to_row(self, row: Row, collection: str) -> Row:
        """Return one row as it may be stored."""
        kept: dict[str, Value] = {}
        for name, value in row.items():
            if self.keep is not None and not _rules_name(self.keep, collection, name):
                continue
            if value is None:
                kept[name] = None
            elif _rules_name(self.hash, collection, name):
                kept[name] = hmac.digest(self.salt, _text_to_hash(value).encode(), "sha256").hex()
            elif _rules_name(self.mask, collection, name):
                kept[name] = MASK
            else:
                kept[name] = value
        return kept

    @classmethod
    def from_settings(cls, settings: Mapping[str, object], salt: bytes) -> "Selection":
        """Return the selection of a version's settings `keep`, `mask` and `hash`, each a list of columns or None.

        Args:
            settings: The settings by name.
            salt: The key of the HMAC.

        Raises:
            ValueError: A setting is no list of texts, or there is no salt for columns to hash.
        """
        keep = settings.get("keep")
        return cls(
            keep=None if keep is None else _columns("keep", keep),
            mask=_columns("mask", settings.get("mask") or []),
            hash=_columns("hash", settings.get("hash") or []),
            salt=salt,
        )


def _columns(setting: str, value: object) -> frozenset[str]:
    """Return the columns that a setting lists; raise ValueError if it is no list of texts."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"the setting {setting} is {value!r}: it has to be a list of column names")
    return frozenset(value)


def _rules_name(columns: frozenset[str], collection: str, name: str) -> bool:
    """Return whether rules name a column, plainly or with its collection."""
    return name in columns or f"{collection}.{name}" in columns


def _text_to_hash(value: Value) -> str:
    """Return the text that is hashed: of equal numbers the same, whether written 1 or 1.0."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json_text(value)
