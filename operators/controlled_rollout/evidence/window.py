"""How evidence is read: the length of a time bin, how late telemetry may arrive, how long the baseline is."""

from datetime import timedelta
from typing import Final

from pydantic import BaseModel, ConfigDict, model_validator

from controlled_rollout.errors import ControlledRolloutError

__all__ = ["EvidenceWindow"]

_DAY: Final = timedelta(days=1)
_MILLISECOND: Final = timedelta(milliseconds=1)


class EvidenceWindow(BaseModel):
    """How a rollout's evidence is read; the same for all looks of one gate.

    Attributes:
        bin_width: The length of a time bin: a part of a day, in whole milliseconds.
        allowed_lag: How late telemetry may arrive: a bin is closed when it ended so long ago.
        baseline_length: How far before the rollout control's latency quantiles are taken from.

    Raises:
        ControlledRolloutError: `bin_width` does not divide a day, or one of the others is negative.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bin_width: timedelta = timedelta(minutes=1)
    allowed_lag: timedelta = timedelta(minutes=3)
    baseline_length: timedelta = timedelta(hours=1)

    @model_validator(mode="after")
    def _check(self) -> "EvidenceWindow":
        """Raise unless `bin_width` divides a day into whole milliseconds and the other durations are not negative."""
        # KQL counts bins from the year 1 and other engines from 1970: for a part of a day the two agree.
        if self.bin_width <= timedelta(0) or _DAY % self.bin_width or self.bin_width % _MILLISECOND:
            raise ControlledRolloutError(
                f"bin_width {self.bin_width} does not divide a day into whole milliseconds: give a part of a day, such "
                "as 10 s or 1 min"
            )
        for name, length in (("allowed_lag", self.allowed_lag), ("baseline_length", self.baseline_length)):
            if length < timedelta(0):
                raise ControlledRolloutError(f"{name} {length.total_seconds():g} s is negative: give 0 or more")
        return self
