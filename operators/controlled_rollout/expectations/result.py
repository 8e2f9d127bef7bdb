"""What is asked of the process that validates, and what it answers: values that travel as JSON."""

from datetime import datetime, timedelta
from typing import Final, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from controlled_rollout.expectations.suite import Suite

__all__ = ["Counted", "ExpectationResult", "RowCounts", "Validation", "ValidationRequest"]

MAX_NUMBERS: Final = 20


class ValidationRequest(BaseModel):
    """What to validate.

    Attributes:
        suite: The expectations; those of other collections are left out.
        collection: The collection whose parts these are.
        parts: Parquet files of this machine.
        since, until: Rows of requests that arrived from `since` on and before `until` (None: all later ones).
        bin_width: Count the rows of each bin of this width, one row of each request; None: validate all rows at once.
        max_rows: Where all rows are validated at once: of more rows those of as many requests, by their ids.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: Suite
    collection: str
    parts: tuple[str, ...]
    since: datetime
    until: datetime | None = None
    bin_width: timedelta | None = None
    max_rows: int = Field(default=1_000_000, ge=1)


class RowCounts(BaseModel):
    """How many rows an expectation could be asked of in one bin, and how many of them were unexpected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=0)
    unexpected: int = Field(ge=0)


class Counted(BaseModel):
    """The counts of one collection's row-wise expectations.

    Attributes:
        by_bin: By expectation and number of the bin (how many widths after 1970 it begins).
        columns: The columns of the expectations that some part has.
        faults: What went wrong inside an expectation, by its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by_bin: dict[str, dict[int, RowCounts]] = {}
    columns: frozenset[str] = frozenset()
    faults: dict[str, str] = {}


class ExpectationResult(BaseModel):
    """The result of one expectation on all rows.

    Attributes:
        name: The expectation's.
        success: Whether it is fulfilled; None if it could not be evaluated.
        fault: Why not, such as a missing column; empty if it was.
        rows: How many rows it was asked of; None where it is about the whole.
        unexpected: How many of them were unexpected.
        observed: The value that was observed, where it is about the whole; of many the first and their `number`.
        examples: Some unexpected values with the id of their request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    success: bool | None
    fault: str = ""
    rows: int | None = None
    unexpected: int | None = None
    observed: JsonValue = None
    examples: tuple[tuple[str, JsonValue], ...] = ()

    @property
    def found(self) -> str:
        """What was found, or why nothing was, in words: without values that callers sent, for a log or a record."""
        if self.success is None:
            return self.fault
        if self.rows is not None and self.unexpected is not None:
            rate = f" ({100 * self.unexpected / self.rows:.3g} %)" if self.rows else ""
            return f"{self.unexpected:,} of {self.rows:,} rows are unexpected{rate}"
        if isinstance(self.observed, int | float):
            return f"observed {self.observed:.6g}"
        if isinstance(self.observed, dict) and _are_numbers(values := self.observed.get("values")):
            return f"observed {', '.join(f'{value:.6g}' for value in values)}"
        if isinstance(self.observed, dict) and isinstance(number := self.observed.get("number"), int):
            return f"observed {number:,} values"
        if isinstance(self.observed, list | dict):
            return f"observed {len(self.observed):,} values"
        return "fulfilled" if self.success else "not fulfilled"


def _are_numbers(values: JsonValue) -> TypeGuard[list[float]]:
    """Return whether these are some numbers, such as quantiles."""
    return isinstance(values, list) and 0 < len(values) <= MAX_NUMBERS and {type(one) for one in values} <= {int, float}


class Validation(BaseModel):
    """The results of one collection's expectations on all rows.

    Attributes:
        rows: How many rows were validated.
        part: The part of the requests that they are of, 0 to 1.
        results: One for each expectation of the collection.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    part: float
    results: tuple[ExpectationResult, ...]
