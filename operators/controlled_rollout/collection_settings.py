"""What is kept of a version's inputs and predictions, and how: the settings of its `collection`. Pure."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from controlled_rollout.environment_variables import SecretReference, check_secret
from controlled_rollout.errors import EndpointError
from controlled_rollout.value import Value, not_a_bool

__all__ = ["Collection"]

# A version is a part of one object with all of an endpoint's versions.
MAX_COLUMNS: Final = 1_000
MAX_CHARACTERS: Final = 32_768
# What a record has besides the bodies of a request and its answer: headers may have 64 KiB.
MAX_HEAD_BYTES: Final = 100_000
MEGABYTE: Final = 1_000_000


def _column_names(names: Any) -> Any:
    """Return names of columns as a tuple; raise for one name that is no list of names."""
    if isinstance(names, str):
        raise ValueError("a list of names of columns is expected, not one text")
    return names


def _is_named(column: str, columns: tuple[str, ...]) -> bool:
    """Return whether columns name a column, on either side plainly or with its collection."""
    return any(name == column or name.endswith(f".{column}") or column.endswith(f".{name}") for name in columns)


Columns = Annotated[tuple[str, ...], BeforeValidator(_column_names)]
Share = Annotated[float, BeforeValidator(not_a_bool), Field(strict=True, gt=0, le=1, allow_inf_nan=False)]


class Collection(Value):
    """What is kept of a version's inputs and predictions, and how.

    A column is named plainly, such as `age`, which means it in inputs and in predictions, or as `inputs.age`.

    Attributes:
        keep: The columns that are kept; None for all.
        mask: Columns whose values are kept as `***`.
        hash: Columns whose values are kept as HMAC-SHA256 with the salt, so that equal values stay equal.
        salt: The key of a secret that has the salt, as `{"secret": …, "key": …}`; needed with `hash`.
        share: The share of requests that is kept, above 0 and at most 1. It is chosen by the request's id.
        layout: The files: `parquet`, or `csv` and `jsonl` as the old service's first and second collector wrote them.
        max_body_bytes: The longest body that is kept; of longer ones type, size and SHA-256 are.
        spool_mb: How much of its disk a replica may use for what is not in storage yet, in megabytes. What comes when
            it is used up is dropped, and counted.
    """

    keep: Columns | None = None
    mask: Columns = ()
    hash: Columns = ()
    salt: SecretReference | None = None
    share: Share = 1.0
    layout: Literal["parquet", "csv", "jsonl"] = "parquet"
    max_body_bytes: Annotated[int, BeforeValidator(not_a_bool), Field(ge=1, le=100_000_000)] = 1_000_000
    spool_mb: Annotated[int, BeforeValidator(not_a_bool), Field(ge=16, le=1_000_000)] = 256

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        """Raise if a column is named twice, or is both left out and changed."""
        lists = {"keep": self.keep or (), "mask": self.mask, "hash": self.hash}
        names = [name for columns in lists.values() for name in columns]
        if len(names) > MAX_COLUMNS or sum(map(len, names)) > MAX_CHARACTERS:
            raise EndpointError(
                f"collection names {len(names):,} columns of {sum(map(len, names)):,} characters, and may name "
                f"{MAX_COLUMNS:,} of {MAX_CHARACTERS:,}: keep all, or name fewer"
            )
        for field, columns in lists.items():
            twice = sorted({name for name in columns if columns.count(name) > 1 or not name.strip()})
            if twice:
                raise EndpointError(f"collection.{field} names {twice} twice, or has an empty name: name a column once")
        if both := [name for name in self.mask if _is_named(name, self.hash)]:
            raise EndpointError(f"collection names {both} in mask and in hash: a column is either masked or hashed")
        changed = (*self.mask, *self.hash) if self.keep is not None else ()
        if absent := [name for name in changed if not _is_named(name, self.keep or ())]:
            raise EndpointError(
                f"collection masks or hashes {absent}, which keep leaves out: name them in keep as well"
            )
        return self

    @model_validator(mode="after")
    def _check_salt(self) -> Self:
        """Raise if there is a salt without columns to hash, or the other way round."""
        if self.hash and self.salt is None:
            raise EndpointError(
                'collection.hash needs a salt, without which values can be guessed: give salt={"secret": …, "key": …}, '
                "stored with `controlled-rollout secret`"
            )
        if self.salt is not None and not self.hash:
            raise EndpointError("collection has a salt and hashes no column: name columns in hash, or leave salt out")
        if self.salt is not None:
            check_secret(self.salt.secret, self.salt.key)
        return self

    @model_validator(mode="after")
    def _check_spool(self) -> Self:
        """Raise if the spool of a replica would not have room for one request."""
        if not self.max_workers:
            raise EndpointError(
                f"collection has max_body_bytes={self.max_body_bytes:,} and spool_mb={self.spool_mb}: a request and "
                "its answer of that size would not fit into it; give a larger spool_mb or a smaller max_body_bytes"
            )
        return self

    @property
    def max_workers(self) -> int:
        """The most workers in one replica whose part of the spool has room for a request and its answer."""
        return self.spool_mb * MEGABYTE // (2 * self.max_body_bytes + MAX_HEAD_BYTES)
